//! In how many layers each fate is chosen: an integer program, whose relaxation is the bound.

use good_lp::{
    Expression, ProblemVariables, Solution as _, SolverModel, Variable, constraint, microlp,
    variable,
};

use super::sample::Taken;
use crate::graph::Stream;
use crate::machine::sim::demand::{Demand, SERVERS};
use crate::spec::job::{Budget, PerPlace, Place};
use crate::spec::units::Bytes;

/// Counts that are not whole of which every rounding is tried.
const TRIED: usize = 10;

/// Bytes and seconds are counted in these, so that coefficients are near one.
const GIB: f64 = (1u64 << 30) as f64;
const MILLI: f64 = 1e-3;

/// Layers whose parameters and states live in the same places.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Kind {
    /// What each of them takes where its saved values are kept.
    pub takes: Taken,
    /// Bytes of the device that each takes where most saved values are gone.
    pub floor: f64,
    /// Seconds that a second of recomputation adds to its pipeline's: below one where it waits anyway.
    pub strain: [f64; 2],
}

/// What may become of a saved value in some of the layers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Column {
    /// What each layer that has it takes, more than where the value is kept.
    pub takes: Taken,
    /// Most layers that may have it.
    pub most: u64,
    /// The value: a layer has one column of each.
    pub subject: usize,
}

/// The layers of a job.
#[derive(Debug, Clone, PartialEq)]
pub struct Layers {
    /// How many there are.
    pub count: u64,
    /// What the step takes beside them.
    pub rest: Taken,
    /// Bytes of the device beside them where most saved values are gone.
    pub floor: f64,
    /// Kinds of layers; at least one is of the first.
    pub kinds: Vec<Kind>,
    /// What may become of saved values.
    pub columns: Vec<Column>,
}

/// How many layers are of each kind and have each column, and the step's time.
#[derive(Debug, Clone, PartialEq)]
pub struct Counts {
    /// Layers of each kind.
    pub kinds: Vec<f64>,
    /// For each kind, layers that have each column.
    pub columns: Vec<Vec<f64>>,
    /// Seconds.
    pub seconds: f64,
}

/// A budget, and the bytes of each of its rows that are held back.
struct Room<'a> {
    budget: &'a Budget,
    held_back: &'a [f64],
}

impl Room<'_> {
    /// Bytes of a row.
    fn most(&self, row: usize) -> f64 {
        let held_back = self.held_back.get(row).copied().unwrap_or(0.0);
        self.budget.rows[row].1.0 as f64 - held_back
    }
}

/// The model's variables.
struct Variables {
    kinds: Vec<Variable>,
    columns: Vec<Vec<Variable>>,
    /// Milliseconds of the forward passes and of what follows.
    halves: [Variable; 2],
}

impl Layers {
    /// The fastest whole counts found within `budget`, less `held_back` bytes of each of its rows; `None` where there are none.
    ///
    /// Copies pass beside the compute of all layers in their half of the step, which lasts as long as its longest server, and as the
    /// pipeline of each kind alone did.
    pub fn fastest(&self, budget: &Budget, held_back: &[f64]) -> Option<Counts> {
        let room = Room { budget, held_back };
        let relaxed = self.relaxed(&room, None)?;
        // The optimum is convex in the layers of the second kind: a neighbour of the best fraction is the best whole number.
        let second = relaxed.kinds.get(1).copied().unwrap_or(0.0);
        let tried = match second.fract() == 0.0 {
            true => vec![second],
            false => vec![second.floor(), second.ceil()],
        };
        let whole = tried.into_iter().filter_map(|second| {
            let counts = self.relaxed(&room, Some(second))?;
            self.rounded(counts, &room)
        });
        whole.min_by(|a, b| a.seconds.total_cmp(&b.seconds))
    }

