//! What a run of a plan measured, read back from the answer of `run --json` or `validate --json`, beside what was predicted.

use serde_json::Value;

use super::memory::phase_name;
use crate::error::{Error, Result};
use crate::graph::Phase;
use crate::spec::units::{Bytes, Seconds};

/// A figure as predicted and as measured, and where in the answer each stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Pair<T> {
    /// What it is of.
    pub name: String,
    /// As predicted, and the JSON pointer of it.
    pub predicted: (T, String),
    /// As measured, and the JSON pointer of it.
    pub measured: (T, String),
}

/// A measured run.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// The command whose answer it is.
    pub command: &'static str,
    /// Peak of each place in use.
    pub places: Vec<Pair<Bytes>>,
    /// The step and its phases.
    pub times: Vec<Pair<Seconds>>,
    /// Whether the times were predicted for the machine that ran.
    pub calibrated: bool,
    /// What of the plan did not run.
    pub left_out: Vec<String>,
    /// The whole answer.
    pub json: Value,
}

/// Where an answer has what.
struct Layout {
    command: &'static str,
    root: &'static str,
    /// Pointers of predicted and measured peaks.
    peaks: [&'static str; 2],
    /// Places as they are called there, in words.
    places: [(&'static str, &'static str); 4],
    /// Pointers of the predicted and measured step, and of the phases, each with what follows a phase's name.
    step: [&'static str; 2],
    phases: [(&'static str, &'static str); 2],
}

const LAYOUTS: [Layout; 2] = [
    Layout {
        command: "memfit run --json",
        root: "",
        peaks: ["/predicted/peak", "/measured/peak"],
        places: [
            ("gpu", "device memory"),
            ("pinned", "pinned host memory"),
            ("host", "host memory"),
            ("disk", "disk"),
        ],
        step: ["/predicted/step_seconds", "/measured/step_seconds"],
        phases: [("/predicted/phases", ""), ("/measured/phases", "")],
    },
    Layout {
        command: "memfit validate --json",
        root: "/validation",
        peaks: ["/validation/predicted", "/validation/measured"],
        places: [
            ("gpu", "device memory"),
            ("pinned", "pinned host memory"),
            ("host", "pageable host memory"),
            ("disk", "disk"),
        ],
        step: [
            "/validation/time/step/predicted",
            "/validation/time/step/raw",
        ],
        phases: [
            ("/validation/time/phases", "/predicted"),
            ("/validation/time/phases", "/raw"),
        ],
    },
];

const PHASES: [Phase; 6] = [
    Phase::Load,
    Phase::Forward,
    Phase::Recompute,
    Phase::Backward,
    Phase::Update,
    Phase::Save,
];

impl Measured {
    /// Reads the text of an answer; `origin` names it in errors.
    ///
    /// # Errors
    /// Where it is no JSON, or the answer of another command.
    pub fn parse(origin: &str, text: &str) -> Result<Measured> {
        let next = "give what `memfit run … --json` or `memfit validate … --json` printed";
        let json: Value = serde_json::from_str(text)
            .map_err(|e| Error::file(origin, format!("no JSON: {e}"), next))?;
        let is_of = |layout: &&Layout| {
            let known = |pointer: &&str| json.pointer(pointer).is_some();
            layout.peaks.iter().chain(&layout.step).all(known)
        };
        let layout = LAYOUTS.iter().find(is_of);
        let why = "no answer of a run: it lacks what was predicted or what was measured";
        let layout = layout.ok_or_else(|| Error::file(origin, why, next))?;
        Ok(layout.read(json))
    }
}

impl Layout {
    fn read(&self, json: Value) -> Measured {
        let root = json.pointer(self.root).unwrap_or(&json);
        let left_out = root["left_out"].as_array().into_iter().flatten();
        let left_out = left_out.filter_map(|text| text.as_str().map(String::from));
        Measured {
            command: self.command,
            places: self.places(&json),
            times: self.times(&json),
            calibrated: root["calibrated"].as_bool().unwrap_or(false),
            left_out: left_out.collect(),
            json,
        }
    }

    fn places(&self, json: &Value) -> Vec<Pair<Bytes>> {
        let of = |at: &str| json.pointer(at).and_then(Value::as_u64).map(Bytes);
        let pair = |(key, name): &(&str, &str)| {
            let [predicted, measured] = self.peaks.map(|root| format!("{root}/{key}"));
            Some(Pair {
                name: name.to_string(),
                predicted: (of(&predicted)?, predicted),
                measured: (of(&measured)?, measured),
            })
        };
        let all = self.places.iter().filter_map(pair);
        all.filter(|p| p.predicted.0.0 + p.measured.0.0 > 0)
            .collect()
    }

    fn times(&self, json: &Value) -> Vec<Pair<Seconds>> {
        let of = |at: &str| json.pointer(at).and_then(Value::as_f64).map(Seconds);
        let pair = |name: &str, [predicted, measured]: [String; 2]| {
            Some(Pair {
                name: name.to_string(),
                predicted: (of(&predicted)?, predicted),
                measured: (of(&measured)?, measured),
            })
        };
        let step = pair("step", self.step.map(String::from));
        let phases = PHASES.iter().filter_map(|phase| {
            let name = phase_name(*phase);
            let at = self
                .phases
                .map(|(root, tail)| format!("{root}/{name}{tail}"));
            pair(name, at)
        });
        step.into_iter().chain(phases).collect()
    }
}
