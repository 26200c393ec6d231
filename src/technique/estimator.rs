//! Steps without a backward pass: forward passes cloned with their parameters moved, and updates along the same directions.

mod hybrid;

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Draft, Update};
use crate::error::{Error, Result};
use crate::graph::build::Forward;
use crate::graph::op::Op;
use crate::graph::op::direction::{Direction, Perturb, Slope};
use crate::graph::tensor::{DType, First, Name, Role, TensorId, Type};
use crate::graph::{Node, Phase, Spot, Step};
use crate::spec::job::Place;

/// How a pass moves the parameters it moves.
#[derive(Debug, Clone)]
pub(super) struct Move {
    /// Factor of the direction; of the step along the slopes where there are any.
    pub by: f64,
    /// The draw, without slopes.
    pub draw: u32,
    /// Slopes of all draws, to move as a step would.
    pub slopes: Vec<TensorId>,
}

/// A step under construction from the nodes of a forward pass.
pub(super) struct Estimator {
    pub(super) step: Step,
    /// The forward pass, as it was built.
    template: Vec<Node>,
    /// The newest value of each parameter.
    newest: BTreeMap<TensorId, TensorId>,
    /// Values that all passes share: what is fed.
    fed: BTreeMap<TensorId, TensorId>,
    direction: Direction,
    /// Whether parameters are moved where they are.
    in_place: bool,
    /// Whether a pass has reported its loss.
    reported: bool,
}

/// Refuses what an estimated gradient cannot have.
///
/// # Errors
/// Naming the other choice.
pub(super) fn refuse(name: &str, draft: &Draft) -> Result<()> {
    let (other, why) = if draft.micro_batches > 1 {
        (
            "accumulate",
            "a slope is taken over the whole batch, and a forward pass keeps nothing that a smaller one would save",
        )
    } else if draft.max_norm.is_some() {
        ("clip", "no gradient exists whose norm could be taken")
    } else if draft.fused_update {
        (
            "fused_update",
            "there is no backward pass to fuse updates with",
        )
    } else {
        return Ok(());
    };
    Err(Error::Conflict {
        one: name.to_string(),
        other: other.to_string(),
        why: why.to_string(),
        next: "leave one of them out".to_string(),
    })
}

/// Where nodes that draw the direction of a parameter stand, in its own block unless another is given: their origin says which
/// numbers are drawn.
pub(super) fn spot(step: &Step, parameter: TensorId, block: Option<&Name>, phase: Phase) -> Spot {
    let own = Update::spot(step, parameter);
    Spot {
        origin: format!("{}.direction", own.origin).into(),
        phase,
        block: block.cloned().unwrap_or(own.block),
        stream: own.stream,
    }
}

impl Estimator {
    /// A step that will run clones of `forward`.
    pub(super) fn new(forward: Forward, direction: Direction, in_place: bool) -> Estimator {
        let Forward {
            mut step,
            parameters,
        } = forward;
        let template = std::mem::take(&mut step.nodes);
        Estimator {
            step,
            template,
            newest: parameters.into_iter().map(|p| (p, p)).collect(),
            fed: BTreeMap::new(),
            direction,
            in_place,
            reported: false,
        }
    }

    /// A step whose passes are done, to be updated.
    pub(super) fn finished(step: Step, parameters: &[TensorId], direction: Direction) -> Estimator {
        Estimator {
            step,
            template: Vec::new(),
            newest: parameters.iter().map(|&p| (p, p)).collect(),
            fed: BTreeMap::new(),
            direction,
            in_place: false,
            reported: true,
        }
    }

    /// The trained parameters, in groups of one block each, in the order of the forward pass.
    pub(super) fn blocks(&self) -> Vec<(Name, Vec<TensorId>)> {
        let mut blocks: Vec<(Name, Vec<TensorId>)> = Vec::new();
        for node in &self.template {
            for input in node.inputs.iter().filter(|i| self.newest.contains_key(i)) {
                if blocks.iter().any(|(_, group)| group.contains(input)) {
                    continue;
                }
                match blocks.iter_mut().find(|(block, _)| *block == node.block) {
                    Some((_, group)) => group.push(*input),
                    None => blocks.push((node.block.clone(), vec![*input])),
                }
            }
        }
        blocks
    }

    /// A forward pass with `group` moved; the loss it ends with. The first pass reports its loss.
    ///
    /// In place, the parameters are left moved.
    pub(super) fn pass(&mut self, group: &[TensorId], moved: Option<&Move>) -> Result<TensorId> {
        if let Some(moved) = moved.filter(|_| self.in_place) {
            self.sweep(group, moved)?;
        }
        let moved = moved.filter(|_| !self.in_place);
        let mut of = self.fed.clone();
        let mut loss = None;
        for node in std::mem::take(&mut self.template) {
            if self.is_done(&node) {
                self.template.push(node);
                continue;
            }
            let mut inputs = Vec::with_capacity(node.inputs.len());
            for input in &node.inputs {
                inputs.push(match (moved, self.newest.get(input)) {
                    (Some(moved), Some(&at)) if group.contains(input) => {
                        self.moved_copy(at, moved, &node.block)?
                    }
                    (_, Some(&at)) => at,
                    _ => of.get(input).copied().unwrap_or(*input),
                });
            }
            if node.op.name() == "report" {
                loss = inputs.first().copied();
            }
            self.clone_node(&node, &inputs, &mut of)?;
            self.template.push(node);
        }
        self.reported = true;
        Ok(loss.unwrap_or_else(|| panic!("every forward pass reports its loss")))
    }

