//! What is known of some settings, as the screen shows it: from a search, or from one plan that was priced meanwhile.

use std::collections::{BTreeMap, BTreeSet};

use super::settings::{Question, Settings};
use super::spans::{Lane, Moment, lanes, moments};
use crate::error::Result;
use crate::graph::tensor::Role;
use crate::machine::estimate::{self, Estimate};
use crate::machine::lowered::Lowered;
use crate::plan::file::PlanFile;
use crate::plan::{Choice, Plan, Request};
use crate::program::{Program, height};
use crate::search::front::{Front, POINTS, Point};
use crate::search::{self, Answer, Candidate, Misfit, Outcome};
use crate::show::course::Course;
use crate::show::memory::{self, holders, passed, row_name};
use crate::spec::job::{Budget, Place};
use crate::spec::units::{Bytes, Seconds};

/// What is known.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// What the plan is called.
    pub name: String,
    /// Whether it fits.
    pub fits: bool,
    /// The verdict in a sentence.
    pub sentence: String,
    /// What it takes of each row of the budget.
    pub bars: Vec<Bar>,
    /// One step.
    pub step: Seconds,
    /// Tokens a second.
    pub tokens_per_second: f64,
    /// What the device holds over the step, in equal spans of time.
    pub moments: Vec<Moment>,
    /// What each queue does meanwhile.
    pub lanes: Vec<Lane>,
    /// The fastest step within less and more memory.
    pub front: Vec<Spot>,
    /// The plan's choices.
    pub choices: Vec<Choice>,
    /// The same in words: technique or option.
    pub used: BTreeSet<String>,
    /// What a file of it says.
    pub file: Option<String>,
}

/// Settings with what was found for them.
#[derive(Debug, Clone, PartialEq)]
pub struct Known {
    /// The settings.
    pub settings: Settings,
    /// What was found.
    pub found: Found,
    /// How long the search took, where that is told.
    pub seconds: Option<Seconds>,
}

/// A part of what is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// By role.
    Held(Role),
    /// What a process takes beside its tensors.
    Beside,
}

/// A row of the budget.
#[derive(Debug, Clone, PartialEq)]
pub struct Bar {
    /// What it bounds.
    pub label: &'static str,
    /// What is taken.
    pub used: Bytes,
    /// What there is.
    pub most: Bytes,
    /// Who takes it, the largest first.
    pub parts: Vec<(Part, Bytes)>,
}

/// A point of the front.
#[derive(Debug, Clone, PartialEq)]
pub struct Spot {
    /// Memory of the device.
    pub memory: Bytes,
    /// The step.
    pub step: Seconds,
    /// What the plan is called.
    pub name: String,
    /// The options that make it; a plan of memfit's own is found within its memory.
    pub options: Option<String>,
}

/// A front that is still to be solved for.
#[derive(Debug, Clone)]
pub struct Open {
    front: Front,
    budget: Budget,
}

impl Open {
    /// Its points.
    pub fn spots(&self) -> Vec<Spot> {
        let spot = |point: Point| Spot {
            memory: point.device,
            step: point.step,
            name: point.name,
            options: None,
        };
        let points = self.front.points(&self.budget, POINTS).into_iter();
        points.map(spot).collect()
    }
}

/// Searches for what is asked.
///
/// # Errors
/// Where a value or a choice is wrong.
pub fn solve(settings: &Settings, question: &Question) -> Result<Found> {
    let (mut found, open) = plan(settings, question)?;
    if let Some(open) = open {
        found.front = open.spots();
    }
    Ok(found)
}

/// Searches for what is asked; the front may be left open.
///
/// # Errors
/// As [`solve`].
pub fn plan(settings: &Settings, question: &Question) -> Result<(Found, Option<Open>)> {
    match question {
        Question::Memfit(request) => {
            let (found, open) = planned(settings, request)?;
            Ok((found, Some(open)))
        }
        Question::Torch(request) => Ok((super::found_torch::solve(settings, request)?, None)),
    }
}

fn planned(settings: &Settings, request: &Request) -> Result<(Found, Open)> {
    let (answer, front) = search::plan(request)?;
    let best = match &answer.outcome {
        Outcome::Fits(best) => best,
        Outcome::Misfit(misfit) => &misfit.closest,
    };
    let programs = programs(&best.plan, &best.estimate)?;
    let found = plain(best, &programs, &answer.budget)?;
    let file = match &answer.outcome {
        Outcome::Fits(best) => {
            let claim = Some(best.estimate.claim());
            Some(PlanFile::of(&best.plan, settings.job.clone(), claim).text()?)
        }
        Outcome::Misfit(_) => None,
    };
    let found = Found {
        sentence: sentence(&answer),
        fits: matches!(answer.outcome, Outcome::Fits(_)),
        file,
        ..found
    };
    let budget = answer.budget;
    Ok((found, Open { front, budget }))
}

