//! Short runs of several methods, and which of those that learn well enough is the cheapest.

use serde::{Deserialize, Serialize};

use super::estimate::{self, Estimate};
use super::train::session::Session;
use crate::error::Result;
use crate::plan::Plan;
use crate::spec::job::PerPlace;
use crate::spec::units::{Bytes, Seconds};

/// A candidate and what became of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Its text.
    pub candidate: String,
    /// Its learning rate.
    pub rate: f64,
    /// What it was run with: rows of other settings are of other trials.
    pub settings: String,
    /// What became of it.
    pub outcome: Outcome,
}

/// What became of a candidate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It ran.
    Ran(Box<Ran>),
    /// No plan of it fits.
    Misfit {
        /// What does not fit.
        why: String,
    },
    /// Its choices exclude each other, or the model.
    Refused {
        /// Why.
        why: String,
    },
}

/// A run, as predicted for the device and as measured here.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ran {
    /// Its choices.
    pub choices: Vec<String>,
    /// Steps.
    pub steps: u64,
    /// Held-out loss before the first step.
    pub before: f32,
    /// Held-out loss after the last.
    pub loss: f32,
    /// Peak of each place on the device, predicted.
    pub device_peak: PerPlace<Bytes>,
    /// A step on the device, predicted.
    pub device_step: Seconds,
    /// Energy of a step at the device's board power, in joules; `None` where the device states none.
    pub device_joules: Option<f64>,
    /// Peak of each place as lowered for this machine, predicted.
    pub predicted_peak: PerPlace<Bytes>,
    /// The same, measured.
    pub measured_peak: PerPlace<Bytes>,
    /// Memory of the process.
    pub process_peak: Bytes,
    /// A step here, measured.
    pub measured_step: Seconds,
}

impl Outcome {
    /// Of a session that was run to its end, by `plan` as it is for the device.
    ///
    /// # Errors
    /// Where a choice cannot be applied.
    pub fn of(session: &Session, plan: &Plan) -> Result<Outcome> {
        let Estimate { peak, step, .. } = estimate::proved(plan)?;
        let progress = session.progress();
        let held_out = |last: Option<&(u64, f32)>| last.map_or(f32::NAN, |(_, loss)| *loss);
        Ok(Outcome::Ran(Box::new(Ran {
            choices: plan.choices.iter().map(ToString::to_string).collect(),
            steps: progress.step,
            before: held_out(progress.evaluations.first()),
            loss: held_out(progress.evaluations.last()),
            device_peak: peak,
            device_step: step,
            device_joules: plan.job.target.device.tdp_watts.map(|watts| watts * step.0),
            predicted_peak: session.predicted().peak,
            measured_peak: session.mark(),
            process_peak: session.process_peak(),
            measured_step: session.step_seconds(),
        })))
    }
}

impl Row {
    /// Its run, where it ran and ended with a loss.
    pub fn ran(&self) -> Option<&Ran> {
        match &self.outcome {
            Outcome::Ran(ran) if ran.loss.is_finite() => Some(ran),
            _ => None,
        }
    }
}

/// The row that is cheapest on the device (the least time of a step, then the least memory) among those whose held-out loss is
/// at most `tolerance` above the least.
pub fn chosen(rows: &[Row], tolerance: f64) -> Option<usize> {
    let losses = rows
        .iter()
        .filter_map(|r| r.ran().map(|ran| f64::from(ran.loss)));
    let least = losses.fold(f64::INFINITY, f64::min);
    let learns = |ran: &Ran| f64::from(ran.loss) <= least * (1.0 + tolerance);
    let able = rows
        .iter()
        .enumerate()
        .filter_map(|(i, row)| Some((i, row.ran()?)));
    let cost = |ran: &Ran| (ran.device_step.0.to_bits(), ran.device_peak.gpu);
    able.filter(|(_, ran)| learns(ran))
        .min_by_key(|(_, ran)| cost(ran))
        .map(|(i, _)| i)
}
