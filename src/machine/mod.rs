//! Who runs a program: the machines, and the one loop that walks the text for all of them.

pub mod agreement;
pub mod calibrate;
pub mod compare;
pub mod composition;
pub mod cpu;
pub mod cuda;
pub mod estimate;
pub mod executor;
pub mod learning;
pub mod lowered;
pub mod measure;
pub mod micro;
pub mod probe;
pub mod pytorch;
pub mod rows;
pub mod selftest;
pub mod sim;
pub mod speed;
pub mod timeline;
pub mod train;
pub mod trial;
pub mod validate;

use crate::error::Result;
use crate::graph::Stream;
use crate::program::{BufferId, EventId, Instr, Program, Span};
use crate::spec::device::Device;
use timeline::Timeline;

/// The machine of ours that could execute on `device`; `None` where there are no kernels for it: a plan is then only a plan.
pub fn executor(device: &Device) -> Option<&'static str> {
    device.threads.map(|_| "cpu")
}

/// What a machine does with each instruction. It may queue work; [`Machine::finish`] waits for all of it.
pub trait Machine {
    /// The buffer's bytes become its own.
    ///
    /// # Errors
    /// Where the machine finds them taken.
    fn alloc(&mut self, at: usize, buffer: BufferId) -> Result<()>;

    /// The buffer's bytes may become another's.
    ///
    /// # Errors
    /// Where the machine finds the buffer dead.
    fn free(&mut self, at: usize, buffer: BufferId) -> Result<()>;

    /// Queues a node.
    ///
    /// # Errors
    /// Where the machine cannot run it.
    fn launch(
        &mut self,
        at: usize,
        node: u32,
        scratch: Option<BufferId>,
        stream: Stream,
    ) -> Result<()>;

    /// Queues a copy.
    ///
    /// # Errors
    /// Where the machine cannot make it.
    fn copy(&mut self, at: usize, from: Span, to: Span, stream: Stream) -> Result<()>;

    /// Queues an event behind what is in the stream.
    ///
    /// # Errors
    /// Where the stream has failed.
    fn signal(&mut self, stream: Stream, event: EventId) -> Result<()>;

    /// Holds what is queued in the stream from now on until the event.
    ///
    /// # Errors
    /// Where the stream has failed.
    fn wait(&mut self, stream: Stream, event: EventId) -> Result<()>;

    /// Waits for everything and tells when each instruction ran.
    ///
    /// # Errors
    /// The first failure of any queued instruction.
    fn finish(&mut self) -> Result<Timeline>;
}

/// Walks `program` once on `machine`.
///
/// # Errors
/// The machine's first failure.
pub fn run(program: &Program, machine: &mut dyn Machine) -> Result<Timeline> {
    for (at, instr) in program.code.iter().enumerate() {
        match *instr {
            Instr::Alloc(buffer) => machine.alloc(at, buffer)?,
            Instr::Free(buffer) => machine.free(at, buffer)?,
            Instr::Launch {
                node,
                scratch,
                stream,
            } => machine.launch(at, node, scratch, stream)?,
            Instr::Copy {
                from, to, stream, ..
            } => machine.copy(at, from, to, stream)?,
            Instr::Signal(stream, event) => machine.signal(stream, event)?,
            Instr::Wait(stream, event) => machine.wait(stream, event)?,
        }
    }
    machine.finish()
}
