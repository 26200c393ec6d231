//! The record of allocations: what is alive, its peak, and who holds it.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use super::tensor::{DType, Dims};

/// What device memory holds, by the names people use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// Weights, frozen ones too.
    Params,
    /// Buffers of the model, 4-bit weights among them.
    Buffers,
    /// Gradients of weights.
    Grads,
    /// State of the optimizer.
    OptimizerState,
    /// Token ids, labels and masks.
    Inputs,
    /// Copies of weights in autocast's type.
    AutocastWeightCopies,
    /// Made in the forward pass and kept for the backward pass.
    SavedActivations,
    /// Tensors of tokens by vocabulary.
    LogitsAndLoss,
    /// Made again in the backward pass by checkpointing.
    RecomputedActivations,
    /// Gradients of activations and other temporaries of the backward pass.
    BackwardTemp,
    /// Temporaries of the forward pass.
    ForwardTemp,
    /// Temporaries of the optimizer.
    OptimizerTemp,
    /// Anything else.
    Other,
}

/// Part of a training step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EagerPhase {
    /// Before the forward pass.
    Start,
    /// Forward pass and loss.
    Forward,
    /// Backward pass.
    Backward,
    /// Clipping, update, zeroing.
    Optimizer,
    /// After it.
    End,
}

/// Where in the model an op stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    /// Token and position embeddings.
    Embed,
    /// A layer.
    Layer(u32),
    /// The output projection.
    LmHead,
    /// Final norm, rotary tables, masks, loss.
    Other,
}

/// One live allocation.
#[derive(Debug, Clone)]
pub struct Block {
    /// Bytes wanted.
    pub bytes: u64,
    /// Sizes of the tensor that asked for it.
    pub shape: Dims,
    /// Its element type.
    pub dtype: DType,
    /// The op that made it.
    pub op: &'static str,
    /// What it holds.
    pub class: Class,
    /// Where it was made.
    pub origin: Origin,
    /// In which part of the step it was made.
    pub phase: EagerPhase,
}

/// The highest count of live bytes and what made it.
#[derive(Debug, Clone)]
pub struct Peak {
    /// Live bytes.
    pub bytes: u64,
    /// Part of the step.
    pub phase: EagerPhase,
    /// The op that allocated last.
    pub op: &'static str,
    /// The blocks alive then, where asked for.
    pub alive: Vec<Block>,
}

/// A birth or death, for the replay of an allocator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Block `id` of so many bytes.
    Alloc {
        /// Its number.
        id: u64,
        /// Its bytes.
        bytes: u64,
    },
    /// Block `id` is gone.
    Free {
        /// Its number.
        id: u64,
    },
}

/// The record.
#[derive(Debug)]
pub struct Tape {
    live: Cell<u64>,
    next: Cell<u64>,
    phase: Cell<EagerPhase>,
    origin: Cell<Origin>,
    op: Cell<&'static str>,
    blocks: RefCell<BTreeMap<u64, Block>>,
    phase_peaks: RefCell<BTreeMap<EagerPhase, u64>>,
    peak: RefCell<Peak>,
    events: RefCell<Option<Vec<Event>>>,
    keeps_alive: Cell<bool>,
}

impl Default for Tape {
    fn default() -> Tape {
        Tape {
            live: Cell::new(0),
            next: Cell::new(0),
            phase: Cell::new(EagerPhase::Start),
            origin: Cell::new(Origin::Other),
            op: Cell::new(""),
            blocks: RefCell::default(),
            phase_peaks: RefCell::default(),
            peak: RefCell::new(Peak::nothing()),
            events: RefCell::new(None),
            keeps_alive: Cell::new(false),
        }
    }
}

impl Peak {
    fn nothing() -> Peak {
        Peak {
            bytes: 0,
            phase: EagerPhase::Start,
            op: "",
            alive: Vec::new(),
        }
    }
}

