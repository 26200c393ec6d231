//! What must hold of a program, proved by one walk over its text. Shares no code with lowering or placement.

use std::collections::BTreeMap;

use super::{BufferId, Instr, Program, Span};
use crate::error::{Error, Result};
use crate::graph::Stream;
use crate::graph::op::transfer::{MOVE, SETTLE};
use crate::graph::tensor::TensorId;
use crate::spec::job::{PerPlace, Place};
use crate::spec::units::Bytes;

const STREAMS: usize = Stream::ALL.len();

/// What a stream has seen of every stream, in accesses.
type Clock = [u64; STREAMS];

/// An access that a later one may have to be ordered after.
#[derive(Debug, Clone, Copy)]
struct Access {
    stream: Stream,
    time: u64,
    at: usize,
}

/// The accesses of one buffer since it was allocated.
#[derive(Debug, Clone, Default)]
struct History {
    writes: [Option<Access>; STREAMS],
    reads: [Option<Access>; STREAMS],
    /// The home stream's time at allocation.
    born: Clock,
}

/// Checks `program` and returns the height it re-derived for each place.
///
/// The rules: a buffer is allocated once, while dead, and freed while alive; live buffers share no byte; every access is to a
/// live buffer, within it, in a place its stream reaches; conflicting accesses in different streams are ordered by events; a buffer
/// is freed only where its home has seen every access, and touched first only by who has seen its allocation; nobody reads a
/// value after its bytes were overwritten; what is alive at the end was alive at the start. The text is walked twice in a row.
///
/// # Errors
/// [`Error::Rule`] naming the rule, the instruction and every buffer concerned.
pub fn check(program: &Program) -> Result<PerPlace<Bytes>> {
    let mut checker = Checker::new(program);
    for _ in 0..2 {
        for (at, instr) in program.code.iter().enumerate() {
            checker.at = at;
            checker.step(instr)?;
        }
        checker.end()?;
    }
    for place in Place::ALL {
        if checker.top[place] > program.height[place] {
            let why = format!(
                "{place:?} reaches {} above its height {}",
                checker.top[place], program.height[place]
            );
            return Err(checker.broken("height", why));
        }
    }
    Ok(checker.top)
}

struct Checker<'a> {
    program: &'a Program,
    at: usize,
    alive: Vec<bool>,
    /// Live address ranges by place: start to (end, buffer).
    ranges: PerPlace<BTreeMap<u64, (u64, BufferId)>>,
    histories: Vec<History>,
    clocks: [Clock; STREAMS],
    events: Vec<Option<Clock>>,
    /// Newest version of each storage; `None` before anything was written to it.
    versions: Vec<Option<u32>>,
    /// The buffer of each storage.
    buffers: Vec<Option<BufferId>>,
    top: PerPlace<Bytes>,
}

