//! Which plan: candidates over the whole range of memory, and the fastest of those that fit.

pub mod baselines;
pub mod capacity;
pub mod executed;
pub mod families;
pub mod front;
pub mod goal;
pub mod grid;
pub mod layers;
pub mod market;
pub mod menu;
mod milp;
pub mod misfit;
mod outer;
pub mod policies;
mod price;
pub mod problem;
mod proposal;
mod rounds;
pub mod sample;
pub mod segments;
pub mod solve;
pub mod torch;
pub mod torch_menu;

use std::time::Instant;

use families::Family;
use front::{Front, POINTS};
pub use misfit::Misfit;

use crate::error::Result;
use crate::machine::estimate::{self, Estimate};
use crate::machine::lowered;
use crate::plan::{Choice, Plan, Request};
use crate::spec::job::{Budget, Exactness, Place};
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
    /// The step's time before the plan was lowered whole.
    pub proposed: Seconds,
    /// No plan of its class, with its method and its number of micro-batches, is faster.
    pub bound: Option<Seconds>,
}

/// How much better another plan could be.
#[derive(Debug, Clone, PartialEq)]
pub struct Certificate {
    /// No plan of the class has a shorter step.
    pub bound: Seconds,
    /// What the step lacks to the bound, as a fraction of it.
    pub gap: f64,
    /// The class.
    pub class: &'static str,
    /// The step's time as it was proposed.
    pub proposed: Seconds,
    /// The step's time as the whole plan is simulated.
    pub simulated: Seconds,
}

/// What certificates are about.
const CLASS: &str = "each saved value of each layer kept, computed again within its layer or sent away once; each layer's parameters and states in one of the homes; copies at most two half layers ahead or as far as the next layer that has some; layers alike in time; the method and the number of micro-batches as they are";

impl Candidate {
    /// `plan` with the `estimate` of its whole programs, as nobody proposed it.
    pub fn whole(name: impl Into<String>, plan: Plan, estimate: Estimate) -> Candidate {
        Candidate {
            name: name.into(),
            family: None,
            bound: None,
            plan,
            proposed: estimate.step,
            estimate,
            exact: true,
        }
    }

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
    /// How much better a plan could be; `None` where none fits.
    pub certificate: Option<Certificate>,
    /// The fastest step within less and more of the device's memory.
    pub front: Vec<front::Point>,
    /// What every plan had to stay within.
    pub budget: Budget,
    /// How long it took.
    pub seconds: Seconds,
}

/// Finds the fastest plan of `request` that fits, among the baselines, lossy methods where they are allowed, and plans that are solved
/// for within its budget.
///
/// # Errors
/// Where the job or a fixed choice is wrong.
pub fn search(request: &Request) -> Result<Answer> {
    let (answer, front) = plan(request)?;
    Ok(answer.with(&front))
}

/// [`search`] without the points of the front, and what those are to be solved for with.
///
/// # Errors
/// As [`search`].
pub fn plan(request: &Request) -> Result<(Answer, Front)> {
    found(request, &|_| true)?.answer(request, true)
}

/// What a search found, before anything is said of what does not fit.
struct Found {
    /// Everything that was considered, the baselines first.
    considered: Vec<Candidate>,
    /// The fastest that fits, proved.
    best: Option<Candidate>,
    /// No plan of the class is faster.
    bound: Option<Seconds>,
    /// The fastest step within less and more memory.
    front: Front,
    /// What every plan had to stay within.
    budget: Budget,
    /// When it began.
    begin: Instant,
}

/// Searches among the plans that `accepts` takes.
fn found(request: &Request, accepts: &dyn Fn(&Plan) -> bool) -> Result<Found> {
    let begin = Instant::now();
    // The plan that is chosen was lowered before it is proved.
    let _kept = lowered::keep();
    let budget = request.job.target.budget();
    let (priced, solved) = rayon::join(|| price::all(request), || outer::solve(request, &budget));
    let (mut considered, solved) = (priced?, solved?);
    considered.extend(solved.candidates);
    considered.retain(|c| accepts(&c.plan));
    Ok(Found {
        best: fastest(&considered, &budget)?,
        considered,
        bound: solved.bound,
        front: solved.front,
        budget,
        begin,
    })
}

