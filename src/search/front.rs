//! The front: the fastest step within each of a list of device memories, which depends on the job alone.

use rayon::prelude::*;

use super::families::Family;
use super::layers::{Counts, Room};
use super::problem::{Problem, Problems};
use crate::plan::Choice;
use crate::spec::job::{Budget, Exactness};
use crate::spec::units::{Bytes, Seconds};

/// Memories on the front that is shown.
pub const POINTS: u32 = 8;

/// Part of a step to which points are solved: they are proposed, not lowered.
const GAP: f64 = 5e-3;

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

/// What a front is made of, before it is solved for.
#[derive(Debug, Clone, Default)]
pub struct Front(Vec<Part>);

/// Problems with what all their plans are called, and the lossy method they are of.
#[derive(Debug, Clone)]
struct Part {
    problems: Problems,
    name: String,
    family: Option<&'static Family>,
}

impl From<Problems> for Front {
    fn from(problems: Problems) -> Front {
        Front(vec![Part {
            problems,
            name: String::new(),
            family: None,
        }])
    }
}

impl Front {
    /// The same with `what` is chosen beside in the names of its plans.
    pub(super) fn named(mut self, what: &str, family: Option<&'static Family>) -> Front {
        for part in &mut self.0 {
            put(&mut part.name, what);
            part.family = family.or(part.family);
        }
        self
    }

    pub(super) fn extend(&mut self, more: Front) {
        self.0.extend(more.0);
    }

    /// Its points within `count` device memories, each with `budget` elsewhere: those beaten by none of their class or a better one.
    pub fn points(&self, budget: &Budget, count: u32) -> Vec<Point> {
        let points = |part: &Part| part.points(budget, count);
        let mut all: Vec<Point> = self.0.par_iter().flat_map_iter(points).collect();
        all.sort_by_key(|p| (p.class, p.device, p.step.0.to_bits()));
        let mut front: Vec<Point> = Vec::new();
        for point in all {
            let beats =
                |other: &Point| other.device <= point.device && other.step.0 <= point.step.0;
            if !front.iter().any(beats) {
                front.push(point);
            }
        }
        front.sort_by_key(|p| (p.class == Exactness::Lossy, p.device));
        front
    }
}

/// Puts what is chosen beside it before the name of a plan.
pub(super) fn put(name: &mut String, what: &str) {
    *name = match name.is_empty() {
        true => what.to_string(),
        false => format!("{what} + {name}"),
    };
}

impl Part {
    fn points(&self, budget: &Budget, count: u32) -> Vec<Point> {
        let mut front = of(&self.problems, budget, count.max(2));
        // What does without a technique that the method opens is found without the method.
        let opens = self.family.is_some_and(|family| family.opens.is_some());
        front.retain(|point| !opens || point.class == Exactness::Lossy);
        for point in &mut front {
            if !self.name.is_empty() {
                put(&mut point.name, &self.name);
            }
            if let Some(family) = self.family {
                point.class = point.class.max(family.class());
            }
        }
        front
    }
}

/// The front of `problems` within `count` memories, with `budget` elsewhere: from the least that any plan needs to the least of the fastest.
fn of(problems: &Problems, budget: &Budget, count: u32) -> Vec<Point> {
    let least = |problem: &Problem| {
        let kind = problem.layers.kinds[0];
        problem.layers.floor + kind.floor * problem.layers.count as f64
    };
    let most = |problem: &Problem| {
        let kind = problem.layers.kinds[0];
        problem.layers.rest.peak.gpu + kind.takes.peak.gpu * problem.layers.count as f64
    };
    // What stays at home beside the layers takes no less than where it goes too.
    let away = problems.all.iter().filter(|p| !p.beside_at_home);
    let low = away.map(least).fold(f64::INFINITY, f64::min);
    let high = problems.all.iter().map(most).fold(0.0, f64::max);
    let ratio = (high / low).max(1.0);
    let memory = |at: u32| low * ratio.powf(f64::from(at) / f64::from(count - 1)) * 1.001;
    // Each half from its largest on: no problem is faster within less than it is within more.
    let half = |half: std::ops::Range<u32>| {
        let mut least = vec![0.0; problems.all.len()];
        let devices = half.rev().map(|at| Bytes(memory(at).ceil() as u64));
        let solved = devices
            .map_while(|device| point(problems, &mut least, &budget.with_device(device), device));
        solved.collect::<Vec<Point>>()
    };
    let (less, more) = rayon::join(|| half(0..count / 2), || half(count / 2..count));
    let mut front: Vec<Point> = Vec::new();
    for point in more.into_iter().chain(less) {
        // What is as fast within less stands for what takes more.
        front.retain(|more| more.step.0 < point.step.0);
        front.push(point);
    }
    front.reverse();
    front
}

/// The fastest step of all problems within `budget`, where none takes less than its `least`, which is raised to what it takes.
fn point(problems: &Problems, least: &mut [f64], budget: &Budget, device: Bytes) -> Option<Point> {
    let room = Room::all(budget);
    let mut open: Vec<usize> = (0..least.len()).collect();
    open.sort_by(|&a, &b| least[a].total_cmp(&least[b]));
    let mut best: Option<(&Problem, Counts)> = None;
    for index in open {
        let problem = &problems.all[index];
        let beaten = |seconds: f64| {
            best.as_ref()
                .is_some_and(|(_, best)| best.seconds <= seconds)
        };
        if beaten(least[index]) {
            break;
        }
        let relaxed = problem.layers.least(&room);
        least[index] = relaxed
            .as_ref()
            .map_or(f64::INFINITY, |least| least.seconds);
        if beaten(least[index]) {
            continue;
        }
        let counts = relaxed.and_then(|relaxed| problem.layers.whole(&room, relaxed, GAP));
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
