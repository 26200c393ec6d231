//! What is computed: ops, the step they form, and its derivative.

pub mod backward;
pub mod build;
pub mod edit;
pub mod op;
pub mod order;
pub mod pace;
pub mod random;
pub mod reach;
pub mod tangent;
pub mod tensor;

use std::collections::HashMap;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::spec::job::Place;
use op::{Op, Output};
use pace::Paces;
use tensor::{First, Name, Role, Storage, StorageId, Tensor, TensorId, Type};

/// Which part of the step a node belongs to.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Filling persistent storages before the first step.
    Load,
    /// The forward pass.
    Forward,
    /// Forward nodes run again for the backward pass.
    Recompute,
    /// The backward pass.
    Backward,
    /// Optimizer updates.
    Update,
    /// Copying persistent storages out.
    Save,
}

impl Phase {
    /// Whether it comes after the forward pass: what it reads of the forward pass was kept for it.
    pub fn is_later(self) -> bool {
        matches!(self, Phase::Recompute | Phase::Backward | Phase::Update)
    }
}

/// A queue that runs its nodes in order, beside the other queues.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    /// The device's kernels.
    Compute,
    /// Updates on the host.
    HostCompute,
    /// Copies host to device.
    ToDevice,
    /// Copies device to host.
    ToHost,
    /// Reads from disk.
    DiskRead,
    /// Writes to disk.
    DiskWrite,
}

impl Stream {
    /// All streams, Compute first.
    pub const ALL: [Stream; 6] = [
        Stream::Compute,
        Stream::HostCompute,
        Stream::ToDevice,
        Stream::ToHost,
        Stream::DiskRead,
        Stream::DiskWrite,
    ];
}

/// How often a program of a set runs.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum When {
    /// Once per optimizer step: the whole step, or its last micro-batch with the update.
    Steady,
    /// In place of the steady program at every so many-th step, the first included: it also renews what updates project with.
    Every(u32),
    /// Ahead of every so many-th step, the first included: it renews what updates project with, and updates nothing.
    Renew(u32),
    /// The first micro-batch of a step, which starts the gradients.
    First,
    /// `times` micro-batches per step between the first and the last.
    Micro {
        /// How many.
        times: u32,
    },
    /// Before the first step.
    Start,
    /// When asked for: optimizer states to their first values.
    Restart,
    /// When asked for: held-out loss.
    Evaluate,
    /// When asked for: persistent storages out to files.
    Save,
}

/// One call of an op.
#[derive(Debug, Clone)]
pub struct Node {
    /// The op.
    pub op: Arc<dyn Op>,
    /// Values it reads.
    pub inputs: Vec<TensorId>,
    /// Values it makes.
    pub outputs: Vec<TensorId>,
    /// Stable path of the forward node it stems from; clones keep it, so random draws repeat.
    pub origin: Name,
    /// Its part of the step.
    pub phase: Phase,
    /// The block it belongs to, as a path: `embedding`, `layers.3`, `head`.
    pub block: Name,
    /// The queue it runs in.
    pub stream: Stream,
}

/// Where and when a node stands; what [`Step::emit`] needs beside op and inputs.
#[derive(Debug, Clone)]
pub struct Spot {
    /// Stable path of the node.
    pub origin: Name,
    /// Part of the step.
    pub phase: Phase,
    /// Block path.
    pub block: Name,
    /// Queue.
    pub stream: Stream,
}

impl Spot {
    /// A compute node of `phase` at `block`/`leaf`.
    pub fn compute(phase: Phase, block: &str, leaf: &str) -> Spot {
        Spot {
            origin: format!("{block}/{leaf}").into(),
            phase,
            block: block.into(),
            stream: Stream::Compute,
        }
    }
}

/// One program's worth of computation: storages, values, and nodes in issue order.
#[derive(Debug, Clone, Default)]
pub struct Step {
    /// All storages, by id.
    pub storages: Vec<Storage>,
    /// All values, by id.
    pub tensors: Vec<Tensor>,
    /// The nodes, in issue order.
    pub nodes: Vec<Node>,
    /// The storages that were added to outlast the step, by name.
    lasting: HashMap<Name, StorageId>,
}

impl Step {
    /// The value behind an id.
    pub fn tensor(&self, id: TensorId) -> &Tensor {
        &self.tensors[id.0 as usize]
    }

    /// The storage behind an id.
    pub fn storage(&self, id: StorageId) -> &Storage {
        &self.storages[id.0 as usize]
    }

    /// The storage a value lives in.
    pub fn storage_of(&self, id: TensorId) -> &Storage {
        self.storage(self.tensor(id).storage)
    }

    /// The type of a value.
    pub fn type_of(&self, id: TensorId) -> &Type {
        &self.tensor(id).at
    }

    /// A new storage of exactly `bytes`.
    pub fn add_storage(&mut self, storage: Storage) -> StorageId {
        let id = StorageId(self.storages.len() as u32);
        if storage.shared {
            self.lasting.entry(storage.name.clone()).or_insert(id);
        }
        self.storages.push(storage);
        id
    }

    /// A value that fills `storage` from its start, at its newest version as given.
    pub fn add_tensor(&mut self, storage: StorageId, at: Type, version: u32) -> TensorId {
        self.tensors.push(Tensor {
            storage,
            at,
            offset: 0,
            version,
        });
        TensorId(self.tensors.len() as u32 - 1)
    }

