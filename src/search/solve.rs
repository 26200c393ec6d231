//! The plans that are solved for, lowered whole, and what is known of better ones.

use rayon::prelude::*;

use super::front::{self, Point};
use super::milp::Counts;
use super::problem::{Problem, Problems};
use super::{Candidate, price};
use crate::error::Result;
use crate::machine::estimate;
use crate::plan::Request;
use crate::spec::job::{Budget, PerPlace, Place};
use crate::spec::units::{Bytes, Seconds};

/// Plans that were solved for, whole, and the bound of their class.
#[derive(Debug, Clone, Default)]
pub struct Solved {
    /// The fastest few, in the order in which they were proposed to be.
    pub candidates: Vec<Candidate>,
    /// No plan of the class is faster.
    pub bound: Option<Seconds>,
    /// The fastest step within less and more memory.
    pub front: Vec<Point>,
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
    if order.is_empty() {
        order = smallest(&problems, budget);
    }
    order.truncate(WHOLE);
    let fitted = |(problem, counts): &(&Problem, Counts)| {
        problems.fitted(request, budget, problem, counts.clone())
    };
    let candidates: Vec<Result<Candidate>> = order.par_iter().map(fitted).collect();
    Ok(Solved {
        candidates: candidates.into_iter().collect::<Result<_>>()?,
        bound: bound.map(Seconds),
        front: front::of(&problems, budget),
    })
}

/// Of each problem the counts that take least, those that pass the budget by least first.
fn smallest<'a>(problems: &'a Problems, budget: &Budget) -> Vec<(&'a Problem, Counts)> {
    let least = problems.all.iter().map(|problem| {
        let counts = problem.layers.smallest();
        let over = problem.layers.excess(&counts, budget);
        (problem, counts, over)
    });
    let mut order: Vec<(&Problem, Counts, f64)> = least.collect();
    order.sort_by(|a, b| a.2.total_cmp(&b.2));
    order
        .into_iter()
        .map(|(problem, counts, _)| (problem, counts))
        .collect()
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
                proposed: Seconds(counts.seconds),
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
