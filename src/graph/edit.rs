//! Rewriting a forward pass: nodes put between others, values that stand for others, and all types found again.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::op::{Op, Output};
use super::tensor::{First, Role, TensorId, Type};
use super::{Node, Spot, Step};
use crate::error::Result;
use crate::spec::job::Place;

/// A step being rewritten: what stands in it so far, and which values stand for earlier ones.
#[derive(Debug)]
pub struct Edit<'a> {
    step: &'a mut Step,
    /// The value that readers from here on are given in place of another.
    instead: BTreeMap<TensorId, TensorId>,
}

/// Rewrites `step` node by node in issue order: `each` gets every node and keeps it, or puts others around it or in its place.
///
/// # Errors
/// The first of `each`; the step is then without its later nodes.
pub fn rewrite(step: &mut Step, mut each: impl FnMut(&mut Edit, Node) -> Result<()>) -> Result<()> {
    let nodes = std::mem::take(&mut step.nodes);
    let mut edit = Edit {
        step,
        instead: BTreeMap::new(),
    };
    for mut node in nodes {
        for input in &mut node.inputs {
            *input = edit.now(*input);
        }
        each(&mut edit, node)?;
    }
    Ok(())
}

impl Edit<'_> {
    /// The step so far.
    pub fn step(&self) -> &Step {
        self.step
    }

    /// The type of a value.
    pub fn type_of(&self, value: TensorId) -> Type {
        self.step.type_of(value).clone()
    }

    /// What stands for `value` by now.
    pub fn now(&self, value: TensorId) -> TensorId {
        let mut value = value;
        while let Some(&next) = self.instead.get(&value) {
            value = next;
        }
        value
    }

    /// Lets every later node read `new` where it read `old`.
    pub fn replace(&mut self, old: TensorId, new: TensorId) {
        self.instead.insert(old, new);
    }

    /// A parameter that the rewrite adds.
    pub fn parameter(&mut self, name: &str, at: Type, first: First) -> TensorId {
        self.step
            .persistent_as(name, at, Place::Gpu, Role::Parameter, first)
    }

    /// A state that updates keep and the rewrite reads: zero bytes before the first step.
    pub fn state(&mut self, name: &str, at: Type) -> TensorId {
        let (place, role) = (Place::Gpu, Role::OptimizerState);
        self.step.persistent_as(name, at, place, role, First::Zero)
    }

    /// Turns a persistent value that nobody has overwritten into another of the same storage.
    pub fn recast(&mut self, value: TensorId, name: &str, at: Type, first: First) {
        let storage = self.step.tensor(value).storage;
        let storage = &mut self.step.storages[storage.0 as usize];
        storage.name = name.into();
        storage.bytes = at.bytes();
        storage.first = first;
        self.step.tensors[value.0 as usize].at = at;
    }

    /// Puts a new node here, at `block`/`leaf` of the forward pass; fresh outputs are activations.
    ///
    /// # Errors
    /// Where the op is not defined on these inputs.
    pub fn emit(
        &mut self,
        op: impl Op + 'static,
        inputs: &[TensorId],
        spot: Spot,
    ) -> Result<TensorId> {
        let made = self
            .step
            .emit(Arc::new(op), inputs, spot, Role::Activation)?;
        Ok(made[0])
    }

    /// Keeps `node` here, its outputs as its inputs now have it: types and storages are found again.
    ///
    /// # Errors
    /// Where its op is not defined on these inputs.
    pub fn keep(&mut self, node: Node) -> Result<()> {
        let types: Vec<Type> = node.inputs.iter().map(|&i| self.type_of(i)).collect();
        for (output, &id) in node.op.outputs(&types)?.into_iter().zip(&node.outputs) {
            match output {
                Output::Fresh(at) => {
                    let storage = self.step.tensor(id).storage;
                    self.step.storages[storage.0 as usize].bytes = at.bytes();
                    self.step.tensors[id.0 as usize].at = at;
                }
                Output::Overwrite { of } => {
                    let mut next = self.step.tensor(node.inputs[of]).clone();
                    next.version += 1;
                    self.step.tensors[id.0 as usize] = next;
                }
            }
        }
        self.step.nodes.push(node);
        Ok(())
    }
}
