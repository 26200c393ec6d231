//! What bytes hold: the newest version of each storage, what lies in staging slots, and which nodes are done.

use super::{Broken, Check, named};
use crate::graph::tensor::TensorId;
use crate::program::{BufferId, Program, Span};

/// How much of a node is done: bytes read and written of a move; all or nothing of others.
#[derive(Debug, Clone, Copy, Default)]
struct Progress {
    read: u64,
    written: u64,
    done: bool,
}

/// What a staging slot holds from its byte `at`: bytes `first..` of what node `node` moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Piece {
    node: usize,
    at: u64,
    first: u64,
    bytes: u64,
}

/// What all bytes hold at one position of the text.
pub(super) struct Contents<'a> {
    program: &'a Program,
    /// The buffer of each storage.
    buffers: Vec<Option<BufferId>>,
    /// Newest version of each storage; `None` before anything was written to it.
    versions: Vec<Option<u32>>,
    staged: Vec<Option<Piece>>,
    progress: Vec<Progress>,
}

impl<'a> Contents<'a> {
    /// Shared storages hold their first version, others nothing.
    pub fn new(program: &'a Program) -> Contents<'a> {
        let step = &program.step;
        let mut buffers = vec![None; step.storages.len()];
        for (index, buffer) in program.buffers.iter().enumerate() {
            if let Some(storage) = buffer.storage {
                buffers[storage.0 as usize] = Some(BufferId(index as u32));
            }
        }
        Contents {
            program,
            buffers,
            versions: (step.storages.iter().map(|s| s.shared.then_some(0))).collect(),
            staged: vec![None; program.buffers.len()],
            progress: vec![Progress::default(); step.nodes.len()],
        }
    }

    /// A fresh buffer holds nothing.
    pub fn clear(&mut self, id: BufferId) {
        self.staged[id.0 as usize] = None;
        if let Some(storage) = self.program.buffer(id).storage {
            self.versions[storage.0 as usize] = None;
        }
    }

    /// The buffer of a value, which has room for all of it.
    pub fn buffer_of(&self, value: TensorId) -> Check<BufferId> {
        let tensor = self.program.step.tensor(value);
        let name = || &self.program.step.storage(tensor.storage).name;
        let id = self.buffers[tensor.storage.0 as usize]
            .ok_or_else(|| Broken::new("missing buffer", format!("`{}` has none", name())))?;
        if tensor.offset + tensor.at.bytes().0 <= self.program.buffer(id).exact.0 {
            return Ok(id);
        }
        let why = format!("{} has no room for {}", named(self.program, id), tensor.at);
        Err(Broken::new("span", why))
    }

    /// A value is read only after it was made and before its bytes are overwritten.
    pub fn read(&self, value: TensorId) -> Check<()> {
        let tensor = self.program.step.tensor(value);
        let newest = self.versions[tensor.storage.0 as usize];
        if newest == Some(tensor.version) {
            return Ok(());
        }
        let name = &self.program.step.storage(tensor.storage).name;
        let held = newest.map_or("nothing".to_string(), |v| format!("version {v}"));
        let version = tensor.version;
        let why = format!("version {version} of `{name}` is read where it holds {held}");
        Err(Broken::new("stale value", why))
    }

    /// A value is made.
    pub fn make(&mut self, value: TensorId) {
        let tensor = self.program.step.tensor(value);
        self.versions[tensor.storage.0 as usize] = Some(tensor.version);
    }

    /// A node is done.
    pub fn finish(&mut self, node: usize) -> Check<()> {
        match std::mem::replace(&mut self.progress[node].done, true) {
            false => Ok(()),
            true => {
                let why = format!("`{}` runs twice", self.program.step.nodes[node].origin);
                Err(Broken::new("node", why))
            }
        }
    }

    /// Every node is done.
    pub fn end(&self) -> Check<()> {
        let Some(node) = self.progress.iter().position(|p| !p.done) else {
            return Ok(());
        };
        let name = &self.program.step.nodes[node].origin;
        let why = format!("`{name}` never runs to its end");
        Err(Broken::new("node", why))
    }

    /// One copy of the move `node`: the next bytes of its source, or of what a slot holds, to the next of its target, or to a slot.
    pub fn copy(&mut self, node: usize, from: Span, to: Span) -> Check<()> {
        for span in [from, to] {
            let end = span.offset.0.checked_add(span.bytes.0);
            let exact = self.program.buffer(span.buffer).exact.0;
            if end.is_none_or(|end| end > exact) || span.bytes != from.bytes {
                let why = format!("a copy leaves {}", named(self.program, span.buffer));
                return Err(Broken::new("span", why));
            }
        }
        let first = self.copied_from(node, from)?;
        self.copied_to(node, to, first)
    }

    /// The first byte of the moved value that `from` holds.
    fn copied_from(&mut self, index: usize, from: Span) -> Check<u64> {
        let node = &self.program.step.nodes[index];
        let source = self.program.step.tensor(node.inputs[0]);
        let Progress { read, written, .. } = self.progress[index];
        let piece = Piece {
            node: index,
            at: from.offset.0,
            first: written,
            bytes: from.bytes.0,
        };
        match self.program.buffer(from.buffer).storage {
            Some(s) if s == source.storage && from.offset.0 == source.offset + read => {
                self.read(node.inputs[0])?;
                self.progress[index].read += from.bytes.0;
                Ok(read)
            }
            None if self.staged[from.buffer.0 as usize] == Some(piece) => Ok(written),
            _ => {
                let name = named(self.program, from.buffer);
                let why = format!("{name} does not hold the next bytes of `{}`", node.origin);
                Err(Broken::new("stale value", why))
            }
        }
    }

    /// Bytes `first..` of the moved value arrive.
    fn copied_to(&mut self, index: usize, to: Span, first: u64) -> Check<()> {
        let node = &self.program.step.nodes[index];
        let target = self.program.step.tensor(node.outputs[0]);
        let written = &mut self.progress[index].written;
        match self.program.buffer(to.buffer).storage {
            Some(s)
                if s == target.storage
                    && to.offset.0 == target.offset + *written
                    && first == *written =>
            {
                *written += to.bytes.0;
                if *written < target.at.bytes().0 {
                    return Ok(());
                }
                self.make(node.outputs[0]);
                self.finish(index)
            }
            None => {
                self.staged[to.buffer.0 as usize] = Some(Piece {
                    node: index,
                    at: to.offset.0,
                    first,
                    bytes: to.bytes.0,
                });
                Ok(())
            }
            _ => {
                let name = named(self.program, to.buffer);
                let why = format!("{name} does not take the next bytes of `{}`", node.origin);
                Err(Broken::new("span", why))
            }
        }
    }
}
