//! In how many layers each fate is chosen: an integer program, whose relaxation is the bound.

use good_lp::{
    Expression, ProblemVariables, Solution as _, SolverModel, Variable, constraint, microlp,
    variable,
};

use super::sample::Taken;
use crate::graph::Stream;
use crate::machine::sim::demand::{Demand, SERVERS};
use crate::spec::job::{Budget, PerPlace, Place};

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
    /// Milliseconds of the forward passes and of what follows, for each kind.
    halves: Vec<[Variable; 2]>,
}

impl Layers {
    /// The fastest whole counts found within `budget`, less `held_back` bytes of each of its rows; `None` where there are none.
    ///
    /// A layer's copies pass beside the compute of layers of its own kind: those last as long as their longest server, and as their
    /// pipeline alone did.
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
        let passes = v.halves.iter().flatten().sum::<Expression>();
        let mut model = all.minimise(passes).using(microlp);
        self.limit(&mut model, &v, room);
        if let (Some(second), Some(&kind)) = (second, v.kinds.get(1)) {
            model.add_constraint(constraint!(kind == second));
        }
        for (kind, halves) in v.halves.iter().enumerate() {
            for (half, &passes) in halves.iter().enumerate() {
                for server in 0..SERVERS {
                    let asked = self.asked(&v, kind, |taken| taken.half(half).0[server]);
                    model.add_constraint(constraint!(asked <= passes));
                }
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
        let mut seconds: f64 = self.rest.spent.iter().sum();
        for (kind, columns) in counts.columns.iter().enumerate() {
            let (layers, takes) = (counts.kinds[kind], &self.kinds[kind].takes);
            for half in [0, 1] {
                let chosen = || self.columns.iter().zip(columns).filter(|(_, n)| **n > 0.0);
                let demand = |sum: Demand, (c, n): (&Column, &f64)| sum + *c.takes.half(half) * *n;
                let asked = chosen().fold(*takes.half(half) * layers, demand);
                let added: f64 = chosen().map(|(c, n)| self.strain(kind, half, c) * n).sum();
                seconds += asked.longest().max(takes.spent[half] * layers + added);
            }
        }
        seconds
    }

    /// Whether whole counts are a plan's, and within the budget.
    fn admits(&self, counts: &Counts, room: &Room) -> bool {
        let mut fates = vec![vec![0.0; self.subjects()]; self.kinds.len()];
        let (mut peak, mut floor) = (self.rest.peak, self.floor);
        for (kind, columns) in counts.columns.iter().enumerate() {
            let layers = counts.kinds[kind];
            peak = PerPlace::new(|p| peak[p] + self.kinds[kind].takes.peak[p] * layers);
            floor += self.kinds[kind].floor * layers;
            for (column, &n) in self.columns.iter().zip(columns) {
                peak = PerPlace::new(|p| peak[p] + column.takes.peak[p] * n);
                fates[kind][column.subject] += n;
            }
        }
        let most = |(index, column): (usize, &Column)| {
            counts.columns.iter().map(|of| of[index]).sum::<f64>() <= column.most as f64
        };
        let once = fates
            .iter()
            .zip(&counts.kinds)
            .all(|(of, n)| of.iter().all(|f| f <= n));
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
        let passes = v.halves.iter().flatten().sum::<Expression>();
        let mut model = all.minimise(passes.clone()).using(microlp);
        let held_back = &[];
        self.limit(&mut model, &v, &Room { budget, held_back });
        let sum = |demand: &dyn Fn(&Taken) -> f64| -> Expression {
            let kinds = 0..self.kinds.len();
            kinds
                .map(|kind| self.asked(&v, kind, demand))
                .sum::<Expression>()
                + demand(&self.rest) / MILLI
        };
        for half in [0, 1] {
            let asked = sum(&|taken| taken.half(half).0[Stream::Compute as usize]);
            let passes: Expression = v.halves.iter().map(|halves| halves[half]).sum();
            model.add_constraint(constraint!(asked <= passes));
        }
        for server in 0..SERVERS {
            let asked = sum(&|taken| taken.forward.0[server] + taken.later.0[server]);
            model.add_constraint(constraint!(asked <= passes.clone()));
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
        let halves = self.kinds.iter();
        let halves = halves
            .map(|_| [0; 2].map(|_| all.add(variable().min(0.0))))
            .collect();
        (
            all,
            Variables {
                kinds,
                columns,
                halves,
            },
        )
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
            let kinds = 0..self.kinds.len();
            let taken = kinds.map(|kind| self.asked(v, kind, |taken| total(&taken.peak) * MILLI));
            let taken: Expression = taken.sum();
            model.add_constraint(constraint!(taken <= most - total(&self.rest.peak)));
            if places.contains(&Place::Gpu) {
                let kinds = self.kinds.iter().zip(&v.kinds);
                let taken: Expression = kinds.map(|(kind, &n)| kind.floor / GIB * n).sum();
                model.add_constraint(constraint!(taken <= most - self.floor / GIB));
            }
        }
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