impl Tape {
    /// Forgets peaks and events, as at the start of the step that is reported; `alive` asks for the blocks at the peak, `events` for all events.
    pub fn restart(&self, alive: bool, events: bool) {
        self.phase_peaks.borrow_mut().clear();
        *self.peak.borrow_mut() = Peak::nothing();
        *self.events.borrow_mut() = events.then(Vec::new);
        self.keeps_alive.set(alive);
        self.raise();
    }

    /// From here on this part of the step runs.
    pub fn enter(&self, phase: EagerPhase) {
        self.phase.set(phase);
        self.op.set("");
        self.raise();
    }

    /// The running part.
    pub fn phase(&self) -> EagerPhase {
        self.phase.get()
    }

    /// From here on ops stand in `origin`; returns where they stood.
    pub fn stand(&self, origin: Origin) -> Origin {
        self.origin.replace(origin)
    }

    /// The op that allocates from here on.
    pub fn run(&self, op: &'static str) {
        self.op.set(op);
    }

    /// Live bytes.
    pub fn live(&self) -> u64 {
        self.live.get()
    }

    /// The peak since the restart.
    pub fn peak(&self) -> Peak {
        self.peak.borrow().clone()
    }

    /// The peak within each part since the restart.
    pub fn phase_peaks(&self) -> BTreeMap<EagerPhase, u64> {
        self.phase_peaks.borrow().clone()
    }

    /// Events since the restart, where they were asked for.
    pub fn take_events(&self) -> Vec<Event> {
        self.events.borrow_mut().take().unwrap_or_default()
    }

    /// Applies `see` to all live blocks.
    pub fn each_block(&self, mut see: impl FnMut(&Block)) {
        self.blocks.borrow().values().for_each(|block| see(block));
    }

    /// A block of `bytes`, made by the running op.
    pub(super) fn alloc(&self, bytes: u64, shape: Dims, dtype: DType) -> u64 {
        let id = self.next.get();
        self.next.set(id + 1);
        let block = Block {
            bytes,
            shape,
            dtype,
            op: self.op.get(),
            class: self.class_now(),
            origin: self.origin.get(),
            phase: self.phase.get(),
        };
        self.blocks.borrow_mut().insert(id, block);
        if let Some(events) = &mut *self.events.borrow_mut() {
            events.push(Event::Alloc { id, bytes });
        }
        self.live.set(self.live.get() + bytes);
        self.raise();
        id
    }

    pub(super) fn free(&self, id: u64) {
        if let Some(block) = self.blocks.borrow_mut().remove(&id) {
            self.live.set(self.live.get() - block.bytes);
            if let Some(events) = &mut *self.events.borrow_mut() {
                events.push(Event::Free { id });
            }
        }
    }

    pub(super) fn classify(&self, id: u64, class: Class) {
        if let Some(block) = self.blocks.borrow_mut().get_mut(&id) {
            block.class = class;
        }
    }

    /// A temporary of the forward pass that the backward pass will need.
    pub(super) fn keep(&self, id: u64) {
        if let Some(block) = self.blocks.borrow_mut().get_mut(&id)
            && block.class == Class::ForwardTemp
        {
            block.class = Class::SavedActivations;
        }
    }

    fn class_now(&self) -> Class {
        match self.phase.get() {
            EagerPhase::Forward => Class::ForwardTemp,
            EagerPhase::Backward => Class::BackwardTemp,
            EagerPhase::Optimizer => Class::OptimizerTemp,
            EagerPhase::Start | EagerPhase::End => Class::Other,
        }
    }

    fn raise(&self) {
        let (live, phase) = (self.live.get(), self.phase.get());
        let mut phases = self.phase_peaks.borrow_mut();
        let highest = phases.entry(phase).or_insert(0);
        *highest = live.max(*highest);
        let mut peak = self.peak.borrow_mut();
        if live > peak.bytes {
            peak.bytes = live;
            peak.phase = phase;
            peak.op = self.op.get();
            if self.keeps_alive.get() {
                // Cloned at each new peak only when explanations are asked for.
                peak.alive = self.blocks.borrow().values().cloned().collect();
            }
        }
    }
}
