//! Plans that are solved for beside what others would do, over models, lengths, budgets and links.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::policies::{HOMES, POLICIES};
use super::problem::{Problem, Problems};
use super::{Candidate, segments, solve};
use crate::error::Result;
use crate::machine::rows::{self, Named};
use crate::plan::Request;
use crate::spec::job::{Budget, Exactness, Host, Job, Optimizer, Precision, Target};
use crate::spec::model::Position;
use crate::spec::units::Bytes;
use crate::spec::{catalog, device};

/// The models.
const MODELS: [&str; 5] = [
    "gpt2-xl",
    "llama-2-7b",
    "llama-2-13b",
    "llama-2-70b",
    "qwen3-8b",
];
/// Positions of a sequence.
const LENGTHS: [u64; 3] = [2 << 10, 8 << 10, 32 << 10];
/// Budgets, in hundredths of what keeping everything takes.
const SHARES: [u64; 9] = [90, 80, 70, 60, 50, 40, 30, 20, 10];
/// Links, GB/s each way.
const LINKS: [u64; 3] = [12, 25, 50];
/// The device whose arithmetic is taken, and the host's memory.
const DEVICE: &str = "h100-80gb";
const RAM: Bytes = Bytes(4 << 40);

/// One cell of the grid.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Model, length, link and share.
    pub name: String,
    /// Bytes of the device.
    pub budget: Bytes,
    /// Seconds of the step that was solved for, as the whole plan is simulated; `None` where nothing fits.
    pub seconds: Option<f64>,
    /// What it is called.
    pub plan: String,
    /// As it was proposed.
    pub proposed: Option<f64>,
    /// What no plan of the class is faster than.
    pub bound: Option<f64>,
    /// Seconds of each policy with the home that suits it best, where it fits with one.
    pub others: BTreeMap<String, f64>,
}

impl Named for Row {
    fn name(&self) -> &str {
        &self.name
    }
}

impl Row {
    /// The fastest other.
    pub fn best_other(&self) -> Option<(&str, f64)> {
        let all = self
            .others
            .iter()
            .map(|(name, &seconds)| (name.as_str(), seconds));
        all.min_by(|a, b| a.1.total_cmp(&b.1))
    }
}

/// Fills the grid in the file of `path`, resuming; `only` the jobs of cells whose names begin so.
///
/// # Errors
/// Where no name begins so, a model cannot be planned or the file not be written.
pub fn bench(
    path: &Path,
    only: Option<&str>,
    progress: &mut dyn FnMut(&str, f64),
) -> Result<Vec<Row>> {
    let mut found: Vec<Row> = rows::latest(path)?;
    let jobs = jobs(only)?;
    for (done, (begin, model, seq, link)) in jobs.iter().enumerate() {
        progress(begin, (done + 1) as f64 / jobs.len() as f64);
        let known = |name: &String| found.iter().any(|row| row.name == *name);
        if names(begin).iter().all(known) {
            continue;
        }
        for row in sweep(begin, &request(model, *seq, *link)?)? {
            rows::keep(path, &mut found, row)?;
        }
    }
    Ok(found)
}

/// Jobs with a cell whose name begins with `only`: how their names begin, model, length and link.
fn jobs(only: Option<&str>) -> Result<Vec<(String, &'static str, u64, u64)>> {
    let links = |model, seq| LINKS.map(|link| (format!("{model}/{seq}/{link}"), model, seq, link));
    let lengths = |model| LENGTHS.into_iter().flat_map(move |seq| links(model, seq));
    let mut jobs: Vec<_> = MODELS.into_iter().flat_map(lengths).collect();
    let all: Vec<String> = jobs.iter().flat_map(|job| names(&job.0)).collect();
    rows::expect_any(only, &all, "MODEL/LENGTH/LINK/SHARE")?;
    jobs.retain(|job| names(&job.0).iter().any(|name| rows::wants(only, name)));
    Ok(jobs)
}

