//! The blocks of segments: a list of neighbours each, and pools of those that can be handed out.

use std::collections::BTreeSet;

use super::{CachingAllocator, State};

/// No block.
pub(super) const NONE: u32 = u32::MAX;

/// One block, and its neighbours in the segment.
#[derive(Debug, Clone)]
pub(super) struct Block {
    pub(super) address: u64,
    pub(super) size: u64,
    pub(super) requested: u64,
    pub(super) before: u32,
    pub(super) after: u32,
    pub(super) state: State,
    pub(super) small: bool,
    pub(super) expandable: bool,
    /// Address of its segment.
    pub(super) segment: u64,
}

/// Free blocks by size, then address; and unmapped ranges by address.
#[derive(Debug, Clone, Default)]
pub(super) struct Pool {
    pub(super) free: BTreeSet<(u64, u64, u32)>,
    pub(super) unmapped: BTreeSet<(u64, u32)>,
}

impl CachingAllocator {
    pub(super) fn block(&self, id: u32) -> &Block {
        &self.blocks[id as usize]
    }

    pub(super) fn block_mut(&mut self, id: u32) -> &mut Block {
        &mut self.blocks[id as usize]
    }

    pub(super) fn pool(&mut self, small: bool) -> &mut Pool {
        match small {
            true => &mut self.small,
            false => &mut self.large,
        }
    }

    /// Enters a block that stands for nothing yet.
    pub(super) fn enter(&mut self, block: Block) -> u32 {
        match self.spare.pop() {
            Some(id) => {
                self.blocks[id as usize] = block;
                id
            }
            None => {
                self.blocks.push(block);
                self.blocks.len() as u32 - 1
            }
        }
    }

    /// Puts a free or unmapped block where it is looked for.
    pub(super) fn list(&mut self, id: u32) {
        let Block {
            address,
            size,
            state,
            small,
            ..
        } = *self.block(id);
        let pool = self.pool(small);
        match state {
            State::Free => drop(pool.free.insert((size, address, id))),
            State::Unmapped => drop(pool.unmapped.insert((address, id))),
            State::Used => {}
        }
    }

    /// Takes it from there.
    pub(super) fn unlist(&mut self, id: u32) {
        let Block {
            address,
            size,
            state,
            small,
            ..
        } = *self.block(id);
        let pool = self.pool(small);
        match state {
            State::Free => drop(pool.free.remove(&(size, address, id))),
            State::Unmapped => drop(pool.unmapped.remove(&(address, id))),
            State::Used => {}
        }
    }

    /// Cuts a block after `size` bytes; what follows has the same state and is in no pool.
    pub(super) fn split(&mut self, id: u32, size: u64) -> u32 {
        let head = self.block(id).clone();
        let rest = self.enter(Block {
            address: head.address + size,
            size: head.size - size,
            requested: 0,
            before: id,
            ..head
        });
        if head.after != NONE {
            self.block_mut(head.after).before = rest;
        }
        let block = self.block_mut(id);
        (block.size, block.after) = (size, rest);
        rest
    }

    /// Joins a block that is in no pool with neighbours of the same state, taken from theirs.
    pub(super) fn merge(&mut self, id: u32) -> u32 {
        let Block {
            before,
            after,
            state,
            ..
        } = *self.block(id);
        let mut first = id;
        if after != NONE && self.block(after).state == state {
            self.unlist(after);
            self.join(id, after);
        }
        if before != NONE && self.block(before).state == state {
            self.unlist(before);
            self.join(before, id);
            first = before;
        }
        first
    }

    /// Makes two neighbours one, under the first's name.
    pub(super) fn join(&mut self, first: u32, second: u32) {
        let Block { size, after, .. } = *self.block(second);
        let block = self.block_mut(first);
        block.size += size;
        block.after = after;
        if after != NONE {
            self.block_mut(after).before = first;
        }
        self.spare.push(second);
    }
}
