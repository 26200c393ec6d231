//! The plans that are solved for, lowered whole, and what is known of better ones.

use rayon::prelude::*;

use super::front::{self, Point};
use super::layers::Counts;
use super::policies::{POLICIES, Policy};
use super::problem::{Problem, Problems};
use super::{Candidate, price};
use crate::error::Result;
use crate::machine::estimate;
use crate::plan::{Plan, Request};
use crate::program::{Program, height};
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
const WHOLE: usize = 2;

/// Plans proposed to be slower than the fastest by this are not lowered: proposals are not so far off.
const FAR: f64 = 1.1;

/// The same for what others would do: it stands where all that was solved for turns out slower.
const FARTHER: f64 = 1.25;

/// Layers that are lowered for what others would do, in all of their plans.
const LAYERS: u64 = 240;

/// How often a plan that does not fit is solved for again, with what was counted too little held back.
const ROUNDS: usize = 8;

/// The part of an excess that is held back where what was counted too little is held back already.
const STEP: f64 = 0.5;

/// Solves `request` within `budget`.
///
/// # Errors
/// Where no home of the states can be planned.
pub fn solve(request: &Request, budget: &Budget) -> Result<Solved> {
    let problems = Problems::of(request)?;
    let solved = within(&problems, request, budget)?;
    Ok(Solved {
        front: front::of(&problems, budget),
        ..solved
    })
}

/// Solves the `problems` of `request` within `budget`, without their front.
///
/// # Errors
/// Where a plan that was proposed cannot be lowered.
pub fn within(problems: &Problems, request: &Request, budget: &Budget) -> Result<Solved> {
    let bounds: Vec<Option<f64>> = (problems.all.par_iter())
        .map(|problem| problem.layers.bound(budget))
        .collect();
    let bound = bounds.iter().flatten().copied().reduce(f64::min);
    let mut open: Vec<(&Problem, f64)> = (problems.all.iter().zip(bounds))
        .filter_map(|(problem, bound)| Some((problem, bound?)))
        .collect();
    open.sort_by(|a, b| a.1.total_cmp(&b.1));
    let mut order: Vec<(&Problem, Counts)> = Vec::new();
    for (problem, bound) in open {
        // What cannot be among the fastest few is not solved.
        if order
            .get(WHOLE - 1)
            .is_some_and(|(_, last)| last.seconds <= bound)
        {
            break;
        }
        let counts = problem.layers.fastest(budget, &[]);
        order.extend(counts.map(|counts| (problem, counts)));
        order.sort_by(|a, b| a.1.seconds.total_cmp(&b.1.seconds));
        order.truncate(WHOLE);
    }
    let best = order.first().map_or(0.0, |(_, best)| best.seconds);
    order.retain(|(_, counts)| counts.seconds <= best * FAR);
    let mut candidates = problems.lowered(request, budget, &order)?;
    let known = known(problems, budget, best * FARTHER);
    let once =
        |(index, counts): &(usize, Counts)| problems.whole(request, &problems.all[*index], counts);
    let known: Vec<Result<Candidate>> = known.par_iter().map(once).collect();
    candidates.extend(known.into_iter().collect::<Result<Vec<Candidate>>>()?);
    if !candidates.iter().any(|c| c.fits(budget)) {
        candidates.extend(problems.lowered(request, budget, &smallest(problems, budget))?);
    }
    Ok(Solved {
        candidates,
        bound: bound.map(Seconds),
        front: Vec::new(),
    })
}

/// What others would do, each with the home that suits it best, where that is proposed to be no slower than `far`.
fn known(problems: &Problems, budget: &Budget, far: f64) -> Vec<(usize, Counts)> {
    let best = |policy: &Policy| {
        let counts = |(index, problem): (usize, &Problem)| {
            if problem.layers.plain().seconds > far {
                return None;
            }
            let counts = (policy.counts)(problems, problem, budget)?;
            let fits = problem.layers.excess(&counts, budget) <= 0.0 && counts.seconds <= far;
            fits.then_some((index, counts))
        };
        let all = problems.all.iter().enumerate().filter_map(counts);
        all.min_by(|a, b| a.1.seconds.total_cmp(&b.1.seconds))
    };
    let mut all: Vec<(usize, Counts)> = POLICIES.par_iter().filter_map(best).collect();
    all.sort_by(|a, b| a.1.seconds.total_cmp(&b.1.seconds));
    all.dedup_by(|a, b| a.0 == b.0 && a.1 == b.1);
    let layers = problems.all.first().map_or(1, |p| p.layers.count.max(1));
    all.truncate((LAYERS / layers).max(1) as usize);
    all
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
    /// The plan that passes `budget` by least as it is counted, lowered whole.
    ///
    /// # Errors
    /// Where it cannot be lowered.
    pub fn least(&self, request: &Request, budget: &Budget) -> Result<Option<Candidate>> {
        let least = smallest(self, budget).into_iter().next();
        least
            .map(|(problem, counts)| self.whole(request, problem, &counts))
            .transpose()
    }

    /// The plans of some counts, each lowered whole.
    fn lowered(
        &self,
        request: &Request,
        budget: &Budget,
        all: &[(&Problem, Counts)],
    ) -> Result<Vec<Candidate>> {
        let fitted = |(problem, counts): &(&Problem, Counts)| {
            self.fitted(request, budget, problem, counts.clone())
        };
        all.par_iter().map(fitted).collect()
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
        let programs = estimate::stepping(&plan)?;
        candidate(proposal.name, plan, &programs, counts)
    }

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
            let programs = estimate::stepping(&plan)?;
            let peak = height(&programs);
            let over = excess(budget, &peak);
            let tighter = match round < ROUNDS && over.iter().any(|&over| over > 0.0) {
                true => {
                    let counted = problem.layers.rows(&counts, budget);
                    let rows = budget.rows.iter().zip(counted).zip(over);
                    let passed = held_back
                        .iter_mut()
                        .zip(rows)
                        .filter(|(_, (_, over))| *over > 0.0);
                    for (back, ((row, counted), over)) in passed {
                        // What was counted too little; more where that was held back already.
                        let missed = row.1.0 as f64 + over - counted;
                        *back = missed.max(*back + STEP * over);
                    }
                    problem.layers.fastest(budget, &held_back)
                }
                false => None,
            };
            match tighter {
                Some(tighter) => counts = tighter,
                None => return candidate(proposal.name, plan, &programs, &counts),
            }
        }
        unreachable!("the last round returns")
    }
}

/// A plan that was solved for, from its whole programs.
fn candidate(name: String, plan: Plan, programs: &[Program], counts: &Counts) -> Result<Candidate> {
    Ok(Candidate {
        name,
        family: None,
        estimate: estimate::summarize(&plan, programs)?,
        plan,
        exact: true,
        proposed: Seconds(counts.seconds),
    })
}

/// Bytes by which `peak` passes each row of `budget`, below zero where it does not.
fn excess(budget: &Budget, peak: &PerPlace<Bytes>) -> Vec<f64> {
    let over = |(places, most): &(Vec<Place>, Bytes)| {
        let taken: u64 = places.iter().map(|&p| peak[p].0).sum();
        taken as f64 - most.0 as f64
    };
    budget.rows.iter().map(over).collect()
}
