//! What is to be trained: all parameters, or low-rank adapters beside frozen ones; and the fastest plan of such training.

use std::str::FromStr;
use std::time::Instant;

use rayon::prelude::*;

use super::{Answer, Candidate, Found, found};
use crate::error::{Error, Result};
use crate::plan::{Choice, Plan, Request};
use crate::spec::job::Exactness;
use crate::spec::units::Seconds;

/// What is to be trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Goal {
    /// All parameters: nothing is frozen.
    Full,
    /// Low-rank adapters: LoRA or QLoRA, whichever is faster of those that fit.
    Lora,
    /// All parameters where that fits, exactly if possible; else adapters.
    Any,
}

/// The technique that trains low-rank adapters.
const LORA: &str = "lora";
/// With the base in 4 bits, which needs less memory, and as it is.
const BASES: [&str; 2] = ["qlora", LORA];

impl Goal {
    /// All goals.
    pub const ALL: [Goal; 3] = [Goal::Full, Goal::Lora, Goal::Any];

    /// The name it is asked for by.
    pub const fn name(self) -> &'static str {
        match self {
            Goal::Full => "full",
            Goal::Lora => "lora",
            Goal::Any => "any",
        }
    }

    /// Refuses choices that cannot be part of it.
    ///
    /// # Errors
    /// Where they freeze the model and all of it is to be trained, or freeze it for something else than low-rank adapters.
    pub fn check(self, plan: &Plan) -> Result<()> {
        let adapter = plan.draft()?.adapter;
        let (why, next) = match (self, adapter) {
            (Goal::Full, Some(_)) => (
                "it freezes the model",
                "leave it out, or ask for --goal lora",
            ),
            (Goal::Lora, Some(other)) if other != LORA => (
                "it trains something else than low-rank adapters",
                "leave it out, or ask for --goal any",
            ),
            _ => return Ok(()),
        };
        Err(Error::Conflict {
            one: format!("--goal {}", self.name()),
            other: adapter.unwrap_or_default().to_string(),
            why: why.to_string(),
            next: next.to_string(),
        })
    }

    /// Whether `plan` trains what it asks for.
    pub fn meets(self, plan: &Plan) -> bool {
        let adapter = plan.draft().map(|draft| draft.adapter);
        match self {
            Goal::Full => adapter.is_ok_and(|a| a.is_none()),
            Goal::Lora => adapter.is_ok_and(|a| a == Some(LORA)),
            Goal::Any => true,
        }
    }
}

impl FromStr for Goal {
    type Err = Error;

    fn from_str(text: &str) -> Result<Goal> {
        let name = text.trim().to_ascii_lowercase();
        let found = Goal::ALL.into_iter().find(|goal| goal.name() == name);
        let unknown = || {
            Error::unknown(
                "goal",
                text,
                Goal::ALL.map(Goal::name),
                "write full, lora or any",
            )
        };
        found.ok_or_else(unknown)
    }
}

/// The fastest plan of `request` that fits and trains what `goal` asks for; without a goal, as the request alone says. Also the request
/// it answers: with what the goal decided.
///
/// # Errors
/// Where the job is wrong, or a fixed choice is, or is at odds with the goal.
pub fn search(request: &Request, goal: Option<Goal>) -> Result<(Request, Answer)> {
    answered(request, goal, true)
}

/// [`search`], with the front, and the changes that would fit, where they are wanted.
///
/// # Errors
/// As [`search`].
pub(super) fn answered(
    request: &Request,
    goal: Option<Goal>,
    front: bool,
) -> Result<(Request, Answer)> {
    let begin = Instant::now();
    let mut last = None;
    for stage in stages(request, goal)? {
        let all = match tried(&stage, goal) {
            // What cannot be adapted does not fit in full either.
            Err(_) if last.is_some() => break,
            all => all?,
        };
        let fits = fastest(&all);
        let (request, found) = all
            .into_iter()
            .nth(fits.unwrap_or(0))
            .unwrap_or_else(|| no_stage());
        last = Some((request, found));
        if fits.is_some() {
            break;
        }
    }
    let (request, found) = last.unwrap_or_else(|| no_stage());
    let (mut answer, points) = found.answer(&request, front)?;
    if front {
        answer = answer.with(&points);
    }
    answer.seconds = Seconds(begin.elapsed().as_secs_f64());
    Ok((request, answer))
}

