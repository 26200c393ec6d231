//! PyTorch's CUDA caching allocator, replayed: what a sequence of requests makes it allocate and reserve.
//!
//! The rules are those of `c10/cuda/CUDACachingAllocator.cpp` (PyTorch 2.10), on one device and one stream, with
//! garbage collection off. New segments lie above older ones, where CUDA is free to choose.

mod blocks;
mod config;
mod expandable;
mod release;
mod replay;

use std::collections::BTreeSet;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::spec::units::Bytes;

use blocks::{Block, NONE, Pool};

pub use config::AllocatorConfig;
pub use replay::{Event, OutOfMemory, Replay, replay};

/// Block sizes are multiples of this.
const GRAIN: u64 = 512;
/// The largest block of the small pool; also what must be exceeded for a large block to be split.
const SMALL: u64 = 1 << 20;
/// Size of a segment of small blocks, and multiple of the sizes of segments of their own.
const SMALL_SEGMENT: u64 = 2 << 20;
/// From this size on a block gets a segment of its own.
const OWN_SEGMENT: u64 = 10 << 20;
/// More than any device holds; larger requests are mistakes.
const LARGEST_REQUEST: u64 = 1 << 50;
/// Where addresses end.
const LAST_ADDRESS: u64 = 1 << 62;

/// What a block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Handed out.
    Used,
    /// Cached.
    Free,
    /// Addresses of an expandable segment without memory behind them.
    Unmapped,
}

/// A block handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Handle(u32);

/// Bytes by the names of PyTorch's counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Counters {
    /// What was asked for.
    pub requested: Bytes,
    /// Whole blocks handed out: `memory_allocated`.
    pub allocated: Bytes,
    /// The same, and blocks other streams still use; on one stream there are none.
    pub active: Bytes,
    /// Segments taken from the device: `memory_reserved`.
    pub reserved: Bytes,
}

/// What can be known of a block from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct BlockView {
    /// Address of its segment.
    pub segment: u64,
    /// Its address.
    pub address: u64,
    /// Its size.
    pub bytes: Bytes,
    /// What it is.
    pub state: State,
}

/// The allocator of one device.
///
/// ```
/// use memfit::program::caching_allocator::{AllocatorConfig, CachingAllocator};
/// let mut device = CachingAllocator::new(AllocatorConfig::default(), None);
/// let block = device.allocate(1_200_000)?;
/// assert_eq!((device.now().allocated.0, device.now().reserved.0), (1_200_128, 20 << 20));
/// block.map(|b| device.free(b));
/// assert_eq!((device.now().allocated.0, device.peak().allocated.0), (0, 1_200_128));
/// # Ok::<(), memfit::error::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct CachingAllocator {
    config: AllocatorConfig,
    capacity: u64,
    blocks: Vec<Block>,
    /// Entries of `blocks` that stand for nothing.
    spare: Vec<u32>,
    small: Pool,
    large: Pool,
    next_address: u64,
    now: Counters,
    peak: Counters,
    retries: u64,
}

impl CachingAllocator {
    /// An allocator that has nothing yet, on a device with `capacity` bytes for it; without, the device is endless.
    pub fn new(config: AllocatorConfig, capacity: Option<Bytes>) -> CachingAllocator {
        CachingAllocator {
            config,
            capacity: capacity.map_or(LAST_ADDRESS, |c| c.0.min(LAST_ADDRESS)),
            blocks: Vec::new(),
            spare: Vec::new(),
            small: Pool::default(),
            large: Pool::default(),
            next_address: SMALL_SEGMENT,
            now: Counters::default(),
            peak: Counters::default(),
            retries: 0,
        }
    }

    /// The counters now.
    pub fn now(&self) -> Counters {
        self.now
    }

    /// The largest value of each counter so far.
    pub fn peak(&self) -> Counters {
        self.peak
    }

    /// How often cached memory had to be given back to the device before a request was met.
    pub fn retries(&self) -> u64 {
        self.retries
    }

    /// Hands out a block of at least `bytes`; nothing where the device has no room, whatever is given back.
    ///
    /// # Errors
    /// Where no device could ever hold as much.
    pub fn allocate(&mut self, bytes: u64) -> Result<Option<Handle>> {
        if bytes > LARGEST_REQUEST {
            let next = "check the request; the largest is 2^50 bytes";
            return Err(Error::value(
                "allocation",
                bytes,
                "no device holds as much",
                next,
            ));
        }
        let size = self.config.round(bytes);
        let block = self.best_fit(size).or_else(|| self.fresh(size));
        Ok(block.map(|block| self.hand_out(block, size, bytes)))
    }

