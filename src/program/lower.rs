//! From a step to a program: when buffers live, which stream waits for which, and how moves become copies.

mod events;
mod moves;

use std::collections::{BTreeMap, BTreeSet};

use super::{Buffer, BufferId, Instr, Program, Span, alignment};
use crate::error::Result;
use crate::graph::op::transfer::MOVE;
use crate::graph::tensor::{First, Role, Storage, StorageId, TensorId, Type};
use crate::graph::{Node, Step, Stream, When};
use crate::spec::job::{Backend, PerPlace, Place};
use crate::spec::units::Bytes;
use events::{Clock, Draft, Point, number_events};
use moves::{Ring, last_stream, tile};

/// Who touched a buffer since it was allocated, last per stream.
#[derive(Debug, Clone, Default)]
struct Uses {
    writer: Option<Point>,
    /// The last reader in each stream; zero for none.
    readers: Clock,
}

/// Lowers `step` for `backend`; `shared` are the set's shared storages, which come first among its buffers. Offsets are left at zero.
///
/// # Errors
/// Where a move joins places no copy joins.
pub fn lower(when: When, step: Step, shared: &[Storage], backend: Backend) -> Result<Program> {
    let mut lowering = Lowering::new(&step, shared, backend);
    for index in 0..step.nodes.len() {
        lowering.node(index)?;
    }
    lowering.finish();
    let (code, events) = number_events(lowering.draft, &lowering.buffers);
    let buffers = lowering.buffers;
    Ok(Program {
        when,
        backend,
        buffers,
        code,
        events,
        step,
        load: PerPlace::default(),
        height: PerPlace::default(),
    })
}

/// The state of one lowering.
struct Lowering<'a> {
    step: &'a Step,
    backend: Backend,
    buffers: Vec<Buffer>,
    /// The buffer of each storage, once it has one.
    of: Vec<Option<BufferId>>,
    /// The last node that uses each storage, and its stream.
    last: Vec<Option<(usize, Stream)>>,
    uses: Vec<Uses>,
    draft: Vec<Draft>,
    /// Instructions queued so far in each stream.
    queued: Clock,
    /// What each stream knows of the others.
    known: [Clock; Stream::ALL.len()],
    /// What each stream knew after each of its instructions.
    history: [Vec<Clock>; Stream::ALL.len()],
    rings: BTreeMap<Stream, Ring>,
    /// Bytes of a staging slot.
    tile: u64,
}

