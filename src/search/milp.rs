//! In how many layers each fate is chosen: a linear program whose counts are made whole, and another whose optimum is the bound.

use good_lp::{
    Expression, ProblemVariables, Solution as _, SolverModel, Variable, constraint, microlp,
    variable,
};

use super::layers::{Column, Counts, Kind, Layers, Room};
use super::sample::Taken;
use crate::graph::Stream;
use crate::machine::sim::demand::SERVERS;
use crate::spec::job::{Budget, PerPlace, Place};

/// Bytes and seconds are counted in these, so that coefficients are near one.
const GIB: f64 = (1u64 << 30) as f64;
const MILLI: f64 = 1e-3;

/// The model's variables.
struct Variables {
    kinds: Vec<Variable>,
    columns: Vec<Vec<Variable>>,
    /// Milliseconds of the forward passes and of what follows.
    halves: [Variable; 2],
}

impl Layers {
    /// The fastest whole counts found within `room`; `None` where there are none.
    ///
    /// Copies pass beside the compute of all layers in their half of the step, which lasts as long as its longest server, and as the
    /// pipeline of each kind alone did.
    pub fn fastest(&self, room: &Room) -> Option<Counts> {
        let relaxed = self.relaxed(room, None)?;
        // The optimum is convex in the layers of the second kind: a neighbour of the best fraction is the best whole number.
        let second = relaxed.kinds.get(1).copied().unwrap_or(0.0);
        let tried = match second.fract() == 0.0 {
            true => vec![second],
            false => vec![second.floor(), second.ceil()],
        };
        let whole = tried.into_iter().filter_map(|second| {
            let counts = self.relaxed(room, Some(second))?;
            self.rounded(counts, room)
        });
        whole.min_by(|a, b| a.seconds.total_cmp(&b.seconds))
    }

    /// The fastest counts, whole or not, with `second` layers of the second kind where that is given.
    pub(super) fn relaxed(&self, room: &Room, second: Option<f64>) -> Option<Counts> {
        let (all, v) = self.variables();
        let lost = |half: usize| {
            let loss = room.loss[half];
            self.all(&v, |taken| loss * taken.copies(half))
        };
        let passes = v.halves.iter().sum::<Expression>();
        let mut model = all.minimise(passes + lost(0) + lost(1)).using(microlp);
        self.limit(&mut model, &v, room, true);
        if let (Some(second), Some(&kind)) = (second, v.kinds.get(1)) {
            model.add_constraint(constraint!(kind == second));
        }
        for (half, &passes) in v.halves.iter().enumerate() {
            for server in 0..SERVERS {
                let asked = self.all(&v, |taken| taken.half(half).0[server]);
                model.add_constraint(constraint!(asked <= passes));
            }
            for kind in 0..self.kinds.len() {
                let pipeline = self.asked(&v, kind, |taken| taken.spent[half]);
                let strained = self.columns.iter().zip(&v.columns[kind]);
                let added = |(c, &n): (&Column, &Variable)| self.strain(kind, half, c) / MILLI * n;
                let added: Expression = strained.map(added).sum();
                model.add_constraint(constraint!(pipeline + added <= passes));
            }
        }
        let solution = model.solve().ok()?;
        // Counts that are whole but for the arithmetic are whole.
        let value = |v: &Variable| {
            let value = solution.value(*v);
            let near = value.round();
            if (value - near).abs() < 1e-6 {
                near
            } else {
                value
            }
        };
        let mut counts = Counts {
            kinds: v.kinds.iter().map(value).collect(),
            columns: v
                .columns
                .iter()
                .map(|c| c.iter().map(value).collect())
                .collect(),
            seconds: 0.0,
        };
        counts.seconds = room.seconds(self, &counts);
        Some(counts)
    }

