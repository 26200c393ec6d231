//! A recorded sequence of requests, run through the allocator.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasherDefault, Hasher};

use serde::Serialize;

use super::{AllocatorConfig, CachingAllocator, Counters, Handle};
use crate::error::{Error, Result};
use crate::spec::units::Bytes;

/// One request of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Storage `id` is born with so many bytes. One of no bytes takes no block.
    Alloc {
        /// Its name; it may be used again after it is freed.
        id: u32,
        /// Its bytes.
        bytes: Bytes,
    },
    /// Storage `id` dies.
    Free {
        /// Its name.
        id: u32,
    },
}

/// The request a device had no room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct OutOfMemory {
    /// Its position among the events.
    pub event: usize,
    /// What it asked for.
    pub bytes: Bytes,
}

/// What a sequence of requests led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Replay {
    /// The counters at the end.
    pub end: Counters,
    /// The largest value of each.
    pub peak: Counters,
    /// How often cached memory had to be given back.
    pub retries: u64,
    /// The request at which it ended early.
    pub out_of_memory: Option<OutOfMemory>,
}

/// Storage numbers are spread by a multiplication (Knuth 1973, 6.4): they come from programs, not from strangers.
#[derive(Debug, Default)]
struct Spread(u64);

impl Hasher for Spread {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|b| self.write_u32(u32::from(*b)));
    }

    fn write_u32(&mut self, id: u32) {
        self.0 = (self.0 ^ u64::from(id))
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(32);
    }
}

/// Runs `events` through an allocator of its own, to the end or to the first that finds no room.
///
/// # Errors
/// Where a storage is born while alive, dies while dead, or is larger than any device.
pub fn replay(
    config: &AllocatorConfig,
    capacity: Option<Bytes>,
    events: impl IntoIterator<Item = Event>,
) -> Result<Replay> {
    let mut device = CachingAllocator::new(config.clone(), capacity);
    let mut alive: HashMap<u32, Option<Handle>, BuildHasherDefault<Spread>> = HashMap::default();
    let mut out_of_memory = None;
    for (index, event) in events.into_iter().enumerate() {
        match event {
            Event::Alloc { id, bytes } => {
                let Entry::Vacant(entry) = alive.entry(id) else {
                    return Err(wrong(index, id, "it is alive already"));
                };
                let block = match bytes.0 {
                    0 => None,
                    size => device.allocate(size)?,
                };
                if block.is_none() && bytes.0 > 0 {
                    out_of_memory = Some(OutOfMemory {
                        event: index,
                        bytes,
                    });
                    break;
                }
                entry.insert(block);
            }
            Event::Free { id } => match alive.remove(&id) {
                Some(block) => block.into_iter().for_each(|b| device.free(b)),
                None => return Err(wrong(index, id, "it is not alive")),
            },
        }
    }
    Ok(Replay {
        end: device.now(),
        peak: device.peak(),
        retries: device.retries(),
        out_of_memory,
    })
}

fn wrong(index: usize, id: u32, why: &str) -> Error {
    let what = format!("event {index}: storage");
    Error::value(what, id, why, "check the order of the events")
}