impl<'a> Checker<'a> {
    fn new(program: &'a Program) -> Checker<'a> {
        let mut checker = Checker {
            program,
            at: 0,
            alive: vec![false; program.buffers.len()],
            ranges: PerPlace::default(),
            histories: vec![History::default(); program.buffers.len()],
            clocks: Default::default(),
            events: vec![None; program.events as usize],
            versions: Vec::new(),
            buffers: vec![None; program.step.storages.len()],
            top: PerPlace::default(),
        };
        for (index, buffer) in program.buffers.iter().enumerate() {
            if let Some(storage) = buffer.storage {
                checker.buffers[storage.0 as usize] = Some(BufferId(index as u32));
            }
        }
        checker.start();
        checker
    }

    /// The seam between two walks: everything in flight has ended, and only shared buffers hold values.
    fn start(&mut self) {
        let joined: Clock =
            std::array::from_fn(|s| 1 + self.clocks.iter().map(|c| c[s]).max().unwrap_or(0));
        self.clocks = [joined; STREAMS];
        let program = self.program;
        self.versions = program
            .step
            .storages
            .iter()
            .map(|s| s.shared.then_some(0))
            .collect();
        for (index, buffer) in program.buffers.iter().enumerate().filter(|(_, b)| b.shared) {
            let end = buffer.offset.0 + buffer.bytes.0;
            self.ranges[buffer.place].insert(buffer.offset.0, (end, BufferId(index as u32)));
            self.top[buffer.place] = self.top[buffer.place].max(buffer.offset + buffer.bytes);
        }
    }

    fn broken(&self, rule: &'static str, why: String) -> Error {
        Error::Rule {
            rule,
            instruction: self.at,
            why,
        }
    }

    fn name(&self, id: BufferId) -> String {
        let buffer = self.program.buffer(id);
        format!(
            "`{}` ({} at {} of {:?})",
            buffer.name, buffer.bytes, buffer.offset.0, buffer.place
        )
    }

    fn step(&mut self, instr: &Instr) -> Result<()> {
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
                self.events[event.0 as usize] = Some(self.clocks[stream as usize]);
                Ok(())
            }
            Instr::Wait(stream, event) => self.wait(stream, event.0 as usize),
        }
    }

    fn wait(&mut self, stream: Stream, event: usize) -> Result<()> {
        let Some(seen) = self.events[event] else {
            return Err(self.broken(
                "event",
                format!("{stream:?} waits for event {event}, which nobody signalled"),
            ));
        };
        let own = &mut self.clocks[stream as usize];
        own.iter_mut()
            .zip(seen)
            .for_each(|(own, seen)| *own = seen.max(*own));
        Ok(())
    }

    fn alloc(&mut self, id: BufferId) -> Result<()> {
        if self.alive[id.0 as usize] {
            return Err(self.broken(
                "double allocation",
                format!("{} is alive already", self.name(id)),
            ));
        }
        let buffer = self.program.buffer(id);
        if buffer.offset.0 % super::alignment(buffer.place) != 0 || buffer.bytes < buffer.exact {
            return Err(self.broken(
                "alignment",
                format!("{} is misaligned or too small", self.name(id)),
            ));
        }
        let (start, end) = (buffer.offset.0, buffer.offset.0 + buffer.bytes.0);
        let below = self.ranges[buffer.place].range(..end).next_back();
        if let Some((_, &(_, other))) = below.filter(|(_, (other_end, _))| *other_end > start) {
            let why = format!("{} overlaps {}", self.name(id), self.name(other));
            return Err(self.broken("overlap", why));
        }
        self.ranges[buffer.place].insert(start, (end, id));
        self.top[buffer.place] = self.top[buffer.place].max(Bytes(end));
        self.alive[id.0 as usize] = true;
        let born = self.clocks[buffer.home as usize];
        self.histories[id.0 as usize] = History {
            born,
            ..History::default()
        };
        if let Some(storage) = buffer.storage {
            self.versions[storage.0 as usize] = None;
        }
        Ok(())
    }

    fn free(&mut self, id: BufferId) -> Result<()> {
        if !self.alive[id.0 as usize] {
            return Err(self.broken("free of a dead buffer", self.name(id)));
        }
        let buffer = self.program.buffer(id);
        let seen = self.clocks[buffer.home as usize];
        let history = &self.histories[id.0 as usize];
        let unseen = |a: &&Access| a.stream != buffer.home && a.time > seen[a.stream as usize];
        let pending = history
            .reads
            .iter()
            .chain(&history.writes)
            .flatten()
            .find(unseen)
            .copied();
        if let Some(access) = pending {
            let why = format!(
                "{} is freed while {:?} may still use it (instruction {})",
                self.name(id),
                access.stream,
                access.at
            );
            return Err(self.broken("early free", why));
        }
        self.ranges[buffer.place].remove(&buffer.offset.0);
        self.alive[id.0 as usize] = false;
        Ok(())
    }

    fn launch(&mut self, index: usize, scratch: Option<BufferId>, stream: Stream) -> Result<()> {
        let program = self.program;
        let node = &program.step.nodes[index];
        if node.op.name() == SETTLE {
            return Ok(()); // It touches nothing.
        }
        let overwritten: Vec<usize> = program
            .step
            .overwrites(node)
            .into_iter()
            .flatten()
            .collect();
        for (input, &value) in node.inputs.iter().enumerate() {
            self.read_value(value)?;
            let id = self.buffer_of(value)?;
            self.touch(id, stream, overwritten.contains(&input))?;
        }
        for &value in &node.outputs {
            let id = self.buffer_of(value)?;
            self.touch(id, stream, true)?;
            self.make_value(value);
        }
        match scratch {
            Some(id) => self.touch(id, stream, true),
            None => Ok(()),
        }
    }

    fn copy(&mut self, index: usize, from: Span, to: Span, stream: Stream) -> Result<()> {
        for span in [from, to] {
            if span.offset + span.bytes > self.program.buffer(span.buffer).exact
                || span.bytes != from.bytes
            {
                return Err(
                    self.broken("span", format!("a copy leaves {}", self.name(span.buffer)))
                );
            }
        }
        let program = self.program;
        let node = &program.step.nodes[index];
        if node.op.name() != MOVE {
            return Err(self.broken("copy", format!("`{}` is no move", node.origin)));
        }
        // The copy that reads the moved value checks it; the one that completes it makes the new one.
        if program.buffer(from.buffer).storage == Some(program.step.tensor(node.inputs[0]).storage)
        {
            self.read_value(node.inputs[0])?;
        }
        self.touch(from.buffer, stream, false)?;
        self.touch(to.buffer, stream, true)?;
        if program.buffer(to.buffer).storage == Some(program.step.tensor(node.outputs[0]).storage) {
            self.make_value(node.outputs[0]);
        }
        Ok(())
    }

    fn buffer_of(&self, value: TensorId) -> Result<BufferId> {
        let storage = self.program.step.tensor(value).storage;
        let name = &self.program.step.storage(storage).name;
        self.buffers[storage.0 as usize]
            .ok_or_else(|| self.broken("missing buffer", format!("`{name}` has none")))
    }

    /// A value is read only after it was made and before its bytes are overwritten.
    fn read_value(&self, value: TensorId) -> Result<()> {
        let tensor = self.program.step.tensor(value);
        let newest = self.versions[tensor.storage.0 as usize];
        if newest == Some(tensor.version) {
            return Ok(());
        }
        let name = &self.program.step.storage(tensor.storage).name;
        let held = newest.map_or("nothing".to_string(), |v| format!("version {v}"));
        Err(self.broken(
            "stale value",
            format!(
                "version {} of `{name}` is read where it holds {held}",
                tensor.version
            ),
        ))
    }

    fn make_value(&mut self, value: TensorId) {
        let tensor = self.program.step.tensor(value);
        self.versions[tensor.storage.0 as usize] = Some(tensor.version);
    }

    /// One access: the buffer lives, the stream reaches its place, and it is ordered after what it conflicts with.
    fn touch(&mut self, id: BufferId, stream: Stream, writes: bool) -> Result<()> {
        let buffer = self.program.buffer(id);
        if !self.alive[id.0 as usize] && !buffer.shared {
            return Err(self.broken("use of a dead buffer", self.name(id)));
        }
        if !reaches(stream, buffer.place) {
            return Err(self.broken(
                "wrong place",
                format!("{stream:?} cannot reach {}", self.name(id)),
            ));
        }
        let seen = self.clocks[stream as usize];
        let history = &self.histories[id.0 as usize];
        if stream != buffer.home
            && history.born[buffer.home as usize] > seen[buffer.home as usize]
            && !buffer.shared
        {
            let why = format!(
                "{stream:?} uses {} before {:?} handed it out",
                self.name(id),
                buffer.home
            );
            return Err(self.broken("early use", why));
        }
        let before = history
            .writes
            .iter()
            .chain(if writes { &history.reads[..] } else { &[] })
            .flatten();
        let race = before
            .copied()
            .find(|a| a.stream != stream && a.time > seen[a.stream as usize]);
        if let Some(other) = race {
            let why = format!(
                "{stream:?} uses {} while {:?} may still use it (instruction {})",
                self.name(id),
                other.stream,
                other.at
            );
            return Err(self.broken("missing wait", why));
        }
        self.record(id, stream, writes);
        Ok(())
    }

    fn record(&mut self, id: BufferId, stream: Stream, writes: bool) {
        let clock = &mut self.clocks[stream as usize][stream as usize];
        *clock += 1;
        let access = Some(Access {
            stream,
            time: *clock,
            at: self.at,
        });
        let history = &mut self.histories[id.0 as usize];
        let list = if writes {
            &mut history.writes
        } else {
            &mut history.reads
        };
        list[stream as usize] = access;
    }

    /// At the end every transient is dead.
    fn end(&mut self) -> Result<()> {
        if let Some(index) = self.alive.iter().position(|alive| *alive) {
            let why = format!(
                "{} is alive at the end and was not at the start",
                self.name(BufferId(index as u32))
            );
            return Err(self.broken("seam", why));
        }
        self.start();
        Ok(())
    }
}

/// Which places a stream's work can touch.
fn reaches(stream: Stream, place: Place) -> bool {
    use Place::{Disk, Gpu, Host, Pinned};
    match stream {
        Stream::Compute => matches!(place, Gpu | Pinned),
        Stream::HostCompute => matches!(place, Pinned | Host),
        Stream::ToDevice | Stream::ToHost => matches!(place, Gpu | Pinned | Host),
        Stream::DiskRead | Stream::DiskWrite => matches!(place, Pinned | Host | Disk),
    }
}