    /// The fastest counts, whole or not, with `second` layers of the second kind where that is given.
    fn relaxed(&self, room: &Room, second: Option<f64>) -> Option<Counts> {
        let (all, v) = self.variables();
        let passes = v.halves.iter().sum::<Expression>();
        let mut model = all.minimise(passes).using(microlp);
        self.limit(&mut model, &v, room);
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
        counts.seconds = self.seconds(&counts);
        Some(counts)
    }

    /// Seconds that a column adds to the pipeline of a kind.
    fn strain(&self, kind: usize, half: usize, column: &Column) -> f64 {
        self.kinds[kind].strain[half] * column.takes.half(half).0[Stream::Compute as usize].max(0.0)
    }

    /// The step's time as [`Layers::fastest`] counts it.
    pub fn seconds(&self, counts: &Counts) -> f64 {
        let chosen = |kind: usize| {
            let columns = self.columns.iter().zip(&counts.columns[kind]);
            columns.filter(|(_, n)| **n > 0.0)
        };
        let half = |half: usize| {
            let asked = |kind: usize| {
                let own = *self.kinds[kind].takes.half(half) * counts.kinds[kind];
                chosen(kind).fold(own, |sum, (c, &n)| sum + *c.takes.half(half) * n)
            };
            let pipeline = |kind: usize| {
                let added = chosen(kind).map(|(c, n)| self.strain(kind, half, c) * n);
                self.kinds[kind].takes.spent[half] * counts.kinds[kind] + added.sum::<f64>()
            };
            let kinds = 0..self.kinds.len();
            let asked: Demand = kinds.clone().map(asked).sum();
            self.rest.spent[half] + kinds.map(pipeline).fold(asked.longest(), f64::max)
        };
        half(0) + half(1)
    }

    /// What counts take of each place, and of the device where most saved values are gone.
    fn peak(&self, counts: &Counts) -> (PerPlace<f64>, f64) {
        let (mut peak, mut floor) = (self.rest.peak, self.floor);
        for (kind, columns) in counts.columns.iter().enumerate() {
            let layers = counts.kinds[kind];
            floor += self.kinds[kind].floor * layers;
            peak = PerPlace::new(|p| {
                let own = self.kinds[kind].takes.peak[p] * layers;
                let held = self.columns.iter().zip(columns);
                peak[p] + own + held.map(|(c, n)| c.takes.peak[p] * n).sum::<f64>()
            });
        }
        (peak, floor)
    }

    /// Bytes by which counts pass their budget, summed over the rows they pass.
    pub fn excess(&self, counts: &Counts, budget: &Budget) -> f64 {
        let (peak, floor) = self.peak(counts);
        let over = |(places, most): &(Vec<Place>, Bytes)| {
            let taken: f64 = places.iter().map(|&p| peak[p]).sum();
            let taken = match places.contains(&Place::Gpu) {
                true => taken.max(floor),
                false => taken,
            };
            (taken - most.0 as f64).max(0.0)
        };
        budget.rows.iter().map(over).sum()
    }

    /// The counts that take least of the device: all layers of the first kind, each saved value gone that may be.
    pub fn smallest(&self) -> Counts {
        let mut columns = vec![vec![0.0; self.columns.len()]; self.kinds.len()];
        for subject in 0..self.subjects() {
            let own = self
                .columns
                .iter()
                .enumerate()
                .filter(|(_, c)| c.subject == subject);
            let rank =
                |(_, c): &(usize, &Column)| (std::cmp::Reverse(c.most), c.takes.peak.gpu as i64);
            if let Some((index, column)) = own.min_by_key(rank) {
                columns[0][index] = column.most as f64;
            }
        }
        let mut kinds = vec![0.0; self.kinds.len()];
        kinds[0] = self.count as f64;
        let seconds = 0.0;
        let mut counts = Counts {
            kinds,
            columns,
            seconds,
        };
        counts.seconds = self.seconds(&counts);
        counts
    }

