//! A backward pass through the last layers beside an estimate for the others.

use std::sync::Arc;

use super::Estimator;
use crate::error::{Error, Result};
use crate::graph::Node;
use crate::graph::backward::{Gradients, differentiate, name_gradient};
use crate::graph::op::Op;
use crate::graph::op::cross_entropy::CrossEntropy;
use crate::graph::op::linear_cross_entropy::LinearCrossEntropy;
use crate::graph::tensor::{Name, TensorId};
use crate::technique::frozen::op_of;

/// A pass that was differentiated.
pub(in crate::technique) struct Differentiated {
    /// Its loss.
    pub(in crate::technique) loss: TensorId,
    /// Each parameter with its gradient.
    pub(in crate::technique) pairs: Vec<(TensorId, TensorId)>,
}

impl Estimator {
    /// The trained parameters below the last `layers` layers, and those of these layers and of what follows them. A parameter
    /// belongs where it is first used: a tied head to the embedding.
    ///
    /// # Errors
    /// Where either part has none.
    pub(in crate::technique) fn split(
        &self,
        layers: usize,
    ) -> Result<(Vec<TensorId>, Vec<TensorId>)> {
        let mut order: Vec<&Name> = Vec::new();
        for node in &self.template {
            if !order.contains(&&node.block) {
                order.push(&node.block);
            }
        }
        let all: Vec<&&Name> = order.iter().filter(|b| b.starts_with("layers.")).collect();
        let refused = |why: &str| {
            let next = "give fewer layers than the model has, of which some are trained";
            Error::value("hybrid", layers, why, next)
        };
        let first = all
            .len()
            .checked_sub(layers)
            .and_then(|at| all.get(at))
            .ok_or_else(|| refused("the model has not so many layers"))?;
        let at = order.iter().position(|b| *b == **first);
        let (mut low, mut high) = (Vec::new(), Vec::new());
        for (block, group) in self.blocks() {
            match order.iter().position(|b| **b == block) < at {
                true => low.extend(group),
                false => high.extend(group),
            }
        }
        match (low.is_empty(), high.is_empty()) {
            (true, _) => Err(refused("nothing below them is trained")),
            (_, true) => Err(refused("nothing in them is trained")),
            _ => Ok((low, high)),
        }
    }

    /// A pass at the parameters as they are, which reports its loss, and the gradients of `trained` by a backward pass that goes no
    /// further down than they are.
    pub(in crate::technique) fn differentiated(
        &mut self,
        trained: &[TensorId],
    ) -> Result<Differentiated> {
        let before = std::mem::take(&mut self.step.nodes);
        let rooted: Vec<Node> = self.template.iter().map(|n| rooted(n, trained)).collect();
        let template = std::mem::replace(&mut self.template, rooted);
        self.reported = false;
        let loss = self.pass(&[], None)?;
        self.template = template;
        let newest: Vec<TensorId> = trained.iter().map(|p| self.newest[p]).collect();
        let gradients = Gradients::new(&self.step, &newest, None);
        let gradients = differentiate(&mut self.step, gradients)?;
        let mut pairs = Vec::new();
        for (&parameter, &at) in trained.iter().zip(&newest) {
            if let Some(gradient) = gradients.of(at) {
                name_gradient(&mut self.step, at, gradient, false);
                pairs.push((parameter, gradient));
            }
        }
        let own = std::mem::replace(&mut self.step.nodes, before);
        self.step.nodes.extend(own);
        Ok(Differentiated { loss, pairs })
    }

    /// Leaves the report to a pass that is differentiated.
    pub(in crate::technique) fn report_later(&mut self) {
        self.reported = true;
    }

    /// Updates a parameter by `op` along its gradient.
    pub(in crate::technique) fn update_by_gradient(
        &mut self,
        (parameter, gradient): (TensorId, TensorId),
        op: &Arc<dyn Op>,
        kept: (bool, &[&str]),
    ) -> Result<()> {
        self.update_one(parameter, op, &[gradient], kept)
    }
}

/// A node as it stands where the loss is the root of a derivative.
fn rooted(node: &Node, trained: &[TensorId]) -> Node {
    let mut node = node.clone();
    if let Some(loss) = op_of::<CrossEntropy>(&node) {
        node.op = Arc::new(CrossEntropy {
            gradient: true,
            ..loss.clone()
        });
    } else if let Some(loss) = op_of::<LinearCrossEntropy>(&node) {
        node.op = Arc::new(LinearCrossEntropy {
            gradient: true,
            frozen: !trained.contains(&node.inputs[1]),
            ..loss.clone()
        });
    }
    node
}
