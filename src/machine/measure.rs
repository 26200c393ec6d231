//! Sessions that are measured: steps timed with the probe between them, and compared with the simulator.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::cpu::Settings;
use super::estimate::simulate;
use super::probe::{Probe, Ratio, STEADY, median};
use super::sim::node_work;
use super::timeline::Timeline;
use super::train::session::{Options, Schedule, Session};
use super::train::text::{Coding, Corpus, HeldOut, Source};
use crate::error::Result;
use crate::graph::op::Work;
use crate::graph::{Phase, Stream, When};
use crate::plan::Plan;
use crate::program::{Instr, Program};
use crate::spec::device;
use crate::spec::job::Backend;
use crate::spec::units::Seconds;

/// Tries of a measurement whose probe moved, where it is of several steps.
const TRIES: u32 = 3;

/// Readings of the probe between two steps.
const READINGS: usize = 5;

impl Options {
    /// A run at a fixed rate over any number of steps, without files.
    pub fn fixed(folder: &Path, machine: Settings) -> Options {
        Options {
            steps: u64::MAX,
            rate: 1e-3,
            schedule: Schedule::Constant,
            warmup: 0,
            seed: 7,
            machine,
            folder: folder.to_path_buf(),
            weights: None,
            adapter: None,
            resume: None,
            config: "{}".into(),
            evaluation_rows: 4,
            settings: serde_json::Value::Null,
        }
    }
}

/// A session of `plan` over the text that ships, bytes as tokens, a twentieth of it held out.
///
/// # Errors
/// As [`Session::open`].
pub fn open(plan: Plan, folder: &Path, machine: Settings) -> Result<Session> {
    let (vocab, head) = (plan.job.model.vocab, plan.job.model.head);
    let (source, coding) = (Source::default(), Coding::Bytes);
    let corpus = Corpus::open(&source, &coding, &HeldOut::Fraction(0.05), vocab, head)?;
    Session::open(plan, corpus, Options::fixed(folder, machine))
}

/// A time as simulated and as measured.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Times {
    /// Simulated.
    pub predicted: Seconds,
    /// Measured.
    pub raw: Seconds,
    /// Measured, divided by the probe's ratio.
    pub corrected: Seconds,
}

impl Times {
    /// Relative error of the simulation, against the corrected time and against the raw one.
    pub fn errors(&self) -> (f64, f64) {
        let error = |measured: Seconds| (self.predicted.0 / measured.0.max(1e-12) - 1.0).abs();
        (error(self.corrected), error(self.raw))
    }

    fn add(&mut self, other: Times) {
        self.predicted.0 += other.predicted.0;
        self.raw.0 += other.raw.0;
        self.corrected.0 += other.corrected.0;
    }
}

/// What a measurement of steps found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// One step: the median of those measured.
    pub step: Times,
    /// Launches of each op in that step, copies under `copy`.
    pub ops: BTreeMap<String, Times>,
    /// Compute of each phase in that step.
    pub phases: BTreeMap<Phase, Times>,
    /// Time of the probe over its time at calibration, the middle one.
    pub ratio: f64,
    /// How far the ratio moved, as a share of it.
    pub moved: f64,
    /// Measurements it took until the ratio stayed within bounds; they are bounded too.
    pub tries: u32,
    /// Whether the last one stayed within bounds.
    pub steady: bool,
    /// Loss of every step.
    pub losses: Vec<f32>,
}

/// One timed step.
struct Timed {
    seconds: f64,
    ratio: Ratio,
    /// Part of its compute that is matrix products.
    products: f64,
    timelines: Vec<(When, Timeline)>,
}

impl Timed {
    /// How much slower its compute was than at calibration.
    fn slower(&self) -> f64 {
        self.ratio.mixed(self.products)
    }

    /// The seconds a machine as fast as at calibration takes: only compute is scaled, since waits for a link or a disk
    /// do not change with it.
    fn corrected(&self) -> f64 {
        let total: f64 = self.timelines.iter().map(|(_, t)| t.total.0).sum();
        let waits: f64 = self.timelines.iter().map(|(_, t)| t.exposed().0).sum();
        let waiting = if total > 0.0 { waits / total } else { 0.0 };
        self.seconds * (waiting + (1.0 - waiting) / self.slower())
    }
}

/// How fast this machine is beside its own calibration, while a session runs on it.
pub(super) struct Pace {
    /// The probe, its time at calibration, and whether compute runs on one thread fewer; none where the device carries no probe.
    probe: Option<(Probe, device::Probe, bool)>,
    last: Ratio,
}

impl Pace {
    /// Beside `session`, on as many threads.
    ///
    /// # Errors
    /// Where the threads are refused.
    pub(super) fn of(session: &Session) -> Result<Pace> {
        let (device, threads) = (&session.plan().job.target.device, threads(session.plan()));
        let fewer = device.threads.is_some_and(|all| threads < all);
        let probe = device
            .probe
            .map(|reference| -> Result<_> { Ok((Probe::new(threads)?, reference, fewer)) });
        Ok(Pace {
            probe: probe.transpose()?,
            last: Ratio::ONE,
        })
    }

