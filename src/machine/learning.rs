//! What each method learns: training runs of one model and text by every one of them, predicted, run, and held against AdamW.

mod cells;
mod held;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::cpu::Settings;
use super::estimate;
use super::rows::{self, Named};
use super::train::save::recover;
use super::train::session::{Options as RunOptions, Session};
use super::train::text::{Coding, Corpus, HeldOut, Source};
use crate::error::{Error, Result};
use crate::spec::catalog;
use crate::spec::device::Device;
use crate::spec::job::PerPlace;
use crate::spec::units::{Bytes, Seconds};

pub use cells::{Cell, Start, cells};
pub use held::{Verdict, held};

/// The part of a text that losses are taken of, and rows of it that are read at most.
const HELD_OUT: (f64, u64) = (0.1, 256);

/// Steps whose median is a row's time where they are measured again.
const TIMED: u64 = 20;

/// What a bench is asked for.
#[derive(Debug, Clone)]
pub struct Options {
    /// This machine, calibrated; without it no times are predicted.
    pub here: Option<Device>,
    /// Rows, one JSON object a line; a row whose programs have not changed is not run again.
    pub rows: PathBuf,
    /// Folder of checkpoints and of what lies on disk between uses.
    pub folder: PathBuf,
    /// Only cells whose names begin so.
    pub only: Option<String>,
}

/// What became of a cell.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The cell.
    pub name: String,
    /// Its choices.
    pub choices: Vec<String>,
    /// Peak learning rate.
    pub rate: f64,
    /// Steps.
    pub steps: u64,
    /// Hash of each program that it was planned with.
    pub programs: BTreeMap<String, String>,
    /// Held-out loss before the first step.
    pub before: f64,
    /// Held-out loss after the last.
    pub after: f64,
    /// Standard error of the difference of the two, over batches of held-out text.
    pub error: f64,
    /// Bytes of each place, predicted.
    pub predicted: PerPlace<Bytes>,
    /// Bytes of each place, measured.
    pub measured: PerPlace<Bytes>,
    /// A step, predicted for this machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predicted_step: Option<Seconds>,
    /// A step, measured: the median.
    pub measured_step: Seconds,
}

/// Runs every cell that has no valid row yet.
///
/// # Errors
/// The first cell that fails, or a file that cannot be written.
pub fn bench(options: &Options, progress: &mut dyn FnMut(&str, f64)) -> Result<Vec<Row>> {
    let run = |cell: &Cell, known: Option<Row>| match known {
        Some(_) => Ok(None),
        None => run(cell, options).map(Some),
    };
    each(options, progress, run)
}

/// Measures the steps of every valid row there is again, without training on, and predicts them for the machine of `options`.
///
/// # Errors
/// The first row whose plan is refused or whose step fails, or a file that cannot be written.
pub fn times(options: &Options, progress: &mut dyn FnMut(&str, f64)) -> Result<Vec<Row>> {
    let timed = |cell: &Cell, known: Option<Row>| {
        let row = known.map(|row| timed(cell, row, options));
        row.transpose()
    };
    each(options, progress, timed)
}

/// Keeps what `make` makes of every cell that is wanted and of its row, where that is of programs as they are lowered now.
fn each(
    options: &Options,
    progress: &mut dyn FnMut(&str, f64),
    make: impl Fn(&Cell, Option<Row>) -> Result<Option<Row>>,
) -> Result<Vec<Row>> {
    let all = wanted(options)?;
    let mut done = read(&options.rows)?;
    for (number, cell) in all.iter().enumerate() {
        progress(&cell.name, number as f64 / all.len() as f64);
        let programs = cell.lowered()?;
        let valid = |r: &&Row| r.name == cell.name && r.programs == programs;
        let known = done.iter().find(valid).cloned();
        if let Some(row) = make(cell, known)? {
            rows::keep(&options.rows, &mut done, row)?;
        }
    }
    Ok(done)
}

/// `row` with the time of a step as it is now: where it starts does not matter for that.
fn timed(cell: &Cell, row: Row, options: &Options) -> Result<Row> {
    let scratch = Cell {
        start: Start::Scratch,
        ..cell.clone()
    };
    let mut session = open(&scratch, options)?;
    for _ in 0..TIMED {
        session.step()?;
    }
    Ok(Row {
        predicted_step: predicted_step(&session, options)?,
        measured_step: session.step_seconds(),
        ..row
    })
}

/// The cells whose names begin as they should.
fn wanted(options: &Options) -> Result<Vec<Cell>> {
    let (only, mut all) = (options.only.as_deref(), cells());
    let names: Vec<String> = all.iter().map(|cell| cell.name.clone()).collect();
    rows::expect_any(only, &names, "PART/METHOD/SEED")?;
    all.retain(|cell| rows::wants(only, &cell.name));
    Ok(all)
}

