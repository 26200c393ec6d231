//! Bringing values to where they are used: a node whose stream cannot touch an input's place gets a copy that it can.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::op::transfer::{MOVE, Move, SETTLE, Settle};
use super::pace::{Pace, Paces};
use super::tensor::{Name, StorageId, TensorId};
use super::{Node, Spot, Step, Stream};
use crate::error::Result;
use crate::spec::job::Place;

/// Inserts the fetches and write-backs that `step` needs: inputs that lie elsewhere are fetched some units ahead,
/// once per unit; what is overwritten is written back at once where it is kept or read again.
///
/// # Errors
/// Where a move cannot be typed.
pub fn bring(step: &mut Step, paces: &Paces) -> Result<()> {
    let mut read = vec![false; step.tensors.len()];
    for input in step.nodes.iter().flat_map(|n| &n.inputs) {
        read[input.0 as usize] = true;
    }
    let mut bringer = Bringer {
        clocks: paces.clocks(step),
        step,
        read,
        paces,
        fetched: BTreeMap::new(),
        made: BTreeMap::new(),
        insert: BTreeMap::new(),
    };
    let nodes = std::mem::take(&mut bringer.step.nodes);
    let mut rewritten = Vec::with_capacity(nodes.len());
    for (index, node) in nodes.into_iter().enumerate() {
        rewritten.push(bringer.node(index, node)?);
    }
    let mut insert = bringer.insert.into_iter().peekable();
    for (index, node) in rewritten.into_iter().enumerate() {
        while let Some((_, ahead)) = insert.next_if(|(at, _)| *at == (index, false)) {
            step.nodes.extend(ahead);
        }
        step.nodes.push(node);
        while let Some((_, behind)) = insert.next_if(|(at, _)| *at == (index, true)) {
            step.nodes.extend(behind);
        }
    }
    Ok(())
}

/// Lets device bytes that are copied out stay alive for some units more, so that the compute stream does not wait for the copy at once.
pub fn settle(step: &mut Step, paces: &Paces) {
    if step.nodes.iter().all(|node| node.op.name() != MOVE) {
        return;
    }
    let clocks = paces.clocks(step);
    let mut last = vec![0; step.storages.len()];
    for (index, node) in step.nodes.iter().enumerate() {
        for &value in node.inputs.iter().chain(&node.outputs) {
            last[step.tensor(value).storage.0 as usize] = index;
        }
    }
    let leaves = |node: &Node, at: usize| {
        let storage = step.tensor(node.inputs[0]).storage;
        let from = step.storage(storage);
        from.place == Place::Gpu && !from.shared && last[storage.0 as usize] < at
    };
    let mut insert: BTreeMap<usize, Vec<Node>> = BTreeMap::new();
    for (index, node) in step.nodes.iter().enumerate() {
        if node.op.name() != MOVE {
            continue;
        }
        // What comes home is known by where it goes.
        let named = node.inputs.last().map(|&value| step.storage_of(value));
        let pace = named.map_or(paces.others, |storage| paces.of(storage));
        let units = &clocks[pace.clock];
        let at = units.partition_point(|&u| u < units[index] + 1 + pace.lag);
        if leaves(node, at) {
            let origin: Name = format!("{}.settle", node.origin).into();
            insert.entry(at).or_default().push(Node {
                op: Arc::new(Settle),
                inputs: vec![node.inputs[0]],
                outputs: Vec::new(),
                origin,
                phase: node.phase,
                block: node.block.clone(),
                stream: Stream::Compute,
            });
        }
    }
    let mut insert = insert.into_iter().peekable();
    for (index, node) in std::mem::take(&mut step.nodes).into_iter().enumerate() {
        while let Some((_, settles)) = insert.next_if(|(at, _)| *at == index) {
            step.nodes.extend(settles);
        }
        step.nodes.push(node);
    }
    step.nodes.extend(insert.flat_map(|(_, settles)| settles));
}