    /// A storage alive across programs and its value on entry; it starts as the model has it.
    pub fn persistent(&mut self, name: &str, at: Type, place: Place, role: Role) -> TensorId {
        self.persistent_as(name, at, place, role, First::Model)
    }

    /// A storage alive across programs and its value on entry, and what it starts as.
    pub fn persistent_as(
        &mut self,
        name: &str,
        at: Type,
        place: Place,
        role: Role,
        first: First,
    ) -> TensorId {
        let storage = Storage {
            name: name.into(),
            bytes: at.bytes(),
            place,
            role,
            shared: true,
            first,
        };
        let id = self.add_storage(storage);
        self.add_tensor(id, at, 0)
    }

    /// The shared storage called `name`, if this step has it.
    pub fn shared(&self, name: &str) -> Option<StorageId> {
        let id = *self.lasting.get(name)?;
        self.storage(id).shared.then_some(id)
    }

    /// The value on entry of the shared storage called `name`, if this step has it.
    pub fn entering(&self, name: &str) -> Option<TensorId> {
        let storage = self.shared(name)?;
        let whole = |t: &Tensor| t.storage == storage && t.version == 0 && t.offset == 0;
        Some(TensorId(self.tensors.iter().position(whole)? as u32))
    }

    /// Appends a node; fresh outputs become storages on the device with `role`.
    ///
    /// # Errors
    /// Where the op is not defined on these inputs.
    pub fn emit(
        &mut self,
        op: Arc<dyn Op>,
        inputs: &[TensorId],
        spot: Spot,
        role: Role,
    ) -> Result<Vec<TensorId>> {
        let node = self.node(op, inputs, spot, role, Place::Gpu)?;
        let outputs = node.outputs.clone();
        self.nodes.push(node);
        Ok(outputs)
    }

    /// A node with its output values made, not yet placed in the order; fresh outputs live in `place`.
    ///
    /// # Errors
    /// Where the op is not defined on these inputs.
    pub fn node(
        &mut self,
        op: Arc<dyn Op>,
        inputs: &[TensorId],
        spot: Spot,
        role: Role,
        place: Place,
    ) -> Result<Node> {
        let types: Vec<Type> = inputs.iter().map(|&i| self.type_of(i).clone()).collect();
        let mut outputs = Vec::new();
        for (index, output) in op.outputs(&types)?.into_iter().enumerate() {
            outputs.push(match output {
                Output::Fresh(at) => {
                    let name = if index == 0 {
                        spot.origin.clone()
                    } else {
                        format!("{}.{index}", spot.origin).into()
                    };
                    let storage = Storage {
                        name,
                        bytes: at.bytes(),
                        place,
                        role,
                        shared: false,
                        first: First::Zero,
                    };
                    let storage = self.add_storage(storage);
                    self.add_tensor(storage, at, 0)
                }
                Output::Overwrite { of } => self.overwritten(op.name(), inputs, of)?,
            });
        }
        let Spot {
            origin,
            phase,
            block,
            stream,
        } = spot;
        Ok(Node {
            op,
            inputs: inputs.to_vec(),
            outputs,
            origin,
            phase,
            block,
            stream,
        })
    }

    /// The next version of input `of`.
    fn overwritten(
        &mut self,
        op: &'static str,
        inputs: &[TensorId],
        of: usize,
    ) -> Result<TensorId> {
        let old = inputs
            .get(of)
            .ok_or_else(|| Error::shape(op, format!("overwrites input {of}, which it has not")))?;
        Ok(self.next_version(*old))
    }

    /// What stands in the storage of `value` once it is overwritten.
    fn next_version(&mut self, value: TensorId) -> TensorId {
        let mut next = self.tensor(value).clone();
        next.version += 1;
        self.tensors.push(next);
        TensorId(self.tensors.len() as u32 - 1)
    }

    /// Lets `node` read `value` as its input `index`. What it overwrote there it overwrites in `value`'s storage then: the answer
    /// is that output as it was and as it is.
    pub fn redirect(
        &mut self,
        node: &mut Node,
        index: usize,
        value: TensorId,
    ) -> Option<(TensorId, TensorId)> {
        let over = self.overwrites(node).iter().position(|&o| o == Some(index));
        node.inputs[index] = value;
        let output = over?;
        let made = self.next_version(value);
        Some((std::mem::replace(&mut node.outputs[output], made), made))
    }

    /// The aliases of a node: for each output, the input it overwrites.
    pub fn overwrites(&self, node: &Node) -> Vec<Option<usize>> {
        let place = |output: &TensorId| {
            let made = self.tensor(*output);
            node.inputs.iter().position(|&i| {
                self.tensor(i).storage == made.storage && self.tensor(i).version + 1 == made.version
            })
        };
        node.outputs.iter().map(place).collect()
    }
}

/// The programs of one plan, before lowering. Shared storages are identified by name across them.
#[derive(Debug, Clone, Default)]
pub struct StepSet {
    /// Each step and how often it runs.
    pub steps: Vec<(When, Step)>,
    /// How copies run.
    pub paces: Paces,
}

impl StepSet {
    /// All shared storages of the set, in order of first appearance.
    pub fn shared(&self) -> Vec<Storage> {
        let mut seen = std::collections::BTreeSet::new();
        let all = self.steps.iter().flat_map(|(_, step)| &step.storages);
        all.filter(|s| s.shared && seen.insert(s.name.clone()))
            .cloned()
            .collect()
    }
}
