//! Typed access to the fields of a config, with errors that name model, field, value and next step.

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// Largest size of any one dimension.
const DIMENSION_LIMIT: u64 = 1 << 31;

/// What to do about a field that cannot be used.
const CORRECT: &str = "correct it in the model's config";

/// The fields of one config. A field that is `null` counts as absent.
pub(super) struct Fields<'a> {
    name: &'a str,
    map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    /// The fields of the model called `name`.
    pub(super) fn new(name: &'a str, map: &'a Map<String, Value>) -> Self {
        Fields { name, map }
    }

    /// The model's name.
    pub(super) fn name(&self) -> &str {
        self.name
    }

    /// The value of a field that is there and not null.
    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    /// Whether a field is written at all, if only as null.
    pub(super) fn written(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    /// The object in a field, as fields of their own.
    pub(super) fn object(&self, key: &str) -> Result<Option<Fields<'a>>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Fields::new(self.name, map))),
            Some(other) => Err(self.bad(key, other, "expected an object")),
        }
    }

    /// A required whole number of at least one.
    pub(super) fn dim(&self, key: &str) -> Result<u64> {
        self.opt_dim(key)?.ok_or_else(|| self.missing(key))
    }

    /// A whole number of at least one, or a default.
    pub(super) fn dim_or(&self, key: &str, default: u64) -> Result<u64> {
        Ok(self.opt_dim(key)?.unwrap_or(default))
    }

    /// A whole number of at least one, where the field is there.
    pub(super) fn opt_dim(&self, key: &str) -> Result<Option<u64>> {
        match self.count(key)? {
            Some(0) => Err(self.bad(key, &Value::from(0), "it must be at least 1")),
            other => Ok(other),
        }
    }

    /// A whole number, zero included, where the field is there.
    pub(super) fn count(&self, key: &str) -> Result<Option<u64>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let number = match (value.as_u64(), value.as_f64()) {
            (Some(n), _) => n,
            (None, Some(x)) if x < 0.0 => return Err(self.bad(key, value, "it is negative")),
            (None, Some(x)) if x.fract() != 0.0 => {
                return Err(self.bad(key, value, "it is not a whole number"));
            }
            (None, Some(x)) => x as u64,
            (None, None) => return Err(self.bad(key, value, "expected a whole number")),
        };
        match number > DIMENSION_LIMIT {
            true => Err(self.bad(key, value, "no model is that large (limit 2^31)")),
            false => Ok(Some(number)),
        }
    }

    /// A finite number of at least zero, or a default.
    pub(super) fn float_or(&self, key: &str, default: f64) -> Result<f64> {
        Ok(self.opt_float(key)?.unwrap_or(default))
    }

    /// A finite number of at least zero, where the field is there.
    pub(super) fn opt_float(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match value.as_f64() {
            None => Err(self.bad(key, value, "expected a number")),
            Some(x) if !x.is_finite() => Err(self.bad(key, value, "it is not finite")),
            Some(x) if x < 0.0 => Err(self.bad(key, value, "it is negative")),
            Some(x) => Ok(Some(x)),
        }
    }

    /// A finite number above zero, where the field is there.
    pub(super) fn opt_positive(&self, key: &str) -> Result<Option<f64>> {
        match self.opt_float(key)? {
            Some(0.0) => Err(self.bad(key, &Value::from(0), "it must be above zero")),
            other => Ok(other),
        }
    }

    /// A finite number above zero, or a default.
    pub(super) fn positive_or(&self, key: &str, default: f64) -> Result<f64> {
        Ok(self.opt_positive(key)?.unwrap_or(default))
    }

    /// A required finite number above zero.
    pub(super) fn positive(&self, key: &str) -> Result<f64> {
        self.opt_positive(key)?.ok_or_else(|| self.missing(key))
    }

    /// A dropout rate in [0, 1), or a default.
    pub(super) fn rate_or(&self, key: &str, default: f64) -> Result<f64> {
        let rate = self.float_or(key, default)?;
        match rate < 1.0 {
            true => Ok(rate),
            false => Err(self.unusable(key, rate, "a dropout rate is below 1")),
        }
    }

    /// A truth value, or a default.
    pub(super) fn bool_or(&self, key: &str, default: bool) -> Result<bool> {
        match self.get(key) {
            None => Ok(default),
            Some(Value::Bool(b)) => Ok(*b),
            Some(other) => Err(self.bad(key, other, "expected true or false")),
        }
    }

    /// A text, where the field is there.
    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(other) => Err(self.bad(key, other, "expected a text")),
        }
    }

    /// Refuses a switch that is on.
    pub(super) fn refuse(&self, key: &str, default: bool, refused: bool, why: &str) -> Result<()> {
        match self.bool_or(key, default)? == refused {
            true => Err(self.unsupported(key, refused, why)),
            false => Ok(()),
        }
    }

    /// A required field that is not there.
    pub(super) fn missing(&self, key: &str) -> Error {
        Error::value(
            self.what(key),
            "(missing)",
            "the architecture cannot be known without it",
            "add it to the model's config, or give the config.json the model was published with",
        )
    }

    /// A field whose JSON value cannot be used.
    pub(super) fn bad(&self, key: &str, value: &Value, why: &str) -> Error {
        let text: String = value.to_string().chars().take(60).collect();
        Error::value(self.what(key), text, why, CORRECT)
    }

    /// A field whose value cannot be used beside the others.
    pub(super) fn unusable(&self, key: &str, value: impl std::fmt::Display, why: &str) -> Error {
        Error::value(self.what(key), value, why, CORRECT)
    }

    /// A field that asks for something this program does not do.
    pub(super) fn unsupported(&self, key: &str, value: impl std::fmt::Display, why: &str) -> Error {
        Error::value(
            self.what(key),
            value,
            format!("not supported: {why}"),
            "choose a model without it",
        )
    }

    fn what(&self, key: &str) -> String {
        format!("{}: {key}", self.name)
    }
}