/// The plan that [`search`] would find, where one fits, without reasons where none does.
///
/// # Errors
/// As [`search`].
pub(super) fn best(request: &Request, goal: Option<Goal>) -> Result<Option<Candidate>> {
    for stage in stages(request, goal)? {
        let all = tried(&stage, goal)?;
        if let Some(index) = fastest(&all) {
            return Ok(all.into_iter().nth(index).and_then(|(_, found)| found.best));
        }
    }
    Ok(None)
}

fn no_stage() -> ! {
    panic!("every goal has a stage, and every stage a request")
}

/// What is searched: requests of which the fastest that fits is taken; a later stage only where none of an earlier one fits.
pub(super) fn stages(request: &Request, goal: Option<Goal>) -> Result<Vec<Vec<Request>>> {
    if let Some(goal) = goal {
        goal.check(&Plan::new(request.job.clone(), request.fixed.clone())?)?;
    }
    let mut open = request.clone();
    open.allow = Exactness::Lossy;
    Ok(match goal {
        None | Some(Goal::Full) => vec![vec![request.clone()]],
        Some(Goal::Lora) => vec![adapted(request)?],
        // Something frozen already decides what is trained.
        Some(Goal::Any)
            if !Goal::Full.meets(&Plan::new(request.job.clone(), request.fixed.clone())?) =>
        {
            vec![vec![open]]
        }
        Some(Goal::Any) => vec![vec![request.clone()], vec![open], adapted(request)?],
    })
}

/// The request with LoRA and with QLoRA, the one that needs less memory first; without what it decides already.
fn adapted(request: &Request) -> Result<Vec<Request>> {
    let decided = |choice: &Choice| {
        request
            .fixed
            .iter()
            .any(|f| f.technique == choice.technique)
    };
    // Weights are held in one format.
    let held = |choice: &Choice| {
        choice.technique == "nf4_weights"
            && request.fixed.iter().any(|f| f.technique == "int8_weights")
    };
    let mut all: Vec<Request> = Vec::new();
    for base in BASES {
        let choices = Choice::parse_all(base)?;
        let mut one = request.clone();
        one.fixed
            .extend(choices.into_iter().filter(|c| !decided(c) && !held(c)));
        if !all.contains(&one) {
            all.push(one);
        }
    }
    Ok(all)
}

/// Searches all of a stage; refused only where all are.
fn tried(stage: &[Request], goal: Option<Goal>) -> Result<Vec<(Request, Found)>> {
    let accepts = |plan: &Plan| goal.is_none_or(|goal| goal.meets(plan));
    let one = |request: &Request| Ok((request.clone(), found(request, &accepts)?));
    let all: Vec<Result<(Request, Found)>> = stage.par_iter().map(one).collect();
    let (fine, refused): (Vec<_>, Vec<_>) = all.into_iter().partition(Result::is_ok);
    match refused.into_iter().find_map(Result::err) {
        Some(error) if fine.is_empty() => Err(error),
        _ => Ok(fine.into_iter().flatten().collect()),
    }
}

/// The index of the fastest that fits; the later of equals, which is the closer to the model as published.
fn fastest(all: &[(Request, Found)]) -> Option<usize> {
    let steps = all.iter().enumerate();
    let steps =
        steps.filter_map(|(at, (_, found))| Some((at, found.best.as_ref()?.estimate.step.0)));
    steps
        .rev()
        .min_by(|a, b| a.1.total_cmp(&b.1))
        .map(|(at, _)| at)
}
