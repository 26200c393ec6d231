//! What others would do with the same layers: the policies that plans are held against.

use rayon::prelude::*;

use super::layers::{Column, Counts, Layers, Room};
use super::menu::Fate;
use super::problem::{Problem, Problems};
use crate::graph::Stream;
use crate::spec::job::Budget;

/// A policy over the layers of one home: counts, where it has any within a budget.
pub struct Policy {
    /// Its name in tables.
    pub name: &'static str,
    /// Where it stems from.
    pub source: &'static str,
    /// Its counts.
    pub counts: fn(&Problems, &Problem, &Budget) -> Option<Counts>,
}

/// Homes of parameters and states that each policy is lowered whole with: those with which it is proposed to be fastest.
pub(super) const HOMES: usize = 2;

impl Policy {
    /// Its counts with each of the [`HOMES`] that suit it best, by the index of the problem: those that fit and are no slower than `far`.
    pub(super) fn suited(
        &self,
        problems: &Problems,
        budget: &Budget,
        far: f64,
    ) -> Vec<(usize, Counts)> {
        let counts = |(index, problem): (usize, &Problem)| {
            if problem.layers.plain().seconds > far {
                return None;
            }
            let counts = (self.counts)(problems, problem, budget)?;
            let fits = problem.layers.excess(&counts, budget) <= 0.0 && counts.seconds <= far;
            fits.then_some((index, counts))
        };
        let all = problems.all.par_iter().enumerate().filter_map(counts);
        let mut all: Vec<(usize, Counts)> = all.collect();
        all.sort_by(|a, b| a.1.seconds.total_cmp(&b.1.seconds));
        all.truncate(HOMES);
        all
    }
}

/// All of them; each is tried with every home of parameters and states, all layers alike.
pub const POLICIES: [Policy; 6] = [
    Policy {
        name: "keep all",
        source: "no technique",
        counts: |_, problem, _| Some(problem.layers.plain()),
    },
    Policy {
        name: "recompute all",
        source: "Chen et al. 2016, arXiv:1604.06174",
        counts: |problems, problem, _| {
            Some(chosen(problems, problem, |fate, _| fate == Fate::Recompute))
        },
    },
    Policy {
        name: "selective",
        source: "the core of attention: Korthikanti et al. 2022, arXiv:2205.05198",
        counts: |problems, problem, _| {
            let core = |fate, leaves: &[String]| {
                fate == Fate::Recompute && leaves.iter().any(|leaf| leaf == "attention/core")
            };
            Some(chosen(problems, problem, core))
        },
    },
    Policy {
        name: "knapsack",
        source: "PyTorch's partitioner under activation_memory_budget: what to recompute, by one budget of bytes",
        counts: knapsack,
    },
    Policy {
        name: "swap, then recompute",
        source: "Peng et al. 2020 (Capuchin): send away what hides behind the forward pass, then drop the cheapest bytes",
        counts: swap_first,
    },
    Policy {
        name: "greedy",
        source: "value by value, the cheaper of the two fates, the cheapest bytes first",
        counts: greedy,
    },
];

/// The fates that `picks`, in all layers.
fn chosen(
    problems: &Problems,
    problem: &Problem,
    picks: impl Fn(Fate, &[String]) -> bool,
) -> Counts {
    let mut counts = problem.layers.plain();
    for (index, change) in problems.changes.iter().enumerate() {
        if picks(change.fate, &problems.saved[change.saved].leaves) {
            counts.columns[0][index] = problem.layers.columns[index].most as f64;
        }
    }
    problem.layers.timed(counts)
}

/// The best of recomputation alone, with all layers of one kind.
fn knapsack(problems: &Problems, problem: &Problem, budget: &Budget) -> Option<Counts> {
    let all = problem.layers.columns.iter().zip(&problems.changes);
    let only = |(column, change): (&Column, &super::sample::Change)| Column {
        most: if change.fate == Fate::Recompute {
            column.most
        } else {
            0
        },
        ..*column
    };
    let alone = Layers {
        kinds: problem.layers.kinds[..1].to_vec(),
        columns: all.map(only).collect(),
        ..problem.layers.clone()
    };
    let mut counts = alone.fastest(&Room::all(budget))?;
    counts.kinds.resize(problem.layers.kinds.len(), 0.0);
    let none = vec![0.0; counts.columns[0].len()];
    counts.columns.resize(problem.layers.kinds.len(), none);
    Some(counts)
}

/// Compute seconds that a column adds, and seconds of the link.
fn costs(column: &Column) -> (f64, f64) {
    let both = column.takes.forward + column.takes.later;
    (
        both.0[Stream::Compute as usize],
        both.0[Stream::ToHost as usize],
    )
}

/// Columns of `fates`, those that free most bytes for a second first.
fn by_worth(problems: &Problems, layers: &Layers, fates: &[Fate]) -> Vec<usize> {
    let fate = |index: usize| problems.changes[index].fate;
    let worth = |index: &usize| {
        let column = &layers.columns[*index];
        let (compute, link) = costs(column);
        let seconds = match fate(*index) {
            Fate::Offload => link,
            _ => compute,
        };
        -column.takes.peak.gpu / seconds.max(1e-12)
    };
    let all = 0..layers.columns.len();
    let mut all: Vec<usize> = all.filter(|&index| fates.contains(&fate(index))).collect();
    all.sort_by(|a, b| worth(b).total_cmp(&worth(a)));
    all
}

/// Takes columns one layer at a time in order, until the counts fit.
fn until_it_fits(
    layers: &Layers,
    order: &[usize],
    mut counts: Counts,
    budget: &Budget,
) -> Option<Counts> {
    for &index in order {
        let column = &layers.columns[index];
        let taken = |counts: &Counts| -> f64 {
            let all = layers.columns.iter().zip(&counts.columns[0]);
            all.filter(|(c, _)| c.subject == column.subject)
                .map(|(_, n)| n)
                .sum()
        };
        while counts.columns[0][index] < column.most as f64 && taken(&counts) < layers.count as f64
        {
            if layers.excess(&counts, budget) <= 0.0 {
                return Some(layers.timed(counts));
            }
            counts.columns[0][index] += 1.0;
        }
    }
    (layers.excess(&counts, budget) <= 0.0).then(|| layers.timed(counts))
}

fn swap_first(problems: &Problems, problem: &Problem, budget: &Budget) -> Option<Counts> {
    let layers = &problem.layers;
    let mut counts = layers.plain();
    let mut hidden =
        layers.kinds[0].takes.forward.0[Stream::Compute as usize] * layers.count as f64;
    for index in by_worth(problems, layers, &[Fate::Offload]) {
        let column = &layers.columns[index];
        let each = costs(column).1.max(1e-12);
        while counts.columns[0][index] < column.most as f64 && hidden >= each {
            if layers.excess(&counts, budget) <= 0.0 {
                return Some(layers.timed(counts));
            }
            counts.columns[0][index] += 1.0;
            hidden -= each;
        }
    }
    let drops = by_worth(problems, layers, &[Fate::Recompute]);
    until_it_fits(layers, &drops, counts, budget)
}

fn greedy(problems: &Problems, problem: &Problem, budget: &Budget) -> Option<Counts> {
    let layers = &problem.layers;
    let order = by_worth(problems, layers, &[Fate::Recompute, Fate::Offload]);
    until_it_fits(layers, &order, layers.plain(), budget)
}
