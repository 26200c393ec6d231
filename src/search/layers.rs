//! The layers of a job as counts: how many are of which kind, what becomes of what they save, and what that takes.

use std::cmp::Reverse;

use super::sample::Taken;
use crate::graph::Stream;
use crate::machine::sim::demand::Demand;
use crate::spec::job::{Budget, PerPlace, Place};
use crate::spec::units::Bytes;

/// Counts that are not whole of which every rounding is tried.
const TRIED: usize = 10;

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
    /// Bytes of the device that each adds at the highest instant to what layers under way hold: dropped values are there again in the
    /// layer at work, and those sent away in layers ahead of it too.
    pub flight: f64,
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

/// Within what layers are solved for, and how their time is weighed.
#[derive(Debug, Clone)]
pub struct Room<'a> {
    /// The budget.
    pub budget: &'a Budget,
    /// Bytes of each of its rows that are held back.
    pub held_back: Vec<f64>,
    /// Seconds that a second of copies adds to the halves of the step beside what is counted, as whole plans have shown.
    pub loss: [f64; 2],
}

impl Room<'_> {
    /// All of `budget`, with times as they are counted.
    pub fn all(budget: &Budget) -> Room<'_> {
        Room {
            budget,
            held_back: vec![0.0; budget.rows.len()],
            loss: [0.0; 2],
        }
    }

    /// Bytes of a row.
    pub fn most(&self, row: usize) -> f64 {
        self.budget.rows[row].1.0 as f64 - self.held_back[row]
    }

    /// Seconds of a step of `layers` with `counts`.
    pub fn seconds(&self, layers: &Layers, counts: &Counts) -> f64 {
        let (halves, copies) = (layers.halves(counts), layers.copies(counts));
        let half = |half: usize| halves[half] + self.loss[half] * copies[half];
        half(0) + half(1)
    }
}

impl Column {
    /// Bytes under way in a place.
    pub(super) fn flight(&self, place: Place) -> f64 {
        match place {
            Place::Gpu => self.flight,
            _ => 0.0,
        }
    }
}

impl Layers {
    /// Seconds that a column adds to the pipeline of a kind.
    pub(super) fn strain(&self, kind: usize, half: usize, column: &Column) -> f64 {
        self.kinds[kind].strain[half] * column.takes.half(half).0[Stream::Compute as usize].max(0.0)
    }

    /// Seconds of the halves of the step as [`Layers::fastest`] counts them.
    pub fn halves(&self, counts: &Counts) -> [f64; 2] {
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
        [half(0), half(1)]
    }

    /// Seconds of copies in the halves of the step.
    pub fn copies(&self, counts: &Counts) -> [f64; 2] {
        [0, 1].map(|half| {
            let of = |kind: usize| {
                let columns = self.columns.iter().zip(&counts.columns[kind]);
                let added = columns.map(|(c, n)| c.takes.copies(half) * n).sum::<f64>();
                self.kinds[kind].takes.copies(half) * counts.kinds[kind] + added
            };
            (0..self.kinds.len()).map(of).sum()
        })
    }

    /// What counts take of each place, and of the device where most saved values are gone.
    pub fn peak(&self, counts: &Counts) -> (PerPlace<f64>, f64) {
        let (mut peak, mut floor) = (self.rest.peak, self.floor);
        for (kind, columns) in counts.columns.iter().enumerate() {
            let layers = counts.kinds[kind];
            floor += self.kinds[kind].floor * layers;
            peak = PerPlace::new(|p| {
                let own = self.kinds[kind].takes.peak[p] * layers;
                let held = self.columns.iter().zip(columns);
                let held = held.map(|(c, n)| (c.takes.peak[p] + c.flight(p)) * n);
                peak[p] + own + held.sum::<f64>()
            });
        }
        (peak, floor)
    }

    /// Bytes that counts take of each row of a budget.
    pub fn rows(&self, counts: &Counts, budget: &Budget) -> Vec<f64> {
        let (peak, floor) = self.peak(counts);
        let row = |(places, _): &(Vec<Place>, Bytes)| {
            let taken: f64 = places.iter().map(|&p| peak[p]).sum();
            match places.contains(&Place::Gpu) {
                true => taken.max(floor),
                false => taken,
            }
        };
        budget.rows.iter().map(row).collect()
    }

    /// Bytes by which counts pass their budget, summed over the rows they pass.
    pub fn excess(&self, counts: &Counts, budget: &Budget) -> f64 {
        let rows = self.rows(counts, budget).into_iter().zip(&budget.rows);
        rows.map(|(taken, (_, most))| (taken - most.0 as f64).max(0.0))
            .sum()
    }

    /// The counts of a plan that chooses nothing: all layers of the first kind.
    pub fn plain(&self) -> Counts {
        let mut kinds = vec![0.0; self.kinds.len()];
        kinds[0] = self.count as f64;
        let columns = vec![vec![0.0; self.columns.len()]; self.kinds.len()];
        let seconds = 0.0;
        self.timed(Counts {
            kinds,
            columns,
            seconds,
        })
    }

    /// Counts with their time.
    pub fn timed(&self, counts: Counts) -> Counts {
        let seconds = self.halves(&counts).iter().sum();
        Counts { seconds, ..counts }
    }

    /// The counts that take least of the device: all layers of the first kind, each saved value gone that may be.
    pub fn smallest(&self) -> Counts {
        let mut counts = self.plain();
        for subject in 0..self.subjects() {
            let own = self.columns.iter().enumerate();
            let own = own.filter(|(_, column)| column.subject == subject);
            let rank = |(_, column): &(usize, &Column)| {
                (Reverse(column.most), column.takes.peak.gpu as i64)
            };
            if let Some((index, column)) = own.min_by_key(rank) {
                counts.columns[0][index] = column.most as f64;
            }
        }
        self.timed(counts)
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
        let rows = self.rows(counts, room.budget);
        let fits = |(row, taken): (usize, &f64)| *taken <= room.most(row);
        once && self.columns.iter().enumerate().all(most)
            && counts.columns.iter().flatten().all(|&n| n >= 0.0)
            && rows.iter().enumerate().all(fits)
    }

    /// The fastest whole counts near `counts`: of all roundings, then by single steps while they help.
    pub(super) fn rounded(&self, counts: Counts, room: &Room) -> Option<Counts> {
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
            whole.seconds = room.seconds(self, &whole);
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
                next.seconds = room.seconds(self, &next);
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

    pub(super) fn subjects(&self) -> usize {
        self.columns
            .iter()
            .map(|c| c.subject + 1)
            .max()
            .unwrap_or(0)
    }
}

impl Taken {
    pub(super) fn half(&self, half: usize) -> &Demand {
        match half {
            0 => &self.forward,
            _ => &self.later,
        }
    }

    /// Seconds of copies in a half of the step.
    pub(super) fn copies(&self, half: usize) -> f64 {
        let streams = Stream::ALL.into_iter();
        let copies = streams.filter(|s| !matches!(s, Stream::Compute | Stream::HostCompute));
        copies.map(|s| self.half(half).0[s as usize]).sum()
    }
}
