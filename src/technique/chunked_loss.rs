//! The head and the loss over a few tokens at a time, so that the logits never exist whole.

use std::any::Any;
use std::sync::Arc;

use super::{Args, Argument, Card, Draft, Pattern, Site, Technique};
use crate::error::{Error, Result};
use crate::graph::Spot;
use crate::graph::build::Forward;
use crate::graph::op::cross_entropy::CrossEntropy;
use crate::graph::op::linear_cross_entropy::LinearCrossEntropy;
use crate::graph::tensor::Role;
use crate::spec::job::{Exactness, Place};

/// The fused and chunked head.
pub struct ChunkedLoss;

impl Technique for ChunkedLoss {
    fn card(&self) -> Card {
        Card {
            name: "chunked_loss",
            aliases: &["fused_linear_cross_entropy", "liger_loss"],
            summary: "computes logits, loss and their gradients over chunks of tokens; whole logits never exist",
            source: "Hsu et al. 2024, arXiv:2410.10989 (Liger Kernel), section 3.2",
            exactness: Exactness::Rounding,
            site: Site::Forward,
            arguments: &[Argument {
                key: "rows",
                default: "512",
                meaning: "tokens of one chunk",
            }],
        }
    }

    fn forward(
        &self,
        forward: &mut Forward,
        sites: &Pattern,
        draft: &Draft,
        args: &Args,
    ) -> Result<()> {
        let rows: u64 = args.number(&self.card(), "rows", (1, 1 << 30))?;
        if !sites.matches("head") {
            return Ok(());
        }
        let parameters = &forward.parameters;
        let step = &mut forward.step;
        let at = |name: &str| step.nodes.iter().position(|n| n.op.name() == name);
        let loss = at("cross_entropy").ok_or_else(|| no_site("no loss"))?;
        let logits = step.nodes[loss].inputs[0];
        let head = step
            .nodes
            .iter()
            .position(|n| n.outputs.first() == Some(&logits))
            .ok_or_else(|| no_site("no head"))?;
        let (head_node, loss_node) = (step.nodes[head].clone(), step.nodes[loss].clone());
        if head_node.inputs.len() != 2 {
            return Err(no_site("a head with a bias, as BERT has,"));
        }
        let (x, weight) = (head_node.inputs[0], head_node.inputs[1]);
        let gradient = loss_node.outputs.len() == 2;
        let trained = parameters.contains(&weight);
        let any: &dyn Any = loss_node.op.as_ref();
        let softcap = any.downcast_ref::<CrossEntropy>().and_then(|op| op.softcap);
        let format = draft.gradient_format.unwrap_or(step.type_of(weight).dtype);
        let op = Arc::new(LinearCrossEntropy {
            rows,
            softcap,
            gradient,
            format,
            frozen: !trained,
        });
        let inputs = [x, weight, loss_node.inputs[1], loss_node.inputs[2]];
        let spot = Spot::compute(loss_node.phase, &loss_node.block, "loss");
        let mut node = step.node(op, &inputs, spot, Role::Temporary, Place::Gpu)?;
        // The loss keeps its identity for who reads it.
        let storage = step.tensor(loss_node.outputs[0]).storage;
        step.tensors[node.outputs[0].0 as usize].storage = storage;
        node.outputs[0] = loss_node.outputs[0];
        step.nodes[loss] = node;
        step.nodes.remove(head);
        Ok(())
    }
}

fn no_site(what: &str) -> Error {
    Error::value(
        "technique",
        "chunked_loss",
        format!("{what} cannot be chunked"),
        "leave it out for this model",
    )
}
