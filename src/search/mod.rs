//! Which plan: candidates over the whole range of memory, and the fastest of those that fit.

pub mod baselines;
pub mod families;
pub mod menu;
pub mod milp;
mod price;
pub mod sample;
pub mod solve;
pub mod torch;
pub mod torch_menu;

use std::time::Instant;

use families::Family;

use crate::error::Result;
use crate::machine::estimate::{self, Estimate};
use crate::plan::{Choice, Plan, Request};
use crate::spec::job::{Budget, Exactness, PerPlace, Place};
use crate::spec::units::{Bytes, Seconds};

/// A plan with its price.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// What it is called in tables.
    pub name: String,
    /// The lossy method it is a plan of, where it is one.
    pub family: Option<&'static Family>,
    /// The plan.
    pub plan: Plan,
    /// What it takes.
    pub estimate: Estimate,
    /// Whether the estimate is of the whole program; else it was continued from fewer layers.
    pub exact: bool,
}

impl Candidate {
    /// Whether it stays within `budget`.
    pub fn fits(&self, budget: &Budget) -> bool {
        budget.passed(&self.estimate.peak).is_none()
    }

    /// Whether it is worth lowering whole: it fits, or nearly does by an estimate that may be off a little.
    fn may_fit(&self, budget: &Budget) -> bool {
        let slack = if self.exact { 0 } else { 64 };
        let held = |(places, most): &(Vec<Place>, Bytes)| {
            let taken: Bytes = places.iter().map(|&p| self.estimate.peak[p]).sum();
            taken.0 <= most.0 + most.0.checked_div(slack).unwrap_or(0)
        };
        budget.rows.iter().all(held)
    }

    /// Bytes by which it passes its budget, summed over the rows it passes.
    fn excess(&self, budget: &Budget) -> Bytes {
        let over = |(places, most): &(Vec<Place>, Bytes)| {
            let taken: Bytes = places.iter().map(|&p| self.estimate.peak[p]).sum();
            taken.saturating_sub(*most)
        };
        budget.rows.iter().map(over).sum()
    }
}

/// What does not fit, and the smallest change that would.
#[derive(Debug, Clone)]
pub struct Misfit {
    /// The plan that passes its budget by least.
    pub closest: Candidate,
    /// The place it passes.
    pub place: Place,
    /// What it needs there.
    pub need: Bytes,
    /// What there is.
    pub have: Bytes,
    /// What to change, in words.
    pub change: String,
}

/// Whether and how the job fits.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// The fastest plan that fits.
    Fits(Box<Candidate>),
    /// No candidate fits.
    Misfit(Box<Misfit>),
}

/// The answer to a request.
#[derive(Debug, Clone)]
pub struct Answer {
    /// What was decided.
    pub outcome: Outcome,
    /// Everything that was considered, the baselines first.
    pub considered: Vec<Candidate>,
    /// No plan of the class that was solved over is faster; `None` where none fits.
    pub bound: Option<Seconds>,
    /// What every plan had to stay within.
    pub budget: Budget,
    /// How long it took.
    pub seconds: Seconds,
}

/// Finds the fastest plan of `request` that fits, among a list of candidates that does not depend on the budget: so a larger budget
/// is never slower.
///
/// # Errors
/// Where the job or a fixed choice is wrong.
pub fn search(request: &Request) -> Result<Answer> {
    let begin = Instant::now();
    let budget = request.job.target.budget();
    let mut considered = price::all(request)?;
    let solved = solve::solve(request, &budget)?;
    considered.extend(solved.candidates);
    let mut order: Vec<&Candidate> = considered.iter().collect();
    // Equal times go to the plan that takes less, then to the earlier one.
    let taken = |c: &Candidate| c.estimate.peak.host + c.estimate.peak.pinned;
    let price = |c: &Candidate| (c.estimate.step.0.to_bits(), c.estimate.peak.gpu, taken(c));
    // What changes results is taken only where nothing else fits.
    order.sort_by_key(|c| (c.family.is_some(), price(c)));
    let mut best = None;
    for candidate in order.into_iter().filter(|c| c.may_fit(&budget)) {
        let proved = Candidate {
            estimate: estimate::proved(&candidate.plan)?,
            exact: true,
            ..candidate.clone()
        };
        if proved.fits(&budget) {
            best = Some(proved);
            break;
        }
    }
    let outcome = match best {
        Some(best) => Outcome::Fits(Box::new(best)),
        None => misfit(request, &budget, &considered)?,
    };
    Ok(Answer {
        outcome,
        considered,
        bound: solved.bound,
        budget,
        seconds: Seconds(begin.elapsed().as_secs_f64()),
    })
}

/// A named list of choices beside the fixed ones.
pub type Named = (String, Vec<Choice>);

/// What may become a plan.
#[derive(Debug, Clone)]
pub struct Proposal {
    /// What it is called in tables.
    pub name: String,
    /// Its choices beside the fixed ones.
    pub choices: Vec<Choice>,
    /// The lossy method it is of, where it is of one.
    pub family: Option<&'static Family>,
}

impl From<Named> for Proposal {
    fn from((name, choices): Named) -> Proposal {
        Proposal {
            name,
            choices,
            family: None,
        }
    }
}

/// Whether the search may choose `technique` on its own: its class is allowed.
fn may_choose(request: &Request, technique: &str) -> bool {
    let class = crate::technique::find(technique).map(|t| t.card().exactness);
    class.is_ok_and(|class| class <= request.allow && class < Exactness::Lossy)
}

/// The closest plan, and what would make it fit.
fn misfit(request: &Request, budget: &Budget, considered: &[Candidate]) -> Result<Outcome> {
    let closest = considered.iter().min_by_key(|c| c.excess(budget)).cloned();
    let Some(mut closest) = closest else {
        let plan = Plan::new(request.job.clone(), request.fixed.clone())?;
        let estimate = estimate::quick(&plan)?;
        let name = "as fixed".to_string();
        return misfit(
            request,
            budget,
            &[Candidate {
                name,
                family: None,
                plan,
                estimate,
                exact: true,
            }],
        );
    };
    closest.estimate = estimate::proved(&closest.plan)?;
    let peak = closest.estimate.peak;
    let (places, over) = budget
        .passed(&peak)
        .map_or((&[Place::Gpu][..], Bytes::ZERO), |(p, over)| (p, over));
    let need: Bytes = places.iter().map(|&p| peak[p]).sum();
    let (place, have) = (places[0], need - over);
    let change = change(request, budget, &peak, place, over);
    Ok(Outcome::Misfit(Box::new(Misfit {
        closest,
        place,
        need,
        have,
        change,
    })))
}

/// The smallest change of what there is that fits the closest plan.
fn change(
    request: &Request,
    budget: &Budget,
    peak: &PerPlace<Bytes>,
    place: Place,
    over: Bytes,
) -> String {
    let rows = budget
        .rows
        .iter()
        .filter(|(places, most)| places.iter().map(|&p| peak[p]).sum::<Bytes>() > *most)
        .count();
    let what = match place {
        Place::Gpu => "on the device",
        Place::Pinned | Place::Host => "of host memory (--ram)",
        Place::Disk => "of disk (--disk)",
    };
    let also = if rows > 1 { ", and more elsewhere" } else { "" };
    let shorter = match request.job.seq {
        seq if seq >= 256 => format!("; a shorter --seq, such as {}, needs less", seq / 2),
        _ => String::new(),
    };
    format!("{over} more {what}{also} would fit it{shorter}")
}
