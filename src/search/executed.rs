//! Plans that were solved for, executed on this machine over throttled links: their bytes, their time, and their order.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Outcome, search};
use crate::error::Result;
use crate::machine::agreement::{Timing, hashes, timing};
use crate::machine::cpu::Settings;
use crate::machine::micro::{self, Size};
use crate::machine::{estimate, measure, rows};
use crate::plan::{Choice, Plan, Request};
use crate::program::{self, height};
use crate::spec::catalog;
use crate::spec::device::Device;
use crate::spec::job::{Backend, Exactness, Host, Job, Optimizer, PerPlace, Precision, Target};
use crate::spec::model::ModelSpec;
use crate::spec::units::{Bytes, Seconds};

/// Links, in MB/s each way: one that hides little behind these models' kernels, and one that hides most.
const LINKS: [u64; 2] = [150, 600];

/// Budgets, in hundredths of what keeping everything takes.
const SHARES: [u64; 4] = [75, 55, 40, 28];

/// Steps that are measured.
const STEPS: u64 = 7;

/// A model with its batch and length.
struct Subject {
    name: &'static str,
    model: fn() -> Result<ModelSpec>,
    batch: u64,
    seq: u64,
}

/// What is solved for.
const SUBJECTS: [Subject; 3] = [
    Subject {
        name: "tiny",
        model: || catalog::open("tiny"),
        batch: 16,
        seq: 256,
    },
    Subject {
        name: "gpt2-like",
        model: || {
            let (hidden, layers, vocab) = (256, 6, 256);
            let size = Size {
                hidden,
                layers,
                vocab,
            };
            micro::model("gpt2", size)
        },
        batch: 8,
        seq: 256,
    },
    Subject {
        name: "small",
        model: || catalog::open("small"),
        batch: 2,
        seq: 256,
    },
];

impl Subject {
    /// Its step in f32 with AdamW, on `threads` of the device.
    fn job(&self, device: &Device, host: Host, threads: u32) -> Result<Job> {
        let mut target = Target::new(device.clone(), host);
        target.backend = Backend::Cpu { threads };
        Ok(Job {
            model: (self.model)()?,
            seq: self.seq,
            batch: self.batch,
            precision: Precision::F32,
            optimizer: Optimizer("adamw".into()),
            target,
        })
    }
}

/// A plan that was solved for, and its run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// `model/MB/s/percent`.
    pub name: String,
    /// Threads of its compute.
    pub threads: u32,
    /// Its choices.
    pub choices: Vec<String>,
    /// Hash of each program that it consists of.
    pub programs: BTreeMap<String, String>,
    /// Bytes of the device within which it was solved for.
    pub budget: Bytes,
    /// Bytes of each place, predicted.
    pub predicted: PerPlace<Bytes>,
    /// Bytes of each place: the machine's own mark.
    pub measured: PerPlace<Bytes>,
    /// What the solver proposed its step to take.
    pub proposed: Seconds,
    /// Its step: simulated, and measured.
    pub time: Timing,
}

impl rows::Named for Row {
    fn name(&self) -> &str {
        &self.name
    }
}

/// How plans are run.
#[derive(Debug, Clone)]
pub struct Options {
    /// This machine, calibrated.
    pub here: Device,
    /// Folder of what lies on disk between uses.
    pub folder: PathBuf,
    /// Where results are kept.
    pub rows: PathBuf,
    /// Cells whose names begin so.
    pub only: Option<String>,
}

/// Solves and runs every cell that has no row yet. Cells whose plan another cell of their model and link has are left out.
///
/// # Errors
/// Where a plan cannot be found or run, or the file not be written.
pub fn bench(options: &Options, progress: &mut dyn FnMut(&str, f64)) -> Result<Vec<Row>> {
    let only = options.only.as_deref();
    rows::expect_any(only, &names(), "MODEL/LINK/SHARE")?;
    let mut found: Vec<Row> = rows::latest(&options.rows)?;
    let all = (SUBJECTS.len() * LINKS.len() * SHARES.len()) as f64;
    let mut done = 0.0;
    for subject in &SUBJECTS {
        for link in LINKS {
            let mut seen = BTreeSet::new();
            for share in SHARES {
                let name = format!("{}/{link}/{share}", subject.name);
                progress(&name, done / all);
                done += 1.0;
                if !rows::wants(only, &name) {
                    continue;
                }
                if let Some(row) = found.iter().find(|row| row.name == name) {
                    seen.insert(row.choices.clone());
                    continue;
                }
                let Some((plan, proposed)) = solved(subject, link, share, &options.here)? else {
                    continue;
                };
                if seen.insert(spelled(&plan)) {
                    let row = run(name, &plan, proposed, options)?;
                    rows::keep(&options.rows, &mut found, row)?;
                }
            }
        }
    }
    Ok(found)
}

/// The names of all cells.
fn names() -> Vec<String> {
    let links = SUBJECTS.iter().flat_map(|s| LINKS.map(|link| (s, link)));
    let cells =
        links.flat_map(|(s, link)| SHARES.map(|share| format!("{}/{link}/{share}", s.name)));
    cells.collect()
}

