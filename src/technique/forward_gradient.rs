//! Forward gradients: the derivative along one random direction by forward-mode differentiation.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::estimator::{Estimator, refuse, spot};
use super::zeroth_order::{DECAY, MASTER};
use super::{Args, Card, Derivative, Draft, Site, Technique};
use crate::error::Result;
use crate::graph::build::Forward;
use crate::graph::op::Op;
use crate::graph::op::direction::{Descend, Direction, Draw, Rule};
use crate::graph::tangent::{Tangents, push_forward};
use crate::graph::tensor::{Role, TensorId};
use crate::graph::{Phase, Step};
use crate::spec::job::Exactness;

/// Steps along a random direction by the loss's exact derivative along it.
pub struct ForwardGradient;

impl Technique for ForwardGradient {
    fn card(&self) -> Card {
        Card {
            name: "forward_gradient",
            aliases: &["forward_grad", "fgd"],
            summary: "steps along a random direction by the loss's derivative along it, taken with the forward pass; no backward pass, no state",
            source: "Baydin et al. 2022, arXiv:2202.08587",
            exactness: Exactness::Lossy,
            site: Site::Step,
            arguments: &[DECAY, MASTER],
        }
    }

    fn draft(&self, draft: &mut Draft, args: &Args) -> Result<()> {
        let card = self.card();
        refuse(card.name, draft)?;
        draft.derivative = Derivative::Forward;
        draft.loss_scale = false;
        draft.master &= args.word(&card, "master", &["yes", "no"])? == "yes";
        Ok(())
    }

    fn step(&self, forward: Forward, draft: &Draft, args: &Args) -> Result<Step> {
        let decay = args.number(&self.card(), "decay", (0.0, 1e6))?;
        let direction = Direction { zeroed: 0.0 };
        let Forward { step, parameters } = forward;
        let (step, slope) = along(step, &parameters, direction)?;
        let op: Arc<dyn Op> = Arc::new(Descend {
            slopes: 1,
            rule: Rule::Sgd,
            decay,
            direction,
            master: draft.master,
        });
        let mut rest = Estimator::finished(step, &parameters, direction);
        rest.update(&parameters, &op, &[slope], (draft.master, &[]))?;
        Ok(rest.step)
    }
}

/// The forward pass with tangents along the directions of all parameters, and the loss's tangent.
fn along(
    mut step: Step,
    parameters: &[TensorId],
    direction: Direction,
) -> Result<(Step, TensorId)> {
    let nodes = std::mem::take(&mut step.nodes);
    let mut tangents = Tangents::default();
    let mut drawn = BTreeMap::new();
    for &parameter in parameters {
        let draw = draw(&mut step, parameter, direction)?;
        tangents.seed(parameter, draw);
        drawn.insert(draw, parameter);
    }
    step.nodes = nodes;
    let tangents = push_forward(&mut step, tangents)?;
    let report = step.nodes.iter().rev().find(|n| n.op.name() == "report");
    let slope = report.and_then(|n| tangents.of(n.inputs[0]));
    let slope = slope.unwrap_or_else(|| panic!("the loss moves with the parameters"));
    draw_where_used(&mut step, &drawn, direction)?;
    Ok((step, slope))
}

fn draw(step: &mut Step, parameter: TensorId, direction: Direction) -> Result<TensorId> {
    let at = step.type_of(parameter).clone();
    let spot = spot(step, parameter, None, Phase::Forward);
    Ok(step.emit(Arc::new(Draw { at, direction }), &[], spot, Role::Temporary)?[0])
}

/// Draws each direction right before each node that reads it, so that one tensor of them is alive at a time.
fn draw_where_used(
    step: &mut Step,
    drawn: &BTreeMap<TensorId, TensorId>,
    direction: Direction,
) -> Result<()> {
    for mut node in std::mem::take(&mut step.nodes) {
        for input in &mut node.inputs {
            if let Some(&parameter) = drawn.get(input) {
                *input = draw(step, parameter, direction)?;
            }
        }
        step.nodes.push(node);
    }
    Ok(())
}
