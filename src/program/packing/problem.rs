//! What an exact search of any capacity and order needs to know of items: who meets whom, and in which sections of time.

use super::Item;
use crate::graph::random::Key;

/// Items as a search sees them. A section is a time at which a set of items lives that lives at no other time within a larger
/// one: what fits there fits everywhere.
pub(super) struct Problem {
    /// The size of each item.
    pub(super) bytes: Vec<u64>,
    /// The length of each life.
    lives: Vec<u64>,
    /// The sections each lives in.
    pub(super) spans: Vec<(usize, usize)>,
    /// The items that live together with each.
    pub(super) meets: Vec<Vec<u32>>,
    /// The items of each section.
    pub(super) sections: Vec<Vec<u32>>,
    /// The sum of sizes in each section.
    pub(super) loads: Vec<u64>,
    /// All items by start of life.
    pub(super) starts: Vec<u32>,
}

/// What is preferred among items that can lie equally low.
pub(super) const PREFERENCES: u64 = 3;

impl Problem {
    /// Of items of some size and some life; others have no place here.
    pub(super) fn new(items: &[Item]) -> Problem {
        let times = times(items);
        let at = |time: u64| times.partition_point(|&t| t < time);
        let spans: Vec<_> = items.iter().map(|i| (at(i.from), at(i.to))).collect();
        let mut sections = vec![Vec::new(); times.len()];
        let mut loads = vec![0; times.len()];
        for (index, (item, &(from, to))) in items.iter().zip(&spans).enumerate() {
            for section in from..to {
                sections[section].push(index as u32);
                loads[section] += item.bytes;
            }
        }
        let mut starts: Vec<u32> = (0..items.len() as u32).collect();
        starts.sort_by_key(|&i| (items[i as usize].from, i));
        Problem {
            bytes: items.iter().map(|i| i.bytes).collect(),
            lives: items.iter().map(|i| i.to - i.from).collect(),
            meets: meetings(items, &starts),
            spans,
            sections,
            loads,
            starts,
        }
    }

    /// How many items there are.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The rank of each item: by load around it, by life, or by area, the largest first; shaken by up to a half in later rounds.
    pub(super) fn rank(&self, preference: u64, round: u64) -> Vec<u32> {
        let key = |i: usize| {
            let (from, to) = self.spans[i];
            let life = u128::from(self.lives[i]);
            let area = life * u128::from(self.bytes[i]);
            let (first, second) = match preference {
                0 => {
                    let most = self.loads[from..to].iter().max();
                    (most.copied().unwrap_or(0).into(), life)
                }
                1 => (life, area),
                _ => (area, area),
            };
            let shake = match round {
                0 => 0,
                _ => Key(round).bits(i as u64) % 512,
            };
            (first.saturating_mul(u128::from(1024 + shake)), second)
        };
        let mut order: Vec<usize> = (0..self.len()).collect();
        order.sort_by_cached_key(|&i| (std::cmp::Reverse(key(i)), i));
        let mut rank = vec![0; order.len()];
        for (place, i) in order.into_iter().enumerate() {
            rank[i] = place as u32;
        }
        rank
    }
}

/// The items that each lives together with, by one pass over all starts.
fn meetings(items: &[Item], starts: &[u32]) -> Vec<Vec<u32>> {
    let mut meets = vec![Vec::new(); items.len()];
    let mut alive: Vec<u32> = Vec::new();
    for &i in starts {
        let from = items[i as usize].from;
        alive.retain(|&j| items[j as usize].to > from);
        for &j in &alive {
            meets[i as usize].push(j);
            meets[j as usize].push(i);
        }
        alive.push(i);
    }
    meets
}

/// A time in each section: the last start of a life before an end.
fn times(items: &[Item]) -> Vec<u64> {
    let starts = items.iter().map(|i| (i.from, true));
    let mut changes: Vec<_> = starts.chain(items.iter().map(|i| (i.to, false))).collect();
    changes.sort_unstable();
    let mut last = None;
    let mut times = Vec::new();
    for (time, starts) in changes {
        match starts {
            true => last = Some(time),
            false => times.extend(last.take()),
        }
    }
    times
}
