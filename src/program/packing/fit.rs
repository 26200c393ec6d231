//! Packing item by item: best fit over time, first fit in several orders, and a climb among orders.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::Item;

/// Offsets and the height they reach.
type Offsets = (Vec<u64>, u64);

/// Items from which a first fit is slow enough that it is only used where a best fit is far from the load.
const MANY: usize = 2_000;

/// Items from which a first fit is too slow for programs, of which many are placed: it looks at all pairs.
const TOO_MANY: usize = 16_000;

/// The best of a few orders, improved by a climb where there is something to gain; stops at `enough`.
pub(super) fn fit(items: &[Item], load: u64, enough: u64, rounds: u32) -> Offsets {
    // For many items, as near as that is near enough.
    let enough = match items.len() > MANY {
        true => enough.max(load + load / 256),
        false => enough,
    };
    let mut best = best_fit(items, None);
    if best.1 > enough {
        keep(&mut best, best_fit(items, Some(load)));
    }
    let mut first = None;
    let orders = match rounds {
        0 if items.len() > TOO_MANY => &ORDERS[..0],
        0 => &ORDERS[..1],
        _ => &ORDERS[..],
    };
    for &order in orders {
        if best.1 <= enough {
            return best;
        }
        let order = sorted(items, order);
        let found = first_fit(items, &order);
        let beats = |(_, before): &(Vec<usize>, Offsets)| found.1 < before.1;
        if first.as_ref().is_none_or(beats) {
            first = Some((order, found.clone()));
        }
        keep(&mut best, found);
    }
    if let Some((order, start)) = first {
        keep(&mut best, climb(items, order, start, enough, rounds));
    }
    best
}

fn keep(best: &mut Offsets, found: Offsets) {
    if found.1 < best.1 {
        *best = found;
    }
}

/// The largest sum of live items: no packing is lower.
pub(super) fn load(items: &[Item]) -> u64 {
    let mut changes: Vec<(u64, bool, u64)> = Vec::with_capacity(items.len() * 2);
    for item in items.iter().filter(|i| i.from < i.to) {
        changes.push((item.from, true, item.bytes));
        changes.push((item.to, false, item.bytes));
    }
    changes.sort_unstable();
    let (mut now, mut most) = (0, 0);
    for (_, starts, bytes) in changes {
        now = if starts { now + bytes } else { now - bytes };
        most = most.max(now);
    }
    most
}

/// In order of time, each item into the smallest hole that holds it; with a ceiling, long-lived items take the lowest hole and
/// short-lived ones the highest below it.
fn best_fit(items: &[Item], ceiling: Option<u64>) -> Offsets {
    let typical = typical_life(items);
    let mut events: Vec<(u64, bool, usize)> = Vec::with_capacity(items.len() * 2);
    for (index, item) in items.iter().enumerate() {
        events.push((item.from, true, index));
        events.push((item.to, false, index));
    }
    events.sort_unstable();
    let mut offsets = vec![0; items.len()];
    let mut holes = Holes::new(ceiling.unwrap_or(0));
    for (_, starts, index) in events {
        let item = &items[index];
        let short = ceiling.map(|_| item.to - item.from < typical);
        match starts {
            true => offsets[index] = holes.take(item.bytes, short),
            false => holes.give(offsets[index], item.bytes),
        }
    }
    (offsets, holes.top)
}

/// The mean length of a life, weighed by bytes: what divides long lives from short ones.
fn typical_life(items: &[Item]) -> u64 {
    let bytes: u128 = items.iter().map(|i| u128::from(i.bytes)).sum();
    let weighed = items
        .iter()
        .map(|i| u128::from(i.bytes) * u128::from(i.to - i.from));
    (weighed.sum::<u128>() / bytes.max(1)) as u64
}

/// The free address ranges below a top that grows as needed.
struct Holes {
    free: BTreeMap<u64, u64>,
    top: u64,
}

impl Holes {
    fn new(ceiling: u64) -> Holes {
        let mut holes = Holes {
            free: BTreeMap::new(),
            top: ceiling,
        };
        holes.put(0, ceiling);
        holes
    }

