//! A tiny model of every family, and files of weights for it.

use std::collections::BTreeMap;
use std::path::Path;

use memfit::spec::config;
use memfit::spec::model::ModelSpec;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

/// Families by their `model_type`.
pub const FAMILIES: [&str; 10] = [
    "gpt2", "opt", "bert", "llama", "mistral", "mixtral", "qwen2", "qwen3", "gemma2", "phi3",
];

/// The text of a tiny `config.json`.
pub fn config_text(family: &str) -> String {
    let mut config = match family {
        "gpt2" => json!({"n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 16}),
        "opt" => json!({"ffn_dim": 12, "max_position_embeddings": 16}),
        "bert" => json!({"intermediate_size": 12, "max_position_embeddings": 16}),
        _ => json!({"intermediate_size": 12, "num_key_value_heads": 1, "head_dim": 6}),
    };
    let usual = json!({
        "model_type": family, "vocab_size": 256, "hidden_size": 8, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_local_experts": 3,
    });
    for (key, value) in usual.as_object().unwrap() {
        config[key] = value.clone();
    }
    if family == "llama" {
        config["attention_bias"] = Value::Bool(true);
    }
    config.to_string()
}

/// The tiny model of a family.
pub fn model(family: &str) -> ModelSpec {
    config::parse(family, &config_text(family)).unwrap()
}

/// Tensors by name: shape and values.
pub type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// Writes a safetensors file of singles.
pub fn write_singles(path: &Path, tensors: &Tensors) {
    let bytes: BTreeMap<&String, (Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, (shape, values))| {
            (name, (shape.clone(), bytemuck::cast_slice(values).to_vec()))
        })
        .collect();
    let views = bytes.iter().map(|(name, (shape, bytes))| {
        (
            name.as_str(),
            TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap(),
        )
    });
    safetensors::serialize_to_file(views, None, path).unwrap();
}

/// One value per element that tells every element of every tensor apart: small integers, exact in single precision.
pub fn filled(model: &ModelSpec) -> Tensors {
    let mut tensors = Tensors::new();
    let mut next = 0u32;
    for parameter in memfit::machine::train::names::parameters(model) {
        let mapping = memfit::machine::train::names::sources(model, &parameter).unwrap();
        for piece in mapping.pieces {
            let shape: Vec<usize> = piece.shape.iter().map(|n| *n as usize).collect();
            tensors.entry(piece.tensor).or_insert_with(|| {
                let count = shape.iter().product::<usize>() as u32;
                let values = (next..next + count).map(|i| i as f32).collect();
                next += count;
                (shape, values)
            });
        }
    }
    tensors
}

/// Bytes as numbers, wherever they lie.
pub fn numbers<T: bytemuck::AnyBitPattern>(bytes: &[u8]) -> Vec<T> {
    let parts = bytes.chunks_exact(size_of::<T>());
    parts.map(bytemuck::pod_read_unaligned).collect()
}