/// The fastest of `considered` that fits, lowered whole and proved.
fn fastest(considered: &[Candidate], budget: &Budget) -> Result<Option<Candidate>> {
    let mut order: Vec<&Candidate> = considered.iter().collect();
    // Equal times go to the plan that takes less, then to the earlier one.
    let taken = |c: &Candidate| c.estimate.peak.host + c.estimate.peak.pinned;
    let price = |c: &Candidate| (c.estimate.step.0.to_bits(), c.estimate.peak.gpu, taken(c));
    // What changes results is taken only where nothing else fits.
    order.sort_by_key(|c| (c.family.is_some(), price(c)));
    for candidate in order.into_iter().filter(|c| c.may_fit(budget)) {
        let proved = Candidate {
            estimate: estimate::proved(&candidate.plan)?,
            exact: true,
            ..candidate.clone()
        };
        if proved.fits(budget) {
            return Ok(Some(proved));
        }
    }
    Ok(None)
}

impl Found {
    /// The answer to `request`; where nothing fits, with the reasons, and the changes that would where they are `wanted`.
    fn answer(self, request: &Request, wanted: bool) -> Result<(Answer, Front)> {
        let bound = |best: &Candidate| best.bound.or(self.bound);
        let best = self.best.as_ref();
        let certificate = best.and_then(|best| Some(certificate(best, bound(best)?)));
        let outcome = match self.best {
            Some(best) => Outcome::Fits(Box::new(best)),
            None => misfit::explain(request, &self.budget, &self.considered, wanted)?,
        };
        let answer = Answer {
            outcome,
            considered: self.considered,
            certificate,
            front: Vec::new(),
            budget: self.budget,
            seconds: Seconds(self.begin.elapsed().as_secs_f64()),
        };
        Ok((answer, self.front))
    }
}

impl Answer {
    /// The same with the points of its front.
    pub fn with(mut self, front: &Front) -> Answer {
        let begin = Instant::now();
        self.front = front.points(&self.budget, POINTS);
        self.seconds = self.seconds + Seconds(begin.elapsed().as_secs_f64());
        self
    }
}

/// The answer that `plan`, proved to take `estimate`, is to `request`, which asks for its job: beside it stand the plans everybody knows and the front, but
/// nothing is searched for. Where it does not fit, who is to blame and what would help.
///
/// # Errors
/// Where the job cannot be planned at all.
pub fn of_plan(request: &Request, plan: &Plan, name: &str, estimate: Estimate) -> Result<Answer> {
    let begin = Instant::now();
    let budget = request.job.target.budget();
    let own = Candidate::whole(name, plan.clone(), estimate);
    let (priced, problems) = rayon::join(
        || price::all(request),
        || problem::Problems::of(&exact(request)).map(|p| Front::from(p).points(&budget, POINTS)),
    );
    let mut considered = priced?;
    considered.push(own.clone());
    let outcome = match own.fits(&budget) {
        true => Outcome::Fits(Box::new(own)),
        false => misfit::explain(request, &budget, &[own], true)?,
    };
    Ok(Answer {
        outcome,
        considered,
        certificate: None,
        front: problems?,
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
}

impl From<Named> for Proposal {
    fn from((name, choices): Named) -> Proposal {
        Proposal { name, choices }
    }
}

/// Whether the search may choose `technique` on its own: its class is allowed.
fn may_choose(request: &Request, technique: &str) -> bool {
    let class = crate::technique::find(technique).map(|t| t.card().exactness);
    class.is_ok_and(|class| class <= request.allow)
}

/// `request` without lossy techniques of the search's own choice: those are tried one method at a time.
fn exact(request: &Request) -> Request {
    let mut exact = request.clone();
    exact.allow = exact.allow.min(Exactness::Rounding);
    exact
}

/// What the bound says of a plan that was proved.
fn certificate(best: &Candidate, bound: Seconds) -> Certificate {
    let simulated = best.estimate.step;
    Certificate {
        bound,
        // The bound is the plan's own time where nothing is better, but for the arithmetic.
        gap: (1.0 - bound.0 / simulated.0).max(0.0),
        class: CLASS,
        proposed: best.proposed,
        simulated,
    }
}
