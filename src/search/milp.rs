//! In how many layers each fate is chosen: an integer program, whose relaxation is the bound.

use good_lp::{
    Expression, ProblemVariables, Solution as _, SolverModel, Variable, WithMipGap, constraint, microlp,
    variable,
};

use super::sample::Taken;
use crate::machine::sim::demand::SERVERS;
use crate::spec::job::{Budget, PerPlace, Place};

/// Gap at which the search for integers stops, as a fraction of the step.
const GAP: f32 = 1e-4;

/// Bytes and seconds are counted in these, so that coefficients are near one.
const GIB: f64 = (1u64 << 30) as f64;
const MILLI: f64 = 1e-3;

/// Something that may be chosen in some of the layers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Column {
    /// What each layer that has it takes, more than where nothing is chosen.
    pub takes: Taken,
    /// Most layers that may have it.
    pub most: u64,
    /// What it is about: a layer has one column of each subject.
    pub subject: usize,
    /// Whether it takes its bytes at every instant, and not only where most activations are alive.
    pub lasting: bool,
}

/// The layers of a job.
#[derive(Debug, Clone, PartialEq)]
pub struct Layers {
    /// How many there are.
    pub count: u64,
    /// What the step takes where nothing is chosen.
    pub kept: Taken,
    /// Bytes of the device that it takes where most activations are gone.
    pub floor: f64,
    /// What may be chosen.
    pub columns: Vec<Column>,
}

/// How many layers have each column, and the step's time.
#[derive(Debug, Clone, PartialEq)]
pub struct Counts {
    /// For each column.
    pub of: Vec<f64>,
    /// Seconds.
    pub seconds: f64,
}

impl Layers {
    /// The fastest counts within `budget`, less `held_back` bytes of each of its rows; `None` where there are none. Those that need
    /// not be whole are a bound: no plan of these layers is faster.
    pub fn fastest(&self, budget: &Budget, held_back: &[f64], whole: bool) -> Option<Counts> {
        let mut all = ProblemVariables::new();
        let counts: Vec<Variable> = (self.columns.iter())
            .map(|column| {
                let count = variable().min(0.0).max(column.most as f64);
                all.add(if whole { count.integer() } else { count })
            })
            .collect();
        let halves = [all.add(variable().min(0.0)), all.add(variable().min(0.0))];
        let objective: Expression = halves.iter().sum();
        let mut model = all.minimise(objective.clone()).using(microlp);
        if whole {
            model = model.with_mip_gap(GAP).ok()?;
        }
        let subjects = self.columns.iter().map(|c| c.subject).max().unwrap_or(0);
        for subject in 0..=subjects {
            let of = self.sum(&counts, |c| f64::from(u8::from(c.subject == subject)));
            model.add_constraint(constraint!(of <= self.count as f64));
        }
        for (row, (places, most)) in budget.rows.iter().enumerate() {
            let total = |peak: &PerPlace<f64>| places.iter().map(|&p| peak[p]).sum::<f64>() / GIB;
            let most = (most.0 as f64 - held_back.get(row).copied().unwrap_or(0.0)) / GIB;
            let taken = self.sum(&counts, |c| total(&c.takes.peak));
            model.add_constraint(constraint!(taken <= most - total(&self.kept.peak)));
            if places.contains(&Place::Gpu) {
                let lasting = |c: &Column| if c.lasting { total(&c.takes.peak) } else { 0.0 };
                let taken = self.sum(&counts, lasting);
                model.add_constraint(constraint!(taken <= most - self.floor / GIB));
            }
        }
        for server in 0..SERVERS {
            let (forward, later) = (self.kept.forward.0[server], self.kept.later.0[server]);
            let asked = self.sum(&counts, |c| c.takes.forward.0[server] / MILLI);
            model.add_constraint(constraint!(asked - halves[0] <= -forward / MILLI));
            let asked = self.sum(&counts, |c| c.takes.later.0[server] / MILLI);
            model.add_constraint(constraint!(asked - halves[1] <= -later / MILLI));
        }
        let solution = model.solve().ok()?;
        Some(Counts {
            of: counts.iter().map(|&v| solution.value(v)).collect(),
            seconds: solution.eval(&objective) * MILLI,
        })
    }

    /// The sum over columns of a coefficient times its count, without what does not count.
    fn sum(&self, counts: &[Variable], of: impl Fn(&Column) -> f64) -> Expression {
        let terms = self.columns.iter().zip(counts);
        let terms = terms.map(|(column, &count)| (of(column), count));
        terms
            .filter(|(factor, _)| *factor != 0.0)
            .map(|(factor, count)| factor * count)
            .sum()
    }
}
