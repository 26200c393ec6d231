//! The outer search: lossy methods and numbers of micro-batches, each a request of its own that is solved like any other.

use rayon::prelude::*;

use super::families::{self, Family};
use super::front::put;
use super::price::decides;
use super::solve::{self, Solved};
use super::{Candidate, exact, may_choose};
use crate::error::Result;
use crate::plan::{Choice, Request};
use crate::spec::job::Budget;
use crate::spec::units::Seconds;

/// Steps within this of what their compute alone takes leave nothing for micro-batches to gain.
const BARE: f64 = 1.01;

/// Solves `request` as it is, in micro-batches where that may be faster, and by lossy methods where they are allowed.
///
/// # Errors
/// Where the job or a fixed choice is wrong.
pub fn solve(request: &Request, budget: &Budget) -> Result<Solved> {
    let of_family = |family: &'static Family| {
        let mut solved = divided(&families::request(family, request)?, budget)?;
        // What does without the method is found without it.
        solved.candidates.retain(|c| family.is_in(&c.plan));
        Ok(named(solved, family.name, Some(family)))
    };
    let (own, lossy) = rayon::join(
        || divided(&exact(request), budget),
        || {
            let open = families::open(request).into_par_iter();
            open.map(of_family).collect::<Vec<Result<Solved>>>()
        },
    );
    let mut all = own?;
    // A method that is refused for this job is none of its plans.
    for more in lossy.into_iter().flatten() {
        merge(&mut all, more);
    }
    Ok(all)
}

/// Solves `request` whole, then in twice as many micro-batches each time, while that is faster or nothing fits.
fn divided(request: &Request, budget: &Budget) -> Result<Solved> {
    let mut all = solve::solve(request, budget, None)?;
    let open = may_choose(request, "accumulate");
    let batch = request.job.batch;
    let parts = std::iter::successors(Some(2), |parts| Some(parts * 2));
    for parts in parts.take_while(|&parts| open && parts <= batch && batch.is_multiple_of(parts)) {
        let fastest = fastest(&all.candidates, budget);
        if fastest.is_some_and(|step| step <= all.compute.0 * BARE) {
            break;
        }
        let micro = (batch / parts).to_string();
        let choice = Choice::new("accumulate", "*", &[("micro", &micro)]);
        if decides(request, &choice) {
            break;
        }
        let mut divided = request.clone();
        divided.fixed.push(choice);
        let Ok(more) = solve::solve(&divided, budget, fastest.map(Seconds)) else {
            break;
        };
        let gains = match (fastest, self::fastest(&more.candidates, budget)) {
            (Some(whole), Some(step)) => step < whole,
            (fastest, _) => fastest.is_none(),
        };
        merge(
            &mut all,
            named(more, &format!("{parts} micro-batches"), None),
        );
        if !gains {
            break;
        }
    }
    Ok(all)
}

/// The fastest step of those that fit.
fn fastest(all: &[Candidate], budget: &Budget) -> Option<f64> {
    let fits = all.iter().filter(|c| c.fits(budget));
    fits.map(|c| c.estimate.step.0).min_by(f64::total_cmp)
}

/// Plans with what is chosen beside them in their names.
fn named(mut solved: Solved, what: &str, family: Option<&'static Family>) -> Solved {
    for candidate in &mut solved.candidates {
        put(&mut candidate.name, what);
        candidate.family = family.or(candidate.family);
    }
    solved.front = solved.front.named(what, family);
    solved
}

fn merge(all: &mut Solved, more: Solved) {
    all.candidates.extend(more.candidates);
    all.front.extend(more.front);
}
