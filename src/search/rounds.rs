//! Rounds of lowering what is proposed to be fastest: what whole plans really take enters, and their problems are solved again.

use rayon::prelude::*;

use super::layers::{Counts, Room};
use super::policies::{POLICIES, Policy};
use super::problem::Problems;
use super::sample::spent;
use super::solve::candidate;
use super::{Candidate, price};
use crate::error::Result;
use crate::machine::estimate;
use crate::plan::Request;
use crate::program::height;
use crate::spec::job::{Budget, PerPlace, Place};
use crate::spec::units::{Bytes, Seconds};

/// Plans that are lowered whole in a round.
const ROUND: usize = 2;

/// Most plans that are lowered whole of those solved for, and of those others would make; and layers in all of either.
const WHOLE: (usize, u64) = (16, 480);

/// What others would do is lowered too where it is proposed to be slower by no more than this than the best that was found, as long as it is
/// one of so many.
const DOUBT: f64 = 1.15;
const DOUBTED: usize = 6;

/// Where so few layers or fewer are away, what one home lost over its copies says little of another: each home is tried once.
const FEW: f64 = 2.0;

/// Plans proposed to be slower than the fastest by this are not solved for: proposals are not so far off.
const FAR: f64 = 1.25;

/// How often a plan that does not fit is solved for again, with what was counted too little held back.
pub(super) const AGAIN: usize = 7;

/// The part of a row of the budget within which what is held back is near enough.
const NEAR: f64 = 0.01;

/// The part of an excess that is held back where what was counted too little is held back already.
const STEP: f64 = 0.5;

/// Counts of the layers of a problem.
#[derive(Clone)]
pub(super) struct Proposed {
    problem: usize,
    counts: Counts,
}

impl Proposed {
    /// Whether few layers are away.
    fn is_few(&self) -> bool {
        self.counts.kinds.len() > 1 && self.counts.kinds[0] <= FEW
    }

    /// Whether it is the same plan, whatever it is thought to take.
    fn is(&self, other: &Proposed) -> bool {
        let (own, other) = ((self.problem, &self.counts), (other.problem, &other.counts));
        own.0 == other.0 && own.1.kinds == other.1.kinds && own.1.columns == other.1.columns
    }
}

/// A plan that was lowered whole, and what it was counted to be.
pub(super) struct Tried {
    proposed: Proposed,
    pub(super) candidate: Candidate,
    /// Bytes that were held back of the rows of the budget.
    held_back: Vec<f64>,
    /// Bytes that were too little when they were held back; those that it began with where they were enough.
    refused: Vec<f64>,
    /// Seconds of the halves of its step.
    halves: [f64; 2],
}

/// Rounds of lowering what is proposed to be fastest.
pub(super) struct Rounds<'a> {
    problems: &'a Problems,
    request: &'a Request,
    budget: &'a Budget,
    /// Within what each problem is solved for.
    rooms: Vec<Room<'a>>,
    open: Vec<Proposed>,
    /// What others would do.
    others: Vec<Proposed>,
    /// A step that is known to fit.
    least: f64,
    tried: Vec<Proposed>,
    /// The most bytes of each row that a plan was counted to take too much.
    spare: Vec<f64>,
    pub(super) candidates: Vec<Candidate>,
}

