//! The derivative of a step: each op's own rule, applied in reverse, gradients summed where values fan out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::op::Op;
use super::op::elementwise::Add;
use super::tensor::{DType, Role, TensorId, Type};
use super::{Node, Phase, Spot, Step};
use crate::error::Result;

/// How gradients of parameters are kept.
#[derive(Debug, Clone, Default)]
pub struct Gradients {
    /// The gradient of each value so far.
    sums: BTreeMap<TensorId, TensorId>,
    /// Gradients that nobody else holds, which may be overwritten.
    owned: BTreeSet<TensorId>,
    /// Values a gradient is wanted for.
    wanted: BTreeSet<TensorId>,
    /// Parameters, whose gradients have a format of their own.
    parameters: BTreeSet<TensorId>,
    /// Format of parameter gradients; `None` for the parameter's own.
    format: Option<DType>,
}

impl Gradients {
    /// Wants gradients of `parameters` in `format` (or in each parameter's own).
    pub fn new(step: &Step, parameters: &[TensorId], format: Option<DType>) -> Gradients {
        let parameters: BTreeSet<TensorId> = parameters.iter().copied().collect();
        let mut wanted = parameters.clone();
        for node in &step.nodes {
            if node.inputs.iter().any(|i| wanted.contains(i)) {
                wanted.extend(node.outputs.iter().copied());
            }
        }
        Gradients {
            wanted,
            parameters,
            format,
            ..Gradients::default()
        }
    }

    /// Starts the gradient of `value` at `gradient`, which the derivative may overwrite.
    pub fn seed(&mut self, value: TensorId, gradient: TensorId) {
        self.sums.insert(value, gradient);
        self.owned.insert(gradient);
    }

    /// The gradient of `value`, once the derivative is complete.
    pub fn of(&self, value: TensorId) -> Option<TensorId> {
        self.sums.get(&value).copied()
    }
}

/// What the storage of a parameter's whole gradient is called.
pub fn gradient_name(step: &Step, parameter: TensorId) -> String {
    format!("{}.gradient", step.storage_of(parameter).name)
}

/// Marks the storage of a whole gradient as such; `keeps` where later micro-batches add to it.
pub fn name_gradient(step: &mut Step, parameter: TensorId, gradient: TensorId, keeps: bool) {
    let name = gradient_name(step, parameter);
    let storage = step.tensor(gradient).storage;
    let storage = &mut step.storages[storage.0 as usize];
    storage.name = name.into();
    storage.role = Role::Gradient;
    storage.shared = keeps;
}

/// The type of a parameter's gradient: the parameter's shape in `format` (or its own), unless an op that reads it makes another.
pub fn gradient_type(step: &Step, parameter: TensorId, format: Option<DType>) -> Type {
    let other = step.nodes.iter().find_map(|node| {
        let index = node.inputs.iter().position(|&i| i == parameter)?;
        let inputs: Vec<Type> = node
            .inputs
            .iter()
            .map(|&i| step.type_of(i).clone())
            .collect();
        node.op.gradient(&inputs, index)
    });
    let at = step.type_of(parameter);
    other.unwrap_or_else(|| at.with(format.unwrap_or(at.dtype)))
}

/// Appends the backward pass of all nodes now in `step` whose outputs have gradients in `gradients`.
///
/// # Errors
/// Where an op has no derivative or emits an ill-typed node.
pub fn differentiate(step: &mut Step, mut gradients: Gradients) -> Result<Gradients> {
    for index in (0..step.nodes.len()).rev() {
        let node = step.nodes[index].clone();
        let useful = node.inputs.iter().any(|i| gradients.wanted.contains(i));
        if useful && node.phase == Phase::Forward {
            let op = node.op.clone();
            op.backward(&mut Backward {
                step,
                node,
                gradients: &mut gradients,
            })?;
        }
    }
    Ok(gradients)
}

/// What an op's derivative sees of its node: its values, the gradients of its outputs, and where to give those of its inputs.
pub struct Backward<'a> {
    step: &'a mut Step,
    node: Node,
    gradients: &'a mut Gradients,
}

