//! The record of allocations: what is alive, its peak, and who holds it.

use std::cell::{Cell, RefCell};

pub use super::class::{ByClass, CLASSES, Class, EagerPhase, Origin};
use super::tensor::{DType, Dims};
use super::work::{Products, Unit, Work};

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

/// A stretch of the step in one part and one place of the model: what it changes, and how far it rises above its start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// The part.
    pub phase: EagerPhase,
    /// The place.
    pub origin: Origin,
    /// What is alive more (or less) at its end than at its start.
    pub net: ByClass,
    /// The highest sum above its start.
    pub high: i64,
    /// What is alive more at that moment.
    pub at_high: ByClass,
    /// The op that made it.
    pub op: &'static str,
    /// What is computed, moved and launched in it.
    pub work: Work,
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
    phase: Cell<EagerPhase>,
    origin: Cell<Origin>,
    op: Cell<&'static str>,
    recomputing: Cell<bool>,
    /// What the running op allocates is counted already.
    counted: Cell<bool>,
    logits: Cell<u64>,
    state: RefCell<State>,
}

/// What changes with every event.
#[derive(Debug)]
struct State {
    blocks: Vec<Option<Block>>,
    vacant: Vec<u32>,
    live: ByClass,
    total: i64,
    segments: Vec<Segment>,
    /// Sum above the start of the running segment.
    above: i64,
    events: Option<Vec<Event>>,
    peak: Peak,
}

/// The blocks alive at the highest sum so far, where they were asked for.
#[derive(Debug, Default)]
struct Peak {
    bytes: i64,
    alive: Option<Vec<Block>>,
}

impl Default for Tape {
    fn default() -> Tape {
        Tape {
            phase: Cell::new(EagerPhase::Start),
            origin: Cell::new(Origin::Other),
            op: Cell::new(""),
            recomputing: Cell::new(false),
            counted: Cell::new(false),
            logits: Cell::new(0),
            state: RefCell::new(State {
                blocks: Vec::new(),
                vacant: Vec::new(),
                live: [0; CLASSES],
                total: 0,
                segments: vec![Segment::new(EagerPhase::Start, Origin::Other)],
                above: 0,
                events: None,
                peak: Peak::default(),
            }),
        }
    }
}

impl Segment {
    fn new(phase: EagerPhase, origin: Origin) -> Segment {
        Segment {
            phase,
            origin,
            net: [0; CLASSES],
            high: 0,
            at_high: [0; CLASSES],
            op: "",
            work: Work::default(),
        }
    }
}

/// What a step did, once it is over.
#[derive(Debug, Clone)]
pub struct Record {
    /// Alive before it.
    pub start: ByClass,
    /// Its stretches in order.
    pub segments: Vec<Segment>,
}

impl Tape {
    /// Forgets segments, peaks and events, as at the start of the step that is reported; `alive` asks for the blocks at the peak, `events` for
    /// all events. Returns what is alive.
    pub fn restart(&self, alive: bool, events: bool) -> ByClass {
        self.phase.set(EagerPhase::Start);
        let state = &mut *self.state.borrow_mut();
        state.segments = vec![Segment::new(EagerPhase::Start, Origin::Other)];
        state.above = 0;
        state.events = events.then(Vec::new);
        state.peak = Peak {
            bytes: state.total,
            alive: alive.then(Vec::new),
        };
        state.live
    }

    /// The stretches since the restart.
    pub fn take_segments(&self) -> Vec<Segment> {
        std::mem::take(&mut self.state.borrow_mut().segments)
    }

    /// Tensors of so many elements are logits.
    pub fn logits_have(&self, elements: u64) {
        self.logits.set(elements);
    }

    /// From here on activations are made again, or no longer; returns what was.
    pub fn recompute(&self, on: bool) -> bool {
        self.recomputing.replace(on)
    }

    /// From here on this part of the step runs.
    pub fn enter(&self, phase: EagerPhase) {
        self.phase.set(phase);
        self.op.set("");
        self.state.borrow_mut().stand(phase, self.origin.get());
    }

    /// The running part.
    pub fn phase(&self) -> EagerPhase {
        self.phase.get()
    }

    /// From here on ops stand in `origin`; returns where they stood.
    pub fn stand(&self, origin: Origin) -> Origin {
        self.origin.replace(origin)
    }

    /// The op that allocates from here on: a kernel.
    pub fn run(&self, op: &'static str) {
        self.op.set(op);
        self.counted.set(false);
        self.launch(1);
    }

    /// So many kernels are launched.
    pub fn launch(&self, kernels: u64) {
        let called = self.phase.get() == EagerPhase::Forward || self.recomputing.get();
        if let Some(segment) = self.state.borrow_mut().segments.last_mut() {
            segment.work.add(Unit::Kernels, kernels.into());
            if called {
                segment.work.add(Unit::Called, kernels.into());
            }
        }
    }

    /// The running op makes these matrix products; what it allocates is counted with them.
    pub fn multiply(&self, half: bool, products: Products) {
        self.counted.set(true);
        if let Some(segment) = self.state.borrow_mut().segments.last_mut() {
            segment.work.multiply(half, products);
        }
    }

    /// So much is done, in the running stretch.
    pub fn work(&self, unit: Unit, amount: u128) {
        if let Some(segment) = self.state.borrow_mut().segments.last_mut() {
            segment.work.add(unit, amount);
        }
    }