    /// Time of the probe over its time at calibration since this was asked last: half way from then to now.
    pub(super) fn since(&mut self) -> Ratio {
        let Some((probe, reference, fewer)) = &mut self.probe else {
            return Ratio::ONE;
        };
        let now = probe.mean(READINGS).ratio(reference, *fewer);
        std::mem::replace(&mut self.last, now).middle(now)
    }
}

/// Measures `steps` steps of `session` after one that is not counted; where the device carries no probe, the ratio is 1.
///
/// # Errors
/// Where a step fails.
pub fn measure(session: &mut Session, steps: u64) -> Result<Measurement> {
    let mut pace = Pace::of(session)?;
    session.step()?;
    let mut tries = 0;
    loop {
        tries += 1;
        let timed = timed(session, &mut pace, steps)?;
        let ratios: Vec<f64> = timed.iter().map(Timed::slower).collect();
        let ratio = median(ratios.clone());
        let far = ratios.iter().map(|r| (r / ratio - 1.0).abs());
        let moved = far.fold(0.0, f64::max);
        let steady = moved <= STEADY;
        if steady || steps < 2 || tries == TRIES {
            return compared(session, timed, (ratio, moved, tries, steady));
        }
    }
}

fn threads(plan: &Plan) -> u32 {
    match plan.job.target.backend {
        Backend::Cpu { threads } => threads,
        Backend::Cuda { .. } => 1,
    }
}

fn timed(session: &mut Session, pace: &mut Pace, steps: u64) -> Result<Vec<Timed>> {
    pace.since();
    let mut all = Vec::new();
    for _ in 0..steps.max(1) {
        let seconds = session.step()?.seconds.0;
        all.push(Timed {
            seconds,
            ratio: pace.since(),
            products: products(session),
            timelines: session.timelines().to_vec(),
        });
    }
    Ok(all)
}

/// What an instruction has to compute; nothing where it is no launch.
fn work(program: &Program, instr: &Instr) -> Work {
    match instr {
        Instr::Launch { node, .. } => node_work(&program.step, *node).1,
        _ => Work::default(),
    }
}

/// The part of the last step's compute that was matrix products.
fn products(session: &Session) -> f64 {
    let (mut products, mut all) = (0.0, 0.0);
    for (when, timeline) in session.timelines() {
        let Some(program) = session.programs().iter().find(|p| p.when == *when) else {
            continue;
        };
        for mark in &timeline.marks {
            if mark.stream != Stream::Compute {
                continue;
            }
            let seconds = mark.end - mark.start;
            all += seconds;
            if work(program, &program.code[mark.at]).matmul > 0 {
                products += seconds;
            }
        }
    }
    if all > 0.0 { products / all } else { 0.0 }
}

/// The medians beside what the simulator says; ops and phases are those of the step whose corrected time is the middle one.
fn compared(
    session: &Session,
    mut timed: Vec<Timed>,
    (ratio, moved, tries, steady): (f64, f64, u32, bool),
) -> Result<Measurement> {
    let raw = median(timed.iter().map(|t| t.seconds).collect());
    timed.sort_by(|a, b| a.corrected().total_cmp(&b.corrected()));
    let middle = &timed[timed.len() / 2];
    let mut ops = BTreeMap::new();
    let mut phases = BTreeMap::new();
    let mut predicted = 0.0;
    for program in session.programs() {
        let own = |w: &When| *w == program.when;
        let times = middle.timelines.iter().filter(|(w, _)| own(w)).count();
        if times == 0 {
            continue;
        }
        let simulated = simulate(program, session.plan())?;
        predicted += times as f64 * simulated.total.0;
        for (_, measured) in middle.timelines.iter().filter(|(w, _)| own(w)) {
            per_op(program, &simulated, None, &mut ops, &mut phases);
            per_op(program, measured, Some(middle.ratio), &mut ops, &mut phases);
        }
    }
    let step = Times {
        predicted: Seconds(predicted),
        raw: Seconds(raw),
        corrected: Seconds(middle.corrected()),
    };
    let losses = session.progress().losses.clone();
    Ok(Measurement {
        step,
        ops,
        phases,
        ratio,
        moved,
        tries,
        steady,
        losses,
    })
}

/// Adds a timeline's marks to ops and phases: as predicted, or as measured while the machine was slower by a ratio.
fn per_op(
    program: &Program,
    timeline: &Timeline,
    measured: Option<Ratio>,
    ops: &mut BTreeMap<String, Times>,
    phases: &mut BTreeMap<Phase, Times>,
) {
    for mark in &timeline.marks {
        let seconds = mark.end - mark.start;
        let instr = &program.code[mark.at];
        let times = match measured {
            Some(ratio) => Times {
                raw: Seconds(seconds),
                corrected: Seconds(seconds / ratio.of(work(program, instr))),
                ..Times::default()
            },
            None => Times {
                predicted: Seconds(seconds),
                ..Times::default()
            },
        };
        ops.entry(op_name(program, instr)).or_default().add(times);
        let compute = mark.stream == Stream::Compute;
        if let Some(phase) = program.phase(instr).filter(|_| compute) {
            phases.entry(phase).or_default().add(times);
        }
    }
}

fn op_name(program: &Program, instr: &Instr) -> String {
    match instr {
        Instr::Launch { node, .. } => program.step.nodes[*node as usize].op.name().to_string(),
        _ => "copy".to_string(),
    }
}
