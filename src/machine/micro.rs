//! Micro models of every family: what laws, calibration and agreement run, each in milliseconds.

use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::spec::config;
use crate::spec::model::ModelSpec;

/// Families by their `model_type`.
pub const FAMILIES: [&str; 10] = [
    "llama", "gpt2", "opt", "bert", "mistral", "mixtral", "qwen2", "qwen3", "gemma2", "phi3",
];

/// Sizes of a micro model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Width of the residual stream, a multiple of 8.
    pub hidden: u64,
    /// Layers.
    pub layers: u64,
    /// Rows of the embedding.
    pub vocab: u64,
}

/// The text of a family's micro `config.json`.
///
/// # Errors
/// Where no family has that name.
pub fn config_text(family: &str, size: Size) -> Result<String> {
    let Size {
        hidden,
        layers,
        vocab,
    } = size;
    let ffn = hidden * 11 / 4;
    let mut config = match family {
        "gpt2" => json!({"n_embd": hidden, "n_layer": layers, "n_head": 4, "n_positions": 512}),
        "opt" => json!({"ffn_dim": 4 * hidden, "max_position_embeddings": 512, "dropout": 0.1}),
        "bert" => json!({"intermediate_size": 4 * hidden, "max_position_embeddings": 512}),
        _ if FAMILIES.contains(&family) => json!({
            "intermediate_size": ffn, "num_key_value_heads": 2, "head_dim": hidden / 4,
            "max_position_embeddings": 512, "tie_word_embeddings": family == "qwen2",
        }),
        _ => {
            let next = format!("choose from: {}", FAMILIES.join(", "));
            return Err(Error::unknown("family", family, FAMILIES, next));
        }
    };
    let usual = json!({
        "model_type": family, "vocab_size": vocab, "hidden_size": hidden,
        "num_hidden_layers": layers, "num_attention_heads": 4, "num_local_experts": 4,
        "sliding_window": 32,
    });
    if let (Value::Object(config), Value::Object(usual)) = (&mut config, usual) {
        config.extend(usual);
    }
    Ok(config.to_string())
}

/// A family's micro model.
///
/// # Errors
/// Where no family has that name.
pub fn model(family: &str, size: Size) -> Result<ModelSpec> {
    config::parse(family, &config_text(family, size)?)
}
