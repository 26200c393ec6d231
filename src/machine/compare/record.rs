//! Reads JSON lines into cases; what cannot be read is reported by line and reason, and the rest goes on.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::{Case, oracle, published};

/// Why something cannot be read, in words.
pub(super) type Reason = String;

/// Why a record is not predicted.
pub(super) enum Refusal {
    /// It is whole, and of a kind that is not compared.
    Scope(String),
    /// It cannot be read.
    Bad(Reason),
}

impl From<Reason> for Refusal {
    fn from(reason: Reason) -> Refusal {
        Refusal::Bad(reason)
    }
}

/// Letters of an id that are shown.
const ID: usize = 120;

/// One line of a file of records.
#[derive(Debug, Clone)]
pub struct Line {
    /// Its number, from 1.
    pub number: usize,
    /// The record's name; `line N` where it has none.
    pub id: String,
    /// The record, or why it is none.
    pub case: Result<Case, String>,
}

/// The fields of one object.
pub(super) struct Fields<'a>(pub(super) &'a Map<String, Value>);

impl Fields<'_> {
    /// A field that has to be there.
    pub(super) fn need<T: DeserializeOwned>(&self, key: &str) -> Result<T, Reason> {
        self.opt(key)?
            .ok_or_else(|| format!("the field `{key}` is missing"))
    }

    /// A field that may be missing or null.
    pub(super) fn opt<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, Reason> {
        match self.0.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => T::deserialize(value)
                .map(Some)
                .map_err(|why| format!("the field `{key}`: {why}")),
        }
    }

    /// An object that has to be there.
    pub(super) fn object(&self, key: &str) -> Result<Fields<'_>, Reason> {
        match self.0.get(key) {
            Some(Value::Object(map)) => Ok(Fields(map)),
            None | Some(Value::Null) => Err(format!("the field `{key}` is missing")),
            Some(_) => Err(format!("the field `{key}`: expected an object")),
        }
    }

    /// An object that may be missing or null.
    pub(super) fn opt_object(&self, key: &str) -> Result<Option<Fields<'_>>, Reason> {
        match self.0.get(key) {
            None | Some(Value::Null) => Ok(None),
            _ => self.object(key).map(Some),
        }
    }
}

/// Reads every line that is not empty.
pub fn read(bytes: &[u8]) -> Vec<Line> {
    let lines = (1..).zip(bytes.split(|b| *b == b'\n'));
    let filled = lines.filter(|(_, line)| !line.trim_ascii().is_empty());
    filled.map(|(number, line)| one(number, line)).collect()
}

fn one(number: usize, bytes: &[u8]) -> Line {
    let mut id = format!("line {number}");
    let case = object(bytes).map_err(Refusal::Bad).and_then(|map| {
        let fields = Fields(&map);
        let name: String = fields.need("id")?;
        id = name.chars().take(ID).collect();
        case(number, &id, &fields)
    });
    let case = case.map_err(|refusal| match refusal {
        Refusal::Scope(why) => why,
        Refusal::Bad(why) => format!("line {number}: {why}"),
    });
    Line { number, id, case }
}

fn object(bytes: &[u8]) -> Result<Map<String, Value>, Reason> {
    let text = std::str::from_utf8(bytes).map_err(|_| "not text".to_string())?;
    match serde_json::from_str(text) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err("not a JSON object".into()),
        Err(why) if why.is_eof() => Err(format!("the line ends within the record ({why})")),
        Err(why) => Err(format!("not valid JSON: {why}")),
    }
}

fn case(number: usize, id: &str, fields: &Fields) -> Result<Case, Refusal> {
    let has = |key: &str| fields.0.contains_key(key);
    if has("options") || has("hf_config") || has("measured") {
        Ok(oracle::case(number, id, fields)?)
    } else if has("arch") || has("memory") || has("metric") || has("micro_batch") {
        published::case(number, id, fields)
    } else {
        let known = "`hf_config`, `options` and `measured`, or `arch`, `metric` and `memory`";
        Err(Refusal::Bad(format!(
            "no measured run: it has neither {known}"
        )))
    }
}
