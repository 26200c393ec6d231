//! The derivative of a step along one direction: each op's own rule, applied as the forward pass goes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::op::Op;
use super::op::elementwise::{Add, Zero};
use super::tensor::{Role, TensorId, Type};
use super::{Node, Phase, Spot, Step};
use crate::error::Result;

/// Which values move, and how: the tangent of each, of its value's type. What has none does not move.
#[derive(Debug, Clone, Default)]
pub struct Tangents {
    /// The tangent of each value that moves.
    of: BTreeMap<TensorId, TensorId>,
    /// Tangents made on the way that only one value has.
    owned: BTreeSet<TensorId>,
}

impl Tangents {
    /// Lets `value` move along `tangent`, which is only read.
    pub fn seed(&mut self, value: TensorId, tangent: TensorId) {
        self.of.insert(value, tangent);
    }

    /// The tangent of `value`, where it moves and its last reader has not written over it.
    pub fn of(&self, value: TensorId) -> Option<TensorId> {
        self.of.get(&value).copied()
    }
}

/// Puts the tangent of each forward node whose inputs move directly after it, so that neither its values nor their tangents
/// outlive the forward pass: forward-mode differentiation (Wengert 1964; Baydin et al. 2022, arXiv:2202.08587).
///
/// # Errors
/// Where an op has no derivative or emits an ill-typed node; the step is then without its later nodes.
pub fn push_forward(step: &mut Step, mut tangents: Tangents) -> Result<Tangents> {
    let nodes = std::mem::take(&mut step.nodes);
    let readers = nodes.iter().enumerate();
    let last = readers.flat_map(|(index, node)| node.inputs.iter().map(move |&i| (i, index)));
    let last: BTreeMap<TensorId, usize> = last.collect();
    for (index, node) in nodes.into_iter().enumerate() {
        step.nodes.push(node.clone());
        let moves = node.inputs.iter().any(|&i| tangents.of(i).is_some());
        if moves && node.phase == Phase::Forward {
            let op = node.op.clone();
            let ends = node.inputs.iter().map(|i| last.get(i) == Some(&index));
            op.tangent(&mut Tangent {
                ends: ends.collect(),
                step,
                node,
                tangents: &mut tangents,
            })?;
        }
    }
    Ok(tangents)
}

/// What an op's rule sees of its node: its values, the tangents of its inputs, and where to give those of its outputs.
///
/// Its nodes stand after the op's own: an input that the op overwrites can no longer be read.
pub struct Tangent<'a> {
    step: &'a mut Step,
    node: Node,
    tangents: &'a mut Tangents,
    /// Whether the node is the last to read each of its inputs.
    ends: Vec<bool>,
}

impl Tangent<'_> {
    /// Input `index` of the forward node.
    pub fn input(&self, index: usize) -> TensorId {
        self.node.inputs[index]
    }

    /// Output `index` of the forward node.
    pub fn output(&self, index: usize) -> TensorId {
        self.node.outputs[index]
    }

    /// The type of a value.
    pub fn type_of(&self, value: TensorId) -> Type {
        self.step.type_of(value).clone()
    }

    /// The tangent of input `index`, where it moves.
    pub fn of(&self, index: usize) -> Option<TensorId> {
        self.tangents.of(self.node.inputs[index])
    }

    /// The tangent of input `index`, or zeros where it does not move.
    ///
    /// # Errors
    /// As [`Tangent::emit`].
    pub fn of_or_zero(&mut self, index: usize) -> Result<TensorId> {
        match self.of(index) {
            Some(tangent) => Ok(tangent),
            None => self.zero(self.node.inputs[index]),
        }
    }

    /// Zeros of the type of `value`.
    ///
    /// # Errors
    /// As [`Tangent::emit`].
    pub fn zero(&mut self, value: TensorId) -> Result<TensorId> {
        let at = self.type_of(value);
        Ok(self.emit(Zero { at }, &[])?[0])
    }

    /// Whether the tangent of input `index` may be overwritten: no other value has it, and no later node reads the input.
    pub fn owns(&self, index: usize) -> bool {
        let Some(tangent) = self.of(index) else {
            return false;
        };
        let uses = self.node.inputs.iter().map(|&i| self.tangents.of(i));
        let once = uses.filter(|&of| of == Some(tangent)).count() == 1;
        once && self.ends[index] && self.tangents.owned.contains(&tangent)
    }

    /// Emits a node after this forward node, with its origin, so that random draws repeat.
    ///
    /// # Errors
    /// Where the op is not defined on these inputs.
    pub fn emit(&mut self, op: impl Op + 'static, inputs: &[TensorId]) -> Result<Vec<TensorId>> {
        let spot = Spot {
            origin: self.node.origin.clone(),
            phase: self.node.phase,
            block: self.node.block.clone(),
            stream: self.node.stream,
        };
        let outputs = self
            .step
            .emit(Arc::new(op), inputs, spot, Role::Temporary)?;
        let storage = |id: &TensorId| self.step.tensor(*id).storage;
        let written: Vec<_> = outputs.iter().map(storage).collect();
        for input in &self.node.inputs {
            let tangent = self.tangents.of(*input);
            if tangent.is_some_and(|t| written.contains(&storage(&t))) {
                self.tangents.of.remove(input);
            }
        }
        self.tangents.owned.extend(outputs.iter().copied());
        Ok(outputs)
    }

    /// Gives the tangent of output `index`, made by this rule.
    pub fn give(&mut self, index: usize, tangent: TensorId) {
        self.tangents.of.insert(self.node.outputs[index], tangent);
    }

    /// Gives output 0 the sum of `terms`, the last of which, made by this rule, is written over.
    ///
    /// # Errors
    /// As [`Tangent::emit`].
    pub fn give_sum(&mut self, terms: &[TensorId]) -> Result<()> {
        let Some((&last, others)) = terms.split_last() else {
            return Ok(());
        };
        let mut sum = last;
        for &term in others {
            sum = self.emit(Add, &[term, sum])?[0];
        }
        self.give(0, sum);
        Ok(())
    }

    /// Gives output 0 the tangent of input `index` unchanged; unless the input ends here, nobody owns it then.
    pub fn pass(&mut self, index: usize) {
        let Some(tangent) = self.of(index) else {
            return;
        };
        if self.owns(index) {
            self.tangents.of.remove(&self.node.inputs[index]);
        } else {
            self.tangents.owned.remove(&tangent);
        }
        self.give(0, tangent);
    }

    /// The rule of an op that is linear in each of its floating-point inputs: `op` with one input's tangent in its place,
    /// summed over the inputs.
    ///
    /// # Errors
    /// As [`Tangent::emit`].
    pub fn product_rule(&mut self, op: impl Op + Clone + 'static) -> Result<()> {
        let mut terms = Vec::new();
        for index in 0..self.node.inputs.len() {
            let Some(tangent) = self.of(index) else {
                continue;
            };
            let mut inputs = self.node.inputs.clone();
            inputs[index] = tangent;
            terms.push(self.emit(op.clone(), &inputs)?[0]);
        }
        self.give_sum(&terms)
    }
}
