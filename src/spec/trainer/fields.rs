//! The fields of a trainer's file: taken one by one as options, what is left told apart at the end.

use std::fmt::Display;

use serde_json::{Map, Value, json};

use super::Note;
use crate::error::{Error, Result};

/// Fields that change what a step takes and have no counterpart, by the beginnings of their names.
const CANNOT: [(&str, &str); 27] = [
    ("deepspeed", "predicted without DeepSpeed"),
    ("fsdp", "predicted without sharding"),
    ("tensor_parallel", "predicted on one GPU"),
    ("pipeline_parallel", "predicted on one GPU"),
    ("context_parallel", "predicted on one GPU"),
    ("sequence_parallel", "predicted on one GPU"),
    ("n_gpu", "predicted on one GPU"),
    ("_n_gpu", "predicted on one GPU"),
    ("num_gpus", "predicted on one GPU"),
    ("num_processes", "predicted on one GPU"),
    ("world_size", "predicted on one GPU"),
    ("dp_shard_size", "predicted on one GPU"),
    ("dp_replicate_size", "predicted on one GPU"),
    ("parallelism_config", "predicted on one GPU"),
    ("torch_compile", "predicted without torch.compile"),
    ("use_liger_kernel", "predicted with the model's own kernels"),
    (
        "enable_liger_kernel",
        "predicted with the model's own kernels",
    ),
    ("liger_", "predicted with the model's own kernels"),
    ("use_unsloth", "predicted with the model's own kernels"),
    ("unsloth", "predicted with the model's own kernels"),
    ("use_galore", "predicted without GaLore"),
    ("use_apollo", "predicted without Apollo"),
    ("use_badam", "predicted without BAdam"),
    ("use_dora", "predicted as plain LoRA"),
    ("fp8", "predicted without float8"),
    ("auto_find_batch_size", "predicted with the batch as given"),
    (
        "neftune_noise_alpha",
        "predicted without noise on the embeddings",
    ),
];

/// The fields that are left, and what became of the others.
#[derive(Debug, Default)]
pub(super) struct Fields {
    pub(super) left: Map<String, Value>,
    pub(super) model: Option<String>,
    pub(super) options: Map<String, Value>,
    pub(super) assumed: Vec<Note>,
    pub(super) ignored: Vec<Note>,
    pub(super) cannot: Vec<Note>,
}

impl Fields {
    pub(super) fn new(left: Map<String, Value>) -> Fields {
        Fields {
            left,
            ..Fields::default()
        }
    }

    /// A field, which is then no longer left; nothing where it is missing or null.
    pub(super) fn take(&mut self, key: &str) -> Option<Value> {
        self.left.remove(key).filter(|value| !value.is_null())
    }

