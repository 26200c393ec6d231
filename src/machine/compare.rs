//! Predictions for PyTorch against measured runs: each record's peak, predicted and measured, and how far apart they are.

mod arch;
mod figure;
mod fit;
mod oracle;
mod published;
mod record;
mod speed;
mod statistics;
mod timed;
mod vocabulary;

pub mod explain;

use std::time::Instant;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::program::eager::{EagerPhase, Prediction};
use crate::spec::model::ModelSpec;
use crate::spec::torch::TorchOptions;
use crate::spec::units::Bytes;

pub use arch::{default_targets, linear_modules};
pub use figure::{CONTEXT_RANGE, Counter, Figure, workspaces};
pub use fit::{Fit, fit};
pub use oracle::{Measured, PerLayer};
pub use record::{Line, read};
pub use speed::{BySource, Run, SpeedRow, Speeds};
pub use timed::Timed;

/// A measured run that can be predicted.
#[derive(Debug, Clone)]
pub struct Case {
    /// Its line in the file, from 1.
    pub line: usize,
    /// Its name.
    pub id: String,
    /// The model.
    pub model: ModelSpec,
    /// The step.
    pub options: TorchOptions,
    /// What was measured.
    pub target: Target,
    /// The speed that was measured.
    pub timed: Option<Timed>,
    /// What the record leaves open or the options cannot say, and what was taken for it.
    pub assumed: Vec<String>,
}

/// What a prediction is held against.
#[derive(Debug, Clone)]
pub enum Target {
    /// A run followed tensor by tensor.
    Exact(Box<Measured>),
    /// A published figure, known to lie between two; none where only speed was published.
    Published {
        /// The smallest and the largest it can be.
        interval: Option<(Bytes, Bytes)>,
        /// How the counter that was read follows from a prediction.
        figure: Figure,
    },
}

/// A record that was predicted and has a measured peak.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// Its name.
    pub id: String,
    /// Its line in the file.
    pub line: usize,
    /// The counter that was read.
    pub counter: Counter,
    /// What was measured; of an interval the end nearer to the prediction, or its middle where the prediction is inside.
    pub measured: Bytes,
    /// The published interval.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<(Bytes, Bytes)>,
    /// What was predicted.
    pub predicted: Bytes,
    /// `predicted / measured - 1`; 0 inside an interval.
    pub error: f64,
    /// The phase of the peak, predicted.
    pub phase: EagerPhase,
    /// The same, measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub measured_phase: Option<EagerPhase>,
    /// What a middle layer keeps, predicted.
    pub saved_layer: Bytes,
    /// The same, measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub measured_saved_layer: Option<Bytes>,
    /// What was taken for what the record leaves open.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub assumed: Vec<String>,
}

/// A record that was not predicted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Skipped {
    /// Its name; its line where it has none.
    pub id: String,
    /// Its line in the file.
    pub line: usize,
    /// Why.
    pub reason: String,
}

/// A record that was predicted and has neither a memory figure nor a speed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unmeasured {
    /// Its name.
    pub id: String,
    /// Its line in the file.
    pub line: usize,
    /// What was predicted.
    pub predicted: Bytes,
}

/// A file of records against their predictions.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    /// Records read.
    pub cases: usize,
    /// Those that were not predicted.
    pub skipped: Vec<Skipped>,
    /// Those that were, in the file's order.
    pub rows: Vec<Row>,
    /// Those without a memory figure and a speed.
    pub unmeasured: Vec<Unmeasured>,
    /// Half of the errors are at most this; nothing without rows.
    pub median_abs_error: Option<f64>,
    /// Nine in ten are.
    pub p90_abs_error: Option<f64>,
    /// Nineteen in twenty are.
    pub p95_abs_error: Option<f64>,
    /// All are.
    pub max_abs_error: Option<f64>,
    /// Share of the rows with a measured middle layer whose saved bytes are exact.
    pub saved_layer_exact_share: Option<f64>,
    /// Share of the rows with a measured phase whose peak is in the phase predicted.
    pub phase_right_share: Option<f64>,
    /// Those that have a speed, against it.
    pub speed: Speeds,
    /// How long the predictions took.
    pub seconds: f64,
}

impl Comparison {
    /// The rows with the largest errors, at most `count` of them, the worst first.
    pub fn worst(&self, count: usize) -> Vec<&Row> {
        let mut rows: Vec<&Row> = self.rows.iter().collect();
        rows.sort_by(|a, b| b.error.abs().total_cmp(&a.error.abs()));
        rows.truncate(count);
        rows
    }
}

/// What becomes of a file's records as they are predicted.
#[derive(Default)]
struct Found {
    rows: Vec<Row>,
    runs: Vec<Run>,
    skipped: Vec<Skipped>,
    unmeasured: Vec<Unmeasured>,
}

/// Predicts every record and compares; `progress` is told the share that is done.
pub fn compare(
    lines: &[Line],
    predict: impl Fn(&ModelSpec, &TorchOptions) -> Result<Prediction>,
    progress: &mut dyn FnMut(&str, f64),
) -> Comparison {
    let started = Instant::now();
    let found = predicted(lines, predict, progress);
    summary(lines.len(), found, started.elapsed().as_secs_f64())
}

