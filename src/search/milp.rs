//! In how many layers each fate is chosen: a linear program whose counts are made whole, and another whose optimum is the bound.

use good_lp::{
    Expression, ProblemVariables, Solution as _, SolverModel, Variable, constraint, microlp,
    variable,
};

use super::layers::{Column, Counts, Layers, Room};
use super::sample::Taken;
use crate::graph::Stream;
use crate::machine::sim::demand::SERVERS;
use crate::spec::job::{PerPlace, Place};

/// Bytes and seconds are counted in these, so that coefficients are near one.
const GIB: f64 = (1u64 << 30) as f64;
const MILLI: f64 = 1e-3;

/// Part of the step within which whole counts are near enough to the best.
const GAP: f64 = 1e-4;

/// Nodes of a search for whole counts, and what is shared out among the layers beside.
const NODES: u64 = 3;
const SMALL: u64 = 512;

/// Least and most of each count.
#[derive(Clone)]
struct Limits {
    kinds: Vec<(f64, f64)>,
    columns: Vec<Vec<(f64, f64)>>,
}

impl Limits {
    /// All that `layers` may be.
    fn of(layers: &Layers) -> Limits {
        let count = layers.count as f64;
        let kinds = 0..layers.kinds.len();
        let columns: Vec<(f64, f64)> = layers
            .columns
            .iter()
            .map(|c| (0.0, c.most as f64))
            .collect();
        Limits {
            kinds: kinds.map(|kind| (f64::from(kind == 0), count)).collect(),
            columns: vec![columns; layers.kinds.len()],
        }
    }

    /// The same with a count that is not whole below its value, and above it.
    fn halves(&self, (kind, column, value): Broken) -> [Limits; 2] {
        let (mut below, mut above) = (self.clone(), self.clone());
        below.at(kind, column).1 = value.floor();
        above.at(kind, column).0 = value.ceil();
        [below, above]
    }

    fn at(&mut self, kind: usize, column: Option<usize>) -> &mut (f64, f64) {
        match column {
            Some(column) => &mut self.columns[kind][column],
            None => &mut self.kinds[kind],
        }
    }
}

/// A count that is not whole: of a kind, or of a column of it.
type Broken = (usize, Option<usize>, f64);

impl Counts {
    /// The count that is furthest from whole, kinds before columns; none where all are whole.
    fn broken(&self) -> Option<Broken> {
        let off = |value: f64| (value - value.round()).abs();
        let furthest = |a: &Broken, b: &Broken| off(a.2).total_cmp(&off(b.2));
        let kinds = self.kinds.iter().enumerate();
        let kinds = kinds.map(|(kind, &value)| (kind, None, value));
        let of = |(kind, of): (usize, &Vec<f64>)| -> Vec<Broken> {
            let all = of.iter().enumerate();
            all.map(|(column, &value)| (kind, Some(column), value))
                .collect()
        };
        let columns = self.columns.iter().enumerate().flat_map(of);
        let is = |broken: &Broken| broken.2.fract() != 0.0;
        let kind = kinds.filter(is).max_by(furthest);
        kind.or_else(|| columns.filter(is).max_by(furthest))
    }
}

