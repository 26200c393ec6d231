//! Reads options from JSON or from `key=value` pairs, naming the key, the value and what is allowed.

use serde_json::{Map, Value, json};

use super::{Lora, Quant, TorchDtype, TorchOptions};
use crate::error::{Error, Result};

/// A value out of a fixed list of names.
pub(super) trait Choice: Copy + 'static {
    /// All values.
    fn all() -> &'static [Self];

    /// The name of one.
    fn name(self) -> &'static str;
}

/// Every key.
const KEYS: [&str; 21] = [
    "task",
    "batch",
    "seq",
    "param_dtype",
    "autocast",
    "attn",
    "checkpointing",
    "optimizer",
    "optimizer_impl",
    "optimizer_in_backward",
    "grad_accum",
    "set_to_none",
    "clip_grad_norm",
    "loss",
    "lora",
    "quant",
    "attention_mask",
    "use_cache",
    "keep_outputs",
    "convert_outputs_fp32",
    "activation_offload",
];

/// The keys inside `lora`.
const LORA_KEYS: [&str; 5] = [
    "lora.r",
    "lora.alpha",
    "lora.dropout",
    "lora.targets",
    "lora.adapter_dtype",
];

/// The keys inside `quant`.
const QUANT_KEYS: [&str; 3] = ["quant.type", "quant.double", "quant.prepare_kbit"];

/// The keys whose value may be null.
const NULLABLE: [&str; 4] = ["autocast", "clip_grad_norm", "lora", "quant"];

/// The members of one object of options. Keys are named in full, `lora.r`, wherever they stand.
struct Members<'a>(&'a Map<String, Value>);

impl<'a> Members<'a> {
    /// The object at `what`, whose keys are all among `known`.
    fn of(what: &str, value: &'a Value, known: &[&'static str]) -> Result<Members<'a>> {
        let Value::Object(map) = value else {
            let why = "expected an object of options";
            return Err(Error::value(
                what,
                value,
                why,
                format!("the keys are {}", known.join(", ")),
            ));
        };
        let prefix = known.first().and_then(|k| k.split_once('.'));
        for key in map.keys() {
            let full = prefix.map_or(key.clone(), |(outer, _)| format!("{outer}.{key}"));
            if !known.contains(&full.as_str()) {
                return Err(unknown_key(&full, known));
            }
        }
        Ok(Members(map))
    }

    fn get(&self, key: &str) -> Option<&'a Value> {
        self.0.get(key.rsplit('.').next().unwrap_or(key))
    }

    /// One of a list of names.
    fn choice<T: Choice>(&self, key: &'static str, default: T) -> Result<T> {
        match self.get(key) {
            None => Ok(default),
            Some(Value::String(name)) => named(key, name),
            Some(other) => Err(Error::value(key, other, "expected a name", allowed::<T>())),
        }
    }

    /// A whole number.
    fn count(&self, key: &str, default: u64) -> Result<u64> {
        let Some(value) = self.get(key) else {
            return Ok(default);
        };
        let why = "expected a whole number";
        let bad = || Error::value(key, value, why, "give a number such as 8");
        value.as_u64().ok_or_else(bad)
    }

    /// A number.
    fn number(&self, key: &str, default: f64) -> Result<f64> {
        let Some(value) = self.get(key) else {
            return Ok(default);
        };
        let bad = || {
            Error::value(
                key,
                value,
                "expected a number",
                "give a number such as 0.05",
            )
        };
        value.as_f64().ok_or_else(bad)
    }

    /// A truth value.
    fn truth(&self, key: &str, default: bool) -> Result<bool> {
        match self.get(key) {
            None => Ok(default),
            Some(Value::Bool(truth)) => Ok(*truth),
            Some(other) => Err(Error::value(
                key,
                other,
                "expected a truth value",
                "give true or false",
            )),
        }
    }

    /// A list of names.
    fn names(&self, key: &str, default: Vec<String>) -> Result<Vec<String>> {
        let Some(value) = self.get(key) else {
            return Ok(default);
        };
        let texts = value.as_array().map(|all| all.iter().map(Value::as_str));
        let texts: Option<Option<Vec<&str>>> = texts.map(Iterator::collect);
        match texts.flatten() {
            Some(texts) => Ok(texts.into_iter().map(str::to_string).collect()),
            None => {
                let why = "expected a list of module names";
                Err(Error::value(
                    key,
                    value,
                    why,
                    "give a list such as [\"q_proj\", \"v_proj\"]",
                ))
            }
        }
    }

    /// Whether a key is there and not null.
    fn some(&self, key: &str) -> Option<&'a Value> {
        self.get(key).filter(|v| !v.is_null())
    }
}

