//! What techniques on a frozen model share: who freezes it, and the weights that are then held in fewer bits.

use std::any::Any;

use super::{Draft, Pattern};
use crate::error::{Error, Result};
use crate::graph::Step;
use crate::graph::build::Forward;
use crate::graph::edit::{Edit, rewrite};
use crate::graph::op::matmul::Linear;
use crate::graph::op::moe::GroupedLinear;
use crate::graph::op::quantized::{Format, QuantizedGroupedLinear, QuantizedLinear};
use crate::graph::tensor::{Derivation, First, TensorId};
use crate::graph::{Node, Spot};

/// Notes that `name` trains parameters of its own in place of the model's.
///
/// # Errors
/// Where another technique does.
pub(super) fn adapt(draft: &mut Draft, name: &'static str) -> Result<()> {
    match draft.adapter {
        None => {
            draft.adapter = Some(name);
            Ok(())
        }
        Some(other) => Err(Error::Conflict {
            one: name.to_string(),
            other: other.to_string(),
            why: "a folder of adapters, as PEFT has it, holds one kind".to_string(),
            next: "keep one of them".to_string(),
        }),
    }
}

/// Fails unless an adapter leaves the weights as they are.
pub(super) fn expect_adapter(draft: &Draft, name: &'static str) -> Result<()> {
    match draft.adapter {
        Some(_) => Ok(()),
        None => Err(Error::Conflict {
            one: name.to_string(),
            other: "training every weight".to_string(),
            why: "a weight held in so few bits gets no gradient: there is nothing to train"
                .to_string(),
            next: "add lora, adapter, prefix_tuning or prompt_tuning".to_string(),
        }),
    }
}

/// Freezes all parameters so far.
pub(super) fn freeze(forward: &mut Forward) {
    for id in std::mem::take(&mut forward.parameters) {
        let storage = forward.step.tensor(id).storage;
        forward.step.storages[storage.0 as usize].first = First::Frozen;
    }
}

/// Whether a forward pass is one that gradients are taken of.
pub(super) fn trains(step: &Step) -> bool {
    let losses = ["cross_entropy", "linear_cross_entropy"];
    let makes = |n: &Node| losses.contains(&n.op.name()) && n.outputs.len() > 1;
    step.nodes.iter().any(makes)
}

/// A spot beside that of `node`: at `block`/`leaf`, where a leaf may have several parts.
pub(super) fn beside(node: &Node, origin: String) -> Spot {
    Spot {
        origin: origin.into(),
        phase: node.phase,
        block: node.block.clone(),
        stream: node.stream,
    }
}

/// A node's op, where it is a `T`.
pub(super) fn op_of<T: 'static>(node: &Node) -> Option<&T> {
    let op: &dyn Any = node.op.as_ref();
    op.downcast_ref()
}

/// Holds the frozen weights of matching linear layers in `format`.
///
/// # Errors
/// Where no layer matches.
pub(super) fn quantize(forward: &mut Forward, sites: &Pattern, format: Format) -> Result<()> {
    let mut found = false;
    rewrite(&mut forward.step, |edit, mut node| {
        let inside = node.block.starts_with("layers.") && sites.matches(&node.origin);
        if inside
            && is_linear(&node)
            && let Some(&weight) = node.inputs.get(1)
            && edit.step().storage_of(weight).first == First::Frozen
        {
            hold(edit, &mut node, weight, format);
            found = true;
        }
        edit.keep(node)
    })?;
    match found {
        true => Ok(()),
        false => Err(Error::value(
            "site",
            sites,
            "no linear layer of the model matches it",
            "name layers, such as layers.* or layers.0-11/mlp",
        )),
    }
}

fn is_linear(node: &Node) -> bool {
    op_of::<Linear>(node).is_some() || op_of::<GroupedLinear>(node).is_some()
}

/// Turns the node's weight into its codes, with the other parts beside it, and the node's op into one that reads them.
fn hold(edit: &mut Edit, node: &mut Node, weight: TensorId, format: Format) {
    let (name, at) = (
        edit.step().storage_of(weight).name.clone(),
        edit.type_of(weight),
    );
    let mut parts = Vec::new();
    for (part, of) in format.parts(&at.shape) {
        let path = format!("{name}.{}", part.suffix());
        let how = Derivation {
            format,
            part,
            shape: at.shape.clone(),
            source: format.source(at.dtype),
        };
        let first = First::Derived {
            of: name.clone(),
            how,
        };
        match parts.is_empty() {
            true => {
                edit.recast(weight, &path, of, first);
                parts.push(weight);
            }
            false => parts.push(edit.parameter(&path, of, first)),
        }
    }
    let outputs = at.shape[at.shape.len() - 2];
    let rest = node.inputs.split_off(2);
    let x = node.inputs[0];
    match op_of::<Linear>(node) {
        Some(&Linear { bias }) => {
            node.inputs = [x].into_iter().chain(parts).chain(rest).collect();
            node.op = std::sync::Arc::new(QuantizedLinear {
                format,
                outputs,
                bias,
            });
        }
        None => {
            node.inputs = [x].into_iter().chain(rest).chain(parts).collect();
            node.op = std::sync::Arc::new(QuantizedGroupedLinear { format, outputs });
        }
    }
}