impl Backward<'_> {
    /// Input `index` of the forward node.
    pub fn input(&self, index: usize) -> TensorId {
        self.node.inputs[index]
    }

    /// Number of inputs of the forward node.
    pub fn input_count(&self) -> usize {
        self.node.inputs.len()
    }

    /// Output `index` of the forward node.
    pub fn output(&self, index: usize) -> TensorId {
        self.node.outputs[index]
    }

    /// The type of a value.
    pub fn type_of(&self, value: TensorId) -> Type {
        self.step.type_of(value).clone()
    }

    /// The gradient of output `index`, where one has arrived.
    pub fn grad(&self, index: usize) -> Option<TensorId> {
        self.gradients.of(self.node.outputs[index])
    }

    /// Whether the gradient of output `index` may be overwritten by this derivative.
    pub fn owns_grad(&self, index: usize) -> bool {
        self.grad(index)
            .is_some_and(|g| self.gradients.owned.contains(&g))
    }

    /// Whether a gradient of input `index` is wanted.
    pub fn wants(&self, index: usize) -> bool {
        self.gradients.wanted.contains(&self.node.inputs[index])
    }

    /// The format the gradient of input `index` must have: a parameter's may be wider than the parameter.
    pub fn format(&self, index: usize) -> DType {
        let input = self.node.inputs[index];
        match self.gradients.format {
            Some(format) if self.gradients.parameters.contains(&input) => format,
            _ => self.step.type_of(input).dtype,
        }
    }

    /// The gradient of input `index` summed so far, for an op that adds into it by overwriting; give the result with [`Backward::give`].
    pub fn take_sum(&mut self, index: usize) -> Option<TensorId> {
        let input = self.node.inputs[index];
        let sum = self
            .gradients
            .sums
            .get(&input)
            .copied()
            .filter(|g| self.gradients.owned.contains(g))?;
        self.gradients.sums.remove(&input);
        Some(sum)
    }

    /// Emits a backward node of this forward node; its outputs are owned.
    ///
    /// # Errors
    /// Where the op is not defined on these inputs.
    pub fn emit(&mut self, op: impl Op + 'static, inputs: &[TensorId]) -> Result<Vec<TensorId>> {
        let spot = Spot {
            origin: self.node.origin.clone(),
            phase: Phase::Backward,
            block: self.node.block.clone(),
            stream: self.node.stream,
        };
        let outputs = self
            .step
            .emit(Arc::new(op), inputs, spot, Role::Temporary)?;
        self.gradients.owned.extend(outputs.iter().copied());
        Ok(outputs)
    }

    /// Gives a gradient of input `index`; it is added to what other uses of the input gave.
    ///
    /// # Errors
    /// Where the gradients cannot be added.
    pub fn give(&mut self, index: usize, gradient: TensorId) -> Result<()> {
        let input = self.node.inputs[index];
        let sum = match self.gradients.of(input) {
            None => gradient,
            // A parameter's sum stays where it is: it may be one that micro-batches share.
            Some(before)
                if self.gradients.parameters.contains(&input)
                    && self.gradients.owned.contains(&before) =>
            {
                self.emit(Add, &[gradient, before])?[0]
            }
            Some(before) if self.gradients.owned.contains(&gradient) => {
                self.emit(Add, &[before, gradient])?[0]
            }
            Some(before) if self.gradients.owned.contains(&before) => {
                self.emit(Add, &[gradient, before])?[0]
            }
            Some(before) => self.emit(super::op::elementwise::Sum, &[before, gradient])?[0],
        };
        self.gradients.sums.insert(input, sum);
        Ok(())
    }

    /// Gives output `from` of the forward node itself as the gradient of input `index`, for a root that made it going forward; it is owned.
    ///
    /// # Errors
    /// As [`Backward::give`].
    pub fn give_output(&mut self, from: usize, index: usize) -> Result<()> {
        let gradient = self.output(from);
        self.gradients.owned.insert(gradient);
        self.give(index, gradient)
    }

    /// Passes the gradient of output `from` on to input `index` unchanged; where several inputs get it, nobody owns it.
    ///
    /// # Errors
    /// As [`Backward::give`].
    pub fn pass(&mut self, from: usize, index: usize, shared: bool) -> Result<()> {
        let Some(gradient) = self.grad(from) else {
            return Ok(());
        };
        if shared {
            self.gradients.owned.remove(&gradient);
        }
        self.give(index, gradient)
    }
}