    /// Takes a block back. A handle serves once; one that was given back already does nothing.
    pub fn free(&mut self, handle: Handle) {
        let Some(block) = self.blocks.get_mut(handle.0 as usize) else {
            return;
        };
        if block.state != State::Used {
            return;
        }
        block.state = State::Free;
        let (size, requested) = (block.size, block.requested);
        self.now.requested = self.now.requested.saturating_sub(Bytes(requested));
        self.now.allocated = self.now.allocated.saturating_sub(Bytes(size));
        self.now.active = self.now.allocated;
        let merged = self.merge(handle.0);
        self.list(merged);
    }

    /// All blocks, by address.
    pub fn blocks(&self) -> Vec<BlockView> {
        let spare: BTreeSet<u32> = self.spare.iter().copied().collect();
        let used = (0u32..).zip(&self.blocks);
        let mut views: Vec<BlockView> = used
            .filter(|(id, _)| !spare.contains(id))
            .map(|(_, b)| BlockView {
                segment: b.segment,
                address: b.address,
                bytes: Bytes(b.size),
                state: b.state,
            })
            .collect();
        views.sort_by_key(|v| v.address);
        views
    }

    /// The smallest free block that serves, taken from the pool.
    fn best_fit(&mut self, size: u64) -> Option<u32> {
        let small = size <= SMALL;
        let mut id = self.pool(small).free.range((size, 0, 0)..).next()?.2;
        if self.config.expandable_segments {
            id = self.least_room(small, id);
        }
        let found = self.block(id).size;
        let limit = self.config.max_split_size.map_or(u64::MAX, |b| b.0);
        let slack = self.config.max_non_split_rounding.0;
        let refused = match size < limit {
            true => found >= limit,
            false => found >= size.saturating_add(slack),
        };
        if refused {
            return None;
        }
        self.unlist(id);
        Some(id)
    }

    /// A block from memory that is new to the allocator, given back by others first where need be.
    fn fresh(&mut self, size: u64) -> Option<u32> {
        self.grow(size)
            .or_else(|| {
                self.release_oversize(size)
                    .then(|| self.grow(size))
                    .flatten()
            })
            .or_else(|| {
                self.release_all();
                self.retries += 1;
                self.grow(size)
            })
    }

    fn grow(&mut self, size: u64) -> Option<u32> {
        match self.config.expandable_segments {
            true => self.expand(size),
            false => self.segment(size),
        }
    }

    /// A segment of its own kind for a request, as one block.
    fn segment(&mut self, size: u64) -> Option<u32> {
        let bytes = match size {
            _ if size <= SMALL => SMALL_SEGMENT,
            _ if size < OWN_SEGMENT => self.config.large_segment.0,
            _ => size.next_multiple_of(SMALL_SEGMENT),
        };
        // A configured segment may be smaller than the request.
        let bytes = bytes.max(size.next_multiple_of(SMALL_SEGMENT));
        self.reserve(bytes).then_some(())?;
        let address = self.addresses(bytes)?;
        Some(self.enter(Block {
            address,
            size: bytes,
            requested: 0,
            before: NONE,
            after: NONE,
            state: State::Free,
            small: size <= SMALL,
            expandable: false,
            segment: address,
        }))
    }

    /// Counts memory as taken from the device, where it has so much.
    fn reserve(&mut self, bytes: u64) -> bool {
        let total = self.now.reserved.0 + bytes;
        let fits = total <= self.capacity && self.next_address < LAST_ADDRESS;
        if fits {
            self.now.reserved = Bytes(total);
            self.peak.reserved = self.peak.reserved.max(Bytes(total));
        }
        fits
    }

    /// Addresses nobody has.
    fn addresses(&mut self, bytes: u64) -> Option<u64> {
        let address = self.next_address;
        self.next_address = address.checked_add(bytes.next_multiple_of(SMALL_SEGMENT))?;
        Some(address)
    }

    /// Splits a block that is in no pool where enough remains, and hands it out.
    fn hand_out(&mut self, id: u32, size: u64, requested: u64) -> Handle {
        let Block {
            size: whole,
            small,
            expandable,
            ..
        } = *self.block(id);
        let rest = whole - size;
        let limit = self.config.max_split_size.map_or(u64::MAX, |b| b.0);
        let split = match small || expandable {
            true => rest >= GRAIN,
            false => size < limit && rest > SMALL,
        };
        if split {
            let remainder = self.split(id, size);
            self.list(remainder);
        }
        let block = self.block_mut(id);
        (block.state, block.requested) = (State::Used, requested);
        let charged = block.size;
        let now = &mut self.now;
        now.requested += Bytes(requested);
        now.allocated += Bytes(charged);
        now.active = now.allocated;
        let peak = &mut self.peak;
        peak.requested = peak.requested.max(now.requested);
        peak.allocated = peak.allocated.max(now.allocated);
        peak.active = peak.active.max(now.active);
        Handle(id)
    }
}
