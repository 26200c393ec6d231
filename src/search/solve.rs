//! From a request to plans that were solved for: a menu, coefficients, one integer program for each home of the states.

use std::collections::{BTreeMap, BTreeSet};

use rayon::prelude::*;

use super::menu::{self, Fate, Home, Saved};
use super::milp::{Column, Counts, Kind, Layers};
use super::price::{self, decides, names_layers};
use super::sample::{self, Change, DEPTHS, Taken};
use super::{Candidate, Proposal, may_choose};
use crate::error::Result;
use crate::graph::Stream;
use crate::machine::estimate;
use crate::plan::{Choice, Plan, Request};
use crate::spec::job::{Budget, PerPlace, Place};
use crate::spec::model::Head;
use crate::spec::units::{Bytes, Seconds};

/// A home of the states with what may be chosen beside it.
#[derive(Debug, Clone)]
pub struct Problem {
    /// Where the states live.
    pub home: Home,
    /// What may be chosen in how many layers, and what that takes.
    pub layers: Layers,
}

/// All problems of a request, and what they share.
#[derive(Debug, Clone)]
pub struct Problems {
    /// One for each home.
    pub all: Vec<Problem>,
    /// What a layer saves.
    pub saved: Vec<Saved>,
    /// What may become of it.
    pub changes: Vec<Change>,
    /// Choices that all plans have: kernels that need less and are no slower.
    kernels: Vec<Choice>,
    /// The blocks beside the layers that hold parameters.
    others: Vec<String>,
}

impl Problems {
    /// Reads the coefficients off shallow models.
    ///
    /// # Errors
    /// Where no home can be planned.
    pub fn of(request: &Request) -> Result<Problems> {
        let kernels = kernels(request);
        let homes = menu::homes(request);
        let device = homes.iter().rev().find(|h| h.by_layer.is_empty());
        let device = device.cloned().unwrap_or_else(|| homes[0].clone());
        let shallow = at_depth(request, DEPTHS.0);
        let step = sample::steady(&planned(&shallow, &device.choices("*"), &kernels)?)?;
        let saved = step
            .as_ref()
            .map_or(Vec::new(), |step| menu::saved(step, 1));
        let others = step.as_ref().map_or(Vec::new(), |step| {
            let shared = step.storages.iter().filter(|s| s.shared);
            let first = shared.filter_map(|s| s.name.split('/').next());
            let beside: BTreeSet<&str> = first.filter(|f| !f.starts_with("layers.")).collect();
            beside.into_iter().map(String::from).collect()
        });
        let changes = changes(request, &device, &kernels, &saved)?;
        let mut problems = Problems {
            all: Vec::new(),
            saved,
            changes,
            kernels,
            others,
        };
        let taken = |home: &Home| problems.taken(request, home);
        let all: Vec<Result<Measured>> = homes.par_iter().map(taken).collect();
        let at_device = homes.iter().position(|h| *h == device).unwrap_or(0);
        let device = all[at_device].as_ref().ok();
        for (home, measured) in homes.into_iter().zip(&all) {
            if let Ok(measured) = measured {
                let problem = problems.problem(request, home, measured, device);
                problems.all.push(problem);
            }
        }
        match all.into_iter().find_map(Result::err) {
            Some(error) if problems.all.is_empty() => Err(error),
            _ => Ok(problems),
        }
    }

    /// What a home takes of a model of the request's depth, and for each of its layers.
    fn taken(&self, request: &Request, home: &Home) -> Result<Measured> {
        let at = |layers: u64, more: &[Choice]| {
            let all: Vec<Choice> = home
                .choices("*")
                .into_iter()
                .chain(more.iter().cloned())
                .collect();
            Taken::by(&planned(&at_depth(request, layers), &all, &self.kernels)?)
        };
        let drops = self.changes.iter().any(|c| c.fate == Fate::Recompute);
        let kept = Line::new(at(DEPTHS.0, &[])?, at(DEPTHS.1, &[])?);
        let floor = match drops {
            true => {
                let all = [Choice::new("recompute", "layers.*", &[])];
                Line::new(at(DEPTHS.0, &all)?, at(DEPTHS.1, &all)?)
            }
            false => kept,
        };
        Ok(Measured { kept, floor })
    }