/// The runs of a file whose speed was published, on their devices' rooflines.
pub fn runs(
    lines: &[Line],
    predict: impl Fn(&ModelSpec, &TorchOptions) -> Result<Prediction>,
    progress: &mut dyn FnMut(&str, f64),
) -> Vec<Run> {
    predicted(lines, predict, progress).runs
}

fn predicted(
    lines: &[Line],
    predict: impl Fn(&ModelSpec, &TorchOptions) -> Result<Prediction>,
    progress: &mut dyn FnMut(&str, f64),
) -> Found {
    let mut found = Found::default();
    for (done, line) in lines.iter().enumerate() {
        progress("predicting", done as f64 / lines.len() as f64);
        let refused = match &line.case {
            Ok(case) => found
                .add(case, &predict)
                .err()
                .map(|error| format!("cannot be predicted: {error}")),
            Err(reason) => Some(reason.clone()),
        };
        found.skipped.extend(refused.map(|reason| Skipped {
            id: line.id.clone(),
            line: line.number,
            reason,
        }));
    }
    progress("predicting", 1.0);
    found
}

impl Found {
    /// Predicts a case and puts it beside what was measured.
    fn add(
        &mut self,
        case: &Case,
        predict: &impl Fn(&ModelSpec, &TorchOptions) -> Result<Prediction>,
    ) -> Result<()> {
        let prediction = predict(&case.model, &case.options)?;
        if let Some(timed) = &case.timed {
            let run = match timed.options == case.options {
                true => speed::run(&case.id, timed, &prediction.work),
                false => {
                    let timed_step = predict(&case.model, &timed.options)?;
                    speed::run(&case.id, timed, &timed_step.work)
                }
            };
            self.runs.push(run?);
        }
        match row(case, &prediction) {
            Some(row) => self.rows.push(row),
            None if case.timed.is_some() => {}
            None => self.unmeasured.push(Unmeasured {
                id: case.id.clone(),
                line: case.line,
                predicted: prediction.peak,
            }),
        }
        Ok(())
    }
}

/// A case beside its prediction, where it has a memory figure.
fn row(case: &Case, prediction: &Prediction) -> Option<Row> {
    let plain = Row {
        id: case.id.clone(),
        line: case.line,
        counter: Counter::Allocated,
        measured: Bytes::ZERO,
        interval: None,
        predicted: prediction.peak,
        error: 0.0,
        phase: prediction.phase,
        measured_phase: None,
        saved_layer: prediction.saved_middle_layer,
        measured_saved_layer: None,
        assumed: case.assumed.clone(),
    };
    match &case.target {
        Target::Exact(measured) => Some(Row {
            counter: Counter::Live,
            measured: measured.peak_bytes,
            error: relative(prediction.peak, measured.peak_bytes),
            measured_phase: measured.peak_phase,
            measured_saved_layer: measured.saved_per_layer.map(|l| l.middle),
            ..plain
        }),
        Target::Published { interval, figure } => {
            let interval = (*interval)?;
            let segments = figure
                .sees_segments()
                .then(|| Figure::segments(&case.model, &case.options).ok());
            let predicted = figure.of(prediction, segments.flatten());
            let measured = nearest(predicted, interval);
            Some(Row {
                counter: figure.counter,
                measured,
                interval: Some(interval),
                predicted,
                error: match predicted >= interval.0 && predicted <= interval.1 {
                    true => 0.0,
                    false => relative(predicted, measured),
                },
                ..plain
            })
        }
    }
}

/// The end of an interval nearer to a figure outside of it, or its middle.
fn nearest(figure: Bytes, (least, most): (Bytes, Bytes)) -> Bytes {
    match figure {
        _ if figure < least => least,
        _ if figure > most => most,
        _ => Bytes(least.0 + (most.0 - least.0) / 2),
    }
}

/// How far a prediction is off, as a signed fraction of what was measured, which is not zero.
fn relative(predicted: Bytes, measured: Bytes) -> f64 {
    (predicted.0 as f64 - measured.0 as f64) / measured.0 as f64
}

fn summary(cases: usize, found: Found, seconds: f64) -> Comparison {
    let rows = found.rows;
    let errors = statistics::sorted(rows.iter().map(|r| r.error.abs()));
    let exact = rows
        .iter()
        .filter_map(|r| Some(r.measured_saved_layer? == r.saved_layer));
    let right = rows
        .iter()
        .filter_map(|r| Some(r.measured_phase? == r.phase));
    Comparison {
        cases,
        skipped: found.skipped,
        median_abs_error: statistics::quantile(&errors, 0.5),
        p90_abs_error: statistics::quantile(&errors, 0.9),
        p95_abs_error: statistics::quantile(&errors, 0.95),
        max_abs_error: errors.last().copied(),
        saved_layer_exact_share: statistics::share(exact),
        phase_right_share: statistics::share(right),
        rows,
        unmeasured: found.unmeasured,
        speed: speed::against(&found.runs),
        seconds,
    }
}

/// The case of a name.
///
/// # Errors
/// Where no record has that name, or the one that has it cannot be predicted.
pub fn find<'a>(lines: &'a [Line], id: &str) -> Result<&'a Case> {
    let named = lines.iter().find(|line| line.id == id);
    let known = lines.iter().map(|line| line.id.as_str());
    let line = named.ok_or_else(|| {
        Error::unknown("record", id, known, "give the id of a record of the file")
    })?;
    line.case.as_ref().map_err(|reason| {
        let next = "choose a record that can be predicted";
        Error::value("record", id, reason, next)
    })
}
