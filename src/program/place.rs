//! Offsets: where in its place each buffer lies, so that no two live ones share a byte.

use std::collections::BTreeMap;

use super::{Instr, Program};
use crate::graph::Stream;
use crate::spec::job::{PerPlace, Place};
use crate::spec::units::Bytes;

/// A buffer to be placed: alive at positions `from..to` of the text.
#[derive(Debug, Clone, Copy)]
struct Item {
    buffer: usize,
    bytes: u64,
    from: usize,
    to: usize,
}

/// Buffers that may share addresses with each other: one home in one place.
type Lane = Vec<Item>;

/// Places all buffers of a set of programs: shared ones at the bottom of each place, with equal offsets in every program,
/// transient ones above, each home in a lane of its own. Fills in offsets, loads and heights.
pub fn place(programs: &mut [Program]) {
    for program in programs {
        let mut height = place_shared(program);
        for ((place, _), lane) in lanes(program) {
            let (offsets, top) = place_lane(&lane);
            for (item, offset) in lane.iter().zip(offsets) {
                program.buffers[item.buffer].offset = height[place] + Bytes(offset);
            }
            height[place] += Bytes(top);
        }
        program.height = height;
        program.load = load(program);
    }
}

/// Stacks the shared buffers; returns the tops.
fn place_shared(program: &mut Program) -> PerPlace<Bytes> {
    let mut top = PerPlace::default();
    for buffer in program.buffers.iter_mut().filter(|b| b.shared) {
        buffer.offset = top[buffer.place];
        top[buffer.place] += buffer.bytes;
    }
    top
}

/// The transient buffers by place and home, with their lives.
fn lanes(program: &Program) -> BTreeMap<(Place, Stream), Lane> {
    let mut lives = vec![(0, program.code.len()); program.buffers.len()];
    for (at, instr) in program.code.iter().enumerate() {
        match instr {
            Instr::Alloc(id) => lives[id.0 as usize].0 = at,
            Instr::Free(id) => lives[id.0 as usize].1 = at,
            _ => {}
        }
    }
    let mut lanes: BTreeMap<(Place, Stream), Lane> = BTreeMap::new();
    for (buffer, what) in program
        .buffers
        .iter()
        .enumerate()
        .filter(|(_, b)| !b.shared)
    {
        let (from, to) = lives[buffer];
        let item = Item {
            buffer,
            bytes: what.bytes.0,
            from,
            to,
        };
        lanes.entry((what.place, what.home)).or_default().push(item);
    }
    lanes
}

/// Offsets of one lane and its height: the best of a few orders, the first one that reaches the lower bound.
fn place_lane(lane: &Lane) -> (Vec<u64>, u64) {
    let bound = peak(lane);
    let mut best = best_fit(lane, false);
    for candidate in [|lane: &Lane| best_fit(lane, true), by_size] {
        if best.1 <= bound + bound / 256 {
            break;
        }
        let next = candidate(lane);
        if next.1 < best.1 {
            best = next;
        }
    }
    best
}

/// The largest sum of live items: no placement is lower.
fn peak(lane: &Lane) -> u64 {
    let mut changes: Vec<(usize, i64)> = Vec::with_capacity(lane.len() * 2);
    for item in lane {
        changes.push((item.from, item.bytes as i64));
        changes.push((item.to, -(item.bytes as i64)));
    }
    changes.sort_unstable();
    let mut now = 0;
    changes
        .into_iter()
        .map(|(_, change)| {
            now += change;
            now
        })
        .max()
        .unwrap_or(0) as u64
}

/// In issue order, each item into the smallest hole that holds it; with `two_ended`, long-lived items take the lowest hole
/// and short-lived ones the highest below the bound.
fn best_fit(lane: &Lane, two_ended: bool) -> (Vec<u64>, u64) {
    let ceiling = if two_ended { peak(lane) } else { 0 };
    let typical = typical_life(lane);
    let mut events: Vec<(usize, bool, usize)> = Vec::with_capacity(lane.len() * 2);
    for (index, item) in lane.iter().enumerate() {
        events.push((item.from, true, index));
        events.push((item.to, false, index));
    }
    events.sort_unstable();
    let mut offsets = vec![0; lane.len()];
    let mut holes = Holes::new(ceiling);
    for (_, starts, index) in events {
        let item = &lane[index];
        match starts {
            true => {
                offsets[index] = holes.take(
                    item.bytes,
                    two_ended.then_some(item.to - item.from < typical),
                )
            }
            false => holes.give(offsets[index], item.bytes),
        }
    }
    (offsets, holes.top)
}

/// The mean length of a life, weighed by bytes: what divides long lives from short ones.
fn typical_life(lane: &Lane) -> usize {
    let bytes: u128 = lane.iter().map(|i| u128::from(i.bytes)).sum();
    let weighed: u128 = lane
        .iter()
        .map(|i| u128::from(i.bytes) * (i.to - i.from) as u128)
        .sum();
    (weighed / bytes.max(1)) as usize
}

/// The free address ranges of a lane that grows as needed.
struct Holes {
    free: BTreeMap<u64, u64>,
    top: u64,
}

impl Holes {
    fn new(ceiling: u64) -> Holes {
        let free = if ceiling > 0 {
            BTreeMap::from([(0, ceiling)])
        } else {
            BTreeMap::new()
        };
        Holes { free, top: ceiling }
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
        match hole {
            Some((at, size)) => {
                self.free.remove(&at);
                let start = if high == Some(true) {
                    at + size - bytes
                } else {
                    at
                };
                self.put(at, start - at);
                self.put(start + bytes, at + size - start - bytes);
                start
            }
            None => self.grow(bytes),
        }
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

/// Largest items first, each at the lowest offset free during its whole life (Pisarchyk and Lee 2020, greedy by size).
fn by_size(lane: &Lane) -> (Vec<u64>, u64) {
    let mut order: Vec<usize> = (0..lane.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(lane[i].bytes), lane[i].from));
    let mut offsets = vec![0; lane.len()];
    let mut placed: Vec<(u64, usize)> = Vec::with_capacity(lane.len());
    let mut top = 0;
    for index in order {
        let item = &lane[index];
        let mut at = 0;
        for &(offset, other) in &placed {
            let other_item = &lane[other];
            if other_item.from < item.to && item.from < other_item.to {
                if offset >= at + item.bytes {
                    break;
                }
                at = at.max(offset + other_item.bytes);
            }
        }
        let position = placed.partition_point(|&(offset, _)| offset < at);
        placed.insert(position, (at, index));
        offsets[index] = at;
        top = top.max(at + item.bytes);
    }
    (offsets, top)
}

/// The largest sum of live buffers at any position, by place.
fn load(program: &Program) -> PerPlace<Bytes> {
    let mut now = PerPlace::<Bytes>::default();
    for buffer in program.buffers.iter().filter(|b| b.shared) {
        now[buffer.place] += buffer.bytes;
    }
    let mut most = now;
    for instr in &program.code {
        match instr {
            Instr::Alloc(id) => {
                let buffer = program.buffer(*id);
                now[buffer.place] += buffer.bytes;
                most[buffer.place] = most[buffer.place].max(now[buffer.place]);
            }
            Instr::Free(id) => {
                let buffer = program.buffer(*id);
                now[buffer.place] = now[buffer.place] - buffer.bytes;
            }
            _ => {}
        }
    }
    most
}
