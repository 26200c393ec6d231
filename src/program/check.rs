//! What must hold of a program, proved by one walk over its text. Shares no code with lowering or placement.

mod contents;
mod order;
mod space;

use super::{Buffer, BufferId, Instr, Program, Span};
use crate::error::{Error, Result};
use crate::graph::op::transfer::{MOVE, SETTLE};
use crate::graph::{Node, Stream};
use crate::spec::job::{PerPlace, Place};
use crate::spec::units::Bytes;
use contents::Contents;
use order::{Clocks, Uses};
use space::Space;

/// Checks `program` and returns the height it re-derived for each place.
///
/// The rules: a buffer is allocated once, while dead, and freed while alive; it is aligned, below the height, and no two live
/// ones share a byte, nor do two of different homes at any time; every access is to a live buffer, within it, in a place its
/// stream reaches; conflicting accesses in different streams are ordered by events, which happen once; a buffer is freed only
/// where its home has seen every access, and touched only by who has seen its allocation; a value is read only after all of it
/// was made and before its bytes are overwritten; every node runs once, with the scratch it asks for; what is alive at the end was alive at the start, and
/// Compute has seen all streams end. Machines wait for that end, so a second walk would begin as the first did.
///
/// # Errors
/// [`Error::Rule`] naming the rule, the instruction and every buffer concerned.
pub fn check(program: &Program) -> Result<PerPlace<Bytes>> {
    let mut checker = Checker::new(program);
    checker.start().map_err(|broken| broken.at(0))?;
    for (at, instr) in program.code.iter().enumerate() {
        checker.at = at;
        checker.step(instr).map_err(|broken| broken.at(at))?;
    }
    let last = program.code.len().saturating_sub(1);
    checker.end().map_err(|broken| broken.at(last))?;
    space::homes(program).map_err(|(buffer, broken)| {
        let mut code = program.code.iter();
        broken.at(code.position(|i| *i == Instr::Alloc(buffer)).unwrap_or(0))
    })?;
    Ok(checker.space.top)
}

/// A rule that does not hold, before it is known where.
struct Broken {
    rule: &'static str,
    why: String,
}

type Check<T> = std::result::Result<T, Broken>;

impl Broken {
    fn new(rule: &'static str, why: String) -> Broken {
        Broken { rule, why }
    }

    fn at(self, instruction: usize) -> Error {
        let Broken { rule, why } = self;
        Error::Rule {
            rule,
            instruction,
            why,
        }
    }
}

struct Checker<'a> {
    program: &'a Program,
    at: usize,
    alive: Vec<bool>,
    uses: Vec<Uses>,
    space: Space<'a>,
    clocks: Clocks,
    contents: Contents<'a>,
}

