//! Agreement: combinations of techniques, each predicted, run, and held against what happened.

mod array;
mod bench;
mod cases;
mod lsp;
mod overlap;
mod rules;
mod throttled;

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::estimate;
use super::measure::{self, Times, measure};
use super::train::session::Session;
use crate::error::{Error, Result};
use crate::plan::Plan;
use crate::program::{Program, height};
use crate::spec::device::{self, Device};
use crate::spec::job::{Exactness, PerPlace, Place, Precision};
use crate::spec::units::Bytes;

pub use bench::{Options, Summary, bench, read, summary};
pub use cases::{CORES, Case, cases};
pub use overlap::{Overlap, overlap};
pub use throttled::{Side, Throttled, throttled};

/// Steps whose losses are compared, and steps whose times are measured.
const STEPS: u64 = 3;
const TIMED: u64 = 5;

/// How far losses may be from the base's where `Rounding` is claimed, over the steps compared: in f32, and in 16 bits,
/// where an activation may round to the other neighbour, 2^-8 away.
const BOUND: (f32, f32) = (1e-4, 3e-2);

/// How far the process may be from the prediction: a share, and bytes.
const PROCESS: (f64, u64) = (0.03, 32 << 20);

/// What became of a combination.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The case.
    pub name: String,
    /// Its choices.
    pub choices: Vec<String>,
    /// Hash of each program that it consists of.
    pub programs: BTreeMap<String, String>,
    /// Bytes of each place, predicted.
    pub predicted: PerPlace<Bytes>,
    /// Bytes of each place: the machine's own mark.
    pub measured: PerPlace<Bytes>,
    /// The class its techniques claim.
    pub claim: Exactness,
    /// Losses of its first steps.
    pub losses: Vec<f32>,
    /// The largest distance from the losses of the same job without those techniques; none where that is too large to run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distance: Option<f32>,
    /// Time of a step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<Timing>,
    /// Peak of the process over what it held before, for those in a process of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<Bytes>,
}

/// Time of a step, and whether the machine was steady meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Timing {
    /// Predicted, raw and corrected.
    pub step: Times,
    /// The probe's ratio, and how far it moved.
    pub ratio: f64,
    /// How far the ratio moved.
    pub moved: f64,
    /// Whether it moved little enough.
    pub steady: bool,
}

/// Losses of bases that have run, by what decides them.
#[derive(Debug, Default)]
pub struct Bases(BTreeMap<String, Vec<f32>>);

/// The device programs are made for where nothing is timed.
///
/// # Errors
/// None: it is in the catalogue.
pub fn nominal() -> Result<Device> {
    device::find("64GiB")
}

/// Hash of each program of a plan, by when it runs.
pub fn hashes(programs: &[Program]) -> BTreeMap<String, String> {
    let entry = |p: &Program| {
        (
            format!("{:?}", p.when).to_lowercase(),
            format!("{:016x}", p.hash()),
        )
    };
    programs.iter().map(entry).collect()
}

/// Runs one combination: all its programs with freed bytes poisoned, against the prediction and against its base; and with
/// `calibrated`, once more for its time.
///
/// # Errors
/// Where a place's mark is not the prediction to the byte, losses are further from the base's than the techniques claim,
/// the process takes more than it may, or a program fails.
pub fn run_case(
    case: &Case,
    calibrated: Option<&Device>,
    folder: &Path,
    bases: &mut Bases,
) -> Result<Row> {
    let device = calibrated.cloned().map_or_else(nominal, Ok)?;
    let plan = case.plan(&device)?;
    let (base, claim) = case.base(&device)?;
    let mut session = measure::open(plan.clone(), folder, case.settings(!case.big))?;
    // A large case is timed as it runs: it is not run twice.
    let mut time = None;
    if case.big && calibrated.is_some() {
        time = Some(timing(&mut session, 1)?);
    }
    while session.done() < if case.big { 2 } else { STEPS } {
        session.step()?;
    }
    let losses = session.progress().losses.clone();
    let ran = finish(case, &mut session, folder)?;
    let mut row = Row {
        name: case.name.clone(),
        choices: case.choices.clone(),
        programs: hashes(session.programs()),
        predicted: ran,
        measured: session.mark(),
        claim,
        losses,
        distance: None,
        time,
        process: case.big.then(|| session.process_peak()),
    };
    agree(&row)?;
    // Its memory goes before another session takes as much.
    drop(session);
    if !case.big {
        row.distance = Some(distance(case, &row, base, folder, bases)?);
    }
    if calibrated.is_some() && !case.big {
        let mut session = measure::open(plan, folder, case.settings(false))?;
        row.time = Some(timing(&mut session, TIMED)?);
    }
    Ok(row)
}