/// The plan of a cell, with what its step is proposed to take; none where nothing fits.
fn solved(
    subject: &Subject,
    link: u64,
    share: u64,
    here: &Device,
) -> Result<Option<(Plan, Seconds)>> {
    let host = Host {
        link: Some(link as f64 * 1e6),
        ..Host::default()
    };
    let threads = here.threads.map_or(1, |all| all.saturating_sub(1).max(1));
    let job = subject.job(here, host, threads)?;
    let whole = estimate::quick(&Plan::new(job.clone(), vec![])?)?.peak.gpu;
    let mut request = Request {
        job,
        fixed: Vec::new(),
        allow: Exactness::Rounding,
    };
    let device = &mut request.job.target.device;
    device.memory = Bytes(whole.0 * share / 100) + device.reserved;
    Ok(match search(&request)?.outcome {
        Outcome::Fits(best) => Some((best.plan, best.proposed)),
        Outcome::Misfit(_) => None,
    })
}

/// The choices of a plan as they are written on a command line.
fn spelled(plan: &Plan) -> Vec<String> {
    plan.choices.iter().map(Choice::to_string).collect()
}

/// Runs a plan over its link, with its disk held to the rate that was measured.
fn run(name: String, plan: &Plan, proposed: Seconds, options: &Options) -> Result<Row> {
    let target = &plan.job.target;
    let own = target.device.disk_rate;
    let settings = Settings {
        link: target.host.link,
        // What was written a moment ago is read from memory, many times faster than any disk.
        disk: own.map(|own| own.min(target.host.disk_rate)),
        ..Settings::default()
    };
    let mut session = measure::open(plan.clone(), &options.folder, settings)?;
    let time = timing(&mut session, STEPS)?;
    let stepped = |p: &&program::Program| estimate::per_step(p.when, None) > 0.0;
    let ran: Vec<program::Program> = session
        .programs()
        .iter()
        .filter(|p| stepped(p) || p.when == crate::graph::When::Start)
        .cloned()
        .collect();
    Ok(Row {
        name,
        threads: match target.backend {
            Backend::Cpu { threads } => threads,
            Backend::Cuda { .. } => 0,
        },
        choices: spelled(plan),
        programs: hashes(session.programs()),
        budget: target.device.memory - target.device.reserved,
        predicted: height(&ran),
        measured: session.mark(),
        proposed,
        time,
    })
}

/// The programs of a row as they are lowered now, by hash.
///
/// # Errors
/// Where its name or a choice is not known any more.
pub fn lowered(row: &Row, here: &Device) -> Result<BTreeMap<String, String>> {
    let subject = SUBJECTS
        .iter()
        .find(|s| row.name.starts_with(&format!("{}/", s.name)));
    let Some(subject) = subject else {
        return Ok(BTreeMap::new());
    };
    let job = subject.job(here, Host::default(), row.threads)?;
    let choices = row.choices.iter().map(|c| Choice::parse(c));
    let plan = Plan::new(job, choices.collect::<Result<_>>()?)?;
    Ok(hashes(&estimate::all(&plan)?))
}

/// What the rows show together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Plans that were run.
    pub count: usize,
    /// Those whose marks are the prediction to the byte.
    pub agree: usize,
    /// Distances of simulated from measured steps, the machine's pace taken out: the middle one and the largest.
    pub median_error: f64,
    /// The largest.
    pub largest_error: f64,
    /// Spearman's rank correlation of simulated and measured steps, over all plans.
    pub together: f64,
    /// The same for the plans of each model.
    pub order: BTreeMap<String, f64>,
}

/// Sums up rows.
pub fn summary(rows: &[Row]) -> Summary {
    let mut errors: Vec<f64> = rows.iter().map(|r| r.time.step.errors().0).collect();
    errors.sort_by(f64::total_cmp);
    let mut of: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    for row in rows {
        let model = row.name.split('/').next().unwrap_or_default();
        let step = row.time.step;
        let times = (step.predicted.0, step.corrected.0);
        of.entry(model.to_string()).or_default().push(times);
    }
    Summary {
        count: rows.len(),
        agree: rows.iter().filter(|r| r.predicted == r.measured).count(),
        median_error: errors.get(errors.len() / 2).copied().unwrap_or(0.0),
        largest_error: errors.last().copied().unwrap_or(0.0),
        together: spearman(&of.values().flatten().copied().collect::<Vec<_>>()),
        order: of
            .into_iter()
            .map(|(m, times)| (m, spearman(&times)))
            .collect(),
    }
}

/// Spearman's rank correlation: of the ranks of the first of each pair with those of the second.
fn spearman(pairs: &[(f64, f64)]) -> f64 {
    let rank = |of: fn(&(f64, f64)) -> f64| -> Vec<f64> {
        let below = |x: f64| pairs.iter().filter(|p| of(p) < x).count() as f64;
        let equal = |x: f64| pairs.iter().filter(|p| of(p) == x).count() as f64;
        pairs
            .iter()
            .map(|p| below(of(p)) + (equal(of(p)) - 1.0) / 2.0)
            .collect()
    };
    let (a, b) = (rank(|p| p.0), rank(|p| p.1));
    let middle = (pairs.len() as f64 - 1.0) / 2.0;
    let sum = |x: &[f64], y: &[f64]| -> f64 {
        let both = x.iter().zip(y);
        both.map(|(x, y)| (x - middle) * (y - middle)).sum()
    };
    sum(&a, &b) / (sum(&a, &a) * sum(&b, &b)).sqrt().max(f64::MIN_POSITIVE)
}
