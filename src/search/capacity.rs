//! The other way round: the largest model, batch and sequence that a device can train, found by planning.

use rayon::prelude::*;

use super::goal::{self, Goal};
use super::problem::Problems;
use super::{Candidate, families};
use crate::error::Result;
use crate::machine::estimate::{self, Estimate};
use crate::machine::lowered;
use crate::plan::{Choice, Plan, Request};
use crate::spec::job::Exactness;
use crate::spec::model::ModelSpec;

/// Sequences of a step that are tried at most.
pub const MOST_SEQUENCES: u64 = 1 << 16;

/// How a model is trained, the strictest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// All parameters, with the results of the job as it is.
    Exact,
    /// All parameters, by methods that change what is learned where nothing exact fits.
    Lossy,
    /// Low-rank adapters beside frozen weights.
    Adapters,
}

impl Class {
    /// All classes.
    pub const ALL: [Class; 3] = [Class::Exact, Class::Lossy, Class::Adapters];

    /// The name in answers for programs.
    pub const fn name(self) -> &'static str {
        match self {
            Class::Exact => "full_exact",
            Class::Lossy => "full_lossy",
            Class::Adapters => "lora",
        }
    }

    /// The name in words.
    pub const fn title(self) -> &'static str {
        match self {
            Class::Exact => "full, exact",
            Class::Lossy => "full, lossy",
            Class::Adapters => "LoRA or QLoRA",
        }
    }

    /// What `plan` has to be asked for.
    pub const fn goal(self) -> Goal {
        match self {
            Class::Exact | Class::Lossy => Goal::Full,
            Class::Adapters => Goal::Lora,
        }
    }

    /// Whether a goal asks for it.
    pub fn suits(self, goal: Goal) -> bool {
        goal == Goal::Any || goal == self.goal()
    }

    /// `request` as it is asked in this class.
    fn asked(self, request: &Request) -> Request {
        let mut request = request.clone();
        request.allow = match self {
            Class::Exact => request.allow.min(Exactness::Rounding),
            Class::Lossy => Exactness::Lossy,
            Class::Adapters => request.allow,
        };
        request
    }
}

/// The largest of something, and the plan of it.
#[derive(Debug, Clone)]
pub struct Most {
    /// How much.
    pub count: u64,
    /// Whether it ends with what was tried, or what the model takes, and not with the memory.
    pub all: bool,
    /// The plan.
    pub plan: Candidate,
}

/// What a device can train in a class.
#[derive(Debug, Clone)]
pub struct Capacity {
    /// The class.
    pub class: Class,
    /// The largest model of the list that fits, with its plan; `None` where none does.
    pub model: Option<Candidate>,
    /// Its most sequences of a step, at the length that is asked for.
    pub batch: Option<Most>,
    /// Its longest sequence, with as many sequences as are asked for.
    pub seq: Option<Most>,
}

/// What the device of `request` can train in `class` of `models`, which are in ascending order; `at` sets a model into the request.
///
/// # Errors
/// Where the job is wrong for every model.
pub fn of(
    models: &[ModelSpec],
    class: Class,
    at: &(dyn Fn(&ModelSpec) -> Result<Request> + Sync),
    progress: &(dyn Fn(&str) + Sync),
) -> Result<Capacity> {
    let _kept = lowered::keep();
    let nothing = Capacity {
        class,
        model: None,
        batch: None,
        seq: None,
    };
    let Some((request, model)) = largest_model(models, class, at, progress)? else {
        return Ok(nothing);
    };
    let name = &request.job.model.name;
    progress(&format!("{}: batches of {name}", class.title()));
    let batch = || most(&request, class, &model, MOST_SEQUENCES, Extent::Batch);
    let longest = request.job.model.max_positions;
    let seq = || most(&request, class, &model, longest, Extent::Sequence);
    let (batch, seq) = rayon::join(batch, seq);
    Ok(Capacity {
        class,
        batch: Some(batch),
        seq: Some(seq),
        model: Some(model),
    })
}

/// By bisection: where a model fits, smaller ones are taken to fit; the one found was planned, and so was the next larger one.
fn largest_model(
    models: &[ModelSpec],
    class: Class,
    at: &(dyn Fn(&ModelSpec) -> Result<Request> + Sync),
    progress: &(dyn Fn(&str) + Sync),
) -> Result<Option<(Request, Candidate)>> {
    let mut models: Vec<&ModelSpec> = models.iter().collect();
    let (mut low, mut high) = (0, models.len());
    let (mut largest, mut refused) = (None, None);
    while low < high {
        let middle = (low + high) / 2;
        progress(&format!("{}: {}", class.title(), models[middle].name));
        let request = class.asked(&at(models[middle])?);
        match planned(&request, class) {
            Ok(Some(plan)) => {
                largest = Some((request, plan));
                low = middle + 1;
            }
            Ok(None) => high = middle,
            // What cannot be asked of one model says nothing of others.
            Err(error) => {
                refused = refused.or(Some(error));
                models.remove(middle);
                high -= 1;
            }
        }
    }
    match refused {
        Some(error) if models.is_empty() => Err(error),
        _ => Ok(largest),
    }
}