    /// Whether a pass leaves a node out: what is fed already is shared.
    fn is_done(&self, node: &Node) -> bool {
        node.outputs.iter().any(|o| self.fed.contains_key(o))
    }

    /// A clone of a node of the forward pass; only the first pass reports.
    fn clone_node(
        &mut self,
        node: &Node,
        inputs: &[TensorId],
        of: &mut BTreeMap<TensorId, TensorId>,
    ) -> Result<()> {
        let name = node.op.name();
        if name == "report" && self.reported {
            return Ok(());
        }
        let role = node
            .outputs
            .first()
            .map_or(Role::Activation, |&o| self.step.storage_of(o).role);
        let spot = Spot {
            origin: node.origin.clone(),
            phase: node.phase,
            block: node.block.clone(),
            stream: node.stream,
        };
        let made = self.step.emit(node.op.clone(), inputs, spot, role)?;
        for (old, new) in node.outputs.iter().zip(made) {
            of.insert(*old, new);
            if name == "feed" {
                self.fed.insert(*old, new);
            }
        }
        Ok(())
    }

    fn perturb(&self, moved: &Move, in_place: bool) -> Perturb {
        Perturb {
            by: moved.by,
            draw: moved.draw,
            slopes: moved.slopes.len(),
            direction: self.direction,
            in_place,
        }
    }

    /// A moved copy of a parameter, for one use.
    fn moved_copy(&mut self, at: TensorId, moved: &Move, block: &Name) -> Result<TensorId> {
        let mut inputs = vec![at];
        inputs.extend(&moved.slopes);
        let spot = spot(&self.step, at, Some(block), Phase::Forward);
        let op = Arc::new(self.perturb(moved, false));
        Ok(self.step.emit(op, &inputs, spot, Role::Temporary)?[0])
    }

    /// Moves parameters where they are.
    pub(super) fn sweep(&mut self, group: &[TensorId], moved: &Move) -> Result<()> {
        for parameter in group {
            let at = self.newest[parameter];
            let mut inputs = vec![at];
            inputs.extend(&moved.slopes);
            let spot = spot(&self.step, at, None, Phase::Forward);
            let op = Arc::new(self.perturb(moved, true));
            let made = self.step.emit(op, &inputs, spot, Role::Temporary)?[0];
            self.newest.insert(*parameter, made);
        }
        Ok(())
    }

    /// How steep the loss is between two passes `distance` apart.
    pub(super) fn slope(&mut self, losses: [TensorId; 2], distance: f64) -> Result<TensorId> {
        let spot = Spot::compute(Phase::Update, "update", "slope");
        let op = Arc::new(Slope { distance });
        Ok(self.step.emit(op, &losses, spot, Role::Temporary)?[0])
    }

    /// Updates `group` by `op`, over `scalars`, parameter, master if there is one, and `states` of the parameter's type.
    pub(super) fn update(
        &mut self,
        group: &[TensorId],
        op: &Arc<dyn Op>,
        scalars: &[TensorId],
        (master, states): (bool, &[&str]),
    ) -> Result<()> {
        for &parameter in group {
            self.update_one(parameter, op, scalars, (master, states))?;
        }
        Ok(())
    }

    /// Updates `parameter` by `op` over what goes `before` it and what is kept for it.
    fn update_one(
        &mut self,
        parameter: TensorId,
        op: &Arc<dyn Op>,
        before: &[TensorId],
        (master, states): (bool, &[&str]),
    ) -> Result<()> {
        let at = self.newest[&parameter];
        let (name, format) = (
            self.step.storage_of(at).name.clone(),
            self.step.type_of(at).clone(),
        );
        let mut inputs = before.to_vec();
        inputs.push(at);
        if master {
            let wide = format.with(DType::F32);
            // It starts as the parameter does.
            let first = self.step.storage_of(parameter).first.clone();
            inputs.push(self.kept(&format!("{name}.master"), wide, first));
        }
        for suffix in states {
            inputs.push(self.kept(&format!("{name}.{suffix}"), format.clone(), First::Zero));
        }
        let spot = spot(&self.step, at, None, Phase::Update);
        let made = self.step.emit(op.clone(), &inputs, spot, Role::Temporary)?[0];
        self.newest.insert(parameter, made);
        Ok(())
    }

    fn kept(&mut self, name: &str, at: Type, first: First) -> TensorId {
        self.step
            .persistent_as(name, at, Place::Gpu, Role::OptimizerState, first)
    }
}