    /// The first of several names of a field.
    pub(super) fn first(&mut self, keys: &[&'static str]) -> Option<(&'static str, Value)> {
        let found: Vec<_> = keys.iter().map(|key| (*key, self.take(key))).collect();
        found
            .into_iter()
            .find_map(|(key, value)| Some((key, value?)))
    }

    /// A truth value; YAML 1.1's words are understood, and `auto` is yes.
    pub(super) fn truth(&mut self, key: &'static str) -> Result<Option<bool>> {
        let Some(value) = self.take(key) else {
            return Ok(None);
        };
        match (&value, word_of(&value).to_lowercase().as_str()) {
            (_, "true" | "yes" | "on") => Ok(Some(true)),
            (_, "false" | "no" | "off" | "") => Ok(Some(false)),
            (_, "auto") => {
                self.assume(key, true, "`auto` is yes where the GPU can");
                Ok(Some(true))
            }
            _ => Err(wrong(
                key,
                &value,
                "expected a truth value",
                "give true or false",
            )),
        }
    }

    /// A whole number under the first of several names.
    pub(super) fn count(&mut self, keys: &[&'static str]) -> Result<Option<u64>> {
        let Some((key, value)) = self.first(keys) else {
            return Ok(None);
        };
        let whole = |number: f64| {
            (number.fract() == 0.0 && (0.0..9e15).contains(&number)).then_some(number as u64)
        };
        let read = value.as_u64().or_else(|| number_of(&value).and_then(whole));
        let bad = || {
            wrong(
                key,
                &value,
                "expected a whole number",
                "give a number such as 8",
            )
        };
        read.map(Some).ok_or_else(bad)
    }

    /// A number under the first of several names.
    pub(super) fn number(&mut self, keys: &[&'static str]) -> Result<Option<f64>> {
        let Some((key, value)) = self.first(keys) else {
            return Ok(None);
        };
        let bad = || {
            wrong(
                key,
                &value,
                "expected a number",
                "give a number such as 0.05",
            )
        };
        number_of(&value).map(Some).ok_or_else(bad)
    }

    /// A word under the first of several names, in lower case.
    pub(super) fn word(&mut self, keys: &[&'static str]) -> Result<Option<(&'static str, String)>> {
        let Some((key, value)) = self.first(keys) else {
            return Ok(None);
        };
        match value {
            Value::Array(_) | Value::Object(_) => {
                Err(wrong(key, &value, "expected a word", "give its name"))
            }
            _ => Ok(Some((key, word_of(&value).to_lowercase()))),
        }
    }

    /// Module names under the first of several names: a list, or words with commas; `all` is every linear layer.
    pub(super) fn modules(&mut self, keys: &[&'static str]) -> Result<Option<Vec<String>>> {
        let Some((key, value)) = self.first(keys) else {
            return Ok(None);
        };
        let names: Option<Vec<String>> = match &value {
            Value::String(text) => Some(text.split(',').map(|t| t.trim().to_string()).collect()),
            Value::Array(all) => all.iter().map(|v| v.as_str().map(str::to_string)).collect(),
            _ => None,
        };
        let bad = || {
            wrong(
                key,
                &value,
                "expected names of modules",
                "give a list such as [q_proj, v_proj]",
            )
        };
        let names = names.ok_or_else(bad)?;
        let whole = |name: String| match name.as_str() {
            "all" => "all-linear".to_string(),
            _ => name,
        };
        Ok(Some(
            names
                .into_iter()
                .filter(|n| !n.is_empty())
                .map(whole)
                .collect(),
        ))
    }

    /// The value of an option; a dot leads into `lora` or `quant`.
    pub(super) fn set(&mut self, option: &str, value: impl Into<Value>) {
        let value = value.into();
        let Some((outer, inner)) = option.split_once('.') else {
            self.options.insert(option.to_string(), value);
            return;
        };
        let entry = self.options.entry(outer).or_insert_with(|| json!({}));
        if let Value::Object(map) = entry {
            map.insert(inner.to_string(), value);
        }
    }

    /// Sets an option where a value was given.
    pub(super) fn set_some(&mut self, option: &str, value: Option<impl Into<Value>>) {
        if let Some(value) = value {
            self.set(option, value);
        }
    }

    pub(super) fn assume(&mut self, field: &str, value: impl Into<Value>, why: impl Display) {
        self.assumed.push(note(field, value.into(), why));
    }

    pub(super) fn refuse(&mut self, field: &str, value: impl Into<Value>, why: impl Display) {
        self.cannot.push(note(field, value.into(), why));
    }

    /// Tells apart what is left: what cannot be honoured, and what is passed over.
    pub(super) fn rest(&mut self) {
        for (field, value) in std::mem::take(&mut self.left) {
            let known = CANNOT.iter().find(|(start, _)| field.starts_with(start));
            match known.filter(|_| !is_off(&value)) {
                Some((_, why)) => self.cannot.push(note(&field, value, why)),
                None => self.ignored.push(note(
                    &field,
                    value,
                    "not read: not known to change what a step takes",
                )),
            }
        }
    }
}

fn note(field: &str, value: Value, why: impl Display) -> Note {
    Note {
        field: field.to_string(),
        value,
        why: why.to_string(),
    }
}

/// Whether a value turns its field off; one GPU is none too many.
fn is_off(value: &Value) -> bool {
    match value {
        Value::Number(number) => number.as_f64().is_some_and(|n| n <= 1.0),
        Value::Object(map) => map.values().all(is_nothing),
        other => is_nothing(other),
    }
}

fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => {
            let text = text.trim().to_lowercase();
            ["", "false", "no", "off", "none"].contains(&text.as_str())
        }
        Value::Array(all) => all.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::Bool(true) => false,
    }
}

/// A scalar as its text.
pub(super) fn word_of(value: &Value) -> String {
    match value {
        Value::String(text) => text.trim().to_string(),
        other => other.to_string(),
    }
}

/// A number, or a text that is one (`1e-4` is a text to YAML 1.1).
fn number_of(value: &Value) -> Option<f64> {
    let read = value
        .as_f64()
        .or_else(|| value.as_str()?.trim().parse().ok());
    read.filter(|number| number.is_finite())
}

pub(super) fn wrong(key: &str, value: &Value, why: &str, next: &str) -> Error {
    let shown: String = value.to_string().chars().take(60).collect();
    Error::value(format!("trainer field `{key}`"), shown, why, next)
}