/// A run of a few steps that shows the way a cell goes.
///
/// # Errors
/// None: there are cells.
pub fn smoke() -> Result<Cell> {
    let first = cells().into_iter().next();
    let cell =
        first.ok_or_else(|| Error::value("cells", "techniques", "there are none", "add one"))?;
    Ok(Cell {
        name: "smoke".to_string(),
        steps: 3,
        ..cell
    })
}

impl Named for Row {
    fn name(&self) -> &str {
        &self.name
    }
}

/// The rows of a file; a later row replaces an earlier one of its name.
///
/// # Errors
/// Where the file is there but cannot be read.
pub fn read(path: &Path) -> Result<Vec<Row>> {
    rows::latest(path)
}

/// Trains as a cell says.
///
/// # Errors
/// Where its plan is refused, or a step fails.
pub fn run(cell: &Cell, options: &Options) -> Result<Row> {
    let mut session = open(cell, options)?;
    let before = session.held_out()?;
    while session.done() < cell.steps {
        session.step()?;
    }
    let after = session.held_out()?;
    if cell.is_checkpoint() {
        session.save(&checkpoint(options))?;
    }
    let (before, after, error) = fall(&before, &after);
    Ok(Row {
        name: cell.name.clone(),
        choices: cell.job.choices.clone(),
        rate: cell.rate,
        steps: cell.steps,
        // Those it began with: what a policy chooses later is lowered within their memory.
        programs: cell.lowered()?,
        before,
        after,
        error,
        predicted: session.predicted().peak,
        measured: session.mark(),
        predicted_step: predicted_step(&session, options)?,
        measured_step: session.step_seconds(),
    })
}

/// A step of `session` as it is predicted for this machine, where that is calibrated.
fn predicted_step(session: &Session, options: &Options) -> Result<Option<Seconds>> {
    let of = |here: &Device| {
        let mut plan = session.plan().clone();
        plan.job.target.device = here.clone();
        estimate::quick(&plan).map(|estimate| estimate.step)
    };
    options.here.as_ref().map(of).transpose()
}

/// A session at its first step.
fn open(cell: &Cell, options: &Options) -> Result<Session> {
    let plan = cell.plan()?;
    let model = &plan.job.model;
    let (vocab, head) = (model.vocab, model.head);
    let config = catalog::config_text(&model.name)?.to_string();
    let corpus = Corpus::open(
        &Source::BuiltIn(cell.text),
        &Coding::Bytes,
        &HeldOut::Fraction(HELD_OUT.0),
        vocab,
        head,
    )?;
    let weights = match cell.start {
        Start::Scratch => None,
        Start::Checkpoint => Some(begun(options)?),
    };
    let run = RunOptions {
        steps: cell.steps,
        rate: cell.rate,
        schedule: cell.schedule,
        warmup: cell.steps / 20,
        seed: cell.seed,
        weights,
        config,
        evaluation_rows: HELD_OUT.1,
        ..RunOptions::fixed(&options.folder, Settings::default())
    };
    Session::open(plan, corpus, run)
}

fn checkpoint(options: &Options) -> PathBuf {
    options.folder.join("memfit-techniques-checkpoint")
}

/// The folder of the checkpoint, which is trained first where there is none.
fn begun(options: &Options) -> Result<PathBuf> {
    let folder = checkpoint(options);
    recover(&folder)?;
    if !folder.exists() {
        let all = cells();
        let first = all.iter().find(|c| c.is_checkpoint()).ok_or_else(|| {
            let next = "name one that is";
            Error::value("checkpoint", "cells", "none of them is saved", next)
        })?;
        run(first, options)?;
    }
    Ok(folder)
}

/// The mean losses before and after, and the standard error of their difference: batches are paired.
fn fall(before: &[(f32, u64)], after: &[(f32, u64)]) -> (f64, f64, f64) {
    let mean = |losses: &[(f32, u64)]| {
        let count: u64 = losses.iter().map(|(_, n)| n).sum();
        let sum: f64 = losses
            .iter()
            .map(|&(loss, n)| f64::from(loss) * n as f64)
            .sum();
        sum / count.max(1) as f64
    };
    let apart: Vec<f64> = before
        .iter()
        .zip(after)
        .map(|(b, a)| f64::from(b.0) - f64::from(a.0))
        .collect();
    let count = apart.len().max(2) as f64;
    let middle = apart.iter().sum::<f64>() / count;
    let square: f64 = apart.iter().map(|d| (d - middle).powi(2)).sum();
    let error = (square / (count - 1.0) / count).sqrt();
    (mean(before), mean(after), error)
}
