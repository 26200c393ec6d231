//! Files that describe a job to a trainer (Hugging Face TrainingArguments, LLaMA-Factory, Axolotl), read as PyTorch options.

mod axolotl;
mod fields;
mod llama_factory;
mod optim;
mod training_arguments;
mod writing;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use fields::Fields;
pub use writing::{Written, flags, write};

/// Longest file that is read; a job's takes a few KiB.
const LONGEST: usize = 1 << 16;
/// Deepest nesting that is read: libyaml's time grows with its square.
const DEEPEST: usize = 100;

/// Whose file it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Hugging Face `TrainingArguments` (and TRL's extensions) as JSON.
    TrainingArguments,
    /// LLaMA-Factory.
    LlamaFactory,
    /// Axolotl.
    Axolotl,
}

/// A field, and what became of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Note {
    /// Its name.
    pub field: String,
    /// The value that was taken, or passed over.
    pub value: Value,
    /// Why.
    pub why: String,
}

/// What a trainer's file says of a step.
///
/// ```
/// use memfit::spec::trainer;
/// let file = trainer::parse("args.json", r#"{"per_device_train_batch_size": 2, "bf16": true, "deepspeed": "z3.json"}"#)?;
/// assert_eq!((file.options["batch"].as_u64(), file.options["autocast"].as_str()), (Some(2), Some("bf16")));
/// assert_eq!(file.cannot[0].field, "deepspeed");
/// # Ok::<(), memfit::error::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Trainer {
    /// Whose file it is.
    pub kind: Kind,
    /// The model it names.
    pub model: Option<String>,
    /// Options by their names in [`crate::spec::torch::TorchOptions`].
    pub options: Map<String, Value>,
    /// What was taken for what the file leaves open or can only be approximated.
    pub assumed: Vec<Note>,
    /// Fields that do not change the memory of a step, or are not known to.
    pub ignored: Vec<Note>,
    /// Fields that change the memory of a step and cannot be honoured.
    pub cannot: Vec<Note>,
}

impl Kind {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Kind::TrainingArguments => "Hugging Face TrainingArguments",
            Kind::LlamaFactory => "LLaMA-Factory",
            Kind::Axolotl => "Axolotl",
        }
    }

    /// The kind whose own fields are there.
    fn of(map: &Map<String, Value>) -> Kind {
        let any = |keys: &[&str]| keys.iter().any(|key| map.contains_key(*key));
        match () {
            () if any(&["base_model", "micro_batch_size", "sequence_len"]) => Kind::Axolotl,
            () if any(&["finetuning_type", "cutoff_len", "stage", "template"]) => {
                Kind::LlamaFactory
            }
            () => Kind::TrainingArguments,
        }
    }
}

/// Reads a trainer's file; `origin` names it in errors.
///
/// # Errors
/// Where the text is neither JSON nor YAML, holds no fields, or a field that matters has a value of the wrong type.
pub fn parse(origin: &str, text: &str) -> Result<Trainer> {
    let mut fields = Fields::new(mapping(origin, text)?);
    let kind = Kind::of(&fields.left);
    let known = fields.left.len();
    match kind {
        Kind::TrainingArguments => training_arguments::read(&mut fields)?,
        Kind::LlamaFactory => llama_factory::read(&mut fields)?,
        Kind::Axolotl => axolotl::read(&mut fields)?,
    }
    if fields.left.len() == known {
        let why = format!("none of its fields is known to {}", kind.name());
        return Err(Error::file(origin, why, NEXT));
    }
    fields.rest();
    Ok(Trainer {
        kind,
        model: fields.model,
        options: fields.options,
        assumed: fields.assumed,
        ignored: fields.ignored,
        cannot: fields.cannot,
    })
}

const NEXT: &str =
    "give TrainingArguments as JSON, or the YAML file of a LLaMA-Factory or Axolotl run";

/// The fields of a JSON object or a YAML mapping.
fn mapping(origin: &str, text: &str) -> Result<Map<String, Value>> {
    if text.len() > LONGEST {
        let why = format!("longer than {LONGEST} bytes");
        return Err(Error::file(origin, why, NEXT));
    }
    if depth(text) > DEEPEST {
        let why = format!("nested more than {DEEPEST} deep");
        return Err(Error::file(origin, why, NEXT));
    }
    let text = text.trim_start_matches('\u{feff}');
    let value: Value = match text.trim_start().starts_with('{') {
        true => serde_json::from_str(text).or_else(|why| yaml(text).map_err(|_| why.to_string())),
        false => yaml(text),
    }
    .map_err(|why| Error::file(origin, format!("cannot be read: {why}"), NEXT))?;
    match value {
        Value::Object(map) if !map.is_empty() => Ok(map),
        _ => Err(Error::file(origin, "no fields in it", NEXT)),
    }
}

/// How many brackets are open at once at most, quoted ones too.
fn depth(text: &str) -> usize {
    let (mut now, mut most) = (0usize, 0);
    for byte in text.bytes() {
        match byte {
            b'[' | b'{' => now += 1,
            b']' | b'}' => now = now.saturating_sub(1),
            _ => {}
        }
        most = most.max(now);
    }
    most
}

fn yaml(text: &str) -> std::result::Result<Value, String> {
    serde_yaml_ng::from_str(text).map_err(|why| why.to_string())
}
