//! The front: the fastest step within each of a list of device memories, which depends on the job alone.

use rayon::prelude::*;

use super::milp::Counts;
use super::problem::{Problem, Problems};
use crate::plan::Choice;
use crate::spec::job::{Budget, Exactness, Place};
use crate::spec::units::{Bytes, Seconds};

/// Memories on the front.
const POINTS: u32 = 12;

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
        .map(|at| point(problems, budget, Bytes(memory(at).ceil() as u64)))
        .collect();
    let mut front: Vec<Point> = Vec::new();
    for point in at.into_iter().flatten() {
        if front.last().is_none_or(|last| point.step.0 < last.step.0) {
            front.push(point);
        }
    }
    front
}

/// The fastest of `problems` within `device` bytes of the device.
fn point(problems: &Problems, budget: &Budget, device: Bytes) -> Option<Point> {
    let mut budget = budget.clone();
    for (places, most) in &mut budget.rows {
        if places[..] == [Place::Gpu] {
            *most = device;
        }
    }
    let mut best: Option<(&Problem, Counts)> = None;
    for problem in &problems.all {
        let beaten = |bound: f64| best.as_ref().is_some_and(|(_, best)| best.seconds <= bound);
        if problem.layers.bound(&budget).is_none_or(beaten) {
            continue;
        }
        if let Some(counts) = problem.layers.fastest(&budget, &[]) {
            if !best
                .as_ref()
                .is_some_and(|(_, best)| best.seconds <= counts.seconds)
            {
                best = Some((problem, counts));
            }
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
