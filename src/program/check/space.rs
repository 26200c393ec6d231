//! Who lies where: live address ranges, and the division of addresses among homes.

use std::collections::BTreeMap;

use super::{Broken, Check, named};
use crate::graph::Stream;
use crate::program::{Buffer, BufferId, Program, alignment};
use crate::spec::job::{PerPlace, Place};
use crate::spec::units::Bytes;

/// The live ranges of each place: start to (end, buffer).
pub(super) struct Space<'a> {
    program: &'a Program,
    ranges: PerPlace<BTreeMap<u64, (u64, BufferId)>>,
    /// The highest end so far.
    pub top: PerPlace<Bytes>,
}

impl<'a> Space<'a> {
    /// Nobody is anywhere.
    pub fn new(program: &'a Program) -> Space<'a> {
        Space {
            program,
            ranges: PerPlace::default(),
            top: PerPlace::default(),
        }
    }

    /// The buffer's bytes become its own: aligned, enough, below the height, and nobody else's.
    pub fn take(&mut self, id: BufferId) -> Check<()> {
        let buffer = self.program.buffer(id);
        let (place, name) = (buffer.place, || named(self.program, id));
        if !buffer.offset.0.is_multiple_of(alignment(place)) || buffer.bytes < buffer.exact {
            let why = format!("{} is misaligned or too small", name());
            return Err(Broken::new("alignment", why));
        }
        let (start, end) = (buffer.offset.0, end(buffer));
        if Bytes(end) > self.program.height[place] {
            let height = self.program.height[place].0;
            let why = format!("{} ends above the height {height}", name());
            return Err(Broken::new("height", why));
        }
        // Live ranges are disjoint: only the last one that starts before this end can reach into it.
        let below = self.ranges[place].range(..end).next_back();
        if let Some((_, &(_, other))) = below.filter(|(_, (other_end, _))| *other_end > start) {
            let why = format!("{} overlaps {}", name(), named(self.program, other));
            return Err(Broken::new("overlap", why));
        }
        self.ranges[place].insert(start, (end, id));
        self.top[place] = self.top[place].max(Bytes(end));
        Ok(())
    }

    /// The buffer's bytes may become another's.
    pub fn give(&mut self, id: BufferId) {
        let buffer = self.program.buffer(id);
        self.ranges[buffer.place].remove(&buffer.offset.0);
    }
}

/// No two transient buffers of different homes share a byte, even at different times: nothing orders one home's use after
/// another's. Where two do, the later buffer and why.
pub(super) fn homes(program: &Program) -> std::result::Result<(), (BufferId, Broken)> {
    let buffers = &program.buffers;
    let mut order: Vec<usize> = (0..buffers.len()).filter(|&b| !buffers[b].shared).collect();
    order.sort_unstable_by_key(|&b| (buffers[b].place, buffers[b].offset));
    // The buffer that ends last so far, of each home in each place.
    let mut last: BTreeMap<(Place, Stream), usize> = BTreeMap::new();
    for index in order {
        let buffer = &buffers[index];
        let over = |&(&(place, home), &other): &(&(Place, Stream), &usize)| {
            place == buffer.place && home != buffer.home && end(&buffers[other]) > buffer.offset.0
        };
        if let Some((_, &other)) = last.iter().find(over) {
            let (one, other) = (BufferId(index as u32), BufferId(other as u32));
            let why = format!(
                "{} lies over {}",
                named(program, one),
                named(program, other)
            );
            return Err((one, Broken::new("homes", why)));
        }
        let longest = last.entry((buffer.place, buffer.home)).or_insert(index);
        if end(&buffers[*longest]) < end(buffer) {
            *longest = index;
        }
    }
    Ok(())
}

/// The first byte behind a buffer.
fn end(buffer: &Buffer) -> u64 {
    buffer.offset.0.saturating_add(buffer.bytes.0)
}
