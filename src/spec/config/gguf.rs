//! Reads the architecture from a GGUF file's metadata, by giving its keys the names a `config.json` has.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use candle_core::quantized::gguf_file::{Content, Value as Gguf};
use serde_json::{Map, Value, json};

use super::fields::Fields;
use crate::error::{Error, Result};
use crate::spec::model::ModelSpec;

/// Architectures of GGUF files that are read, as `general.architecture` names them.
const ARCHITECTURES: [&str; 6] = ["llama", "gpt2", "qwen2", "qwen3", "gemma2", "phi3"];

/// Keys after the architecture's prefix, and the config fields they become. The first four must be there.
const KEYS: [(&str, &str); 14] = [
    ("block_count", "num_hidden_layers"),
    ("embedding_length", "hidden_size"),
    ("feed_forward_length", "intermediate_size"),
    ("attention.head_count", "num_attention_heads"),
    ("attention.head_count_kv", "num_key_value_heads"),
    ("attention.key_length", "head_dim"),
    ("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
    ("attention.sliding_window", "sliding_window"),
    ("context_length", "max_position_embeddings"),
    ("rope.freq_base", "rope_theta"),
    ("attn_logit_softcapping", "attn_logit_softcapping"),
    ("final_logit_softcapping", "final_logit_softcapping"),
    ("expert_count", "num_local_experts"),
    ("expert_used_count", "num_experts_per_tok"),
];

/// GPT-2's own names for the same fields.
const GPT2_NAMES: [(&str, &str); 5] = [
    ("num_hidden_layers", "n_layer"),
    ("hidden_size", "n_embd"),
    ("intermediate_size", "n_inner"),
    ("num_attention_heads", "n_head"),
    ("max_position_embeddings", "n_positions"),
];

/// Reads the architecture of the GGUF file at `path`; the model is named after the file.
///
/// # Errors
/// As [`from_gguf_metadata`], and where the file cannot be read or is not GGUF.
pub fn from_gguf_path(path: &Path) -> Result<ModelSpec> {
    let mut file = std::fs::File::open(path).map_err(|e| Error::io(path, "read", e))?;
    let next = "give a complete GGUF file";
    // The reader divides by the file's own alignment, which a damaged file may give as zero.
    let content = catch_unwind(AssertUnwindSafe(|| Content::read(&mut file)))
        .map_err(|_| Error::file(path, "the GGUF header is damaged", next))?
        .map_err(|e| Error::file(path, format!("not readable as GGUF: {e}"), next))?;
    from_gguf_metadata(&super::name_of(path), &content)
}

/// Reads the architecture from a GGUF file's metadata and tensor names.
///
/// # Errors
/// Where a key is missing or cannot be used, or the architecture is not supported.
pub fn from_gguf_metadata(name: &str, content: &Content) -> Result<ModelSpec> {
    super::from_map(name, &as_config(name, content)?)
}

/// The fields of a `config.json` that says the same.
fn as_config(name: &str, content: &Content) -> Result<Map<String, Value>> {
    let arch = architecture(content)?;
    let mut map = Map::new();
    map.insert("model_type".into(), json!(arch));
    for (key, field) in KEYS {
        if let Some(value) = content.metadata.get(&format!("{arch}.{key}")) {
            map.insert(field.into(), number(value));
        }
    }
    for (key, field) in &KEYS[..4] {
        if !map.contains_key(*field) {
            return Err(Fields::new(name, &map).missing(&format!("{arch}.{key}")));
        }
    }
    map.insert("vocab_size".into(), vocabulary(content));
    let has = |tensor: &str| content.tensor_infos.contains_key(tensor);
    let tied = !has("output.weight");
    map.insert("tie_word_embeddings".into(), json!(tied));
    map.insert("attention_bias".into(), json!(has("blk.0.attn_q.bias")));
    particulars(arch, tied, content, &mut map);
    Ok(map)
}

/// The file's architecture, if it is one that is read.
fn architecture(content: &Content) -> Result<&'static str> {
    let named = match content.metadata.get("general.architecture") {
        Some(Gguf::String(arch)) => arch.as_str(),
        _ => "",
    };
    let next = format!(
        "the GGUF architectures read are {}",
        ARCHITECTURES.join(", ")
    );
    ARCHITECTURES
        .into_iter()
        .find(|known| *known == named)
        .ok_or_else(|| Error::unknown("general.architecture", named, ARCHITECTURES, next))
}

