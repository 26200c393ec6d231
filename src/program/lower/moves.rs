//! Moves as copies: directly where a stream joins the two places, else in tiles through a ring of staging slots.

use super::{Lowering, Storage};
use crate::error::{Error, Result};
use crate::graph::op::transfer::MOVE;
use crate::graph::tensor::{First, Role, StorageId};
use crate::graph::{Node, Step, Stream};
use crate::program::{BufferId, Instr, Span, alignment};
use crate::spec::job::Place;
use crate::spec::units::Bytes;

/// Bounds of the pieces in which moves go through a staging ring, in bytes: an eighth of the largest move, within these.
const TILE: (u64, u64) = (64 << 10, 64 << 20);

/// Slots of a staging ring: while one is filled and one drained, two wait.
const SLOTS: usize = 4;

/// Staging slots used in turn.
pub(super) struct Ring {
    pub slots: Vec<BufferId>,
    next: usize,
}

impl Lowering<'_> {
    /// A move as copies: directly where a stream joins the two places, else through a staging ring in tiles.
    pub(super) fn moved(&mut self, index: usize, node: &Node) -> Result<()> {
        let (from, to) = (self.span(node.inputs[0]), self.span(node.outputs[0]));
        let places = (self.place(from), self.place(to));
        if let Some(stream) = direct(places) {
            self.copy(index, from, to, stream);
            return Ok(());
        }
        let Some((first, second)) = staged(places) else {
            let (a, b) = places;
            return Err(Error::shape(MOVE, format!("nothing copies {a:?} to {b:?}")));
        };
        for at in (0..from.bytes.0).step_by(self.tile as usize) {
            let bytes = Bytes(self.tile.min(from.bytes.0 - at));
            let slot = Span {
                buffer: self.slot(first, second, bytes),
                offset: Bytes::ZERO,
                bytes,
            };
            self.copy(index, piece(from, at, bytes), slot, first);
            self.copy(index, slot, piece(to, at, bytes), second);
        }
        Ok(())
    }

    fn copy(&mut self, node: usize, from: Span, to: Span, stream: Stream) {
        self.before_read(stream, from.buffer);
        self.before_write(stream, to.buffer);
        let point = self.queue(
            Instr::Copy {
                from,
                to,
                stream,
                node: node as u32,
            },
            stream,
        );
        self.read(from.buffer, point);
        self.written(to.buffer, point);
    }

    /// The next slot of the ring that `first` fills and `second` drains, for a piece of `bytes`.
    ///
    /// A ring has no slot before it is needed, and no slot is larger than the largest piece it ever holds: the plan's
    /// bytes are those the machine touches.
    fn slot(&mut self, first: Stream, second: Stream, bytes: Bytes) -> BufferId {
        let taken = self.rings.get(&first).map_or(0, |ring| ring.slots.len());
        if taken < SLOTS {
            let slot = Storage {
                name: format!("staging/{first:?}.{taken}").into(),
                bytes,
                place: Place::Pinned,
                role: Role::Temporary,
                shared: false,
                first: First::Zero,
            };
            let id = self.add(&slot, None, second);
            self.alloc(id);
            let empty = || Ring {
                slots: Vec::new(),
                next: 0,
            };
            let ring = self.rings.entry(first).or_insert_with(empty);
            ring.slots.push(id);
        }
        let ring = self
            .rings
            .get_mut(&first)
            .unwrap_or_else(|| panic!("the ring of {first:?} was just made"));
        ring.next += 1;
        let id = ring.slots[(ring.next - 1) % SLOTS];
        let buffer = &mut self.buffers[id.0 as usize];
        buffer.exact = buffer.exact.max(bytes);
        buffer.bytes = buffer.exact.round_up(alignment(Place::Pinned));
        id
    }
}

/// Bytes of a staging slot: enough for few pieces, small beside what is moved.
pub(super) fn tile(step: &Step) -> u64 {
    let moves = step.nodes.iter().filter(|n| n.op.name() == MOVE);
    let largest = moves
        .map(|n| step.type_of(n.inputs[0]).bytes().0)
        .max()
        .unwrap_or(0);
    (largest / 8).next_multiple_of(4096).clamp(TILE.0, TILE.1)
}

/// The stream that copies between two places directly.
fn direct(places: (Place, Place)) -> Option<Stream> {
    use Place::{Disk, Gpu, Host, Pinned};
    match places {
        (Gpu, Gpu) => Some(Stream::Compute),
        (Gpu, Pinned | Host) => Some(Stream::ToHost),
        (Pinned | Host, Gpu) => Some(Stream::ToDevice),
        (Pinned | Host, Pinned | Host) => Some(Stream::HostCompute),
        (Pinned | Host, Disk) => Some(Stream::DiskWrite),
        (Disk, Pinned | Host) => Some(Stream::DiskRead),
        _ => None,
    }
}

/// The streams that copy between two places by way of pinned memory.
fn staged(places: (Place, Place)) -> Option<(Stream, Stream)> {
    match places {
        (Place::Gpu, Place::Disk) => Some((Stream::ToHost, Stream::DiskWrite)),
        (Place::Disk, Place::Gpu) => Some((Stream::DiskRead, Stream::ToDevice)),
        _ => None,
    }
}

/// Where a move begins and ends.
fn places(step: &Step, node: &Node) -> (Place, Place) {
    let place = |value| step.storage_of(value).place;
    (place(node.inputs[0]), place(node.outputs[0]))
}

fn piece(span: Span, at: u64, bytes: Bytes) -> Span {
    Span {
        buffer: span.buffer,
        offset: span.offset + Bytes(at),
        bytes,
    }
}

/// The stream in which node `last` really uses `storage`: for a move, that of the copy at its end.
pub(super) fn last_stream(step: &Step, last: usize, stream: Stream, storage: StorageId) -> Stream {
    let node = &step.nodes[last];
    if node.op.name() != MOVE {
        return stream;
    }
    let reads = step.tensor(node.inputs[0]).storage == storage;
    let places = places(step, node);
    match (direct(places), staged(places)) {
        (Some(stream), _) => stream,
        (None, Some((first, second))) => {
            if reads {
                first
            } else {
                second
            }
        }
        (None, None) => stream,
    }
}