    fn problem(
        &self,
        request: &Request,
        home: Home,
        measured: &Measured,
        device: Option<&Measured>,
    ) -> Problem {
        let count = request.job.model.layers;
        let column = |change: &Change| Column {
            takes: Taken {
                peak: change.held,
                forward: change.forward,
                later: change.later,
                ..Taken::default()
            },
            most: match change.fate {
                Fate::Recompute => count,
                // What the last layers send away comes back at once.
                Fate::Offload => count.saturating_sub(2),
            },
            subject: change.saved,
        };
        let kind = |m: &Measured| Kind {
            takes: m.kept.layer,
            floor: m.floor.layer.peak.gpu,
            strain: m.strain(),
        };
        let away = !home.by_layer.is_empty() && !names_layers(request);
        let others = device.filter(|_| away).map(kind);
        let layers = Layers {
            count,
            rest: measured.kept.rest,
            floor: measured.floor.rest.peak.gpu,
            kinds: [kind(measured)].into_iter().chain(others).collect(),
            columns: self.changes.iter().map(column).collect(),
        };
        Problem { home, layers }
    }

    /// The plan of `counts`.
    pub fn proposal(&self, problem: &Problem, counts: &Counts) -> Proposal {
        let layers = problem.layers.count;
        let at_home = counts.kinds.get(1).map_or(0, |&n| n as u64);
        let kept: BTreeSet<u64> = spread(at_home, layers);
        let mut sites: BTreeMap<(Fate, BTreeSet<u64>), Vec<usize>> = BTreeMap::new();
        for saved in 0..self.saved.len() {
            for (fate, set) in self.fates(saved, counts, &kept, layers) {
                if !set.is_empty() {
                    sites.entry((fate, set)).or_default().push(saved);
                }
            }
        }
        let mut choices = problem.home.choices(&self.away(&kept, layers));
        choices.extend(self.kernels.iter().cloned());
        for ((fate, set), saved) in &sites {
            choices.push(self.choice(&problem.home, *fate, set, saved, layers));
        }
        let part = |n: usize, what: &str| format!("{what} in {n} of {layers} layers");
        let mut names: Vec<String> =
            Vec::from_iter((!problem.home.name.is_empty()).then(|| problem.home.name.clone()));
        if !kept.is_empty() {
            names.push(part(kept.len(), "at home"));
        }
        for fate in Fate::ALL {
            let sets = sites.iter().filter(|((f, _), _)| *f == fate);
            let any: BTreeSet<u64> = sets.flat_map(|((_, set), _)| set.iter().copied()).collect();
            if !any.is_empty() {
                names.push(part(any.len(), fate.technique()));
            }
        }
        Proposal {
            name: names.join(" + "),
            choices,
            family: None,
        }
    }

    /// The layers in which `saved` has each fate: evenly where it is sent away, the earliest of the rest where it is dropped.
    fn fates(
        &self,
        saved: usize,
        counts: &Counts,
        kept: &BTreeSet<u64>,
        layers: u64,
    ) -> [(Fate, BTreeSet<u64>); 2] {
        let mut sets = [BTreeSet::new(), BTreeSet::new()];
        for (kind, counts) in counts.columns.iter().enumerate() {
            let own: Vec<u64> = (0..layers)
                .filter(|l| kept.contains(l) == (kind == 1))
                .collect();
            let number = |fate: Fate| {
                let is = |c: &Change| c.saved == saved && c.fate == fate;
                let index = self.changes.iter().position(is);
                index.map_or(0, |index| counts[index] as u64)
            };
            let early = own.iter().filter(|&&l| l + 2 < layers).count() as u64;
            let sent = spread(number(Fate::Offload), early);
            let sent: BTreeSet<u64> = sent.into_iter().map(|at| own[at as usize]).collect();
            let left = own.iter().filter(|l| !sent.contains(l)).copied();
            sets[1].extend(left.take(number(Fate::Recompute) as usize));
            sets[0].extend(sent);
        }
        let [sent, dropped] = sets;
        [(Fate::Offload, sent), (Fate::Recompute, dropped)]
    }