    /// Takes `bytes`: from the smallest hole, or, with `high` given, from the highest or lowest one that fits.
    fn take(&mut self, bytes: u64, high: Option<bool>) -> u64 {
        let mut fitting = self
            .free
            .iter()
            .filter(|(_, size)| **size >= bytes)
            .map(|(&at, &size)| (at, size));
        let hole = match high {
            None => fitting.min_by_key(|&(at, size)| (size, at)),
            Some(false) => fitting.next(),
            Some(true) => fitting.next_back(),
        };
        let Some((at, size)) = hole else {
            return self.grow(bytes);
        };
        self.free.remove(&at);
        let start = match high {
            Some(true) => at + size - bytes,
            _ => at,
        };
        self.put(at, start - at);
        self.put(start + bytes, at + size - start - bytes);
        start
    }

    /// Extends the top, using the hole that ends there, if one does.
    fn grow(&mut self, bytes: u64) -> u64 {
        let last = self.free.iter().next_back().map(|(&at, &size)| (at, size));
        let start = match last {
            Some((at, size)) if at + size == self.top => {
                self.free.remove(&at);
                at
            }
            _ => self.top,
        };
        self.top = start + bytes;
        start
    }

    fn put(&mut self, at: u64, size: u64) {
        if size > 0 {
            self.free.insert(at, size);
        }
    }

    /// Gives `bytes` at `at` back, joining neighbours.
    fn give(&mut self, mut at: u64, mut bytes: u64) {
        if bytes == 0 {
            return;
        }
        if let Some((&before, &size)) = self.free.range(..at).next_back()
            && before + size == at
        {
            self.free.remove(&before);
            (at, bytes) = (before, bytes + size);
        }
        if let Some(size) = self.free.remove(&(at + bytes)) {
            bytes += size;
        }
        self.free.insert(at, bytes);
    }
}

/// What an order puts first.
type Key = fn(&Item) -> (Reverse<u128>, u64);

/// Largest first (Pisarchyk and Lee 2020, greedy by size), largest area first, longest life first.
const ORDERS: [Key; 3] = [
    |i| (Reverse(i.bytes.into()), i.from),
    |i| {
        (
            Reverse(u128::from(i.bytes) * u128::from(i.to - i.from)),
            i.from,
        )
    },
    |i| (Reverse((i.to - i.from).into()), i.from),
];

fn sorted(items: &[Item], key: Key) -> Vec<usize> {
    let mut order: Vec<usize> = (0..items.len()).collect();
    order.sort_by_key(|&i| (key(&items[i]), i));
    order
}

/// In this order, each item at the lowest offset free during its whole life.
fn first_fit(items: &[Item], order: &[usize]) -> Offsets {
    let mut offsets = vec![0; items.len()];
    // What was placed, by offset, with its lives beside it: this is looked at for all pairs.
    let mut placed: Vec<(u64, Item)> = Vec::with_capacity(items.len());
    let mut top = 0;
    for &index in order {
        let item = &items[index];
        let mut at = 0;
        for (offset, other) in &placed {
            if other.meets(item) {
                if *offset >= at + item.bytes {
                    break;
                }
                at = at.max(offset + other.bytes);
            }
        }
        let position = placed.partition_point(|&(offset, _)| offset < at);
        placed.insert(position, (at, *item));
        offsets[index] = at;
        top = top.max(at + item.bytes);
    }
    (offsets, top)
}

/// Pairs of items that a climb looks at, at most: a few seconds.
const PAIRS: u64 = 2_000_000_000;

/// Moves what reaches the top to the front of the order, as long as there are rounds; the best seen.
fn climb(
    items: &[Item],
    mut order: Vec<usize>,
    start: Offsets,
    enough: u64,
    rounds: u32,
) -> Offsets {
    let (mut best, mut now) = (start.clone(), start);
    // A first fit looks at all pairs.
    let pairs = (items.len() as u64).pow(2).max(1);
    for _ in 0..u64::from(rounds).min(PAIRS / pairs) {
        if best.1 <= enough {
            break;
        }
        let ends = |&i: &usize| now.0[i] + items[i].bytes == now.1;
        let (mut first, rest): (Vec<usize>, Vec<usize>) = order.iter().copied().partition(ends);
        first.extend(rest);
        order = first;
        now = first_fit(items, &order);
        keep(&mut best, now.clone());
    }
    best
}
