//! Validation: a plan held against this machine, whole where it can be run, else with fewer layers at true widths.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::cpu::{Roles, Settings};
use super::cuda::driver::Gpu;
use super::estimate::{self, Estimate, on_cpu, on_cuda, threads_for};
use super::measure::{self, Measurement, measure};
use super::train::memory;
use super::train::session::Session;
use crate::error::{Error, Result};
use crate::plan::{Choice, Plan};
use crate::program::height;
use crate::spec::device::Device;
use crate::spec::job::{PerPlace, Place};
use crate::spec::units::Bytes;

/// Share of the memory that is free which a validation may take.
const SHARE: f64 = 0.8;

/// Floating-point operations of a step above which a plan is not run whole: some minutes on a laptop.
const STEP_WORK: f64 = 2e13;

/// Layers of a cut where none are asked for: the first, one in the middle, the last.
const LAYERS: u64 = 3;

/// The shortest sequence a cut goes down to.
const SHORTEST: u64 = 16;

/// What a validation is asked for.
#[derive(Debug, Clone)]
pub struct Options {
    /// Layers to run; `None`: all where that can be run, else three.
    pub layers: Option<u64>,
    /// Steps to time, after one that is not counted.
    pub steps: u64,
    /// This machine's cores.
    pub cores: u32,
    /// Capability of the GPU that runs it; `None`: the cores do.
    pub gpu: Option<u32>,
    /// Folder of the offload file.
    pub folder: PathBuf,
    /// This machine's calibration; without it times are those of the plan's device, and no error is stated.
    pub device: Option<Device>,
}

/// A plan predicted and run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Validation {
    /// Whether the plan ran as it is.
    pub whole: bool,
    /// What was left out of it, one sentence each.
    pub left_out: Vec<String>,
    /// Layers that ran.
    pub layers: u64,
    /// Positions of a sequence that ran.
    pub seq: u64,
    /// Threads of compute.
    pub threads: u32,
    /// Bytes of each place, predicted, of the programs that ran.
    pub predicted: PerPlace<Bytes>,
    /// Bytes of each place: the machine's own mark.
    pub measured: PerPlace<Bytes>,
    /// Bytes of each role in each place at the peak, predicted; padding is what placement could not use.
    pub predicted_roles: PerPlace<Roles>,
    /// Bytes of each role in each place when what the machine had handed out was most.
    pub measured_roles: PerPlace<Roles>,
    /// Peak of the process over what it held before.
    pub process: Bytes,
    /// Times of the step, of each op and of each phase; predictions mean something where `calibrated`.
    pub time: Measurement,
    /// Whether the times were predicted for this machine as calibrated.
    pub calibrated: bool,
}

impl Validation {
    /// Whether every place took exactly what was predicted.
    pub fn agrees(&self) -> bool {
        self.predicted == self.measured
    }
}

/// Runs `plan` on this machine, as much of it as can be run.
///
/// # Errors
/// Where even the smallest cut does not fit, or a step fails.
pub fn validate(
    plan: &Plan,
    options: &Options,
    progress: &mut dyn FnMut(&str, f64),
) -> Result<Validation> {
    progress("cutting the plan to this machine", 0.0);
    let (cut, estimate, left_out) = cut(plan, options)?;
    let threads = threads_for(&cut, options.cores);
    progress("filling memory", 0.1);
    let mut session = open(cut, options)?;
    progress("running steps", 0.3);
    let time = measure(&mut session, options.steps)?;
    progress("done", 1.0);
    let ran: Vec<_> = session
        .programs()
        .iter()
        .filter(|p| runs(p.when))
        .cloned()
        .collect();
    let job = &session.plan().job;
    Ok(Validation {
        whole: left_out.is_empty(),
        left_out,
        layers: job.model.layers,
        seq: job.seq,
        threads,
        predicted: height(&ran),
        measured: session.mark(),
        predicted_roles: estimate.roles,
        measured_roles: session.roles(),
        process: session.process_peak(),
        time,
        calibrated: options.device.is_some(),
    })
}

/// A session of a plan that was cut to this machine.
fn open(cut: Plan, options: &Options) -> Result<Session> {
    let settings = match &options.device {
        Some(_) => Settings::of(&cut.job.target),
        None => Settings::default(),
    };
    measure::open(cut, &options.folder, settings)
}

/// Runs `options.steps` steps of `plan`, or of as much of it as this machine can run: the session, which keeps when each
/// instruction of the last step ran, and what was left out, one sentence each.
///
/// # Errors
/// As [`validate`].
pub fn executed(plan: &Plan, options: &Options) -> Result<(Session, Vec<String>)> {
    let (cut, _, left_out) = cut(plan, options)?;
    let mut session = open(cut, options)?;
    for _ in 0..options.steps.max(1) {
        session.step()?;
    }
    Ok((session, left_out))
}

/// Whether a validation runs a program of a set.
fn runs(when: crate::graph::When) -> bool {
    use crate::graph::When::{Evaluate, Restart, Save};
    !matches!(when, Evaluate | Restart | Save)
}

