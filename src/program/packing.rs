//! Packing: an offset for every item, so that no two that live together share a byte and the top is as low as can be.
//!
//! This is dynamic storage allocation with known lives, which is NP-hard. The largest sum of live items, the load, is below every
//! height; what reaches it is proven best at once.

mod bound;
mod choice;
mod exact;
pub mod file;
mod fit;
mod problem;

use exact::{Found, Search};
use problem::Problem;
use rayon::prelude::*;

/// What is to be packed: `bytes` that live at `from..to`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Item {
    /// Its size.
    pub bytes: u64,
    /// The first position it lives at.
    pub from: u64,
    /// The first position it lives at no more.
    pub to: u64,
}

impl Item {
    /// Whether two live together.
    pub fn meets(&self, other: &Item) -> bool {
        self.from < other.to && other.from < self.to
    }
}

/// Offsets, and how high they reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packing {
    /// Of each item.
    pub offsets: Vec<u64>,
    /// The end of the highest item.
    pub height: u64,
    /// The largest sum of live items.
    pub load: u64,
}

/// How hard to try: counts, never times, so that equal input gives equal offsets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Effort {
    /// Items of what is searched exactly at most.
    pub items: usize,
    /// Nodes of the exact search at most, of each of its orders.
    pub nodes: u64,
    /// Rounds of the climb at most.
    pub rounds: u32,
    /// A height that is low enough, as a part of the load above it: 256 for a two-hundred-fifty-sixth.
    pub near: u64,
    /// A height that is low enough whatever the load.
    pub capacity: u64,
}

impl Effort {
    /// For programs, of which hundreds are placed before one is chosen: a few fits.
    pub const PROGRAM: Effort = Effort {
        items: 0,
        nodes: 0,
        rounds: 0,
        near: 256,
        capacity: 0,
    };

    /// For a question of its own: within a minute on two cores.
    pub const THOROUGH: Effort = Effort {
        items: 2_000,
        nodes: 9_000,
        rounds: 24,
        near: u64::MAX,
        capacity: 0,
    };
}

/// Packs `items`: orders of first and best fit, a climb from the best of them, and below that an exact search.
pub fn pack(items: &[Item], effort: &Effort) -> Packing {
    let load = fit::load(items);
    let enough = effort.capacity.max(load + load / effort.near);
    let mut best = fit::fit(items, load, enough, effort.rounds);
    if items.len() <= effort.items {
        lower(items, effort, &mut best, enough);
    }
    let (offsets, height) = best;
    Packing {
        offsets,
        height,
        load,
    }
}

/// Nodes of a first try, and rounds of tries between doublings.
const NODES: u64 = 3_000;
const ROUNDS: u64 = 8;

/// Lowers `best` by exact searches: at what is enough, then between what is known not to be reached and what is.
fn lower(items: &[Item], effort: &Effort, best: &mut (Vec<u64>, u64), enough: u64) {
    let (mut known, mut capacity) = (enough, enough);
    while best.1 > capacity {
        match at(items, capacity, effort.nodes) {
            Some(offsets) => {
                let top = |(item, offset): (&Item, &u64)| item.bytes + offset;
                let height = items.iter().zip(&offsets).map(top).max().unwrap_or(0);
                *best = (offsets, height);
            }
            None => known = capacity,
        }
        let between = best.1.saturating_sub(known);
        // A two-hundred-fifty-sixth of the height is not worth another search, and below one unit there is nothing.
        if between <= (known / 256).max(1) {
            return;
        }
        capacity = known + between / 2;
    }
}

/// Offsets below `capacity`, if they are found: short searches in many orders rather than a long one, since a good order needs
/// few nodes.
fn at(items: &[Item], capacity: u64, nodes: u64) -> Option<Vec<u64>> {
    // What has no size or no life lies anywhere.
    let is_real = |i: &usize| items[*i].bytes > 0 && items[*i].from < items[*i].to;
    let real: Vec<usize> = (0..items.len()).filter(is_real).collect();
    let some: Vec<Item> = real.iter().map(|&i| items[i]).collect();
    let problem = Problem::new(&some);
    let orders = 0..exact::ORDERS;
    let mut searches: Vec<Search> = orders
        .map(|order| Search::new(&problem, capacity, order))
        .collect();
    let (mut limit, mut left) = (NODES.min(nodes), nodes);
    for round in 1.. {
        // The first order of a round that ends counts, so that the answer is the same on any number of threads.
        let ended = searches
            .par_iter_mut()
            .map(|search| search.run(limit))
            .find_first(|found| *found != Found::Unknown);
        match ended {
            Some(Found::Offsets(found)) => {
                let mut offsets = vec![0; items.len()];
                for (&i, offset) in real.iter().zip(found) {
                    offsets[i] = offset;
                }
                return Some(offsets);
            }
            Some(_) => return None,
            None => {}
        }
        left = left.saturating_sub(limit);
        if left == 0 {
            return None;
        }
        if round % ROUNDS == 0 {
            limit *= 2;
        }
        limit = limit.min(left);
    }
    None
}
