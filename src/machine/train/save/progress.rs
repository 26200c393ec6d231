//! `memfit.json`: how far a run has come, and what it needs to go on as if it had never stopped.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize};

use crate::error::{Error, Result};

/// The version of the format written.
const VERSION: u32 = 1;

/// How far a run has come.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// The version of this format.
    pub version: u32,
    /// Optimizer steps done.
    pub step: u64,
    /// The seed of the run.
    pub seed: u64,
    /// Tokens trained on so far.
    pub tokens_seen: u64,
    /// The loss of each step done; what is not finite is kept as NaN.
    #[serde(deserialize_with = "losses")]
    pub losses: Vec<f32>,
    /// Step and loss of each evaluation done.
    #[serde(default, deserialize_with = "evaluations")]
    pub evaluations: Vec<(u64, f32)>,
    /// The loss scale of the next step.
    pub loss_scale: f32,
    /// Steps in a row whose gradients were finite.
    pub finite_steps: u64,
    /// Steps skipped because their gradients were not finite.
    pub skipped_steps: u64,
    /// Where the weights of a frozen model are, unless they are drawn from the seed; a save does not carry them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<PathBuf>,
    /// Everything else: what was asked for, and the state of policies.
    #[serde(default)]
    pub settings: serde_json::Value,
}

impl Progress {
    /// The start of a run.
    pub fn new(seed: u64, loss_scale: f32) -> Progress {
        Progress {
            version: VERSION,
            step: 0,
            seed,
            tokens_seen: 0,
            losses: Vec::new(),
            evaluations: Vec::new(),
            loss_scale,
            finite_steps: 0,
            skipped_steps: 0,
            base: None,
            settings: serde_json::Value::Null,
        }
    }

    /// The text for the file at `path`.
    pub(super) fn to_json(&self, path: &Path) -> Result<String> {
        let next = "report this with the command that led to it";
        serde_json::to_string_pretty(self).map_err(|e| Error::file(path, e.to_string(), next))
    }

    /// Reads the file at `path`.
    pub(super) fn read(path: &Path) -> Result<Progress> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, "read", e))?;
        let next = "give a folder that --save has written, or start again without --resume";
        let version = serde_json::from_str(&text)
            .map_err(|e| Error::file(path, format!("not valid JSON: {e}"), next))
            .map(|value: serde_json::Value| value["version"].clone())?;
        if version != VERSION {
            let why = format!("its version is {version}, this program reads {VERSION}");
            return Err(Error::file(path, why, "use the program that wrote it"));
        }
        serde_json::from_str(&text)
            .map_err(|e| Error::file(path, format!("not the progress of a run: {e}"), next))
    }
}

/// JSON has no NaN: it is written as null.
fn losses<'de, D: Deserializer<'de>>(from: D) -> std::result::Result<Vec<f32>, D::Error> {
    let values = Vec::<Option<f32>>::deserialize(from)?;
    let number = |loss: Option<f32>| loss.unwrap_or(f32::NAN);
    Ok(values.into_iter().map(number).collect())
}

fn evaluations<'de, D: Deserializer<'de>>(
    from: D,
) -> std::result::Result<Vec<(u64, f32)>, D::Error> {
    let values = Vec::<(u64, Option<f32>)>::deserialize(from)?;
    let number = |(step, loss): (u64, Option<f32>)| (step, loss.unwrap_or(f32::NAN));
    Ok(values.into_iter().map(number).collect())
}
