//! Plans that keep one value for several layers: where what enters each layer is too much already.

use super::problem::{Problem, Problems};
use super::{Candidate, Proposal, may_choose, price};
use crate::error::Result;
use crate::machine::estimate;
use crate::plan::{Choice, Request};
use crate::spec::job::Budget;

/// Homes that are tried for each length.
const TRIED: usize = 2;

/// The plan that keeps what enters every `length` layers of `problem`, and computes the rest of them again (Chen et al. 2016,
/// arXiv:1604.06174), lowered whole.
///
/// # Errors
/// Where it cannot be lowered.
pub fn whole(
    problems: &Problems,
    request: &Request,
    problem: &Problem,
    length: u64,
) -> Result<Candidate> {
    let args = [("segment", &*length.to_string())];
    let again = Choice::new("recompute", "layers.*", &args);
    let home = problem.home.choices("*", problem.home.pace);
    let choices = home.into_iter().chain(problems.kernels.iter().cloned());
    let segments = format!("recompute in segments of {length} layers");
    let named = [problem.home.name.clone(), segments];
    let named = named.into_iter().filter(|part| !part.is_empty());
    let proposal = Proposal {
        name: named.collect::<Vec<String>>().join(" + "),
        choices: choices.chain([again]).collect(),
    };
    let plan = price::plan(request, &proposal)?;
    let estimate = estimate::quick(&plan)?;
    Ok(Candidate::whole(proposal.name, plan, estimate))
}

/// Where nothing else fits: segments of two layers, of twice as many, and so on until one fits, with the homes that take least.
///
/// # Errors
/// Where a plan cannot be lowered.
pub fn longer(problems: &Problems, request: &Request, budget: &Budget) -> Result<Vec<Candidate>> {
    let mut found = Vec::new();
    if !may_choose(request, "recompute") {
        return Ok(found);
    }
    let layers = request.job.model.layers;
    let lengths = std::iter::successors(Some(2), |length| Some(length * 2));
    for length in lengths.take_while(|length| *length <= layers / 2) {
        for (problem, _) in problems.smallest(budget).into_iter().take(TRIED) {
            found.push(whole(problems, request, problem, length)?);
            if found.last().is_some_and(|last| last.fits(budget)) {
                return Ok(found);
            }
        }
    }
    Ok(found)
}
