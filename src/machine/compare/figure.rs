//! From the bytes of live tensors to what a counter on a real device shows.

use serde::Serialize;

use crate::error::Result;
use crate::program::caching_allocator::AllocatorConfig;
use crate::program::eager::requests::replayed;
use crate::program::eager::{Class, EagerPhase, Prediction};
use crate::spec::model::ModelSpec;
use crate::spec::torch::TorchOptions;
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
    /// Held beside them while the update runs.
    pub in_update: Bytes,
    /// The process's context.
    pub context: Bytes,
    /// The optimizer's state lies elsewhere.
    pub state_elsewhere: bool,
    /// Parts were profiled and added up, each at its own highest: weights, gradients, state, activations of the forward pass.
    pub parts: bool,
    /// 16-bit adapters trained by ZeRO: fp32 weights and moments beside them, and in the update what it makes of the gradients.
    pub zero: bool,
    /// Gradients die in the backward pass.
    pub gradients_die: bool,
}

/// The sum of the parts of a step, where gradients live side by side or die one by one in the backward pass.
fn parts(prediction: &Prediction, gradients_die: bool) -> Bytes {
    let class = match gradients_die {
        true => Class::Grads,
        // A gradient for each weight.
        false => Class::Params,
    };
    let gradients = prediction
        .breakdown
        .get(&class)
        .copied()
        .unwrap_or_default();
    prediction.step_start + prediction.saved + gradients
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
            in_update: Bytes::ZERO,
            state_elsewhere: false,
            parts: false,
            zero: false,
            gradients_die: false,
        }
    }

    /// Whether the counter sees segments: what the allocator holds, not what is in use.
    pub fn sees_segments(&self) -> bool {
        matches!(self.counter, Counter::Reserved | Counter::Process)
    }

    /// The bytes the caching allocator takes for a job, its workspaces with it: fragmentation is part of these counters.
    ///
    /// # Errors
    /// Where the job cannot be run.
    pub fn segments(model: &ModelSpec, options: &TorchOptions) -> Result<Bytes> {
        Ok(replayed(model, options, &[], &AllocatorConfig::default())?
            .peak
            .reserved)
    }

    /// What the counter would show; `segments` are the allocator's, where they were replayed.
    pub fn of(&self, prediction: &Prediction, segments: Option<Bytes>) -> Bytes {
        if self.parts {
            return parts(prediction, self.gradients_die) + self.beside;
        }
        let state = match self.state_elsewhere {
            true => prediction.breakdown.get(&Class::OptimizerState).copied(),
            false => None,
        };
        // Of a parameter: 4 bytes of 16-bit moments stand for 8 more, and 6 in the update.
        let moments = prediction.breakdown.get(&Class::OptimizerState);
        let moments = moments.filter(|_| self.zero).map_or(0, |bytes| bytes.0);
        let lasting = self.beside + Bytes(moments * 2);
        let in_update = self.in_update + Bytes(moments * 3 / 2);
        let update = prediction.phase_peak.get(&EagerPhase::Optimizer);
        let update = update.copied().unwrap_or_default() + in_update;
        // By how much the update rises above the rest.
        let beside = lasting + update.saturating_sub(prediction.peak);
        let allocated = prediction.peak.saturating_sub(state.unwrap_or_default()) + beside;
        let reserved = match segments {
            Some(segments) if state.is_none() => segments + beside,
            _ => allocated,
        };
        let reserved = reserved.round_up(SEGMENT);
        match self.counter {
            Counter::Live | Counter::Allocated | Counter::Active => allocated,
            Counter::Reserved => reserved,
            Counter::Process => reserved + self.context,
        }
    }
}
