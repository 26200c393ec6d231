//! The update of one parameter, while a technique writes it.

use std::sync::Arc;

use super::Draft;
use crate::error::Result;
use crate::graph::op::Op;
use crate::graph::op::transfer::Move;
use crate::graph::reach::copy_stream;
use crate::graph::tensor::{DType, First, Name, Role, TensorId, Type};
use crate::graph::{Node, Phase, Spot, Step, Stream};
use crate::spec::job::Place;

/// What an optimizer sees of one parameter: its values, states kept from step to step, and where its nodes go.
pub struct Update<'a> {
    step: &'a mut Step,
    gradient: TensorId,
    parameter: TensorId,
    master: Option<TensorId>,
    given: Given,
    emitted: Emitted,
    waits: bool,
}

/// What an update consists of, in issue order.
#[derive(Debug, Default)]
pub struct Emitted {
    /// Nodes that stand behind the gradient.
    pub nodes: Vec<Node>,
    /// Nodes that stand behind all uses of what they read, and where updates stand in the backward pass `delay` blocks later.
    pub late: Vec<Node>,
    /// Blocks.
    pub delay: usize,
}

/// What all updates of a step are given.
#[derive(Debug, Clone, Copy)]
pub struct Given {
    /// The guard, where a norm or a loss scale asks for one.
    pub guard: Option<TensorId>,
    /// What the technique made ahead of them: see [`Technique::ahead`](super::Technique::ahead).
    pub ahead: Option<TensorId>,
    /// Whether what updates project with is renewed.
    pub refreshes: bool,
}

impl<'a> Update<'a> {
    /// The update of `parameter` by its whole `gradient`.
    pub fn new(
        step: &'a mut Step,
        draft: &Draft,
        (parameter, gradient): (TensorId, TensorId),
        given: Given,
    ) -> Update<'a> {
        let name = format!("{}.master", step.storage_of(parameter).name);
        let at = step.type_of(parameter).with(DType::F32);
        // It starts as the parameter does.
        let first = step.storage_of(parameter).first.clone();
        let role = Role::OptimizerState;
        let mut kept = || step.persistent_as(&name, at.clone(), Place::Gpu, role, first.clone());
        let master = draft.master.then(&mut kept);
        Update {
            step,
            gradient,
            parameter,
            master,
            given,
            emitted: Emitted::default(),
            waits: false,
        }
    }

    /// The parameter's name.
    pub fn name(&self) -> Name {
        self.step.storage_of(self.parameter).name.clone()
    }

    /// The parameter's type.
    pub fn at(&self) -> Type {
        self.step.type_of(self.parameter).clone()
    }

    /// The type of any value.
    pub fn type_of(&self, value: TensorId) -> Type {
        self.step.type_of(value).clone()
    }

    /// The gradient of this micro-batch, or the sum of all.
    pub fn gradient(&self) -> TensorId {
        self.gradient
    }

    /// The parameter.
    pub fn parameter(&self) -> TensorId {
        self.parameter
    }

    /// The parameter in f32, where there is a copy that updates go to.
    pub fn master(&self) -> Option<TensorId> {
        self.master
    }

    /// What gradients are multiplied by, whether they are finite, and their norm (3) (F32), where a norm or a loss scale asks for it.
    pub fn guard(&self) -> Option<TensorId> {
        self.given.guard
    }

    /// What the technique made ahead of all updates, where it made anything.
    pub fn ahead(&self) -> Option<TensorId> {
        self.given.ahead
    }

    /// Whether this is the step in which what updates project with is renewed: see [`Technique::period`](super::Technique::period).
    pub fn refreshes(&self) -> bool {
        self.given.refreshes
    }

    /// A state kept from step to step as `PARAMETER.suffix`: zero bytes before the first.
    pub fn state(&mut self, suffix: &str, at: Type) -> TensorId {
        state(self.step, self.parameter, suffix, at)
    }

    /// A state that lies in `place`.
    pub fn state_in(&mut self, suffix: &str, at: Type, place: Place) -> TensorId {
        let name = format!("{}.{suffix}", self.name());
        let role = Role::OptimizerState;
        self.step.persistent_as(&name, at, place, role, First::Zero)
    }

    /// Pinned bytes of the parameter's own that its gradient and step travel through; they keep nothing from step to step.
    pub fn travelling(&mut self, at: Type) -> TensorId {
        let name = format!("{}.travelling", self.name());
        let role = Role::Gradient;
        self.step
            .persistent_as(&name, at, Place::Pinned, role, First::Zero)
    }

    /// Copies `from` over `to`, which lies elsewhere.
    ///
    /// # Errors
    /// Where their sizes differ.
    pub fn send(&mut self, from: TensorId, to: TensorId, leaf: &str) -> Result<TensorId> {
        let place = |id| self.step.storage_of(id).place;
        let stream = copy_stream(place(from), place(to));
        Ok(self.emit_in(stream, Move { into: true }, &[from, to], leaf)?[0])
    }

    /// From here on nodes stand behind the last use of what they read, `blocks` blocks of the backward pass later.
    pub fn later(&mut self, blocks: usize) {
        (self.waits, self.emitted.delay) = (true, blocks);
    }

    /// Emits a node of the update, with origin `PARAMETER` or `PARAMETER.leaf`; fresh outputs are temporary.
    ///
    /// # Errors
    /// Where the op is not defined on these inputs.
    pub fn emit(
        &mut self,
        op: impl Op + 'static,
        inputs: &[TensorId],
        leaf: &str,
    ) -> Result<Vec<TensorId>> {
        self.emit_in(Stream::Compute, op, inputs, leaf)
    }

    /// As [`Update::emit`], in another queue, for an op that overwrites what it makes.
    ///
    /// # Errors
    /// As [`Update::emit`].
    pub fn emit_in(
        &mut self,
        stream: Stream,
        op: impl Op + 'static,
        inputs: &[TensorId],
        leaf: &str,
    ) -> Result<Vec<TensorId>> {
        let mut spot = Update::spot(self.step, self.parameter);
        spot.stream = stream;
        if !leaf.is_empty() {
            spot.origin = format!("{}.{leaf}", spot.origin).into();
        }
        let op = Arc::new(op);
        let node = self
            .step
            .node(op, inputs, spot, Role::Temporary, Place::Gpu)?;
        let outputs = node.outputs.clone();
        match self.waits {
            true => self.emitted.late.push(node),
            false => self.emitted.nodes.push(node),
        }
        Ok(outputs)
    }

    /// The update as one node over gradient, parameter, master if there is one, `states`, guard if there is one, in this order.
    ///
    /// # Errors
    /// As [`Update::emit`].
    pub fn apply(&mut self, op: impl Op + 'static, states: &[(&str, Type)]) -> Result<()> {
        let mut inputs = vec![self.gradient, self.parameter];
        inputs.extend(self.master);
        for (suffix, at) in states {
            inputs.push(self.state(suffix, at.clone()));
        }
        inputs.extend(self.given.guard);
        self.emit(op, &inputs, "").map(|_| ())
    }

    /// Its nodes.
    pub fn into_emitted(self) -> Emitted {
        self.emitted
    }

    /// Where the nodes of the update of `parameter` stand.
    pub fn spot(step: &Step, parameter: TensorId) -> Spot {
        let name = &step.storage_of(parameter).name;
        let block = name.split('/').next().unwrap_or(name).into();
        Spot {
            origin: name.clone(),
            phase: Phase::Update,
            block,
            stream: Stream::Compute,
        }
    }
}

