//! From the bytes of live tensors to what a counter on a real device shows.

use serde::Serialize;

use crate::program::eager::{Class, Prediction};
use crate::spec::units::Bytes;

/// Workspaces of cuBLAS: the forward and the backward thread have a handle each.
const HANDLES: usize = 2;
/// A workspace before Hopper: `:4096:2:16:8` (aten/src/ATen/cuda/CublasHandlePool.cpp).
const WORKSPACE: Bytes = Bytes(8_519_680);
/// A workspace from Hopper on.
const WORKSPACE_HOPPER: Bytes = Bytes(32 << 20);
/// Devices with the larger one, by a part of their names.
const HOPPER: [&str; 5] = ["H100", "H200", "H20", "B200", "B100"];
/// Context and loaded kernels of a process, where they were not measured: 400 to 500 MiB on most devices.
const CONTEXT: Bytes = Bytes(450 << 20);
/// From the smallest context measured (RTX 3090, torch 2.7: 256 MiB) to the largest (A100 and H100: 0.6 GB).
pub const CONTEXT_RANGE: [Bytes; 2] = [Bytes(256 << 20), Bytes(600_000_000)];
/// Segments are multiples of this.
const SEGMENT: u64 = 2 << 20;

/// The counter that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Counter {
    /// The sum of live storages, unrounded.
    Live,
    /// `max_memory_allocated`.
    Allocated,
    /// The active bytes of the allocator.
    Active,
    /// `max_memory_reserved`.
    Reserved,
    /// What the driver counts for the process.
    Process,
}

impl Counter {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Counter::Live => "live",
            Counter::Allocated => "allocated",
            Counter::Active => "active",
            Counter::Reserved => "reserved",
            Counter::Process => "process",
        }
    }
}

/// What cuBLAS takes from the allocator on a device, handle by handle.
pub fn workspaces(gpu: &str) -> [Bytes; HANDLES] {
    let hopper = HOPPER.iter().any(|name| gpu.contains(name));
    [if hopper { WORKSPACE_HOPPER } else { WORKSPACE }; HANDLES]
}

/// How a counter follows from a prediction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Figure {
    /// The counter.
    pub counter: Counter,
    /// Held beside the step's tensors all the time: workspaces, master weights.
    pub beside: Bytes,
    /// The process's context.
    pub context: Bytes,
    /// The optimizer's state lies elsewhere.
    pub state_elsewhere: bool,
}

impl Figure {
    /// The figure for a counter on a device; the context as measured, where it was.
    pub fn new(counter: Counter, gpu: &str, context: Option<Bytes>) -> Figure {
        Figure {
            counter,
            beside: match counter {
                Counter::Live => Bytes::ZERO,
                _ => workspaces(gpu).into_iter().sum(),
            },
            context: context.unwrap_or(CONTEXT),
            state_elsewhere: false,
        }
    }

    /// What the counter would show.
    pub fn of(&self, prediction: &Prediction) -> Bytes {
        let state = match self.state_elsewhere {
            true => prediction.breakdown.get(&Class::OptimizerState).copied(),
            false => None,
        };
        let allocated = prediction.peak.saturating_sub(state.unwrap_or_default()) + self.beside;
        let reserved = allocated.round_up(SEGMENT);
        match self.counter {
            Counter::Live | Counter::Allocated | Counter::Active => allocated,
            Counter::Reserved => reserved,
            Counter::Process => reserved + self.context,
        }
    }
}
