//! The step as a petgraph graph: dependencies, for the algorithms that ask about them.

use std::collections::BTreeMap;

use petgraph::algo::toposort;
use petgraph::graph::{DiGraph, NodeIndex};

use super::Step;
use super::tensor::StorageId;

/// The dependency graph of `step`: node weights are indices into [`Step::nodes`]; an edge says "must come before".
pub fn dependencies(step: &Step) -> DiGraph<usize, ()> {
    let mut graph = DiGraph::with_capacity(step.nodes.len(), step.nodes.len() * 3);
    let ids: Vec<NodeIndex> = (0..step.nodes.len()).map(|i| graph.add_node(i)).collect();
    let mut makers = BTreeMap::new();
    let mut readers: BTreeMap<StorageId, Vec<usize>> = BTreeMap::new();
    for (index, node) in step.nodes.iter().enumerate() {
        for input in &node.inputs {
            if let Some(&maker) = makers.get(input) {
                graph.update_edge(ids[maker], ids[index], ());
            }
        }
        for output in &node.outputs {
            let storage = step.tensor(*output).storage;
            // An overwrite comes after every earlier reader of the same bytes.
            for reader in readers.remove(&storage).unwrap_or_default() {
                graph.update_edge(ids[reader], ids[index], ());
            }
            makers.insert(*output, index);
        }
        for input in &node.inputs {
            let list = readers.entry(step.tensor(*input).storage).or_default();
            if !node
                .outputs
                .iter()
                .any(|o| step.tensor(*o).storage == step.tensor(*input).storage)
            {
                list.push(index);
            }
        }
    }
    graph
}

/// Whether the nodes of `step` stand in an order their dependencies allow.
pub fn is_ordered(step: &Step) -> bool {
    let graph = dependencies(step);
    toposort(&graph, None).is_ok()
        && graph
            .raw_edges()
            .iter()
            .all(|e| e.source().index() < e.target().index())
}