/// The cells of a job.
fn names(begin: &str) -> [String; SHARES.len()] {
    SHARES.map(|share| format!("{begin}/{share}"))
}

fn request(model: &str, seq: u64, link: u64) -> Result<Request> {
    let mut model = catalog::find(model)?;
    // Published lengths would end before the grid does.
    model.max_positions = model.max_positions.max(seq);
    if let Position::Learned { rows, offset } = &mut model.position {
        *rows = (*rows).max(seq + *offset);
    }
    let host = Host {
        ram: RAM,
        link: Some(link as f64 * 1e9),
        ..Host::default()
    };
    Ok(Request {
        job: Job {
            model,
            seq,
            batch: 1,
            precision: Precision::Bf16,
            optimizer: Optimizer("adamw".into()),
            target: Target::new(device::find(DEVICE)?, host),
        },
        fixed: Vec::new(),
        allow: Exactness::Rounding,
    })
}

/// All budgets of one job: its coefficients are read once.
fn sweep(begin: &str, request: &Request) -> Result<Vec<Row>> {
    let problems = Problems::of(request)?;
    let plain = &problems.all[0].layers;
    let (whole, _) = plain.peak(&plain.plain());
    let row = |share: u64| {
        let device = Bytes((whole.gpu * share as f64 / 100.0) as u64);
        let budget = request.job.target.budget().with_device(device);
        let solved = solve::within(&problems, request, &budget, None)?;
        let fits = solved.candidates.iter().filter(|c| c.fits(&budget));
        let best = fits.min_by(|a, b| a.estimate.step.0.total_cmp(&b.estimate.step.0));
        Ok(Row {
            name: format!("{begin}/{share}"),
            budget: device,
            seconds: best.map(|c| c.estimate.step.0),
            plan: best.map_or(String::new(), |c| c.name.clone()),
            proposed: best.map(|c| c.proposed.0),
            bound: solved.bound.map(|bound| bound.0),
            others: others(&problems, request, &budget)?,
        })
    };
    SHARES.into_iter().map(row).collect()
}

/// What each policy takes with the home that suits it best.
fn others(
    problems: &Problems,
    request: &Request,
    budget: &Budget,
) -> Result<BTreeMap<String, f64>> {
    let mut others = BTreeMap::new();
    for policy in &POLICIES {
        let suited = policy.suited(problems, budget, f64::INFINITY);
        let lowered = suited
            .iter()
            .map(|(index, counts)| problems.whole(request, &problems.all[*index], counts));
        let lowered = lowered.collect::<Result<Vec<Candidate>>>()?;
        if let Some(seconds) = fastest(&lowered, budget) {
            others.insert(policy.name.to_string(), seconds);
        }
    }
    let segments = by_segments(problems, request, budget)?;
    others.extend(segments.map(|seconds| ("sqrt(L) segments".to_string(), seconds)));
    Ok(others)
}

fn fastest(all: &[Candidate], budget: &Budget) -> Option<f64> {
    let fits = all.iter().filter(|c| c.fits(budget));
    fits.map(|c| c.estimate.step.0).min_by(f64::total_cmp)
}

/// Chen's segments of the square root of the layers, with the fastest homes that have room for every layer's input.
fn by_segments(problems: &Problems, request: &Request, budget: &Budget) -> Result<Option<f64>> {
    let layers = request.job.model.layers;
    let length = (layers as f64).sqrt().round().max(1.0) as u64;
    let mut homes: Vec<&Problem> = problems.all.iter().collect();
    homes.retain(|p| p.layers.excess(&p.layers.smallest(), budget) <= 0.0);
    homes.sort_by(|a, b| {
        a.layers
            .plain()
            .seconds
            .total_cmp(&b.layers.plain().seconds)
    });
    for problem in homes.into_iter().take(HOMES) {
        let candidate = segments::whole(problems, request, problem, length)?;
        if candidate.fits(budget) {
            return Ok(Some(candidate.estimate.step.0));
        }
    }
    Ok(None)
}