/// The state of `parameter` called `suffix`, as it is before the step.
fn state(step: &mut Step, parameter: TensorId, suffix: &str, at: Type) -> TensorId {
    let name = format!("{}.{suffix}", step.storage_of(parameter).name);
    if let Some(value) = step.entering(&name) {
        return value;
    }
    let role = Role::OptimizerState;
    step.persistent_as(&name, at, Place::Gpu, role, First::Zero)
}

/// What stands ahead of all updates, once all gradients are whole, while a technique writes it.
pub struct Ahead<'a> {
    step: &'a mut Step,
    pairs: &'a [(TensorId, TensorId)],
    guard: Option<TensorId>,
}

impl<'a> Ahead<'a> {
    /// Ahead of the updates of `pairs` of parameter and gradient.
    pub fn new(
        step: &'a mut Step,
        pairs: &'a [(TensorId, TensorId)],
        guard: Option<TensorId>,
    ) -> Ahead<'a> {
        Ahead { step, pairs, guard }
    }

    /// Each parameter with its gradient.
    pub fn pairs(&self) -> &'a [(TensorId, TensorId)] {
        self.pairs
    }

    /// The name of a parameter.
    pub fn name(&self, parameter: TensorId) -> Name {
        self.step.storage_of(parameter).name.clone()
    }

    /// As [`Update::guard`].
    pub fn guard(&self) -> Option<TensorId> {
        self.guard
    }

    /// The state of `parameter` called `suffix` in f32, the same that [`Update::state`] answers with.
    pub fn state(&mut self, parameter: TensorId, suffix: &str) -> TensorId {
        let at = self.step.type_of(parameter).with(DType::F32);
        state(self.step, parameter, suffix, at)
    }

    /// Emits a node with origin `update/leaf`; its first output.
    ///
    /// # Errors
    /// Where the op is not defined on these inputs.
    pub fn emit(
        &mut self,
        op: impl Op + 'static,
        inputs: &[TensorId],
        leaf: &str,
    ) -> Result<TensorId> {
        let spot = Spot::compute(Phase::Update, "update", leaf);
        let made = self
            .step
            .emit(Arc::new(op), inputs, spot, Role::Temporary)?;
        Ok(made[0])
    }
}
