//! The front: the fastest step within each of a list of device memories, which depends on the job alone.

use rayon::prelude::*;

use super::layers::{Counts, Room};
use super::problem::{Problem, Problems};
use crate::plan::Choice;
use crate::spec::job::{Budget, Exactness};
use crate::spec::units::{Bytes, Seconds};

/// Memories on the front.
const POINTS: u32 = 8;

/// A point of the front, as it is proposed: only the plan that is chosen is lowered whole.
#[derive(Debug, Clone, PartialEq)]
pub struct Point {
    /// Bytes of the device within which the step is planned.
    pub device: Bytes,
    /// The step.
    pub step: Seconds,
    /// What the plan is called in tables.
    pub name: String,
    /// How its results may differ from the job with nothing chosen.
    pub class: Exactness,
}

/// The front of `problems`, within `budget` elsewhere: from the least that any plan needs to the least of the fastest.
pub fn of(problems: &Problems, budget: &Budget) -> Vec<Point> {
    let least = |problem: &Problem| {
        let kind = problem.layers.kinds[0];
        problem.layers.floor + kind.floor * problem.layers.count as f64
    };
    let most = |problem: &Problem| {
        let kind = problem.layers.kinds[0];
        problem.layers.rest.peak.gpu + kind.takes.peak.gpu * problem.layers.count as f64
    };
    let low = problems.all.iter().map(least).fold(f64::INFINITY, f64::min);
    let high = problems.all.iter().map(most).fold(0.0, f64::max);
    let ratio = (high / low).max(1.0);
    let memory = |at: u32| low * ratio.powf(f64::from(at) / f64::from(POINTS - 1)) * 1.001;
    let at: Vec<Option<Point>> = (0..POINTS)
        .into_par_iter()
        .map(|at| {
            let device = Bytes(memory(at).ceil() as u64);
            point(problems, &budget.with_device(device), device)
        })
        .collect();
    let mut front: Vec<Point> = Vec::new();
    for point in at.into_iter().flatten() {
        if front.last().is_none_or(|last| point.step.0 < last.step.0) {
            front.push(point);
        }
    }
    front
}

/// The fastest step of all problems within `budget`.
fn point(problems: &Problems, budget: &Budget, device: Bytes) -> Option<Point> {
    let room = Room::all(budget);
    let least = |problem: &'_ Problem| problem.layers.relaxed(&room, None);
    let mut open: Vec<(&Problem, f64)> = (problems.all.iter())
        .filter_map(|problem| Some((problem, least(problem)?.seconds)))
        .collect();
    open.sort_by(|a, b| a.1.total_cmp(&b.1));
    let mut best: Option<(&Problem, Counts)> = None;
    for (problem, least) in open {
        let beaten = |seconds: f64| {
            best.as_ref()
                .is_some_and(|(_, best)| best.seconds <= seconds)
        };
        if beaten(least) {
            break;
        }
        let counts = problem.layers.fastest(&room);
        if let Some(counts) = counts.filter(|counts| !beaten(counts.seconds)) {
            best = Some((problem, counts));
        }
    }
    let (problem, counts) = best?;
    let proposal = problems.proposal(problem, &counts);
    let class = |choice: &Choice| choice.behind().map(|t| t.card().exactness);
    let classes = proposal.choices.iter().filter_map(|c| class(c).ok());
    Some(Point {
        device,
        step: Seconds(counts.seconds),
        class: classes.max().unwrap_or(Exactness::Bitwise),
        name: proposal.name,
    })
}
