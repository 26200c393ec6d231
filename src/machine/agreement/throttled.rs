//! Updates on the host over a link so slow that ZeRO-Offload doubles the step: what LSP-Offload makes of the same link.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::machine::cpu::Settings;
use crate::machine::probe::median;
use crate::machine::train::session::Session;
use crate::machine::{estimate, measure};
use crate::plan::{Choice, Plan};
use crate::spec::catalog;
use crate::spec::device::Device;
use crate::spec::job::{Backend, Host, Job, Optimizer, Precision, Target};
use crate::spec::units::Seconds;

/// Sequences of a step, and their length.
const BATCH: (u64, u64) = (4, 128);

/// What ZeRO-Offload's step is to be over the step without offload, simulated, and what it must be, measured.
const AIM: f64 = 2.2;
const DOUBLED: f64 = 2.0;

/// Rates the link is sought between, in bytes a second, and how much slower it gets where the step was not doubled.
const LINKS: (f64, f64) = (10e6, 4e9);
const SLOWER: f64 = 0.8;
const TRIES: usize = 5;

/// Steps of each plan, in turns.
const TURNS: usize = 9;

/// Neither moves a byte within the measured steps.
const ZERO: [&str; 2] = [
    "offload:what=gradients",
    "offload:what=optimizer,update=host",
];
const LSP: [&str; 1] = ["lsp_offload:check=1000000"];

/// One plan's step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Side {
    /// Simulated.
    pub predicted: Seconds,
    /// Measured: the middle of steps taken in turns with those of the other plans.
    pub measured: Seconds,
    /// Simulated, over the step without offload.
    pub ratio_predicted: f64,
    /// Measured, over the step without offload of the same turn: the middle one.
    pub ratio: f64,
}

/// Three steps of one job on the same threads and the same link.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Throttled {
    /// Rate of the link, bytes a second each way.
    pub link: f64,
    /// Tokens of a step.
    pub tokens: u64,
    /// All on the device.
    pub without: Side,
    /// ZeRO-Offload.
    pub zero: Side,
    /// LSP-Offload.
    pub lsp: Side,
}

/// Finds a link that ZeRO-Offload doubles the step of `small` over, and measures all three in turns on one thread fewer than the
/// device has.
///
/// # Errors
/// Where a step fails.
pub fn throttled(
    device: &Device,
    folder: &Path,
    progress: &mut dyn FnMut(&str, f64),
) -> Result<Throttled> {
    let mut link = sought(device)?;
    let mut tries = 0;
    loop {
        let at = format!("a link of {:.0} MB/s", link / 1e6);
        progress(&at, tries as f64 / TRIES as f64);
        let found = on(link, device, folder)?;
        tries += 1;
        if found.zero.ratio >= DOUBLED || tries == TRIES {
            return Ok(found);
        }
        link *= SLOWER;
    }
}

/// The link at which ZeRO-Offload's simulated step is as many times the other as is aimed at.
fn sought(device: &Device) -> Result<f64> {
    let (mut low, mut high) = LINKS;
    for _ in 0..20 {
        let link = (low * high).sqrt();
        let zero = estimate::quick(&plan(device, link, &ZERO)?)?.step.0;
        let plain = estimate::quick(&plan(device, link, &[])?)?.step.0;
        match zero / plain > AIM {
            true => low = link,
            false => high = link,
        }
    }
    Ok((low * high).sqrt())
}

/// All three over one link.
fn on(link: f64, device: &Device, folder: &Path) -> Result<Throttled> {
    let settings = Settings {
        link: Some(link),
        ..Settings::default()
    };
    let plans = [&[][..], &ZERO, &LSP].map(|choices| plan(device, link, choices));
    let (mut sessions, mut predicted) = (Vec::new(), Vec::new());
    for plan in plans {
        let plan = plan?;
        predicted.push(estimate::quick(&plan)?.step.0);
        let mut session: Session = measure::open(plan, folder, settings)?;
        session.step()?;
        sessions.push(session);
    }
    let mut seconds = vec![Vec::new(); sessions.len()];
    let mut ratios = vec![Vec::new(); sessions.len()];
    for _ in 0..TURNS {
        let steps = sessions.iter_mut().map(|s| Ok(s.step()?.seconds.0));
        let steps = steps.collect::<Result<Vec<f64>>>()?;
        for (index, step) in steps.iter().enumerate() {
            seconds[index].push(*step);
            ratios[index].push(step / steps[0]);
        }
    }
    let side = |index: usize| Side {
        predicted: Seconds(predicted[index]),
        measured: Seconds(median(seconds[index].clone())),
        ratio_predicted: predicted[index] / predicted[0],
        ratio: median(ratios[index].clone()),
    };
    Ok(Throttled {
        link,
        tokens: BATCH.0 * BATCH.1,
        without: side(0),
        zero: side(1),
        lsp: side(2),
    })
}

fn plan(device: &Device, link: f64, choices: &[&str]) -> Result<Plan> {
    let host = Host {
        link: Some(link),
        ..Host::default()
    };
    let mut target = Target::new(device.clone(), host);
    let cores = device.threads.unwrap_or(super::CORES);
    let threads = cores.saturating_sub(1).max(1);
    target.backend = Backend::Cpu { threads };
    let job = Job {
        model: catalog::open("small")?,
        seq: BATCH.1,
        batch: BATCH.0,
        precision: Precision::F32,
        optimizer: Optimizer("adamw".into()),
        target,
    };
    let choices = choices.iter().map(|c| Choice::parse(c));
    Plan::new(job, choices.collect::<Result<_>>()?)
}