impl<'a> Rounds<'a> {
    pub(super) fn new(
        problems: &'a Problems,
        request: &'a Request,
        budget: &'a Budget,
        (bounds, known): (&[Option<f64>], Option<Seconds>),
    ) -> Rounds<'a> {
        let room = Room::all(budget);
        let least = known.map_or(f64::INFINITY, |known| known.0);
        let mut open = solved(problems, &room, bounds, least);
        let best = open.iter().map(|p| p.counts.seconds);
        let best = best.fold(least, f64::min);
        let others = others(problems, budget, best * FAR);
        open.extend(others.iter().cloned());
        Rounds {
            problems,
            request,
            budget,
            rooms: vec![room; problems.all.len()],
            open,
            others,
            least,
            tried: Vec::new(),
            spare: vec![0.0; budget.rows.len()],
            candidates: Vec::new(),
        }
    }

    /// Plans that may be lowered whole.
    fn whole(&self) -> usize {
        let layers = self.request.job.model.layers.max(1);
        WHOLE.0.min((WHOLE.1 / layers) as usize).max(ROUND)
    }

    /// The plans of `proposed`, in their order, each solved for again `times` times at most while it does not fit.
    pub(super) fn lowered(&self, proposed: Vec<Proposed>, times: usize) -> Result<Vec<Tried>> {
        let all = proposed.into_par_iter();
        let all: Vec<Result<Tried>> = all.map(|one| self.whole_of(one, times)).collect();
        all.into_iter().collect()
    }

    /// The budget, and as much more as plans were counted to take too much.
    pub(super) fn freed(&self) -> Room<'a> {
        let held_back = self.spare.iter().map(|spare| -spare).collect();
        Room {
            held_back,
            ..Room::all(self.budget)
        }
    }

    /// The fastest step that was found to fit.
    fn best(&self) -> f64 {
        let fitting = self.candidates.iter().filter(|c| c.fits(self.budget));
        fitting
            .map(|c| c.estimate.step.0)
            .fold(self.least, f64::min)
    }

    /// What others would do and is proposed to be faster than all that was solved for turned out to be, or hardly slower.
    pub(super) fn others(&mut self) -> Vec<Proposed> {
        let best = self.best();
        let mut others = std::mem::take(&mut self.others);
        let is_tried = |p: &Proposed| self.tried.iter().any(|tried| tried.is(p));
        others.retain(|p| p.counts.seconds < best * DOUBT && !is_tried(p));
        others.sort_by(by_seconds);
        others.dedup_by(|a, b| a.is(b));
        let faster = others.partition_point(|p| p.counts.seconds < best);
        others.truncate(self.whole().min(faster.max(DOUBTED)));
        others
    }

    /// What is lowered next; `None` where nothing is proposed to be faster than what was lowered.
    pub(super) fn next(&mut self) -> Option<Vec<Proposed>> {
        let best = self.best();
        let mut open = std::mem::take(&mut self.open);
        let is_tried = |p: &Proposed| self.tried.iter().any(|tried| tried.is(p));
        open.retain(|p| (p.counts.seconds < best || self.hopes(p, best)) && !is_tried(p));
        open.sort_by(by_seconds);
        open.dedup_by(|a, b| a.is(b));
        let left = self
            .whole()
            .saturating_sub(self.candidates.len())
            .min(ROUND);
        self.open = open.split_off(left.min(open.len()));
        let next: Vec<Proposed> = open.into_iter().map(|p| self.anew(p)).collect();
        (!next.is_empty()).then_some(next)
    }

    /// The plan of `proposed`, lowered whole; solved for again so many times while it does not fit.
    fn whole_of(&self, proposed: Proposed, times: usize) -> Result<Tried> {
        let Proposed {
            problem,
            mut counts,
        } = proposed;
        let own = &self.problems.all[problem];
        let mut room = self.rooms[problem].clone();
        let mut refused = room.held_back.clone();
        for left in (0..=times).rev() {
            let proposal = self.problems.proposal(own, &counts);
            let plan = price::plan(self.request, &proposal)?;
            let programs = estimate::stepping(&plan)?;
            let over = excess(room.budget, &height(&programs));
            let tighter = match left > 0 && over.iter().any(|&over| over > 0.0) {
                true => {
                    let counted = own.layers.rows(&counts, room.budget);
                    let missed = missed(room.budget, &counted, &over);
                    refused.clone_from(&room.held_back);
                    hold_back(&mut room, &missed, &over);
                    own.layers.fastest(&room)
                }
                false => None,
            };
            let Some(tighter) = tighter else {
                let walks = estimate::walks(&plan, &programs)?;
                let estimate = estimate::summary(&plan, &programs, &walks);
                return Ok(Tried {
                    halves: spent(&programs, &walks),
                    candidate: candidate(proposal.name, plan, estimate, &counts),
                    proposed: Proposed { problem, counts },
                    held_back: room.held_back,
                    refused,
                });
            };
            counts = tighter;
        }
        unreachable!("the last round returns")
    }

    /// Whether few layers are away in a plan of a home that was not tried, and it was hoped to be faster than `best` before others showed what
    /// copies cost.
    fn hopes(&self, proposed: &Proposed, best: f64) -> bool {
        let layers = &self.problems.all[proposed.problem].layers;
        let hoped: f64 = layers.halves(&proposed.counts).iter().sum();
        proposed.is_few() && !self.is_tried(proposed.problem) && hoped < best
    }

    /// The plan of a problem that was solved before others showed what copies cost, as it is solved now.
    fn anew(&self, proposed: Proposed) -> Proposed {
        let Proposed { problem, .. } = proposed;
        let room = &self.rooms[problem];
        if room.loss == [0.0; 2] || self.is_tried(problem) {
            return proposed;
        }
        let again = self.problems.all[problem].layers.fastest(room);
        again.map_or(proposed, |counts| Proposed { problem, counts })
    }

    fn is_tried(&self, problem: usize) -> bool {
        self.tried.iter().any(|tried| tried.problem == problem)
    }

    /// Lets problems that were not tried yet expect to lose as much over their copies as the one of their pace that lost least.
    fn warn(&mut self) {
        let pace = |problem: usize| self.problems.all[problem].home.pace;
        let lost = |of: u64, half: usize| {
            let tried = self.tried.iter().map(|tried| tried.problem);
            let losses = tried.filter(|&p| pace(p) == of);
            let losses = losses.map(|p| self.rooms[p].loss[half]);
            let least = losses.filter(|loss| *loss > 0.0).reduce(f64::min);
            least.unwrap_or(0.0)
        };
        let open = (0..self.rooms.len()).filter(|&problem| !self.is_tried(problem));
        let losses = open.map(|problem| (problem, [0, 1].map(|half| lost(pace(problem), half))));
        for (problem, loss) in losses.collect::<Vec<_>>() {
            self.rooms[problem].loss = loss;
        }
        for open in &mut self.open {
            let layers = &self.problems.all[open.problem].layers;
            open.counts.seconds = self.rooms[open.problem].seconds(layers, &open.counts);
        }
    }

    /// Enters what a plan really takes, and solves its problem again.
    pub(super) fn learn(&mut self, tried: Tried) {
        let Proposed { problem, counts } = &tried.proposed;
        let layers = &self.problems.all[*problem].layers;
        let (counted, copies) = (layers.halves(counts), layers.copies(counts));
        let over = excess(self.budget, &tried.candidate.estimate.peak);
        let missed = missed(self.budget, &layers.rows(counts, self.budget), &over);
        let room = &mut self.rooms[*problem];
        for (row, missed) in missed.into_iter().enumerate() {
            self.spare[row] = self.spare[row].max(-missed);
            let (tried, refused) = (tried.held_back[row], tried.refused[row]);
            let near = NEAR * self.budget.rows[row].1.0 as f64;
            room.held_back[row] = if room.held_back[row] == 0.0 && tried == 0.0 {
                // What was counted too much is free, until a plan is found to pass its budget.
                missed.min(0.0)
            } else if tried > missed + near && tried > refused + near {
                // More was held back than was missed: less may be enough.
                (tried + refused) / 2.0
            } else {
                tried
            };
        }
        room.loss = [0, 1].map(|half| match copies[half] > 0.0 {
            // A copy that hides behind nothing adds its own time and no more.
            true => ((tried.halves[half] - counted[half]) / copies[half]).clamp(0.0, 1.0),
            false => 0.0,
        });
        let again = layers.fastest(room);
        self.open.extend(again.map(|counts| Proposed {
            problem: *problem,
            counts,
        }));
        self.candidates.push(tried.candidate);
        self.tried.push(tried.proposed);
        self.warn();
    }
}