fn unknown_key(key: &str, known: &[&'static str]) -> Error {
    let next = format!("the keys are {}", known.join(", "));
    Error::unknown("option", key, known.iter().copied(), next)
}

/// The value of a name.
fn named<T: Choice>(key: &'static str, name: &str) -> Result<T> {
    let found = T::all().iter().find(|value| value.name() == name);
    let names = T::all().iter().map(|value| value.name());
    let unknown = || Error::unknown(key, name, names, allowed::<T>());
    found.copied().ok_or_else(unknown)
}

fn allowed<T: Choice>() -> String {
    let names: Vec<&str> = T::all().iter().map(|value| value.name()).collect();
    format!("allowed: {}", names.join(", "))
}

/// The options of an object, not yet checked against each other.
pub(super) fn options(value: &Value) -> Result<TorchOptions> {
    let given = Members::of("options", value, &KEYS)?;
    let plain = TorchOptions::default();
    let optimizer = given.choice("optimizer", plain.optimizer)?;
    let usual = optimizer.implementations()[0];
    let autocast = autocast(&given)?;
    let in_backward = given.truth("optimizer_in_backward", plain.optimizer_in_backward)?;
    Ok(TorchOptions {
        task: given.choice("task", plain.task)?,
        batch: given.count("batch", plain.batch)?,
        seq: given.count("seq", plain.seq)?,
        param_dtype: given.choice("param_dtype", plain.param_dtype)?,
        autocast,
        attn: given.choice("attn", plain.attn)?,
        checkpointing: given.choice("checkpointing", plain.checkpointing)?,
        optimizer,
        optimizer_impl: given.choice("optimizer_impl", usual)?,
        optimizer_in_backward: in_backward,
        grad_accum: given.count("grad_accum", plain.grad_accum)?,
        set_to_none: given.truth("set_to_none", plain.set_to_none)?,
        clip_grad_norm: clip(&given, plain.clip_grad_norm.filter(|_| !in_backward))?,
        loss: given.choice("loss", plain.loss)?,
        lora: given.some("lora").map(lora).transpose()?,
        quant: given.some("quant").map(quant).transpose()?,
        attention_mask: given.truth("attention_mask", plain.attention_mask)?,
        use_cache: given.truth("use_cache", plain.use_cache)?,
        keep_outputs: given.truth("keep_outputs", plain.keep_outputs)?,
        convert_outputs_fp32: given.truth("convert_outputs_fp32", autocast.is_some())?,
        activation_offload: given.truth("activation_offload", plain.activation_offload)?,
        habits: plain.habits,
    })
}

fn autocast(given: &Members) -> Result<Option<TorchDtype>> {
    if given.some("autocast").is_none() {
        return Ok(None);
    }
    let dtype = given.choice("autocast", TorchDtype::Bf16)?;
    match dtype {
        TorchDtype::Fp32 => Err(Error::unknown(
            "autocast",
            "fp32",
            [],
            "allowed: bf16, fp16, or null",
        )),
        _ => Ok(Some(dtype)),
    }
}

fn clip(given: &Members, default: Option<f64>) -> Result<Option<f64>> {
    match given.get("clip_grad_norm") {
        Some(Value::Null) => Ok(None),
        Some(_) => given.number("clip_grad_norm", 1.0).map(Some),
        None => Ok(default),
    }
}

fn lora(value: &Value) -> Result<Lora> {
    let given = Members::of("lora", value, &LORA_KEYS)?;
    let plain = Lora::default();
    Ok(Lora {
        r: given.count("lora.r", plain.r)?,
        alpha: given.count("lora.alpha", plain.alpha)?,
        dropout: given.number("lora.dropout", plain.dropout)?,
        targets: given.names("lora.targets", plain.targets)?,
        adapter_dtype: given.choice("lora.adapter_dtype", plain.adapter_dtype)?,
    })
}

fn quant(value: &Value) -> Result<Quant> {
    let given = Members::of("quant", value, &QUANT_KEYS)?;
    let plain = Quant::default();
    Ok(Quant {
        kind: given.choice("quant.type", plain.kind)?,
        double: given.truth("quant.double", plain.double)?,
        prepare_kbit: given.truth("quant.prepare_kbit", plain.prepare_kbit)?,
    })
}

/// The object that `key=value,…` stands for.
pub(super) fn pairs(text: &str) -> Result<Map<String, Value>> {
    let mut map = Map::new();
    if text.trim().is_empty() {
        return Ok(map);
    }
    for pair in text.split(',').map(str::trim) {
        let Some((key, value)) = pair.split_once('=') else {
            let next = "write key=value pairs with commas between them, such as batch=4,seq=2048";
            return Err(Error::value("option", pair, "no `=` in it", next));
        };
        let (key, value) = (key.trim(), value.trim());
        put(&mut map, key, read(key, value))?;
    }
    Ok(map)
}

/// Puts a value where its key says.
fn put(map: &mut Map<String, Value>, key: &str, value: Value) -> Result<()> {
    let twice = || Error::value("option", key, "it is given twice", "give it once");
    let Some((outer, inner)) = key.split_once('.') else {
        return match map.insert(key.to_string(), value) {
            None => Ok(()),
            Some(_) => Err(twice()),
        };
    };
    if !LORA_KEYS.contains(&key) && !QUANT_KEYS.contains(&key) {
        let known: Vec<&'static str> = LORA_KEYS.into_iter().chain(QUANT_KEYS).collect();
        return Err(unknown_key(key, &known));
    }
    match map.entry(outer).or_insert_with(|| json!({})) {
        Value::Object(object) => match object.insert(inner.to_string(), value) {
            None => Ok(()),
            Some(_) => Err(twice()),
        },
        _ => Err(twice()),
    }
}

/// The value a text stands for at a key.
fn read(key: &str, text: &str) -> Value {
    match (key, scalar(text)) {
        ("lora.targets", _) => json!(text.split('+').map(str::trim).collect::<Vec<_>>()),
        (_, Value::String(word))
            if NULLABLE.contains(&key) && ["none", "null"].contains(&word.as_str()) =>
        {
            Value::Null
        }
        ("lora", rank @ Value::Number(_)) => json!({"r": rank}),
        ("lora" | "quant", Value::Bool(true)) => json!({}),
        ("lora" | "quant", Value::Bool(false)) => Value::Null,
        ("quant", kind @ Value::String(_)) => json!({"type": kind}),
        (_, value) => value,
    }
}

/// A number, a truth value, or else a text.
fn scalar(text: &str) -> Value {
    match (text, text.parse::<u64>(), text.parse::<f64>()) {
        ("true", ..) => json!(true),
        ("false", ..) => json!(false),
        (_, Ok(whole), _) => json!(whole),
        (_, _, Ok(number)) if number.is_finite() => json!(number),
        _ => json!(text),
    }
}