    /// Whether whole counts are a plan's, and within the budget.
    fn admits(&self, counts: &Counts, room: &Room) -> bool {
        let mut fates = vec![vec![0.0; self.subjects()]; self.kinds.len()];
        for (fates, columns) in fates.iter_mut().zip(&counts.columns) {
            for (column, &n) in self.columns.iter().zip(columns) {
                fates[column.subject] += n;
            }
        }
        let once = fates.iter().zip(&counts.kinds);
        let once = once.into_iter().all(|(of, n)| of.iter().all(|f| f <= n));
        let most = |(index, column): (usize, &Column)| {
            counts.columns.iter().map(|of| of[index]).sum::<f64>() <= column.most as f64
        };
        let (peak, floor) = self.peak(counts);
        let fits = |(row, (places, _)): (usize, &(Vec<Place>, _))| {
            let most = room.most(row);
            let taken: f64 = places.iter().map(|&p| peak[p]).sum();
            taken <= most && (!places.contains(&Place::Gpu) || floor <= most)
        };
        once && self.columns.iter().enumerate().all(most)
            && counts.columns.iter().flatten().all(|&n| n >= 0.0)
            && room.budget.rows.iter().enumerate().all(fits)
    }

    /// The fastest whole counts near `counts`: of all roundings, then by single steps while they help.
    fn rounded(&self, counts: Counts, room: &Room) -> Option<Counts> {
        let all = counts.columns.iter().enumerate();
        let all = all.flat_map(|(kind, of)| (0..of.len()).map(move |column| (kind, column)));
        let broken: Vec<(usize, usize)> = (all.clone())
            .filter(|&(kind, column)| counts.columns[kind][column].fract() != 0.0)
            .take(TRIED)
            .collect();
        let rounding = |mask: u32| {
            let mut whole = counts.clone();
            whole
                .columns
                .iter_mut()
                .flatten()
                .for_each(|n| *n = n.floor());
            for (bit, &(kind, column)) in broken.iter().enumerate() {
                whole.columns[kind][column] += f64::from(mask >> bit & 1);
            }
            whole.seconds = self.seconds(&whole);
            whole
        };
        let whole = (0..1u32 << broken.len()).map(rounding);
        let admitted = whole.filter(|whole| self.admits(whole, room));
        let mut best = admitted.min_by(|a, b| a.seconds.total_cmp(&b.seconds))?;
        let steps: Vec<(usize, usize, f64)> =
            all.flat_map(|(k, c)| [(k, c, -1.0), (k, c, 1.0)]).collect();
        loop {
            let stepped = |&(kind, column, by): &(usize, usize, f64)| {
                let mut next = best.clone();
                next.columns[kind][column] += by;
                next.seconds = self.seconds(&next);
                (next.seconds < best.seconds * (1.0 - 1e-9) && self.admits(&next, room))
                    .then_some(next)
            };
            let next = steps.iter().filter_map(stepped);
            match next.min_by(|a, b| a.seconds.total_cmp(&b.seconds)) {
                Some(next) => best = next,
                None => return Some(best),
            }
        }
    }

    fn subjects(&self) -> usize {
        self.columns
            .iter()
            .map(|c| c.subject + 1)
            .max()
            .unwrap_or(0)
    }

    /// Seconds that no plan of these layers within `budget` is faster than: counts need not be whole, and copies may pass beside all
    /// of the step's compute. `None` where no plan fits.
    pub fn bound(&self, budget: &Budget) -> Option<f64> {
        let (all, v) = self.variables();
        let passes = v.halves.iter().sum::<Expression>();
        let mut model = all.minimise(passes.clone()).using(microlp);
        let held_back = &[];
        self.limit(&mut model, &v, &Room { budget, held_back });
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

    /// Adds what holds of any plan: each layer is of one kind, each saved value has one fate, and bytes stay within the budget.
    fn limit(&self, model: &mut impl SolverModel, v: &Variables, room: &Room) {
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

impl Taken {
    fn half(&self, half: usize) -> &Demand {
        match half {
            0 => &self.forward,
            _ => &self.later,
        }
    }
}
