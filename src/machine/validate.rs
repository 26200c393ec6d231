//! Validation: a plan held against this machine, whole where it can be run, else with fewer layers at true widths.

use std::cmp::Reverse;
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
use crate::technique::Pattern;

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
            let missing = missing(plan, &here);
            return Ok((here, estimate, missing));
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

/// The plan's choices on a model of `layers` layers and sequences of `seq`: each layer has what is chosen for the one it stands for. What
/// is chosen for none of those is left out.
fn shallow(plan: &Plan, layers: u64, seq: u64) -> Result<Plan> {
    let mut job = plan.job.clone();
    let stand_for = representatives(&plan.choices, job.model.layers, layers);
    (job.model.layers, job.seq) = (layers, seq);
    let choice = |c: &Choice| {
        let site = cut_site(&c.site, &stand_for)?;
        Some(Choice { site, ..c.clone() })
    };
    Plan::new(job, plan.choices.iter().filter_map(choice).collect())
}

/// The `layers` of `depth` layers for which most of the choices are made, the first of those that are alike; in order.
fn representatives(choices: &[Choice], depth: u64, layers: u64) -> Vec<u64> {
    let by_layer = |site: &str| site.contains("layers.");
    let names = |choice: &Choice, layer: u64| {
        let cut = cut_site(&choice.site, &[layer]);
        cut.is_some_and(|cut| by_layer(&cut) || !by_layer(&choice.site))
    };
    let mut open: Vec<&Choice> = choices.iter().collect();
    let mut chosen: Vec<u64> = Vec::new();
    for _ in 0..layers.min(depth) {
        let left = (0..depth).filter(|layer| !chosen.contains(layer));
        let made = |layer: &u64| open.iter().filter(|c| names(c, *layer)).count();
        if let Some(layer) = left.max_by_key(|layer| (made(layer), Reverse(*layer))) {
            open.retain(|choice| !names(choice, layer));
            chosen.push(layer);
        }
    }
    chosen.sort_unstable();
    chosen
}

/// A site on a model each of whose layers stands for one of another; none where it names other layers alone.
fn cut_site(site: &str, stand_for: &[u64]) -> Option<String> {
    let part = |part: &str| {
        let (head, tail) = part.split_once('/').unwrap_or((part, ""));
        if !head.starts_with("layers.") || head == "layers.*" {
            return Some(part.to_string());
        }
        let pattern = Pattern::parse(head).ok()?;
        let own = stand_for.iter().enumerate();
        let own = own.filter(|(_, layer)| pattern.matches(&format!("layers.{layer}")));
        let own: Vec<String> = own.map(|(at, _)| at.to_string()).collect();
        let slash = if tail.is_empty() { "" } else { "/" };
        (!own.is_empty()).then(|| format!("layers.{}{slash}{tail}", own.join("|")))
    };
    let parts: Vec<String> = site.split('+').filter_map(|p| part(p.trim())).collect();
    (!parts.is_empty()).then(|| parts.join("+"))
}

/// What a cut of a plan leaves out, in sentences.
fn missing(plan: &Plan, cut: &Plan) -> Vec<String> {
    let (whole, job) = (&plan.job, &cut.job);
    let mut missing = Vec::new();
    if job.model.layers < whole.model.layers {
        missing.push(format!(
            "{} of {} layers: those that ran stand for them, at true widths",
            whole.model.layers - job.model.layers,
            whole.model.layers
        ));
    }
    let choices = plan.choices.len().saturating_sub(cut.choices.len());
    if choices > 0 {
        missing.push(format!(
            "choices of layers that no layer stands for: {choices} of {}",
            plan.choices.len()
        ));
    }
    if job.seq < whole.seq {
        missing.push(format!(
            "sequences of {} tokens: {} ran",
            whole.seq, job.seq
        ));
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

#[cfg(test)]
#[allow(clippy::unwrap_used)] // in a test a panic is the report
mod tests {
    use super::*;

    #[test]
    fn layers_stand_for_those_that_most_is_chosen_for() {
        let choices = ["recompute:site=layers.0-5|7/mlp", "offload:site=layers.6"];
        let choices = choices.map(|c| Choice::parse(c).unwrap());
        assert_eq!(representatives(&choices, 8, 2), [0, 6]);
        assert_eq!(representatives(&choices, 8, 3), [0, 1, 6]);
        let cut = |site: &str| cut_site(site, &[0, 6]);
        let both = cut("layers.0-5|7/mlp+layers.*/attention+head").unwrap();
        assert_eq!(both, "layers.0/mlp+layers.*/attention+head");
        assert_eq!(cut("layers.3|6").unwrap(), "layers.1");
        assert_eq!(cut("layers.7"), None);
    }
}
