//! The plans that are solved for, lowered whole, and what is known of better ones.

use rayon::prelude::*;

use super::front::Front;
use super::layers::{Counts, Room};
use super::problem::{Problem, Problems};
use super::rounds::{AGAIN, Rounds};
use super::sample::Taken;
use super::{Candidate, price, segments};
use crate::error::Result;
use crate::graph::Stream;
use crate::machine::estimate::{self, Estimate};
use crate::plan::{Plan, Request};
use crate::spec::job::Budget;
use crate::spec::units::Seconds;

/// Plans that were solved for, whole, and the bound of their class.
#[derive(Debug, Clone, Default)]
pub struct Solved {
    /// The fastest few, in the order in which they were proposed to be.
    pub candidates: Vec<Candidate>,
    /// No plan of the class is faster.
    pub bound: Option<Seconds>,
    /// What the kernels of a step take where everything stays on the device.
    pub compute: Seconds,
    /// The fastest step within less and more memory, which is still to be solved for.
    pub front: Front,
}

/// Plans that are lowered whole where nothing that was solved for fits: those that take least.
const LEAST: usize = 4;

/// Solves `request` within `budget`, for plans that are faster than a step of `known`.
///
/// # Errors
/// Where no home of the states can be planned.
pub fn solve(request: &Request, budget: &Budget, known: Option<Seconds>) -> Result<Solved> {
    let problems = Problems::of(request)?;
    let solved = within(&problems, request, budget, known)?;
    Ok(Solved {
        front: problems.into(),
        ..solved
    })
}

/// Solves the `problems` of `request` within `budget`, without their front.
///
/// What is proposed to be fastest is lowered whole. What it really takes enters, and its problem is solved again, until nothing is
/// proposed to be faster than the fastest plan that was lowered, or than a step that is `known` to fit.
///
/// # Errors
/// Where a plan that was proposed cannot be lowered.
pub fn within(
    problems: &Problems,
    request: &Request,
    budget: &Budget,
    known: Option<Seconds>,
) -> Result<Solved> {
    let bounds = problems.bounds(&Room::all(budget));
    let bound = least(&bounds);
    let mut rounds = Rounds::new(problems, request, budget, (&bounds, known));
    while let Some(next) = rounds.next() {
        for tried in rounds.lowered(next, AGAIN)? {
            rounds.learn(tried);
        }
    }
    let others = rounds.others();
    // What does not fit as others would have it was solved for already.
    let others = rounds.lowered(others, 0)?;
    rounds
        .candidates
        .extend(others.into_iter().map(|tried| tried.candidate));
    let freed = rounds.freed();
    let mut candidates = rounds.candidates;
    if known.is_none() && !candidates.iter().any(|c| c.fits(budget)) {
        let least = problems.smallest(budget).into_iter().take(LEAST);
        let least: Vec<(&Problem, Counts)> = least.collect();
        let whole =
            |(problem, counts): &(&Problem, Counts)| problems.whole(request, problem, counts);
        let least: Vec<Result<Candidate>> = least.par_iter().map(whole).collect();
        candidates.extend(least.into_iter().collect::<Result<Vec<Candidate>>>()?);
        if !candidates.iter().any(|c| c.fits(budget)) {
            candidates.extend(segments::longer(problems, request, budget)?);
        }
    }
    let fitting = candidates.iter().filter(|c| c.fits(budget));
    let best = fitting.map(|c| c.estimate.step.0).reduce(f64::min);
    let bound = match (best, bound) {
        // What fits though it was counted not to has its kernels for a bound.
        (Some(_), None) => Some(problems.least_compute()),
        // A plan is faster than layers that take what they were counted to: the bound is that of layers that take what was found.
        (Some(best), Some(bound)) if best < bound => {
            least(&problems.bounds(&freed)).map(|bound| bound.min(best))
        }
        _ => bound,
    };
    let bound = bound.map(Seconds);
    candidates.iter_mut().for_each(|c| c.bound = bound);
    Ok(Solved {
        candidates,
        bound,
        compute: Seconds(problems.compute()),
        front: Front::default(),
    })
}

/// The least of bounds.
fn least(bounds: &[Option<f64>]) -> Option<f64> {
    bounds.iter().flatten().copied().reduce(f64::min)
}

impl Problems {
    /// The bound of each problem within `room`.
    fn bounds(&self, room: &Room) -> Vec<Option<f64>> {
        let all = self.all.par_iter();
        all.map(|problem| problem.layers.bound(room)).collect()
    }

    /// The plan that passes `budget` by least as it is counted, lowered whole.
    ///
    /// # Errors
    /// Where it cannot be lowered.
    pub fn least(&self, request: &Request, budget: &Budget) -> Result<Option<Candidate>> {
        let least = self.smallest(budget).into_iter().next();
        least
            .map(|(problem, counts)| self.whole(request, problem, &counts))
            .transpose()
    }

    /// Seconds of the kernels of a step where everything stays on the device.
    fn compute(&self) -> f64 {
        self.all.first().map_or(0.0, |problem| problem.compute(0))
    }

    /// Seconds of the kernels that every step runs, wherever what it needs lives.
    fn least_compute(&self) -> f64 {
        let of = |problem: &Problem| {
            let kinds = (0..problem.layers.kinds.len()).map(|kind| problem.compute(kind));
            kinds.fold(f64::INFINITY, f64::min)
        };
        self.all.iter().map(of).fold(f64::INFINITY, f64::min)
    }

    /// Of each problem the counts that take least, those that pass the budget by least first.
    pub(super) fn smallest(&self, budget: &Budget) -> Vec<(&Problem, Counts)> {
        let least = self.all.iter().map(|problem| {
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

    /// The plan of `counts`, lowered whole, fitting or not.
    pub(super) fn whole(
        &self,
        request: &Request,
        problem: &Problem,
        counts: &Counts,
    ) -> Result<Candidate> {
        let proposal = self.proposal(problem, counts);
        let plan = price::plan(request, &proposal)?;
        let estimate = estimate::quick(&plan)?;
        Ok(candidate(proposal.name, plan, estimate, counts))
    }
}

impl Problem {
    /// Seconds of the kernels of a step whose layers are all of one kind.
    fn compute(&self, kind: usize) -> f64 {
        let compute = Stream::Compute as usize;
        let asked = |taken: &Taken| taken.forward.0[compute] + taken.later.0[compute];
        let layers = &self.layers;
        asked(&layers.rest) + asked(&layers.kinds[kind].takes) * layers.count as f64
    }
}

/// A plan that was solved for, with the estimate of its whole programs.
pub(super) fn candidate(
    name: String,
    plan: Plan,
    estimate: Estimate,
    counts: &Counts,
) -> Candidate {
    Candidate {
        proposed: Seconds(counts.seconds),
        ..Candidate::whole(name, plan, estimate)
    }
}
