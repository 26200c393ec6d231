//! What a plan costs: its programs lowered, checked, and simulated.

use std::collections::BTreeMap;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::lowered::{self, Lowered};
use super::sim::Sim;
use super::timeline::Timeline;
use crate::error::Result;
use crate::graph::op::transfer::MOVE;
use crate::graph::tensor::Role;
use crate::graph::{Node, Phase, Step, Stream, When};
use crate::plan::Plan;
use crate::plan::file::Claim;
use crate::program::check::check;
use crate::program::{Instr, Program, programs};
use crate::spec::job::{Backend, PerPlace, Place};
use crate::spec::units::{Bytes, Seconds};

/// What a plan takes and how long a step of it lasts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// Bytes of each place: the largest height of its programs. Pinned memory is counted apart from pageable.
    pub peak: PerPlace<Bytes>,
    /// Who holds the device's memory at the peak.
    pub peak_by_role: BTreeMap<Role, Bytes>,
    /// The same for every place.
    pub roles: PerPlace<BTreeMap<Role, Bytes>>,
    /// Height of each program on the device.
    pub programs: Vec<(When, Bytes)>,
    /// One optimizer step.
    pub step: Seconds,
    /// Tokens of the batch over the step's time.
    pub tokens_per_second: f64,
    /// Seconds of work in each stream per step.
    pub busy: BTreeMap<Stream, f64>,
    /// Seconds of device work in each phase per step.
    pub phases: BTreeMap<Phase, f64>,
    /// Seconds per step in which the device waits for copies or for the host.
    pub exposed: Seconds,
}

impl Estimate {
    /// What a saved plan states of it.
    pub fn claim(&self) -> Claim {
        Claim {
            peak: self.peak,
            step_seconds: self.step,
        }
    }
}

/// All programs of `plan`: training, evaluation, loading and saving.
///
/// # Errors
/// Where a choice cannot be applied.
pub fn all(plan: &Plan) -> Result<Vec<Program>> {
    let mut set = plan.steps()?;
    set.steps.extend(plan.transfers(&set.shared())?);
    programs(set, plan.job.target.backend)
}

/// The estimate of `plan` from the programs of its training, without proof: for comparing candidates.
///
/// # Errors
/// Where a choice cannot be applied.
pub fn quick(plan: &Plan) -> Result<Estimate> {
    summarize(plan, &stepping(plan)?)
}

/// The programs that run in a step of `plan`.
///
/// # Errors
/// Where a choice cannot be applied.
pub fn stepping(plan: &Plan) -> Result<Lowered> {
    lowered::of(plan, || {
        let mut set = plan.training_steps()?;
        set.steps.retain(|(when, _)| per_step(*when, None) > 0.0);
        programs(set, plan.job.target.backend)
    })
}

/// The estimate of `plan` from all its programs, each proved by the checker.
///
/// # Errors
/// Where a choice cannot be applied, or a program breaks a rule.
pub fn proved(plan: &Plan) -> Result<Estimate> {
    prove(plan, &all(plan)?)
}

/// The estimate of `plan` from all its `programs`, each proved by the checker.
///
/// # Errors
/// Where a program breaks a rule.
pub fn prove(plan: &Plan, programs: &[Program]) -> Result<Estimate> {
    let proofs = || programs.par_iter().map(check).collect::<Vec<_>>();
    let (proofs, estimate) = rayon::join(proofs, || summarize(plan, programs));
    proofs.into_iter().collect::<Result<Vec<_>>>()?;
    estimate
}

/// The estimate of `plan` from its `programs`.
///
/// # Errors
/// None of its own.
pub fn summarize(plan: &Plan, programs: &[Program]) -> Result<Estimate> {
    Ok(summary(plan, programs, &walks(plan, programs)?))
}

/// A simulated walk over each of the `programs` of `plan` that runs in its steps.
///
/// # Errors
/// None of its own.
pub fn walks(plan: &Plan, programs: &[Program]) -> Result<Vec<Timeline>> {
    let period = period(programs);
    let walk = |program: &Program| match per_step(program.when, period) {
        0.0 => Ok(Timeline::default()),
        _ => simulate(program, plan),
    };
    programs.iter().map(walk).collect()
}

/// The estimate of `plan` from its `programs` and their `walks`.
pub fn summary(plan: &Plan, programs: &[Program], walks: &[Timeline]) -> Estimate {
    let mut busy = BTreeMap::new();
    let mut phases = BTreeMap::new();
    let (mut step, mut exposed) = (0.0, 0.0);
    let period = period(programs);
    for (program, timeline) in programs.iter().zip(walks) {
        let times = per_step(program.when, period);
        step += times * timeline.total.0;
        exposed += times * timeline.exposed().0;
        timeline
            .busy()
            .into_iter()
            .for_each(|(s, t)| *busy.entry(s).or_insert(0.0) += times * t);
        timeline
            .phases(program)
            .into_iter()
            .for_each(|(p, t)| *phases.entry(p).or_insert(0.0) += times * t);
    }
    let peak = crate::program::height(programs);
    let roles = PerPlace::new(|place| roles_at_peak(programs, place));
    Estimate {
        peak,
        peak_by_role: roles[Place::Gpu].clone(),
        roles,
        programs: programs.iter().map(|p| (p.when, p.height.gpu)).collect(),
        step: Seconds(step),
        tokens_per_second: (plan.job.batch * plan.job.seq) as f64 / step,
        busy,
        phases,
        exposed: Seconds(exposed),
    }
}

