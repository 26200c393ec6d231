//! The step as a petgraph graph: dependencies, for the algorithms that ask about them.

use std::collections::BTreeMap;

use petgraph::graph::{DiGraph, NodeIndex};

use super::tensor::TensorId;
use super::{Node, Step};

/// The dependency graph of `step`: node weights are indices into [`Step::nodes`]; an edge says "must come before". It does not
/// depend on the order in which the nodes stand.
pub fn dependencies(step: &Step) -> DiGraph<usize, ()> {
    let mut graph = DiGraph::with_capacity(step.nodes.len(), step.nodes.len() * 3);
    let ids: Vec<NodeIndex> = (0..step.nodes.len()).map(|i| graph.add_node(i)).collect();
    let mut makers = BTreeMap::new();
    let mut readers: BTreeMap<TensorId, Vec<usize>> = BTreeMap::new();
    for (index, node) in step.nodes.iter().enumerate() {
        makers.extend(node.outputs.iter().map(|&output| (output, index)));
        for &input in &node.inputs {
            readers.entry(input).or_default().push(index);
        }
    }
    for (index, node) in step.nodes.iter().enumerate() {
        for input in &node.inputs {
            if let Some(&maker) = makers.get(input) {
                graph.update_edge(ids[maker], ids[index], ());
            }
        }
        // An overwrite comes after every other reader of the version it replaces.
        for old in overwritten(step, node) {
            for &reader in readers[&old].iter().filter(|&&reader| reader != index) {
                graph.update_edge(ids[reader], ids[index], ());
            }
        }
    }
    graph
}

/// The inputs of `node` whose bytes its outputs take.
fn overwritten(step: &Step, node: &Node) -> Vec<TensorId> {
    let storage = |id: &TensorId| step.tensor(*id).storage;
    let taken = |input: &&TensorId| node.outputs.iter().any(|o| storage(o) == storage(input));
    node.inputs.iter().filter(taken).copied().collect()
}

/// Whether the nodes of `step` stand in an order their dependencies allow.
pub fn is_ordered(step: &Step) -> bool {
    let graph = dependencies(step);
    graph.raw_edges().iter().all(|e| e.source() < e.target())
}