    /// The site of what is not kept on the device in `kept` layers.
    fn away(&self, kept: &BTreeSet<u64>, layers: u64) -> String {
        if kept.is_empty() {
            return "*".to_string();
        }
        let rest: BTreeSet<u64> = (0..layers).filter(|l| !kept.contains(l)).collect();
        let beside = self.others.iter().cloned();
        let parts: Vec<String> = [menu::layers(&rest)].into_iter().chain(beside).collect();
        parts.join("+")
    }

    /// One choice for all `saved` values with one fate in the same layers.
    fn choice(
        &self,
        home: &Home,
        fate: Fate,
        set: &BTreeSet<u64>,
        saved: &[usize],
        layers: u64,
    ) -> Choice {
        let sites = match set.len() as u64 == layers {
            true => "layers.*".to_string(),
            false => menu::layers(set),
        };
        let suited = self.saved.iter().filter(|s| fate.suits(s)).count();
        let site = match saved.len() == suited {
            true => sites,
            false => {
                let of: Vec<&Saved> = saved.iter().map(|&s| &self.saved[s]).collect();
                menu::site(&of, &sites)
            }
        };
        let mut choice = Choice::new(fate.technique(), &site, &[]);
        if let (Fate::Offload, Some(pace)) = (fate, home.pace) {
            menu::paced(&mut choice, pace);
        }
        choice
    }
}

/// What was read off a home.
struct Measured {
    /// Where everything is kept.
    kept: Line,
    /// Where all saved values are dropped.
    floor: Line,
}

impl Measured {
    /// Seconds that a second of recomputation adds.
    fn strain(&self) -> [f64; 2] {
        let more = self.floor.layer - self.kept.layer;
        let compute = Stream::Compute as usize;
        let of = |spent: f64, work: f64| {
            if work > 0.0 {
                (spent / work).max(0.0)
            } else {
                1.0
            }
        };
        [
            of(more.spent[0], more.forward.0[compute]),
            of(more.spent[1], more.later.0[compute]),
        ]
    }
}

/// What a layer takes, and what the step takes beside its layers.
#[derive(Debug, Clone, Copy)]
struct Line {
    layer: Taken,
    rest: Taken,
}

impl Line {
    /// Through what models of [`DEPTHS`] take.
    fn new(near: Taken, far: Taken) -> Line {
        Line {
            layer: Taken::continued(&near, &far, DEPTHS.1 + 1) - far,
            rest: Taken::continued(&near, &far, 0),
        }
    }
}

/// `count` of `layers` layers, evenly.
fn spread(count: u64, layers: u64) -> BTreeSet<u64> {
    (0..count.min(layers))
        .map(|i| (i * layers + layers / 2) / count.min(layers))
        .collect()
}

/// The request for a model of `layers` layers; of no fewer than its own where a fixed choice names layers by number.
fn at_depth(request: &Request, layers: u64) -> Request {
    let mut request = request.clone();
    request.job.model.layers = match names_layers(&request) {
        true => layers.max(request.job.model.layers),
        false => layers,
    };
    request
}

/// The plan of what is fixed, and of `choices` and `kernels` about anything else.
fn planned(request: &Request, choices: &[Choice], kernels: &[Choice]) -> Result<Plan> {
    let own = choices
        .iter()
        .chain(kernels)
        .filter(|c| !decides(request, c));
    let all = request.fixed.iter().chain(own).cloned().collect();
    Plan::new(request.job.clone(), all)
}

/// Kernels that keep less and compute the same up to rounding.
fn kernels(request: &Request) -> Vec<Choice> {
    if request.job.model.head != Head::Causal {
        return Vec::new();
    }
    let names = ["chunked_loss", "flash_attention"].into_iter();
    let open = names.filter(|name| may_choose(request, name));
    open.map(|name| Choice::new(name, "*", &[])).collect()
}

