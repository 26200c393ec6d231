//! Where updates stand: behind the backward pass, or within it as soon as what they need is there.

use std::collections::BTreeMap;

use crate::graph::tensor::{StorageId, TensorId};
use crate::graph::{Node, Step};
use crate::technique::Emitted;

/// Inserts each node behind the one that makes the value beside it.
pub(super) fn insert_behind(step: &mut Step, nodes: Vec<(TensorId, Node)>) {
    let mut after: BTreeMap<TensorId, Node> = nodes.into_iter().collect();
    for node in std::mem::take(&mut step.nodes) {
        let made = node.outputs.clone();
        step.nodes.push(node);
        step.nodes
            .extend(made.iter().filter_map(|o| after.remove(o)));
    }
    step.nodes.extend(after.into_values());
}

/// Appends updates to a step: first what stands behind gradients, then what waits.
pub(super) fn append(step: &mut Step, updates: Vec<Emitted>) {
    let mut late = Vec::new();
    for update in updates {
        step.nodes.extend(update.nodes);
        late.extend(update.late);
    }
    step.nodes.extend(late);
}

/// Inserts each parameter's update behind the last node that touches what it reads, and what waits some blocks later.
pub(super) fn insert_early(step: &mut Step, updates: Vec<Emitted>) {
    let mut last: BTreeMap<StorageId, usize> = BTreeMap::new();
    for (index, node) in step.nodes.iter().enumerate() {
        for &value in node.inputs.iter().chain(&node.outputs) {
            last.insert(step.tensor(value).storage, index);
        }
    }
    let ends = block_ends(step);
    let mut behind: BTreeMap<usize, Vec<Node>> = BTreeMap::new();
    for Emitted { nodes, late, delay } in updates {
        let at = |nodes: &[Node]| {
            let inputs = nodes.iter().flat_map(|n| &n.inputs);
            let uses = inputs.filter_map(|&v| last.get(&step.tensor(v).storage));
            uses.copied().max().unwrap_or(0)
        };
        let (soon, later) = (at(&nodes), at(&late));
        behind.entry(soon).or_default().extend(nodes);
        let block = ends.partition_point(|&end| end < later);
        let later = match delay {
            0 => later.max(soon),
            _ => ends[(block + delay).min(ends.len() - 1)],
        };
        if !late.is_empty() {
            behind.entry(later).or_default().extend(late);
        }
    }
    for (index, node) in std::mem::take(&mut step.nodes).into_iter().enumerate() {
        step.nodes.push(node);
        step.nodes.extend(behind.remove(&index).unwrap_or_default());
    }
}

/// The last node of each run of nodes of one block and part of the step.
fn block_ends(step: &Step) -> Vec<usize> {
    let run = |node: &Node| (node.block.clone(), node.phase.is_later());
    let ends = |index: &usize| {
        let next = step.nodes.get(index + 1);
        next.is_none_or(|next| run(next) != run(&step.nodes[*index]))
    };
    (0..step.nodes.len()).filter(ends).collect()
}
