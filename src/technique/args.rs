//! Arguments of a choice: `key=value` text with typed readers.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Card;
use crate::error::{Error, Result};

/// Arguments by key.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Args(pub BTreeMap<String, String>);

impl Args {
    /// Arguments from pairs.
    pub fn new(pairs: &[(&str, &str)]) -> Args {
        Args(
            pairs
                .iter()
                .map(|(k, v)| (k.to_string(), v.to_string()))
                .collect(),
        )
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Refuses keys that `card` does not list.
    ///
    /// # Errors
    /// Naming the key and the nearest known one.
    pub fn check(&self, card: &Card) -> Result<()> {
        let known = || card.arguments.iter().map(|a| a.key);
        match self.0.keys().find(|key| !known().any(|k| k == *key)) {
            None => Ok(()),
            Some(key) => {
                let all: Vec<&str> = known().collect();
                let next = format!(
                    "`{}` takes: {}",
                    card.name,
                    if all.is_empty() {
                        "no arguments".to_string()
                    } else {
                        all.join(", ")
                    }
                );
                Err(Error::unknown("argument", key, known(), next))
            }
        }
    }

    /// The value of `key`, or the default `card` gives it.
    pub fn text<'a>(&'a self, card: &Card, key: &str) -> &'a str {
        let default = card
            .arguments
            .iter()
            .find(|a| a.key == key)
            .map_or("", |a| a.default);
        self.0.get(key).map_or(default, String::as_str)
    }

    /// A number, within `range`.
    ///
    /// # Errors
    /// Where it cannot be read or lies outside.
    pub fn number<T: FromStr + PartialOrd + fmt::Display + Copy>(
        &self,
        card: &Card,
        key: &str,
        range: (T, T),
    ) -> Result<T> {
        let text = self.text(card, key);
        let next = format!("give a number from {} to {}", range.0, range.1);
        let what = || format!("{} of `{}`", key, card.name);
        let value: T = text
            .parse()
            .map_err(|_| Error::value(what(), text, "not a number", next.clone()))?;
        match value >= range.0 && value <= range.1 {
            true => Ok(value),
            false => Err(Error::value(what(), text, "out of range", next)),
        }
    }

    /// One of `words`.
    ///
    /// # Errors
    /// Where it is another, naming the nearest.
    pub fn word(
        &self,
        card: &Card,
        key: &'static str,
        words: &[&'static str],
    ) -> Result<&'static str> {
        let text = self.text(card, key);
        words.iter().find(|w| **w == text).copied().ok_or_else(|| {
            Error::unknown(
                key,
                text,
                words.iter().copied(),
                format!("`{}` takes {key} = {}", card.name, words.join(" | ")),
            )
        })
    }
}

impl fmt::Display for Args {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<String> = self.0.iter().map(|(k, v)| format!("{k}={v}")).collect();
        f.write_str(&parts.join(","))
    }
}