/// Lets what the host does with a copy wait until the next copies are queued: where its memory is handed out in the host's own order, a
/// copy that is queued later begins later than the work before it ends.
pub fn stagger(step: &mut Step) {
    let mut waiting = Waiting::default();
    for node in std::mem::take(&mut step.nodes) {
        let moves = node.op.name() == MOVE;
        let copied = waiting.copied(step, &node);
        let joins = waiting.touches(step, &node);
        match node.stream {
            Stream::HostCompute if copied > 0 || !waiting.runs.is_empty() => {
                waiting.fresh.clear();
                waiting.runs.push_back((copied / 2, vec![node]));
            }
            _ if moves && joins => waiting.follow(node),
            Stream::ToHost if moves => {
                let copy = step.tensor(node.outputs[0]);
                let (storage, bytes) = (copy.storage, copy.at.bytes().0);
                step.nodes.push(node);
                waiting.fresh.insert(storage, bytes);
                step.nodes.extend(waiting.behind(bytes));
            }
            _ => {
                if joins {
                    step.nodes.extend(waiting.all());
                }
                step.nodes.push(node);
            }
        }
    }
    step.nodes.extend(waiting.all());
}

/// Work of the host that waits for copies to be queued.
#[derive(Default)]
struct Waiting {
    /// Bytes of copies to the host that were queued since its last work.
    fresh: BTreeMap<StorageId, u64>,
    /// Work with what follows from it, behind the bytes whose copies go first.
    runs: VecDeque<(u64, Vec<Node>)>,
}

impl Waiting {
    /// Bytes that `node` reads of fresh copies, where it is the host's.
    fn copied(&self, step: &Step, node: &Node) -> u64 {
        let read = |&input: &TensorId| self.fresh.get(&step.tensor(input).storage);
        match node.stream {
            Stream::HostCompute => node.inputs.iter().filter_map(read).sum(),
            _ => 0,
        }
    }

    /// Whether `node` uses what waiting work uses.
    fn touches(&self, step: &Step, node: &Node) -> bool {
        fn storages<'a>(step: &'a Step, node: &'a Node) -> impl Iterator<Item = StorageId> + 'a {
            let all = node.inputs.iter().chain(&node.outputs);
            all.map(|&value| step.tensor(value).storage)
        }
        let mut waiting = self.runs.iter().flat_map(|(_, nodes)| nodes);
        waiting.any(|waits| {
            let mut theirs = storages(step, waits);
            theirs.any(|their| storages(step, node).any(|own| own == their))
        })
    }

    /// Lets `node` follow from the last work that waits.
    fn follow(&mut self, node: Node) {
        if let Some((_, nodes)) = self.runs.back_mut() {
            nodes.push(node);
        }
    }

    /// What waits no more once copies of `bytes` were queued.
    fn behind(&mut self, bytes: u64) -> Vec<Node> {
        for (left, _) in &mut self.runs {
            *left = left.saturating_sub(bytes);
        }
        let free = self.runs.iter().take_while(|(left, _)| *left == 0).count();
        let free = self.runs.drain(..free);
        free.flat_map(|(_, nodes)| nodes).collect()
    }

    /// All that waits.
    fn all(&mut self) -> Vec<Node> {
        self.runs.drain(..).flat_map(|(_, nodes)| nodes).collect()
    }
}

/// Whether work queued in `stream` touches `place` directly.
pub fn touches(stream: Stream, place: Place) -> bool {
    match stream {
        Stream::HostCompute => matches!(place, Place::Pinned | Place::Host),
        _ => place == Place::Gpu,
    }
}

/// Where a stream's values live.
fn home(stream: Stream) -> Place {
    if stream == Stream::HostCompute {
        Place::Pinned
    } else {
        Place::Gpu
    }
}

struct Bringer<'a> {
    step: &'a mut Step,
    paces: &'a Paces,
    clocks: Vec<Vec<usize>>,
    /// Whether some node reads each value.
    read: Vec<bool>,
    /// The copy of a value for a unit and side.
    fetched: BTreeMap<(TensorId, usize, bool), TensorId>,
    /// The last node that wrote each storage, which a fetch must follow.
    made: BTreeMap<u32, usize>,
    /// Moves before (false) or after (true) a node.
    insert: BTreeMap<(usize, bool), Vec<Node>>,
}

