//! One reader per family; defaults are those of the family's Hugging Face configuration class.

mod decoder;
mod learned;

use super::fields::Fields;
use crate::error::{Error, Result};
use crate::spec::model::{Activation, ModelSpec, Spelling};

/// A reader of one `model_type`.
type Reader = fn(&Fields) -> Result<ModelSpec>;

/// Every `model_type` that is read, and its reader.
const READERS: [(&str, Reader); 10] = [
    ("gpt2", learned::gpt2),
    ("opt", learned::opt),
    ("bert", learned::bert),
    ("llama", decoder::llama),
    ("mistral", decoder::mistral),
    ("mixtral", decoder::mixtral),
    ("qwen2", decoder::qwen2),
    ("qwen3", decoder::qwen3),
    ("gemma2", decoder::gemma2),
    ("phi3", decoder::phi3),
];

/// Activations by the names the configs use.
const ACTIVATIONS: [(&str, Activation); 8] = [
    ("relu", Activation::Relu),
    ("gelu", Activation::Gelu),
    ("gelu_python", Activation::Gelu),
    ("gelu_new", Activation::GeluTanh),
    ("gelu_fast", Activation::GeluTanh),
    ("gelu_pytorch_tanh", Activation::GeluTanh),
    ("silu", Activation::Silu),
    ("swish", Activation::Silu),
];

/// Reads the model with the reader of its `model_type`.
pub(super) fn read(fields: &Fields) -> Result<ModelSpec> {
    let kind = fields
        .text("model_type")?
        .ok_or_else(|| fields.missing("model_type"))?;
    match READERS.iter().find(|(name, _)| *name == kind) {
        Some((_, reader)) => reader(fields),
        None => {
            let known: Vec<&str> = READERS.iter().map(|(name, _)| *name).collect();
            let next = format!("the families read are {}", known.join(", "));
            Err(Error::unknown("model_type", kind, known, next))
        }
    }
}

/// How the activation named in a field is computed.
fn spelling(fields: &Fields, key: &str, default: Spelling) -> Result<Spelling> {
    Ok(match fields.text(key)? {
        None => default,
        Some("gelu_new") => Spelling::GeluNew,
        Some("gelu_fast") => Spelling::GeluFast,
        Some("gelu_python") => Spelling::GeluPython,
        Some(_) => Spelling::Fused,
    })
}

/// The activation named in a field.
fn activation(fields: &Fields, key: &str, default: Activation) -> Result<Activation> {
    let Some(name) = fields.text(key)? else {
        return Ok(default);
    };
    match ACTIVATIONS.iter().find(|(known, _)| *known == name) {
        Some((_, activation)) => Ok(*activation),
        None => {
            let known: Vec<&str> = ACTIVATIONS.iter().map(|(known, _)| *known).collect();
            let next = format!("the activations done are {}", known.join(", "));
            Err(Error::unknown("activation", name, known, next))
        }
    }
}

/// The width of one head where the config does not state it.
fn head_dim(fields: &Fields, hidden: u64, heads: u64) -> Result<u64> {
    match hidden.is_multiple_of(heads) {
        true => Ok(hidden / heads),
        false => {
            let why = format!("it does not divide the hidden size {hidden}");
            Err(fields.unusable("num_attention_heads", heads, &why))
        }
    }
}

/// Two dropout rates that the architecture holds as one.
fn one_rate(fields: &Fields, first: &str, second: &str, default: f64) -> Result<f64> {
    let rate = fields.rate_or(first, default)?;
    let other = fields.rate_or(second, default)?;
    match rate == other {
        true => Ok(rate),
        false => {
            let why = format!("it differs from {first}, {rate}");
            Err(fields.unsupported(second, other, &why))
        }
    }
}