impl<'a> Checker<'a> {
    fn new(program: &'a Program) -> Checker<'a> {
        Checker {
            program,
            at: 0,
            alive: vec![false; program.buffers.len()],
            uses: vec![Uses::default(); program.buffers.len()],
            space: Space::new(program),
            clocks: Clocks::new(program.events),
            contents: Contents::new(program),
        }
    }

    /// Shared buffers are alive before the text begins.
    fn start(&mut self) -> Check<()> {
        for (index, _) in (0..).zip(&self.program.buffers).filter(|(_, b)| b.shared) {
            self.space.take(BufferId(index))?;
            self.alive[index as usize] = true;
        }
        Ok(())
    }

    fn step(&mut self, instr: &Instr) -> Check<()> {
        match *instr {
            Instr::Alloc(id) => self.alloc(id),
            Instr::Free(id) => self.free(id),
            Instr::Launch {
                node,
                scratch,
                stream,
            } => self.launch(node as usize, scratch, stream),
            Instr::Copy {
                from,
                to,
                stream,
                node,
            } => self.copy(node as usize, from, to, stream),
            Instr::Signal(stream, event) => {
                let fresh = self.clocks.signal(stream, event.0 as usize);
                let why = || format!("{stream:?} signals event {} again", event.0);
                expect(fresh, "event", why)
            }
            Instr::Wait(stream, event) => {
                let signalled = self.clocks.wait(stream, event.0 as usize);
                let event = event.0;
                let why = || format!("{stream:?} waits for event {event}, which nobody signalled");
                expect(signalled, "event", why)
            }
        }
    }

    fn alloc(&mut self, id: BufferId) -> Check<()> {
        let alive = std::mem::replace(&mut self.alive[id.0 as usize], true);
        expect(!alive, "double allocation", || {
            format!("{} is alive already", named(self.program, id))
        })?;
        self.space.take(id)?;
        self.contents.clear(id);
        let (home, uses) = (self.program.buffer(id).home, &mut self.uses[id.0 as usize]);
        *uses = Uses::default();
        uses.add(&mut self.clocks, home, self.at, true);
        Ok(())
    }

    fn free(&mut self, id: BufferId) -> Check<()> {
        let (program, buffer) = (self.program, self.program.buffer(id));
        expect(self.alive[id.0 as usize], "free of a dead buffer", || {
            named(program, id)
        })?;
        expect(!buffer.shared, "free of a shared buffer", || {
            named(program, id)
        })?;
        self.ordered(id, buffer.home, true, "early free", "is freed")?;
        self.space.give(id);
        self.alive[id.0 as usize] = false;
        Ok(())
    }

    fn launch(&mut self, index: usize, scratch: Option<BufferId>, stream: Stream) -> Check<()> {
        let program = self.program;
        let node = &program.step.nodes[index];
        expect(node.op.name() != MOVE, "node", || {
            format!("the move `{}` is launched, not copied", node.origin)
        })?;
        self.contents.finish(index)?;
        if node.op.name() == SETTLE {
            return Ok(()); // It touches nothing.
        }
        let overwritten = program.step.overwrites(node);
        for (input, &value) in node.inputs.iter().enumerate() {
            self.contents.read(value)?;
            let id = self.contents.buffer_of(value)?;
            self.touch(id, stream, overwritten.contains(&Some(input)))?;
        }
        for &value in &node.outputs {
            let id = self.contents.buffer_of(value)?;
            self.touch(id, stream, true)?;
            self.contents.make(value);
        }
        self.scratch(node, scratch, stream)
    }

    /// The node has the scratch it asks for.
    fn scratch(&mut self, node: &Node, scratch: Option<BufferId>, stream: Stream) -> Check<()> {
        let program = self.program;
        let types = node.inputs.iter().map(|&i| program.step.type_of(i).clone());
        let needs = node.op.scratch(&types.collect::<Vec<_>>(), program.backend);
        match scratch {
            Some(id) if program.buffer(id).exact >= needs => self.touch(id, stream, true),
            None if needs == Bytes::ZERO => Ok(()),
            _ => {
                let has = scratch.map_or("none".to_string(), |id| named(program, id));
                let why = format!("`{}` needs scratch of {needs} and has {has}", node.origin);
                Err(Broken::new("scratch", why))
            }
        }
    }

    fn copy(&mut self, index: usize, from: Span, to: Span, stream: Stream) -> Check<()> {
        let node = &self.program.step.nodes[index];
        expect(node.op.name() == MOVE, "node", || {
            format!("`{}` is no move", node.origin)
        })?;
        self.touch(from.buffer, stream, false)?;
        self.touch(to.buffer, stream, true)?;
        self.contents.copy(index, from, to)
    }

    /// One access: the buffer lives, the stream reaches its place, and it is ordered after what it conflicts with.
    fn touch(&mut self, id: BufferId, stream: Stream, writes: bool) -> Check<()> {
        let program = self.program;
        expect(self.alive[id.0 as usize], "use of a dead buffer", || {
            named(program, id)
        })?;
        let within = reaches(stream, program.buffer(id).place, writes);
        expect(within, "wrong place", || {
            format!("{stream:?} cannot reach {}", named(program, id))
        })?;
        self.ordered(id, stream, writes, "missing wait", "is used")?;
        self.uses[id.0 as usize].add(&mut self.clocks, stream, self.at, writes);
        Ok(())
    }

    /// `stream` has seen all uses of the buffer that its own conflicts with.
    fn ordered(
        &self,
        id: BufferId,
        stream: Stream,
        writes: bool,
        rule: &'static str,
        what: &str,
    ) -> Check<()> {
        match self.uses[id.0 as usize].unseen(&self.clocks, stream, writes) {
            None => Ok(()),
            Some((theirs, at)) => {
                let name = named(self.program, id);
                let why = format!(
                    "{name} {what} in {stream:?}, which does not wait for {theirs:?} (instruction {at})"
                );
                Err(Broken::new(rule, why))
            }
        }
    }

    /// At the end every transient is dead, every node has run, and Compute has seen every stream end.
    fn end(&self) -> Check<()> {
        let alive = |(buffer, alive): (&Buffer, &bool)| *alive && !buffer.shared;
        let left = self.program.buffers.iter().zip(&self.alive).position(alive);
        if let Some(index) = left {
            let name = named(self.program, BufferId(index as u32));
            let why = format!("{name} is alive at the end and was not at the start");
            return Err(Broken::new("seam", why));
        }
        self.contents.end()?;
        match self.clocks.behind(Stream::Compute) {
            Some(stream) => {
                let why = format!("{stream:?} may still run at the end");
                Err(Broken::new("seam", why))
            }
            None => Ok(()),
        }
    }
}

fn expect(holds: bool, rule: &'static str, why: impl FnOnce() -> String) -> Check<()> {
    match holds {
        true => Ok(()),
        false => Err(Broken::new(rule, why())),
    }
}

/// A buffer in words.
fn named(program: &Program, id: BufferId) -> String {
    let buffer = program.buffer(id);
    let (name, bytes, offset) = (&buffer.name, buffer.bytes, buffer.offset.0);
    let (place, home) = (buffer.place, buffer.home);
    format!("`{name}` ({bytes} at {offset} of {place}, home {home:?})")
}

/// Whether a stream's work can write, or else read, in a place.
fn reaches(stream: Stream, place: Place, writes: bool) -> bool {
    use Place::{Disk, Gpu, Host, Pinned};
    match (stream, writes) {
        (Stream::Compute, _) | (Stream::ToDevice, true) | (Stream::ToHost, false) => place == Gpu,
        (Stream::DiskRead, false) | (Stream::DiskWrite, true) => place == Disk,
        _ => matches!(place, Pinned | Host),
    }
}