/// The largest part of the plan that this machine can run, and what was left out.
fn cut(plan: &Plan, options: &Options) -> Result<(Plan, Estimate, Vec<String>)> {
    let depth = plan.job.model.layers;
    let most = match options.gpu {
        Some(_) => f64::INFINITY,
        None => STEP_WORK,
    };
    if options.layers.is_none_or(|layers| layers >= depth) && work(plan) <= most {
        let here = here(plan, options);
        let estimate = estimate::proved(&here)?;
        if fits(&estimate, options)? {
            return Ok((here, estimate, Vec::new()));
        }
    }
    let layers = options.layers.unwrap_or(LAYERS).clamp(1, depth);
    let mut seq = plan.job.seq;
    loop {
        let here = here(&shallow(plan, layers, seq)?, options);
        let estimate = estimate::proved(&here)?;
        if fits(&estimate, options)? && work(&here) <= most {
            return Ok((here, estimate, missing(plan, layers, seq)));
        }
        if seq / 2 < SHORTEST {
            let why = format!(
                "{layers} layers at {seq} tokens still take {}",
                memory_of(&estimate)
            );
            let next = "free memory, or give --layers a smaller number";
            return Err(Error::value("plan", &plan.job.model.name, why, next));
        }
        seq /= 2;
    }
}

/// Floating-point operations of a step, roughly: 8 for each weight and token, recomputation included.
fn work(plan: &Plan) -> f64 {
    let model = &plan.job.model;
    let per_layer =
        4.0 * model.hidden as f64 * model.hidden as f64 + 3.0 * (model.hidden * model.ffn) as f64;
    let weights = per_layer * model.layers as f64 + (model.vocab * model.hidden) as f64;
    8.0 * weights * (plan.job.batch * plan.job.seq) as f64
}

/// The plan for this machine's cores, and for its calibration where there is one.
fn here(plan: &Plan, options: &Options) -> Plan {
    let mut plan = match options.gpu {
        Some(capability) => on_cuda(plan, capability),
        None => on_cpu(plan, threads_for(plan, options.cores)),
    };
    if let Some(device) = &options.device {
        plan.job.target.device = device.clone();
    }
    plan
}

fn memory_of(estimate: &Estimate) -> Bytes {
    estimate.peak.gpu + estimate.peak.pinned + estimate.peak.host
}

/// Whether a plan fits what is free: of this machine's memory, and of the GPU's where one runs it.
fn fits(estimate: &Estimate, options: &Options) -> Result<bool> {
    let (_, available) = memory::of_machine();
    let fits = |bytes: Bytes, free: Bytes| bytes.0 as f64 <= SHARE * free.0 as f64;
    if options.gpu.is_none() {
        return Ok(fits(memory_of(estimate), available));
    }
    let host = estimate.peak.pinned + estimate.peak.host;
    Ok(fits(host, available) && fits(estimate.peak.gpu, Gpu::open()?.room()?.free))
}

/// The plan's choices on a model of `layers` layers and sequences of `seq`.
fn shallow(plan: &Plan, layers: u64, seq: u64) -> Result<Plan> {
    let mut job = plan.job.clone();
    let depth = job.model.layers;
    (job.model.layers, job.seq) = (layers, seq);
    let choice = |c: &Choice| Choice {
        site: scaled(&c.site, depth, layers),
        ..c.clone()
    };
    Plan::new(job, plan.choices.iter().map(choice).collect())
}

/// A site's ranges of layers on a model of other depth: the same shares, at least one layer each.
fn scaled(site: &str, depth: u64, layers: u64) -> String {
    let down = |n: u64| (n * layers / depth).min(layers - 1);
    let part = |part: &str| {
        let Some(rest) = part.strip_prefix("layers.") else {
            return part.to_string();
        };
        let (numbers, tail) = rest.split_once('/').unwrap_or((rest, ""));
        let (from, to) = numbers.split_once('-').unwrap_or((numbers, numbers));
        let (Ok(from), Ok(to)) = (from.parse::<u64>(), to.parse::<u64>()) else {
            return part.to_string();
        };
        let last = ((to + 1) * layers).div_ceil(depth).clamp(1, layers) - 1;
        let slash = if tail.is_empty() { "" } else { "/" };
        format!("layers.{}-{}{slash}{tail}", down(from).min(last), last)
    };
    site.split('+')
        .map(|p| part(p.trim()))
        .collect::<Vec<_>>()
        .join("+")
}

/// What a cut leaves out, in sentences.
fn missing(plan: &Plan, layers: u64, seq: u64) -> Vec<String> {
    let job = &plan.job;
    let mut missing = Vec::new();
    if layers < job.model.layers {
        missing.push(format!(
            "{} of {} layers: those that ran stand for the first, the middle and the last, at true widths",
            job.model.layers - layers,
            job.model.layers
        ));
    }
    if seq < job.seq {
        missing.push(format!("sequences of {} tokens: {seq} ran", job.seq));
    }
    missing.push("evaluation and saving".to_string());
    missing
}

/// The places in which prediction and mark differ, with both.
pub fn differences(validation: &Validation) -> BTreeMap<Place, (Bytes, Bytes)> {
    let pair = |place| (validation.predicted[place], validation.measured[place]);
    Place::ALL
        .map(|p| (p, pair(p)))
        .into_iter()
        .filter(|(_, (a, b))| a != b)
        .collect()
}