/// The order of what is proposed.
fn by_seconds(a: &Proposed, b: &Proposed) -> std::cmp::Ordering {
    a.counts.seconds.total_cmp(&b.counts.seconds)
}

/// The fastest counts of each problem that may be among the fastest, in the order of their bounds; `best` is known already.
fn solved(
    problems: &Problems,
    room: &Room,
    bounds: &[Option<f64>],
    mut best: f64,
) -> Vec<Proposed> {
    let mut order: Vec<(usize, f64)> = (bounds.iter().enumerate())
        .filter_map(|(problem, bound)| Some((problem, (*bound)?)))
        .collect();
    order.sort_by(|a, b| a.1.total_cmp(&b.1));
    let mut open: Vec<Proposed> = Vec::new();
    for pair in order.chunks(ROUND) {
        let solved = |&(problem, bound): &(usize, f64)| {
            let near = bound <= best * FAR;
            let counts = near.then(|| problems.all[problem].layers.fastest(room));
            counts.flatten().map(|counts| Proposed { problem, counts })
        };
        let solved: Vec<Option<Proposed>> = pair.par_iter().map(solved).collect();
        for proposed in solved.into_iter().flatten() {
            best = best.min(proposed.counts.seconds);
            open.push(proposed);
        }
    }
    open.retain(|p| p.counts.seconds <= best * FAR);
    open
}

/// What others would do, each with the homes that suit it best, where that is proposed to be no slower than `far`.
fn others(problems: &Problems, budget: &Budget, far: f64) -> Vec<Proposed> {
    let proposed = |(problem, counts): (usize, Counts)| Proposed { problem, counts };
    let suited = |policy: &Policy| policy.suited(problems, budget, far);
    let all = POLICIES.par_iter().flat_map_iter(suited);
    all.map(proposed).collect()
}

/// Bytes that were `counted` too little of each row that is passed by `over`, below zero where they were counted too much.
fn missed(budget: &Budget, counted: &[f64], over: &[f64]) -> Vec<f64> {
    let rows = budget.rows.iter().zip(counted).zip(over);
    rows.map(|((row, counted), over)| row.1.0 as f64 + over - counted)
        .collect()
}

/// Holds back what was `missed` of each row that is passed; more where that was held back already.
fn hold_back(room: &mut Room, missed: &[f64], over: &[f64]) {
    for (back, (missed, over)) in room.held_back.iter_mut().zip(missed.iter().zip(over)) {
        if *over > 0.0 {
            *back = missed.max(*back + STEP * over);
        }
    }
}

/// Bytes by which `peak` passes each row of `budget`, below zero where it does not.
fn excess(budget: &Budget, peak: &PerPlace<Bytes>) -> Vec<f64> {
    let over = |(places, most): &(Vec<Place>, Bytes)| {
        let taken: u64 = places.iter().map(|&p| peak[p].0).sum();
        taken as f64 - most.0 as f64
    };
    budget.rows.iter().map(over).collect()
}
