//! Whether copies really run beside compute: a step with its activations sent away, against the same step without.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::graph::Stream;
use crate::machine::cpu::Settings;
use crate::machine::measure;
use crate::machine::probe::median;
use crate::plan::{Choice, Plan};
use crate::spec::catalog;
use crate::spec::device::Device;
use crate::spec::job::{Backend, Host, Job, Optimizer, Precision, Target};
use crate::spec::units::Seconds;

/// Rate of the link, at which the copies take about half of the compute's time.
const LINK: f64 = 1.5e9;

/// Interleaved pairs of steps.
const PAIRS: usize = 7;

/// Two steps of one job on the same threads.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Overlap {
    /// The step whose activations stay.
    pub without: Seconds,
    /// The step whose activations are sent away and fetched.
    pub with: Seconds,
    /// The second over the first: the middle one of interleaved pairs.
    pub ratio: f64,
    /// Seconds the slower direction of the link was at work in the step with offload.
    pub link: Seconds,
    /// Seconds of compute beside it.
    pub compute: Seconds,
}

/// Measures `small` with one thread fewer than the device has, both ways, in turns.
///
/// # Errors
/// Where a step fails.
pub fn overlap(device: &Device, folder: &Path) -> Result<Overlap> {
    let settings = Settings {
        link: Some(LINK),
        ..Settings::default()
    };
    let mut without = measure::open(plan(device, &[])?, folder, settings)?;
    let mut with = measure::open(
        plan(device, &["offload:what=activations"])?,
        folder,
        settings,
    )?;
    without.step()?;
    with.step()?;
    let (mut plain, mut sent, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..PAIRS {
        let (a, b) = (without.step()?.seconds.0, with.step()?.seconds.0);
        plain.push(a);
        sent.push(b);
        ratios.push(b / a);
    }
    let busy = |stream| {
        let of = with
            .timelines()
            .iter()
            .map(|(_, t)| t.busy().get(&stream).copied());
        Seconds(of.flatten().sum())
    };
    let (out, back) = (busy(Stream::ToHost), busy(Stream::ToDevice));
    Ok(Overlap {
        without: Seconds(median(plain)),
        with: Seconds(median(sent)),
        ratio: median(ratios),
        link: Seconds(out.0.max(back.0)),
        compute: busy(Stream::Compute),
    })
}

fn plan(device: &Device, choices: &[&str]) -> Result<Plan> {
    let mut target = Target::new(
        device.clone(),
        Host {
            link: Some(LINK),
            ..Host::default()
        },
    );
    let threads = device
        .threads
        .unwrap_or(super::CORES)
        .saturating_sub(1)
        .max(1);
    target.backend = Backend::Cpu { threads };
    let job = Job {
        model: catalog::open("small")?,
        seq: 128,
        batch: 4,
        precision: Precision::F32,
        optimizer: Optimizer("adamw".into()),
        target,
    };
    Plan::new(
        job,
        choices
            .iter()
            .map(|c| Choice::parse(c))
            .collect::<Result<_>>()?,
    )
}