fn by_seconds(a: &Counts, b: &Counts) -> std::cmp::Ordering {
    a.seconds.total_cmp(&b.seconds)
}

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
    /// pipeline of each kind alone did. Branch and bound, best first, until a ten-thousandth of the step or a number of nodes that is larger the fewer
    /// layers there are: then each counts for more.
    pub fn fastest(&self, room: &Room) -> Option<Counts> {
        self.whole(room, self.least(room)?, GAP)
    }

    /// The fastest whole counts found within `room`, to a part `gap` of the step, from the `least` ones on.
    pub(super) fn whole(&self, room: &Room, least: Counts, gap: f64) -> Option<Counts> {
        let mut open = vec![(least, Limits::of(self))];
        let mut best: Option<Counts> = None;
        for _ in 0..NODES + SMALL / self.count.max(1) {
            let least = (0..open.len()).min_by(|&a, &b| {
                let seconds = |at: usize| open[at].0.seconds;
                seconds(a).total_cmp(&seconds(b))
            });
            let Some(least) = least else { break };
            let (relaxed, limits) = open.swap_remove(least);
            let beaten = |seconds: f64| {
                let best = best.as_ref();
                best.is_some_and(|best| best.seconds * (1.0 - gap) <= seconds)
            };
            if beaten(relaxed.seconds) {
                break;
            }
            let broken = relaxed.broken();
            if broken.is_none_or(|(_, column, _)| column.is_some()) {
                let whole = self.rounded(relaxed, room);
                best = whole.into_iter().chain(best).min_by(by_seconds);
            }
            let halves = broken.map(|broken| limits.halves(broken));
            for limits in halves.into_iter().flatten() {
                open.extend(self.relaxed(room, &limits).map(|counts| (counts, limits)));
            }
        }
        best
    }

    /// The fastest counts, whole or not, within `room`: no whole ones are faster.
    pub fn least(&self, room: &Room) -> Option<Counts> {
        self.relaxed(room, &Limits::of(self))
    }

    /// The fastest counts, whole or not, within `limits`.
    fn relaxed(&self, room: &Room, limits: &Limits) -> Option<Counts> {
        let (all, v) = self.variables(limits);
        let lost = |half: usize| {
            let loss = room.loss[half];
            self.all(&v, |taken| loss * taken.copies(half))
        };
        let passes = v.halves.iter().sum::<Expression>();
        let mut model = all.minimise(passes + lost(0) + lost(1)).using(microlp);
        self.limit(&mut model, &v, room, true);
        for (half, &passes) in v.halves.iter().enumerate() {
            for server in 0..SERVERS {
                let of = |taken: &Taken| taken.half(half).0[server];
                if self.asks(of) {
                    model.add_constraint(constraint!(self.all(&v, of) <= passes));
                }
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

    /// Seconds that no plan of these layers within `room` is faster than: counts need not be whole, and copies may pass beside all
    /// of the step's compute. `None` where no plan fits.
    pub fn bound(&self, room: &Room) -> Option<f64> {
        let (all, v) = self.variables(&Limits::of(self));
        let passes = v.halves.iter().sum::<Expression>();
        let mut model = all.minimise(passes.clone()).using(microlp);
        self.limit(&mut model, &v, room, false);
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
            let whole = |taken: &Taken| taken.forward.0[server] + taken.later.0[server];
            if self.asks(whole) {
                model.add_constraint(constraint!(sum(&whole) <= passes.clone()));
            }
            let later = |taken: &Taken| taken.later.0[server];
            if self.asks(later) {
                model.add_constraint(constraint!(sum(&later) <= v.halves[1] + ahead / MILLI));
            }
        }
        let solution = model.solve().ok()?;
        Some(solution.eval(&passes) * MILLI)
    }

    fn variables(&self, limits: &Limits) -> (ProblemVariables, Variables) {
        let mut all = ProblemVariables::new();
        let mut count = |&(least, most): &(f64, f64)| all.add(variable().min(least).max(most));
        let kinds = limits.kinds.iter().map(&mut count).collect();
        let of_kind = |of: &Vec<(f64, f64)>| of.iter().map(&mut count).collect();
        let columns = limits.columns.iter().map(of_kind).collect();
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

    /// Whether anything takes some of something.
    fn asks(&self, of: impl Fn(&Taken) -> f64) -> bool {
        let kinds = self.kinds.iter().map(|kind| &kind.takes);
        let columns = self.columns.iter().map(|column| &column.takes);
        let mut all = kinds.chain(columns).chain([&self.rest]);
        all.any(|taken| of(taken) > 0.0)
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
