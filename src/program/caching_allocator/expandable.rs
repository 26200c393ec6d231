//! Expandable segments: a long range of addresses per pool, with memory mapped behind it page by page.

use super::blocks::{Block, NONE};
use super::{CachingAllocator, LAST_ADDRESS, SMALL, SMALL_SEGMENT, State};

/// Addresses of a segment where the device has no end.
const ENDLESS: u64 = 1 << 52;

impl CachingAllocator {
    /// Bytes of a page of a pool.
    fn page(&self, small: bool) -> u64 {
        match small {
            true => SMALL_SEGMENT,
            false => self.config.large_segment.0,
        }
    }

    /// What a free block could grow to.
    fn room(&self, id: u32) -> u64 {
        let Block { size, after, .. } = *self.block(id);
        let behind = (after != NONE).then(|| self.block(after));
        let unmapped = behind.filter(|b| b.state == State::Unmapped);
        size + unmapped.map_or(0, |b| b.size)
    }

    /// From the smallest block that serves on, the first whose successor has not less room to grow.
    pub(super) fn least_room(&self, small: bool, first: u32) -> u32 {
        let pool = if small { &self.small } else { &self.large };
        let Block { size, address, .. } = *self.block(first);
        let mut best = first;
        for (_, _, next) in pool.free.range((size, address, first)..).skip(1) {
            if self.room(*next) >= self.room(best) {
                break;
            }
            best = *next;
        }
        best
    }

    /// A free block of at least `size` out of memory mapped for it, in no pool.
    pub(super) fn expand(&mut self, size: u64) -> Option<u32> {
        let small = size <= SMALL;
        let mut block = match self.growable(small, size) {
            Some(block) => block,
            None => self.range_of_addresses(small, size)?,
        };
        if self.block(block).state == State::Unmapped {
            let wanted = size.min(self.block(block).size);
            block = self.map(block, wanted)?;
        }
        while self.block(block).size < size {
            let missing = size - self.block(block).size;
            let next = self.block(block).after;
            // What follows a free block is unmapped: free neighbours are joined.
            let wanted = missing.min(self.block(next).size);
            block = self.map(next, wanted)?;
        }
        self.unlist(block);
        Some(block)
    }

    /// The lowest place where free and unmapped blocks in a row have `size` bytes of addresses.
    fn growable(&mut self, small: bool, size: u64) -> Option<u32> {
        let unmapped: Vec<u32> = self
            .pool(small)
            .unmapped
            .iter()
            .map(|(_, id)| *id)
            .collect();
        unmapped.into_iter().find_map(|id| {
            let before = self.block(id).before;
            let free = before != NONE && self.block(before).state == State::Free;
            let first = if free { before } else { id };
            self.reaches(first, size).then_some(first)
        })
    }

    fn reaches(&self, first: u32, size: u64) -> bool {
        let (mut id, mut bytes) = (first, 0);
        while id != NONE && bytes < size && self.block(id).state != State::Used {
            bytes += self.block(id).size;
            id = self.block(id).after;
        }
        bytes >= size
    }

    /// A new segment: addresses for 9/8 of the device, none mapped.
    fn range_of_addresses(&mut self, small: bool, size: u64) -> Option<u32> {
        let page = self.page(small);
        let wanted = match self.capacity {
            LAST_ADDRESS => ENDLESS,
            capacity => capacity / 8 * 9,
        };
        let bytes = wanted.max(size).next_multiple_of(page);
        let address = self.next_address.next_multiple_of(page);
        let end = address
            .checked_add(bytes)
            .filter(|end| *end < LAST_ADDRESS)?;
        self.next_address = end.next_multiple_of(SMALL_SEGMENT);
        let id = self.enter(Block {
            address,
            size: bytes,
            requested: 0,
            before: NONE,
            after: NONE,
            state: State::Unmapped,
            small,
            expandable: true,
            segment: address,
        });
        self.list(id);
        Some(id)
    }

    /// Maps whole pages for the first `bytes` of an unmapped block; the free block they are now part of.
    fn map(&mut self, id: u32, bytes: u64) -> Option<u32> {
        let Block { size, small, .. } = *self.block(id);
        let bytes = bytes.next_multiple_of(self.page(small)).min(size);
        self.reserve(bytes).then_some(())?;
        self.unlist(id);
        if bytes < size {
            let rest = self.split(id, bytes);
            self.list(rest);
        }
        self.block_mut(id).state = State::Free;
        let merged = self.merge(id);
        self.list(merged);
        Some(merged)
    }

    /// Gives the whole pages of a free block back to the device.
    pub(super) fn unmap(&mut self, id: u32) {
        let Block {
            address,
            size,
            small,
            segment,
            ..
        } = *self.block(id);
        let page = self.page(small);
        let from = (address - segment).next_multiple_of(page);
        let to = (address - segment + size) / page * page;
        if from >= to {
            return;
        }
        self.unlist(id);
        let front = from - (address - segment);
        let mut middle = id;
        if front > 0 {
            middle = self.split(id, front);
            self.list(id);
        }
        if to - from < self.block(middle).size {
            let rest = self.split(middle, to - from);
            self.list(rest);
        }
        self.block_mut(middle).state = State::Unmapped;
        self.now.reserved.0 -= to - from;
        let merged = self.merge(middle);
        self.list(merged);
    }
}