impl Bringer<'_> {
    /// The node with its inputs within reach; moves are noted for insertion.
    fn node(&mut self, index: usize, mut node: Node) -> Result<Node> {
        let name = node.op.name();
        if name != MOVE && name != SETTLE {
            for input in 0..node.inputs.len() {
                let value = node.inputs[input];
                if touches(node.stream, self.step.storage_of(value).place) {
                    continue;
                }
                let own = self.step.overwrites(&node).contains(&Some(input));
                let copy = self.fetch(index, &node, value, own)?;
                if let Some((made, changed)) = self.step.redirect(&mut node, input, copy) {
                    self.write_back(index, &node, (value, made), changed);
                }
            }
        }
        for &output in &node.outputs {
            self.made.insert(self.step.tensor(output).storage.0, index);
        }
        Ok(node)
    }

    /// A copy of `value` where `node` can touch it, shared within its unit.
    fn fetch(&mut self, index: usize, node: &Node, value: TensorId, own: bool) -> Result<TensorId> {
        let unit = self.clocks[0][index];
        let on_host = node.stream == Stream::HostCompute;
        // Nobody reads what is overwritten any more: a copy that was read before will do for that too.
        let found = match own {
            true => self.fetched.remove(&(value, unit, on_host)),
            false => self.fetched.get(&(value, unit, on_host)).copied(),
        };
        if let Some(copy) = found {
            return Ok(copy);
        }
        let storage = self.step.tensor(value).storage;
        let Pace { lead, clock, .. } = self.paces.of(self.step.storage_of(value));
        let units = &self.clocks[clock];
        let first = units.partition_point(|&u| u + lead < units[index]);
        let after = self.made.get(&storage.0).map_or(0, |&made| made + 1);
        let at = if own && lead == 0 {
            index
        } else {
            first.max(after).min(index)
        };
        let place = home(node.stream);
        let from = self.step.storage_of(value).place;
        let role = self.step.storage_of(value).role;
        let spot = Spot {
            origin: format!("{}.fetch", self.step.storage_of(value).name).into(),
            phase: node.phase,
            block: node.block.clone(),
            stream: copy_stream(from, place),
        };
        let fetch = self
            .step
            .node(Arc::new(Move { into: false }), &[value], spot, role, place)?;
        let copy = fetch.outputs[0];
        self.insert.entry((at, false)).or_default().push(fetch);
        if !own {
            self.fetched.insert((value, unit, on_host), copy);
        }
        Ok(copy)
    }

    /// `node` makes `changed` of a copy of `value` now; a move brings it home over `value` as `made`, unless nobody looks there again.
    fn write_back(
        &mut self,
        index: usize,
        node: &Node,
        (value, made): (TensorId, TensorId),
        changed: TensorId,
    ) {
        self.made.insert(self.step.tensor(value).storage.0, index);
        if !self.step.storage_of(value).shared && !self.read[made.0 as usize] {
            return;
        }
        let (from, to) = (
            self.step.storage_of(changed).place,
            self.step.storage_of(value).place,
        );
        let origin: Name = format!("{}.write_back", self.step.storage_of(value).name).into();
        self.insert.entry((index, true)).or_default().push(Node {
            op: Arc::new(Move { into: true }),
            inputs: vec![changed, value],
            outputs: vec![made],
            origin,
            phase: node.phase,
            block: node.block.clone(),
            stream: copy_stream(from, to),
        });
    }
}

/// The stream a copy between two places counts towards: the one that ends it.
pub fn copy_stream(from: Place, to: Place) -> Stream {
    match (from, to) {
        (_, Place::Disk) => Stream::DiskWrite,
        (_, Place::Gpu) => Stream::ToDevice,
        (Place::Gpu, _) => Stream::ToHost,
        (Place::Disk, _) => Stream::DiskRead,
        _ => Stream::HostCompute,
    }
}