/// What the fates of saved values change.
fn changes(
    request: &Request,
    home: &Home,
    kernels: &[Choice],
    saved: &[Saved],
) -> Result<Vec<Change>> {
    let open: Vec<Fate> = (Fate::ALL.into_iter())
        .filter(|fate| may_choose(request, fate.technique()))
        .filter(|fate| !decides(request, &Choice::new(fate.technique(), "layers.*", &[])))
        .collect();
    let fates = sample::each_fate(saved, &open);
    if fates.is_empty() {
        return Ok(Vec::new());
    }
    let request = at_depth(request, sample::depth(&fates));
    let chosen = fates
        .iter()
        .enumerate()
        .map(|(i, (s, f))| at_layer(i, &saved[*s], *f));
    let choices: Vec<Choice> = home.choices("*").into_iter().chain(chosen).collect();
    sample::changes(&planned(&request, &choices, kernels)?, &fates)
}

/// `fate` of `saved` at the layer of the sample that is for it.
fn at_layer(index: usize, saved: &Saved, fate: Fate) -> Choice {
    let layer = format!("layers.{}", index + 1);
    Choice::new(fate.technique(), &menu::site(&[saved], &layer), &[])
}

/// Plans that were solved for, whole, and the bound of their class.
#[derive(Debug, Clone, Default)]
pub struct Solved {
    /// The fastest few, in the order in which they were proposed to be.
    pub candidates: Vec<Candidate>,
    /// No plan of the class is faster.
    pub bound: Option<Seconds>,
}

/// Whole plans that are lowered for an answer.
const WHOLE: usize = 3;

/// How often a plan that does not fit is solved for again, with as much held back as it passed its budget by.
const ROUNDS: usize = 4;

/// Solves `request` within `budget`.
///
/// # Errors
/// Where no home of the states can be planned.
pub fn solve(request: &Request, budget: &Budget) -> Result<Solved> {
    let problems = Problems::of(request)?;
    let solved = |problem: &Problem| {
        let bound = problem.layers.bound(budget);
        let counts = bound.and_then(|_| problem.layers.fastest(budget, &[]));
        (bound, counts)
    };
    let all: Vec<_> = problems.all.par_iter().map(solved).collect();
    let bound = all.iter().filter_map(|(bound, _)| *bound).reduce(f64::min);
    let mut order: Vec<(&Problem, Counts)> = (problems.all.iter().zip(all))
        .filter_map(|(problem, (_, counts))| Some((problem, counts?)))
        .collect();
    order.sort_by(|a, b| a.1.seconds.total_cmp(&b.1.seconds));
    order.truncate(WHOLE);
    let fitted = |(problem, counts): &(&Problem, Counts)| {
        problems.fitted(request, budget, problem, counts.clone())
    };
    let candidates: Vec<Result<Candidate>> = order.par_iter().map(fitted).collect();
    Ok(Solved {
        candidates: candidates.into_iter().collect::<Result<_>>()?,
        bound: bound.map(Seconds),
    })
}

impl Problems {
    /// The plan of `counts`, lowered whole; solved for again while it does not fit.
    fn fitted(
        &self,
        request: &Request,
        budget: &Budget,
        problem: &Problem,
        mut counts: Counts,
    ) -> Result<Candidate> {
        let mut held_back = vec![0.0; budget.rows.len()];
        for round in 1.. {
            let proposal = self.proposal(problem, &counts);
            let plan = price::plan(request, &proposal)?;
            let candidate = Candidate {
                name: proposal.name,
                family: None,
                estimate: estimate::quick(&plan)?,
                plan,
                exact: true,
            };
            let over = excess(budget, &candidate.estimate.peak);
            if round == ROUNDS || over.iter().all(|&over| over <= 0.0) {
                return Ok(candidate);
            }
            for (back, over) in held_back.iter_mut().zip(over) {
                *back += over.max(0.0);
            }
            match problem.layers.fastest(budget, &held_back) {
                Some(tighter) => counts = tighter,
                None => return Ok(candidate),
            }
        }
        unreachable!("the last round returns")
    }
}

/// The largest excess of each row of `budget`, in bytes.
pub fn excess(budget: &Budget, peak: &PerPlace<Bytes>) -> Vec<f64> {
    let over = |(places, most): &(Vec<Place>, Bytes)| {
        let taken: u64 = places.iter().map(|&p| peak[p].0).sum();
        taken as f64 - most.0 as f64
    };
    budget.rows.iter().map(over).collect()
}