/// What one architecture states in its own way; Mistral and Mixtral come as Llama with a window or experts.
fn particulars(arch: &str, tied: bool, content: &Content, map: &mut Map<String, Value>) {
    match arch {
        "gpt2" => gpt2(content, map),
        "gemma2" => gemma2(map),
        "llama" if map.get("num_local_experts").is_some_and(|n| *n != json!(0)) => {
            map.insert("model_type".into(), json!("mixtral"));
        }
        "llama" if map.contains_key("sliding_window") => {
            map.insert("model_type".into(), json!("mistral"));
        }
        _ => {}
    }
    if let Some(scaling) = scaling(arch, tied, content) {
        map.insert("rope_scaling".into(), scaling);
    }
}

/// GPT-2's fields under the names its config has.
fn gpt2(content: &Content, map: &mut Map<String, Value>) {
    for (usual, own) in GPT2_NAMES {
        if let Some(value) = map.get(usual).cloned() {
            map.insert(own.into(), value);
        }
    }
    if let Some(eps) = content.metadata.get("gpt2.attention.layer_norm_epsilon") {
        map.insert("layer_norm_epsilon".into(), number(eps));
    }
}

/// Gemma 2 files leave out the attention's scale: it is the head's width, but hidden / heads in the 27B of 46 layers.
fn gemma2(map: &mut Map<String, Value>) {
    let count = |key: &str| map.get(key).and_then(Value::as_u64).unwrap_or(0);
    let scalar = match count("num_hidden_layers") {
        46 => count("hidden_size").checked_div(count("num_attention_heads")),
        _ => map.get("head_dim").and_then(Value::as_u64),
    };
    if let Some(scalar) = scalar {
        map.insert("query_pre_attn_scalar".into(), json!(scalar));
    }
}

/// The scaling of the rotary frequencies.
///
/// Llama 3.1's rule is stored as a tensor of divisors without its four numbers; those published are
/// used, with factor 32 in the tied models (3.2 1B and 3B) and 8 in the others.
fn scaling(arch: &str, tied: bool, content: &Content) -> Option<Value> {
    let has = |tensor: &str| content.tensor_infos.contains_key(tensor);
    let get = |key: &str| content.metadata.get(&format!("{arch}.rope.scaling.{key}"));
    if has("rope_factors_long.weight") {
        return Some(json!({"type": "longrope"}));
    }
    if has("rope_freqs.weight") && arch == "llama" {
        let factor = if tied { 32.0 } else { 8.0 };
        return Some(json!({
            "type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }));
    }
    match get("type") {
        Some(Gguf::String(kind)) if kind != "none" => {
            Some(json!({"type": kind, "factor": get("factor").map(number)}))
        }
        _ => None,
    }
}

/// Rows of the embedding: its own, else the tokenizer's.
fn vocabulary(content: &Content) -> Value {
    let rows = content
        .tensor_infos
        .get("token_embd.weight")
        .and_then(|info| info.shape.dims().first().copied());
    match (rows, content.metadata.get("tokenizer.ggml.tokens")) {
        (Some(rows), _) => json!(rows),
        (None, Some(Gguf::Array(tokens))) => json!(tokens.len()),
        _ => Value::Null,
    }
}

/// A metadata value as JSON; per-layer lists only where all entries agree.
fn number(value: &Gguf) -> Value {
    match value {
        Gguf::U8(n) => json!(n),
        Gguf::I8(n) => json!(n),
        Gguf::U16(n) => json!(n),
        Gguf::I16(n) => json!(n),
        Gguf::U32(n) => json!(n),
        Gguf::I32(n) => json!(n),
        Gguf::U64(n) => json!(n),
        Gguf::I64(n) => json!(n),
        Gguf::F32(x) => decimal(*x),
        Gguf::F64(x) => json!(x),
        Gguf::Bool(b) => json!(b),
        Gguf::String(s) => json!(s),
        Gguf::Array(items) => match items.iter().map(number).collect::<Vec<_>>() {
            same if same.windows(2).all(|pair| pair[0] == pair[1]) && !same.is_empty() => {
                same[0].clone()
            }
            mixed => Value::Array(mixed),
        },
    }
}

/// A 32-bit float as the decimal it was written as: 1e-5, not 9.999999747378752e-6.
fn decimal(x: f32) -> Value {
    match x.is_finite() {
        true => x
            .to_string()
            .parse::<f64>()
            .map_or(Value::Null, |x| json!(x)),
        false => json!(x.to_string()),
    }
}
