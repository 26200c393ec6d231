//! Reads a Hugging Face `config.json` into a [`ModelSpec`], strictly.

mod check;
mod families;
mod fields;
mod gguf;
mod rope;

use std::path::Path;

use serde_json::Value;

use crate::error::{Error, Result};
use crate::spec::model::ModelSpec;

pub use gguf::{from_gguf_metadata, from_gguf_path};

/// Reads the text of a `config.json`; `name` is what the model is called from then on.
///
/// ```
/// let text = r#"{"model_type": "gpt2", "vocab_size": 50257, "n_embd": 768, "n_layer": 12, "n_head": 12}"#;
/// let model = memfit::spec::config::parse("mine", text)?;
/// assert_eq!((model.ffn, model.head_dim, model.tied), (3072, 64, true));
/// # Ok::<(), memfit::error::Error>(())
/// ```
///
/// # Errors
/// Where the text is not JSON, a field is missing or cannot be used, or the architecture is not supported.
pub fn parse(name: &str, text: &str) -> Result<ModelSpec> {
    let next = "give the config.json of a Hugging Face model";
    let value: Value = serde_json::from_str(text)
        .map_err(|e| Error::file(name, format!("not valid JSON: {e}"), next))?;
    match value {
        Value::Object(map) => from_map(name, &map),
        _ => Err(Error::file(name, "the JSON is not an object", next)),
    }
}

/// Reads a `config.json`, or the one in a folder; the model is named after the folder or the file.
///
/// # Errors
/// As [`parse`], and where the file cannot be read.
pub fn from_path(path: &Path) -> Result<ModelSpec> {
    let file = match path.is_dir() {
        true => path.join("config.json"),
        false => path.to_path_buf(),
    };
    let text = std::fs::read_to_string(&file).map_err(|e| Error::io(&file, "read", e))?;
    parse(&name_of(&file), &text)
}

/// The model's name: the folder's for `config.json`, the file's stem otherwise.
fn name_of(file: &Path) -> String {
    let stem = |p: &Path| p.file_stem().map(|s| s.to_string_lossy().into_owned());
    let folder = || {
        let name = file.parent()?.file_name()?;
        Some(name.to_string_lossy().into_owned())
    };
    match stem(file) {
        Some(name) if name == "config" => folder().unwrap_or(name),
        Some(name) => name,
        None => "model".to_string(),
    }
}

/// Reads the fields of one model, whatever they were written in.
fn from_map(name: &str, map: &serde_json::Map<String, Value>) -> Result<ModelSpec> {
    let fields = fields::Fields::new(name, map);
    let spec = families::read(&fields)?;
    check::check(&fields, &spec)?;
    Ok(spec)
}