/// One simulated walk over `program`.
///
/// # Errors
/// None of its own.
pub fn simulate(program: &Program, plan: &Plan) -> Result<Timeline> {
    super::run(program, &mut Sim::new(program, &plan.job.target))
}

/// How often a program runs in each optimizer step, on average, where another takes the steady one's place every `period` steps.
pub fn per_step(when: When, period: Option<u32>) -> f64 {
    match when {
        When::Steady => 1.0 - period.map_or(0.0, |n| 1.0 / f64::from(n)),
        When::Every(n) | When::Renew(n) => 1.0 / f64::from(n),
        When::First => 1.0,
        When::Micro { times } => f64::from(times),
        When::Start | When::Restart | When::Evaluate | When::Save => 0.0,
    }
}

/// Every how many steps a program takes the steady one's place.
fn period(programs: &[Program]) -> Option<u32> {
    programs.iter().find_map(|p| match p.when {
        When::Every(n) => Some(n),
        _ => None,
    })
}

/// Who holds `place` where its load is largest, in the program whose height is; what placement could not use is padding.
fn roles_at_peak(programs: &[Program], place: Place) -> BTreeMap<Role, Bytes> {
    let highest = programs.iter().rev().max_by_key(|p| p.height[place]);
    let Some(program) = highest.filter(|p| p.height[place] > Bytes::ZERO) else {
        return BTreeMap::new();
    };
    let at = peak_position(program, place);
    let mut roles: BTreeMap<Role, Bytes> = BTreeMap::new();
    for buffer in alive(program, at).filter(|b| b.place == place) {
        *roles.entry(buffer.role).or_default() += buffer.exact;
    }
    let held: Bytes = roles.values().copied().sum();
    *roles.entry(Role::Padding).or_default() += program.height[place] - held;
    roles.retain(|_, bytes| *bytes > Bytes::ZERO);
    roles
}

/// The position of the text after which the load of `place` is largest, the first of them.
pub fn peak_position(program: &Program, place: Place) -> usize {
    let (mut now, mut best) = (0i64, (i64::MIN, 0));
    for (at, instr) in program.code.iter().enumerate() {
        match instr {
            Instr::Alloc(id) if program.buffer(*id).place == place => {
                now += program.buffer(*id).bytes.0 as i64
            }
            Instr::Free(id) if program.buffer(*id).place == place => {
                now -= program.buffer(*id).bytes.0 as i64
            }
            _ => continue,
        }
        if now > best.0 {
            best = (now, at);
        }
    }
    best.1
}

/// The buffers alive after position `at`.
pub fn alive(program: &Program, at: usize) -> impl Iterator<Item = &crate::program::Buffer> {
    let mut alive: Vec<bool> = program.buffers.iter().map(|b| b.shared).collect();
    for instr in program.code.iter().take(at + 1) {
        match instr {
            Instr::Alloc(id) => alive[id.0 as usize] = true,
            Instr::Free(id) => alive[id.0 as usize] = false,
            _ => {}
        }
    }
    program
        .buffers
        .iter()
        .zip(alive)
        .filter(|(_, alive)| *alive)
        .map(|(buffer, _)| buffer)
}

/// The same plan lowered for this machine's cores instead of its device.
pub fn on_cpu(plan: &Plan, threads: u32) -> Plan {
    let mut plan = plan.clone();
    plan.job.target.backend = Backend::Cpu { threads };
    plan
}

/// The same plan lowered for a GPU of `capability`, whatever it was planned for.
pub fn on_cuda(plan: &Plan, capability: u32) -> Plan {
    let mut plan = plan.clone();
    plan.job.target.backend = Backend::Cuda { capability };
    plan
}

/// Threads that `plan`'s compute gets on a CPU of `cores`: all of them, or one fewer where copies or the host's updates
/// run beside it.
pub fn threads_for(plan: &Plan, cores: u32) -> u32 {
    let beside = |node: &Node| node.op.name() == MOVE || node.stream != Stream::Compute;
    let concurrent =
        |(when, step): &(When, Step)| per_step(*when, None) > 0.0 && step.nodes.iter().any(beside);
    let set = plan.training_steps();
    match set.is_ok_and(|set| set.steps.iter().any(concurrent)) {
        true => cores.saturating_sub(1).max(1),
        false => cores.max(1),
    }
}