/// What the choices of the last plan take with what is decided now: what can be known at once. `None` where they cannot be made here.
pub fn provisional(question: &Question, last: &[Choice]) -> Option<Found> {
    let Question::Memfit(request) = question else {
        return None;
    };
    let decided = |c: &Choice| request.fixed.iter().any(|f| f.technique == c.technique);
    let ours = |c: &Choice| c.technique == "mixed_precision" || c.is_rule();
    let kept = last.iter().filter(|c| !decided(c) && !ours(c)).cloned();
    let choices = request.fixed.iter().cloned().chain(kept).collect();
    let plan = Plan::new(request.job.clone(), choices).ok()?;
    let programs = estimate::stepping(&plan).ok()?;
    let estimate = estimate::summarize(&plan, &programs).ok()?;
    let budget = request.job.target.budget();
    let name = match last.is_empty() {
        true => "only what is decided",
        false => "the last plan's choices",
    };
    let candidate = Candidate::whole(name, plan, estimate);
    plain(&candidate, &programs, &budget).ok()
}

/// The programs of a step; all of them where only another reaches the device's peak.
fn programs(plan: &Plan, estimate: &Estimate) -> Result<Lowered> {
    let stepping = estimate::stepping(plan)?;
    match height(&stepping).gpu == estimate.peak.gpu {
        true => Ok(stepping),
        false => Ok(estimate::all(plan)?.into()),
    }
}

/// What is known of one plan alone.
fn plain(candidate: &Candidate, programs: &[Program], budget: &Budget) -> Result<Found> {
    let (plan, estimate) = (&candidate.plan, &candidate.estimate);
    let course = Course::whole(plan, programs)?;
    let fits = candidate.fits(budget);
    let over = passed(estimate, budget).into_iter().next();
    let sentence = match over {
        None => format!("fits: {}, {}", taken(estimate, budget), pace(estimate)),
        Some(over) => format!(
            "does not fit: {} needs {}, has {}; {}",
            row_name(over.places),
            over.need,
            over.have,
            pace(estimate)
        ),
    };
    Ok(Found {
        name: candidate.name.clone(),
        fits,
        sentence,
        bars: bars(estimate, budget),
        step: estimate.step,
        tokens_per_second: estimate.tokens_per_second,
        moments: moments(&course),
        lanes: lanes(&course, estimate),
        front: Vec::new(),
        choices: plan.choices.clone(),
        used: plan.choices.iter().map(|c| c.technique.clone()).collect(),
        file: None,
    })
}

fn taken(estimate: &Estimate, budget: &Budget) -> String {
    let most = budget.most(Place::Gpu);
    format!("{} of {most} on the device", estimate.peak.gpu)
}

fn pace(estimate: &Estimate) -> String {
    format!(
        "{} a step, {:.0} tokens/s",
        estimate.step, estimate.tokens_per_second
    )
}

fn sentence(answer: &Answer) -> String {
    match &answer.outcome {
        Outcome::Fits(best) => {
            let proof = answer.certificate.as_ref().map(|c| {
                let gap = 100.0 * c.gap.max(0.0);
                format!("; within {gap:.1} % of the fastest there can be of its class")
            });
            let estimate = &best.estimate;
            format!(
                "fits: {}, {}{}",
                taken(estimate, &answer.budget),
                pace(estimate),
                proof.unwrap_or_default()
            )
        }
        Outcome::Misfit(misfit) => blame(misfit),
    }
}

fn blame(misfit: &Misfit) -> String {
    let changes = match misfit.changes.is_empty() {
        true => String::new(),
        false => format!("; or one of: {}", misfit.changes.join("; ")),
    };
    let place = row_name(&[misfit.place]);
    format!(
        "does not fit: {place} needs {}, has {}; {}{changes}",
        misfit.need, misfit.have, misfit.change
    )
}

fn bars(estimate: &Estimate, budget: &Budget) -> Vec<Bar> {
    let pageable = estimate.peak.host > Bytes::ZERO;
    let shown = |places: &[Place], used: Bytes| {
        let repeats = *places == [Place::Pinned, Place::Host] && !pageable;
        (used > Bytes::ZERO && !repeats) || places.contains(&Place::Gpu)
    };
    let rows = budget.rows.iter().map(|(places, most)| {
        let used = memory::sum(&estimate.peak, places);
        (places, *most, used)
    });
    let bar = |(places, most, used): (&Vec<Place>, Bytes, Bytes)| Bar {
        label: row_name(places),
        used,
        most,
        parts: largest_first(holders(estimate, places)),
    };
    let rows = rows.filter(|(places, _, used)| shown(places, *used));
    rows.map(bar).collect()
}

fn largest_first(held: BTreeMap<Role, Bytes>) -> Vec<(Part, Bytes)> {
    let mut parts: Vec<(Part, Bytes)> = held.into_iter().map(|(r, b)| (Part::Held(r), b)).collect();
    parts.sort_by_key(|(part, bytes)| (std::cmp::Reverse(*bytes), *part));
    parts
}