/// Evaluates and saves, so that every program has run; a large case leaves both out. Returns the height of what ran.
fn finish(case: &Case, session: &mut Session, folder: &Path) -> Result<PerPlace<Bytes>> {
    use crate::graph::When::{Evaluate, Save};
    if case.big {
        let ran = session
            .programs()
            .iter()
            .filter(|p| !matches!(p.when, Evaluate | Save));
        return Ok(height(&ran.cloned().collect::<Vec<_>>()));
    }
    session.evaluate()?;
    let save = folder.join(format!("agreement-{}", case.name));
    session.save(&save)?;
    std::fs::remove_dir_all(&save).map_err(|e| Error::io(&save, "remove", e))?;
    Ok(height(session.programs()))
}

/// Refuses a row whose bytes are not those predicted.
fn agree(row: &Row) -> Result<()> {
    let next = "this is a defect of lowering or of the machine: report the case";
    for place in Place::ALL {
        let (predicted, measured) = (row.predicted[place], row.measured[place]);
        if predicted != measured {
            let why = format!(
                "predicted {} bytes of {place}, the machine's mark is {}",
                predicted.0, measured.0
            );
            return Err(Error::value("case", &row.name, why, next));
        }
    }
    match row.process {
        Some(peak) if !within(peak, row.predicted) => {
            let why = format!(
                "the process took {peak}, predicted {}",
                total(row.predicted)
            );
            Err(Error::value("case", &row.name, why, next))
        }
        _ => Ok(()),
    }
}

/// Memory of the process that the places take together.
fn total(places: PerPlace<Bytes>) -> Bytes {
    places.gpu + places.pinned + places.host
}

fn within(peak: Bytes, predicted: PerPlace<Bytes>) -> bool {
    let predicted = total(predicted).0;
    let room = (predicted as f64 * PROCESS.0) as u64 + PROCESS.1;
    peak.0.abs_diff(predicted) <= room
}

/// How far a row's losses are from its base's; an error where that is more than it claims.
fn distance(case: &Case, row: &Row, base: Plan, folder: &Path, bases: &mut Bases) -> Result<f32> {
    let key = format!("{} {} {:?}", case.model, case.precision, base.choices);
    if !bases.0.contains_key(&key) {
        let mut session = measure::open(base, folder, case.settings(true))?;
        let losses = (0..STEPS).map(|_| Ok(session.step()?.loss));
        bases.0.insert(key.clone(), losses.collect::<Result<_>>()?);
    }
    let base = &bases.0[&key];
    let apart = row.losses.iter().zip(base).map(|(a, b)| (a - b).abs());
    let distance = apart.fold(0.0, f32::max);
    let finite = row.losses.iter().chain(base).all(|l| l.is_finite());
    let bound = match (row.claim, case.precision) {
        (Exactness::Bitwise, _) => 0.0,
        (_, Precision::F32) => BOUND.0,
        _ => BOUND.1,
    };
    if finite && distance <= bound {
        return Ok(distance);
    }
    let why = format!(
        "losses {:?} against {base:?}, which may differ by {bound}",
        row.losses
    );
    let next = "this is a defect of a technique: report the case";
    Err(Error::value("case", &case.name, why, next))
}

/// The time of a step of a session without poison, of `steps`.
///
/// # Errors
/// Where a step fails.
pub fn timing(session: &mut Session, steps: u64) -> Result<Timing> {
    let found = measure(session, steps)?;
    Ok(Timing {
        step: found.step,
        ratio: found.ratio,
        moved: found.moved,
        steady: found.steady,
    })
}

/// The programs of a case as they are lowered now, by hash.
///
/// # Errors
/// Where the combination is refused.
pub fn lowered(case: &Case) -> Result<BTreeMap<String, String>> {
    Ok(hashes(&estimate::all(&case.plan(&nominal()?)?)?))
}