    /// Seconds that no plan of these layers within `budget` is faster than: counts need not be whole, and copies may pass beside all
    /// of the step's compute. `None` where no plan fits.
    pub fn bound(&self, budget: &Budget) -> Option<f64> {
        let (all, v) = self.variables();
        let passes = v.halves.iter().sum::<Expression>();
        let mut model = all.minimise(passes.clone()).using(microlp);
        self.limit(&mut model, &v, &Room::all(budget), false);
        let sum = |of: &dyn Fn(&Taken) -> f64| self.all(&v, of) + of(&self.rest) / MILLI;
        let compute = Stream::Compute as usize;
        for (half, &passes) in v.halves.iter().enumerate() {
            let asked = sum(&|taken| taken.half(half).0[compute]);
            model.add_constraint(constraint!(asked <= passes));
        }
        // What comes after the forward pass starts no earlier than a lead before its end.
        let kinds = self.kinds.iter().map(|kind| kind.takes.forward.0[compute]);
        let ahead = kinds.fold(0.0, f64::max) + self.rest.forward.0[compute].max(0.0);
        for server in 0..SERVERS {
            let asked = sum(&|taken| taken.forward.0[server] + taken.later.0[server]);
            model.add_constraint(constraint!(asked <= passes.clone()));
            let asked = sum(&|taken| taken.later.0[server]);
            model.add_constraint(constraint!(asked <= v.halves[1] + ahead / MILLI));
        }
        let solution = model.solve().ok()?;
        Some(solution.eval(&passes) * MILLI)
    }

    fn variables(&self) -> (ProblemVariables, Variables) {
        let mut all = ProblemVariables::new();
        let mut count =
            |least: u64, most: u64| all.add(variable().min(least as f64).max(most as f64));
        let kinds = (0..self.kinds.len()).map(|kind| count(u64::from(kind == 0), self.count));
        let kinds: Vec<Variable> = kinds.collect();
        let of_kind = |_: &Kind| self.columns.iter().map(|c| count(0, c.most)).collect();
        let columns = self.kinds.iter().map(of_kind).collect();
        let halves = [0; 2].map(|_| all.add(variable().min(0.0)));
        let variables = Variables {
            kinds,
            columns,
            halves,
        };
        (all, variables)
    }

    /// Adds what holds of any plan: each layer is of one kind, each saved value has one fate, and bytes stay within the budget, those
    /// under way included where that is asked for.
    fn limit(&self, model: &mut impl SolverModel, v: &Variables, room: &Room, under_way: bool) {
        let layers: Expression = v.kinds.iter().sum();
        model.add_constraint(constraint!(layers == self.count as f64));
        for subject in 0..self.subjects() {
            for (columns, &kind) in v.columns.iter().zip(&v.kinds) {
                let of = self
                    .columns
                    .iter()
                    .zip(columns)
                    .filter(|(c, _)| c.subject == subject);
                let fates: Expression = of.map(|(_, &count)| count).sum();
                model.add_constraint(constraint!(fates <= kind));
            }
        }
        for (index, column) in self
            .columns
            .iter()
            .enumerate()
            .filter(|(_, c)| c.most < self.count)
        {
            let all: Expression = v.columns.iter().map(|of| of[index]).sum();
            model.add_constraint(constraint!(all <= column.most as f64));
        }
        for (row, (places, _)) in room.budget.rows.iter().enumerate() {
            let total = |peak: &PerPlace<f64>| places.iter().map(|&p| peak[p]).sum::<f64>() / GIB;
            let most = room.most(row) / GIB;
            let taken = self.all(v, |taken| total(&taken.peak) * MILLI);
            let flight =
                |(c, &n): (&Column, &Variable)| match under_way && places.contains(&Place::Gpu) {
                    true => c.flight / GIB * n,
                    false => Expression::from(0.0),
                };
            let flying = v.columns.iter().flat_map(|of| self.columns.iter().zip(of));
            let taken = taken + flying.map(flight).sum::<Expression>();
            model.add_constraint(constraint!(taken <= most - total(&self.rest.peak)));
            if places.contains(&Place::Gpu) {
                let kinds = self.kinds.iter().zip(&v.kinds);
                let taken: Expression = kinds.map(|(kind, &n)| kind.floor / GIB * n).sum();
                model.add_constraint(constraint!(taken <= most - self.floor / GIB));
            }
        }
    }

    /// What all layers take of something, in thousandths.
    fn all(&self, v: &Variables, of: impl Fn(&Taken) -> f64) -> Expression {
        let kinds = 0..self.kinds.len();
        kinds.map(|kind| self.asked(v, kind, &of)).sum()
    }

    /// What the layers of `kind` take of something, in thousandths.
    fn asked(&self, v: &Variables, kind: usize, of: impl Fn(&Taken) -> f64) -> Expression {
        let own = of(&self.kinds[kind].takes) / MILLI * v.kinds[kind];
        let columns = self.columns.iter().zip(&v.columns[kind]);
        let factors = columns.map(|(column, &count)| (of(&column.takes) / MILLI, count));
        let changed: Expression = (factors.filter(|(factor, _)| *factor != 0.0))
            .map(|(factor, count)| factor * count)
            .sum();
        own + changed
    }
}