/// What is made larger.
#[derive(Debug, Clone, Copy)]
enum Extent {
    Batch,
    Sequence,
}

impl Extent {
    fn of(self, request: &Request) -> u64 {
        match self {
            Extent::Batch => request.job.batch,
            Extent::Sequence => request.job.seq,
        }
    }

    fn at(self, request: &Request, count: u64) -> Request {
        let mut request = request.clone();
        match self {
            Extent::Batch => request.job.batch = count,
            Extent::Sequence => request.job.seq = count,
        }
        request
    }
}

/// The largest extent up to `end` that is planned to fit. `known` fits as the request has it.
///
/// The plan that takes least is carried along first, which is cheap; then the search itself tries what lies beyond, in growing steps,
/// until it finds nothing; what lies between is halved. So a plan was found for the extent, and for one more none.
fn most(request: &Request, class: Class, known: &Candidate, end: u64, extent: Extent) -> Most {
    let from = extent.of(request);
    let end = end.max(from);
    let carried = carried(request, class, end, extent);
    let mut low = carried.clone().unwrap_or((from, known.clone()));
    let (mut high, mut step, mut searched) = (end + 1, 1, carried.is_none());
    while low.0 + 1 < high {
        let next = match high > end {
            true => (low.0 + step).min(end),
            false => (low.0 + high) / 2,
        };
        match planned(&extent.at(request, next), class).unwrap_or_default() {
            Some(plan) => (low, step, searched) = ((next, plan), step * 2, true),
            None => high = next,
        }
    }
    let (count, plan) = low;
    let fastest = match searched {
        true => None,
        false => planned(&extent.at(request, count), class).unwrap_or_default(),
    };
    Most {
        count,
        all: count >= end,
        plan: fastest.unwrap_or(plan),
    }
}

/// The fastest plan of the batch in one piece; none where none fits.
///
/// # Errors
/// Where the job is wrong.
fn planned(request: &Request, class: Class) -> Result<Option<Candidate>> {
    let whole = undivided(request);
    // What is exact comes first in every class, and is found sooner.
    let exact = match class {
        Class::Lossy => goal::best(&Class::Exact.asked(&whole), Some(class.goal()))?,
        _ => None,
    };
    let mut plan = match exact {
        Some(exact) => Some(exact),
        None => goal::best(&whole, Some(class.goal()))?,
    };
    if let Some(plan) = plan.as_mut().filter(|_| whole.fixed != request.fixed) {
        plan.plan.choices.retain(|c| c.technique != ACCUMULATE);
    }
    Ok(plan)
}

/// What divides a batch.
const ACCUMULATE: &str = "accumulate";

/// `request` with its batch in one piece, where it does not say otherwise: in pieces any batch fits that a part of it does.
fn undivided(request: &Request) -> Request {
    let mut whole = request.clone();
    if !request.fixed.iter().any(|c| c.technique == ACCUMULATE) {
        let all = request.job.batch.to_string();
        whole
            .fixed
            .push(Choice::new(ACCUMULATE, "*", &[("micro", &all)]));
    }
    whole
}

/// How far beyond `request` and up to `end` the plan goes that takes least there; `None` where it goes no further.
fn carried(request: &Request, class: Class, end: u64, extent: Extent) -> Option<(u64, Candidate)> {
    let least = least(request, class)?;
    let fits = |count: u64, estimate: fn(&Plan) -> Result<Estimate>| {
        again(&least, &extent.at(request, count), estimate)
    };
    let from = extent.of(request);
    let (mut low, mut high) = (from, end + 1);
    while low + 1 < high {
        let middle = low + (high - low) / 2;
        match fits(middle, estimate::quick) {
            Some(_) => low = middle,
            None => high = middle,
        }
    }
    let proved = (low > from).then(|| fits(low, estimate::proved))?;
    proved.map(|plan| (low, plan))
}

/// The plan that takes least of what the class leaves open.
fn least(request: &Request, class: Class) -> Option<Candidate> {
    let budget = request.job.target.budget();
    let stages = goal::stages(request, Some(class.goal())).ok()?;
    let solved = |request: &Request| Problems::of(request).ok()?.least(request, &budget).ok()?;
    let mut asked = stages.concat();
    if class == Class::Lossy {
        let families = families::open(request).iter();
        asked.extend(families.filter_map(|family| families::request(family, request).ok()));
    }
    let all: Vec<Candidate> = asked.par_iter().filter_map(solved).collect();
    let all = all.into_iter().filter(|c| class.goal().meets(&c.plan));
    let taken = |c: &Candidate| (c.excess(&budget), c.estimate.peak.gpu);
    all.min_by_key(taken)
}

/// The choices of `of` in the job of `request`, where they fit as `estimate` has it.
fn again(
    of: &Candidate,
    request: &Request,
    estimate: fn(&Plan) -> Result<Estimate>,
) -> Option<Candidate> {
    let plan = Plan::new(request.job.clone(), of.plan.choices.clone()).ok()?;
    let estimate = estimate(&plan).ok()?;
    let again = Candidate {
        proposed: estimate.step,
        plan,
        estimate,
        exact: true,
        ..of.clone()
    };
    again.fits(&request.job.target.budget()).then_some(again)
}
