//! How a step is run: a straight-line program over buffers, the one text that is checked, simulated and executed.

pub mod caching_allocator;
pub mod check;
pub mod eager;
pub mod lower;
pub mod packing;
pub mod place;

use rayon::prelude::*;

use crate::error::Result;
use crate::graph::tensor::{Name, Role, StorageId};
use crate::graph::{Phase, Step, StepSet, Stream, When};
use crate::spec::job::{Backend, PerPlace, Place};
use crate::spec::units::Bytes;

/// Index of a buffer in its program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BufferId(pub u32);

/// Index of an event in its program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventId(pub u32);

/// Bytes of a place set aside for one storage, one call's scratch, or one slot of a staging ring.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Buffer {
    /// Path of what it holds.
    pub name: Name,
    /// The storage it holds; scratch and staging hold none.
    pub storage: Option<StorageId>,
    /// Where it lies.
    pub place: Place,
    /// The stream whose order decides when its bytes may be reused.
    pub home: Stream,
    /// What it holds, for the accounts.
    pub role: Role,
    /// Bytes wanted.
    pub exact: Bytes,
    /// Bytes taken: `exact` rounded up to the place's alignment.
    pub bytes: Bytes,
    /// First byte in its place.
    pub offset: Bytes,
    /// Alive before, in and after every program of the set.
    pub shared: bool,
}

/// A range of a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// The buffer.
    pub buffer: BufferId,
    /// First byte within it.
    pub offset: Bytes,
    /// Length.
    pub bytes: Bytes,
}

/// One instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Instr {
    /// From here on the buffer's bytes are its own.
    Alloc(BufferId),
    /// From here on they may be another's.
    Free(BufferId),
    /// Queues a node.
    Launch {
        /// Index into the step's nodes.
        node: u32,
        /// Its scratch, if it has any.
        scratch: Option<BufferId>,
        /// The queue.
        stream: Stream,
    },
    /// Queues a copy, on behalf of a node.
    Copy {
        /// Source.
        from: Span,
        /// Destination.
        to: Span,
        /// The queue.
        stream: Stream,
        /// The node it is part of.
        node: u32,
    },
    /// The event happens when all that was queued in the stream so far is done.
    Signal(Stream, EventId),
    /// What is queued in the stream from here on starts after the event.
    Wait(Stream, EventId),
}

/// One lowered and placed step. Derived from a plan, never saved.
#[derive(Debug, Clone)]
pub struct Program {
    /// How often it runs.
    pub when: When,
    /// Whose kernels it is for.
    pub backend: Backend,
    /// What it computes.
    pub step: Step,
    /// Its buffers: the set's shared ones first, in the set's order.
    pub buffers: Vec<Buffer>,
    /// Its text.
    pub code: Vec<Instr>,
    /// Number of events.
    pub events: u32,
    /// Largest sum of live buffers at any position, by place.
    pub load: PerPlace<Bytes>,
    /// Bytes of each place it takes: the top of its placement.
    pub height: PerPlace<Bytes>,
}

impl Program {
    /// The buffer behind an id.
    pub fn buffer(&self, id: BufferId) -> &Buffer {
        &self.buffers[id.0 as usize]
    }

    /// The phase an instruction is part of, where it belongs to a node.
    pub fn phase(&self, instr: &Instr) -> Option<Phase> {
        match instr {
            Instr::Launch { node, .. } | Instr::Copy { node, .. } => {
                Some(self.step.nodes[*node as usize].phase)
            }
            _ => None,
        }
    }

    /// A hash of the text and the placement, stable across runs and machines (FNV-1a over its printed form).
    pub fn hash(&self) -> u64 {
        let mut hash = Fnv(0xcbf2_9ce4_8422_2325);
        for buffer in &self.buffers {
            hash.take(&format!("{buffer:?}"));
        }
        for instr in &self.code {
            hash.take(&format!("{instr:?}"));
        }
        for node in &self.step.nodes {
            hash.take(&format!("{:?}", node.op));
        }
        hash.0
    }
}

/// Lowers all steps of a set and places them: shared storages get equal offsets in every program.
///
/// # Errors
/// Where a move joins places no copy joins.
pub fn programs(set: StepSet, backend: Backend) -> Result<Vec<Program>> {
    let shared = set.shared();
    let lowered = |(when, step)| -> Result<Program> {
        let mut program = lower::lower(when, step, &shared, backend)?;
        place::place(&mut program);
        Ok(program)
    };
    let programs: Vec<Result<Program>> = set.steps.into_par_iter().map(lowered).collect();
    programs.into_iter().collect()
}

/// The program that ends optimizer step `step`, counted from 1: the steady one, or the one that also renews.
pub fn updating(programs: &[Program], step: u64) -> &Program {
    let due = |p: &&Program| match p.when {
        When::Every(period) => (step - 1).is_multiple_of(u64::from(period)),
        _ => false,
    };
    let steady = || programs.iter().find(|p| p.when == When::Steady);
    let found = programs.iter().find(due).or_else(steady);
    found.unwrap_or_else(|| panic!("every plan has a steady program"))
}

/// The program that renews what updates project with ahead of optimizer step `step`, counted from 1, where one is due.
pub fn renewing(programs: &[Program], step: u64) -> Option<&Program> {
    programs.iter().find(|p| match p.when {
        When::Renew(period) => (step - 1).is_multiple_of(u64::from(period)),
        _ => false,
    })
}

/// What a set of programs takes of each place: the largest height.
pub fn height(programs: &[Program]) -> PerPlace<Bytes> {
    let mut most = PerPlace::<Bytes>::default();
    for program in programs {
        for place in Place::ALL {
            most[place] = most[place].max(program.height[place]);
        }
    }
    most
}

/// FNV-1a.
struct Fnv(u64);

impl Fnv {
    fn take(&mut self, text: &str) {
        for byte in text.bytes() {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

/// Alignment of buffers by place: kernels' vector loads on the GPU (256), cache lines on the host, blocks on disk.
pub fn alignment(place: Place) -> u64 {
    match place {
        Place::Gpu => 256,
        Place::Pinned | Place::Host => 64,
        Place::Disk => 4096,
    }
}