    /// Live bytes.
    pub fn live(&self) -> u64 {
        self.state.borrow().total as u64
    }

    /// The blocks at the peak since the restart, where they were asked for.
    pub fn at_peak(&self) -> Vec<Block> {
        self.state
            .borrow_mut()
            .peak
            .alive
            .take()
            .unwrap_or_default()
    }

    /// How many events there have been since the restart, where they were asked for.
    pub fn events_so_far(&self) -> usize {
        self.state.borrow().events.as_ref().map_or(0, Vec::len)
    }

    /// Events since the restart, where they were asked for.
    pub fn take_events(&self) -> Vec<Event> {
        self.state.borrow_mut().events.take().unwrap_or_default()
    }

    /// Applies `see` to all live blocks.
    pub fn each_block(&self, see: impl FnMut(&Block)) {
        self.state.borrow().blocks.iter().flatten().for_each(see);
    }

    /// A block of `bytes`, made by the running op.
    pub(super) fn alloc(&self, bytes: u64, shape: Dims, dtype: DType) -> u64 {
        let block = Block {
            bytes,
            shape,
            dtype,
            op: self.op.get(),
            class: self.class_of(shape),
            origin: self.origin.get(),
            phase: self.phase.get(),
        };
        let mut state = self.state.borrow_mut();
        let id = state.alloc(block);
        if !self.counted.get()
            && let Some(segment) = state.segments.last_mut()
        {
            segment.work.add(Unit::Moved, bytes.into());
        }
        id
    }

    pub(super) fn free(&self, id: u64) {
        self.state.borrow_mut().free(id);
    }

    pub(super) fn class(&self, id: u64) -> Option<Class> {
        let state = self.state.borrow();
        state
            .blocks
            .get(id as usize)?
            .as_ref()
            .map(|block| block.class)
    }

    pub(super) fn classify(&self, id: u64, class: Class) {
        self.state.borrow_mut().classify(id, |_| Some(class));
    }

    /// A temporary of the forward pass that the backward pass will need.
    pub(super) fn keep(&self, id: u64) {
        let kept = |now| (now == Class::ForwardTemp).then_some(Class::SavedActivations);
        self.state.borrow_mut().classify(id, kept);
    }

    fn class_of(&self, shape: Dims) -> Class {
        let logits = self.logits.get();
        match self.phase.get() {
            EagerPhase::Forward | EagerPhase::Backward
                if logits > 0 && shape.elements() == logits =>
            {
                Class::LogitsAndLoss
            }
            EagerPhase::Forward => Class::ForwardTemp,
            EagerPhase::Backward if self.recomputing.get() => Class::RecomputedActivations,
            EagerPhase::Backward => Class::BackwardTemp,
            EagerPhase::Optimizer => Class::OptimizerTemp,
            EagerPhase::Start | EagerPhase::End => Class::Other,
        }
    }
}

impl State {
    /// Starts a segment where part or place have changed.
    fn stand(&mut self, phase: EagerPhase, origin: Origin) {
        let same = self
            .segments
            .last()
            .is_some_and(|s| s.phase == phase && s.origin == origin);
        if !same {
            self.segments.push(Segment::new(phase, origin));
            self.above = 0;
        }
    }

    fn change(&mut self, class: Class, bytes: i64) {
        self.live[class as usize] += bytes;
        self.total += bytes;
        self.above += bytes;
        if let Some(segment) = self.segments.last_mut() {
            segment.net[class as usize] += bytes;
        }
    }

    fn alloc(&mut self, block: Block) -> u64 {
        // A segment begins with what is made in it; what dies between two belongs to the first.
        self.stand(block.phase, block.origin);
        self.change(block.class, block.bytes as i64);
        let above = self.above;
        if let Some(segment) = self.segments.last_mut()
            && above > segment.high
        {
            segment.high = above;
            segment.at_high = segment.net;
            segment.op = block.op;
        }
        let bytes = block.bytes;

        let id = match self.vacant.pop() {
            Some(id) => {
                self.blocks[id as usize] = Some(block);
                u64::from(id)
            }
            None => {
                self.blocks.push(Some(block));
                self.blocks.len() as u64 - 1
            }
        };
        if let Some(events) = &mut self.events {
            events.push(Event::Alloc { id, bytes });
        }
        if self.total > self.peak.bytes
            && let Some(alive) = &mut self.peak.alive
        {
            self.peak.bytes = self.total;
            alive.clear();
            alive.extend(self.blocks.iter().flatten().cloned());
        }
        id
    }

    fn free(&mut self, id: u64) {
        if let Some(block) = self.blocks.get_mut(id as usize).and_then(Option::take) {
            self.change(block.class, -(block.bytes as i64));
            self.vacant.push(id as u32);
            if let Some(events) = &mut self.events {
                events.push(Event::Free { id });
            }
        }
    }

    fn classify(&mut self, id: u64, class: impl Fn(Class) -> Option<Class>) {
        let Some(Some(block)) = self.blocks.get_mut(id as usize) else {
            return;
        };
        let Some(class) = class(block.class) else {
            return;
        };
        let (before, bytes) = (block.class, block.bytes as i64);
        block.class = class;
        self.change(before, -bytes);
        self.change(class, bytes);
    }
}