impl<'a> Lowering<'a> {
    fn new(step: &'a Step, shared: &[Storage], backend: Backend) -> Lowering<'a> {
        let mut lowering = Lowering {
            step,
            backend,
            buffers: Vec::new(),
            of: vec![None; step.storages.len()],
            last: last_uses(step),
            uses: Vec::new(),
            draft: Vec::new(),
            queued: Clock::default(),
            known: Default::default(),
            history: Default::default(),
            rings: BTreeMap::new(),
            tile: tile(step),
        };
        let own = step.storages.iter().enumerate().filter(|(_, s)| s.shared);
        let own: BTreeMap<&str, usize> = own.map(|(at, s)| (&*s.name, at)).collect();
        for storage in shared {
            let id = own.get(&*storage.name);
            let id = id.map(|&at| StorageId(at as u32));
            let buffer = lowering.add(storage, id, Stream::Compute);
            if let Some(id) = id {
                lowering.of[id.0 as usize] = Some(buffer);
            }
        }
        lowering
    }

    /// A buffer for `storage`.
    fn add(&mut self, storage: &Storage, id: Option<StorageId>, home: Stream) -> BufferId {
        let Storage {
            name,
            bytes,
            place,
            role,
            shared,
            ..
        } = storage.clone();
        let taken = Bytes(bytes.0.max(1)).round_up(alignment(place));
        let offset = Bytes::ZERO;
        self.buffers.push(Buffer {
            name,
            storage: id,
            place,
            home,
            role,
            exact: bytes,
            bytes: taken,
            offset,
            shared,
        });
        self.uses.push(Uses::default());
        BufferId(self.buffers.len() as u32 - 1)
    }

    /// One node: buffers for what it makes, waits for what it needs, the launch or copies, and frees of what ends with it.
    fn node(&mut self, index: usize) -> Result<()> {
        let step = self.step;
        let node = &step.nodes[index];
        for output in &node.outputs {
            self.ensure(step.tensor(*output).storage);
        }
        match node.op.name() {
            MOVE => self.moved(index, node)?,
            _ => self.launch(index, node),
        }
        let mut seen = BTreeSet::new();
        for value in node.inputs.iter().chain(&node.outputs) {
            let storage = step.tensor(*value).storage;
            let ends = self.last[storage.0 as usize].is_some_and(|(last, _)| last == index);
            if ends && !step.storage(storage).shared && seen.insert(storage) {
                self.free(self.buffer_of(*value));
            }
        }
        Ok(())
    }

    /// Allocates the buffer of `storage` at its first use.
    fn ensure(&mut self, storage: StorageId) {
        if self.of[storage.0 as usize].is_none() {
            let what = self.step.storage(storage);
            // Device memory follows the kernels; elsewhere the last to use the bytes says when they are free.
            let home = match (what.place, self.last[storage.0 as usize]) {
                (Place::Gpu, _) | (_, None) => Stream::Compute,
                (_, Some((last, stream))) => last_stream(self.step, last, stream, storage),
            };
            let id = self.add(what, Some(storage), home);
            self.of[storage.0 as usize] = Some(id);
            self.alloc(id);
        }
    }

    /// Hands a buffer out: a point in its home's queue, after which others may touch it.
    fn alloc(&mut self, id: BufferId) {
        let home = self.buffers[id.0 as usize].home;
        let point = self.queue(Instr::Alloc(id), home);
        self.uses[id.0 as usize].writer = Some(point);
    }

    fn free(&mut self, id: BufferId) {
        let home = self.buffers[id.0 as usize].home;
        let uses = std::mem::take(&mut self.uses[id.0 as usize]);
        for point in uses.all() {
            self.wait(home, point);
        }
        self.draft.push(Draft::Plain(Instr::Free(id)));
    }

    fn buffer_of(&self, value: TensorId) -> BufferId {
        let storage = self.step.tensor(value).storage;
        self.of[storage.0 as usize].unwrap_or_else(|| {
            panic!(
                "{} is read before it is made",
                self.step.storage(storage).name
            )
        })
    }

    fn launch(&mut self, index: usize, node: &Node) {
        let types: Vec<Type> = node
            .inputs
            .iter()
            .map(|&i| self.step.type_of(i).clone())
            .collect();
        let scratch = node.op.scratch(&types, backend_of(node, self.backend));
        let scratch = (scratch > Bytes::ZERO).then(|| self.scratch(node, scratch));
        let stream = node.stream;
        for value in &node.inputs {
            self.before_read(stream, self.buffer_of(*value));
        }
        for value in &node.outputs {
            self.before_write(stream, self.buffer_of(*value));
        }
        let point = self.queue(
            Instr::Launch {
                node: index as u32,
                scratch,
                stream,
            },
            stream,
        );
        for value in &node.inputs {
            self.read(self.buffer_of(*value), point);
        }
        for value in &node.outputs {
            self.written(self.buffer_of(*value), point);
        }
        if let Some(scratch) = scratch {
            self.written(scratch, point);
            self.free(scratch);
        }
    }

    /// Scratch for one call: on the device for its kernels, on the host for the host's.
    fn scratch(&mut self, node: &Node, bytes: Bytes) -> BufferId {
        let place = if node.stream == Stream::Compute {
            Place::Gpu
        } else {
            Place::Host
        };
        let name = format!("{}.scratch", node.origin).into();
        let id = self.add(
            &Storage {
                name,
                bytes,
                place,
                role: Role::Temporary,
                shared: false,
                first: First::Zero,
            },
            None,
            node.stream,
        );
        self.alloc(id);
        id
    }

    fn span(&self, value: TensorId) -> Span {
        let tensor = self.step.tensor(value);
        Span {
            buffer: self.buffer_of(value),
            offset: Bytes(tensor.offset),
            bytes: tensor.at.bytes(),
        }
    }

    fn place(&self, span: Span) -> Place {
        self.buffers[span.buffer.0 as usize].place
    }

    fn queue(&mut self, instr: Instr, stream: Stream) -> Point {
        self.draft.push(Draft::Plain(instr));
        self.queued[stream as usize] += 1;
        let done = self.queued[stream as usize];
        self.known[stream as usize][stream as usize] = done;
        self.history[stream as usize].push(self.known[stream as usize]);
        Point { stream, done }
    }

    fn before_read(&mut self, stream: Stream, id: BufferId) {
        if let Some(point) = self.uses[id.0 as usize].writer {
            self.wait(stream, point);
        }
    }

    fn before_write(&mut self, stream: Stream, id: BufferId) {
        for point in self.uses[id.0 as usize].all() {
            self.wait(stream, point);
        }
    }

    fn read(&mut self, id: BufferId, point: Point) {
        self.uses[id.0 as usize].readers[point.stream as usize] = point.done;
    }

    fn written(&mut self, id: BufferId, point: Point) {
        let uses = &mut self.uses[id.0 as usize];
        uses.readers = Clock::default();
        uses.writer = Some(point);
    }

    /// Makes `stream` wait for `point`, unless it knows already.
    fn wait(&mut self, stream: Stream, point: Point) {
        let known = self.known[stream as usize][point.stream as usize];
        if stream == point.stream || known >= point.done {
            return;
        }
        self.draft.push(Draft::Wait(stream, point));
        let theirs = self.history[point.stream as usize][point.done as usize - 1];
        for (mine, theirs) in self.known[stream as usize].iter_mut().zip(theirs) {
            *mine = theirs.max(*mine);
        }
    }

    /// Frees the rings and lets Compute wait for every stream: nothing is in flight at the end.
    fn finish(&mut self) {
        for (_, ring) in std::mem::take(&mut self.rings) {
            ring.slots.into_iter().for_each(|id| self.free(id));
        }
        for stream in Stream::ALL {
            let done = self.queued[stream as usize];
            if done > 0 {
                self.wait(Stream::Compute, Point { stream, done });
            }
        }
    }
}

/// Whose kernels run a node: on the host of a GPU, those of one of its threads.
fn backend_of(node: &Node, backend: Backend) -> Backend {
    match (node.stream, backend) {
        (Stream::Compute, _) | (_, Backend::Cpu { .. }) => backend,
        (_, Backend::Cuda { .. }) => Backend::Cpu { threads: 1 },
    }
}

impl Uses {
    fn all(&self) -> impl Iterator<Item = Point> + use<> {
        let readers = Stream::ALL.into_iter().zip(self.readers);
        let readers = readers.map(|(stream, done)| Point { stream, done });
        self.writer
            .into_iter()
            .chain(readers)
            .filter(|p| p.done > 0)
    }
}

/// The last node to use each storage.
fn last_uses(step: &Step) -> Vec<Option<(usize, Stream)>> {
    let mut last = vec![None; step.storages.len()];
    for (index, node) in step.nodes.iter().enumerate() {
        for value in node.inputs.iter().chain(&node.outputs) {
            last[step.tensor(*value).storage.0 as usize] = Some((index, node.stream));
        }
    }
    last
}
