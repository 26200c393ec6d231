//! Activations in fewer bits between the forward and the backward pass.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Args, Argument, Card, Pattern, Site, Technique};
use crate::error::{Error, Result};
use crate::graph::op::compress::{Compress, Decompress, Grid};
use crate::graph::op::transfer::MOVE;
use crate::graph::tensor::{DType, Name, Role, TensorId};
use crate::graph::{Node, Phase, Spot, Step, StepSet, Stream};
use crate::spec::job::{Exactness, Place};
use crate::spec::units::Bytes;

/// Compression of activations.
pub struct CompressActivations;

/// Activations smaller than this stay as they are.
const LEAST: Bytes = Bytes(16 << 10);

/// Arguments of all compression.
pub(super) const ARGUMENTS: [Argument; 3] = [
    Argument {
        key: "bits",
        default: "8",
        meaning: "8 or 4 bits of an element",
    },
    Argument {
        key: "block",
        default: "256",
        meaning: "elements that share a range: an even number",
    },
    Argument {
        key: "rounding",
        default: "stochastic",
        meaning: "stochastic: right on average | nearest",
    },
];

/// The grid that arguments name.
pub(super) fn grid(card: &Card, args: &Args) -> Result<Grid> {
    let bits = if args.word(card, "bits", &["8", "4"])? == "4" {
        4
    } else {
        8
    };
    let block: u64 = args.number(card, "block", (2, 4096))?;
    if !block.is_multiple_of(2) {
        let what = format!("block of `{}`", card.name);
        return Err(Error::value(what, block, "is odd", "give an even number"));
    }
    let stochastic = args.word(card, "rounding", &["stochastic", "nearest"])? == "stochastic";
    Ok(Grid {
        bits,
        block,
        stochastic,
    })
}

impl Technique for CompressActivations {
    fn card(&self) -> Card {
        Card {
            name: "compress_activations",
            aliases: &["actnn", "quantize_activations"],
            summary: "holds what the forward pass leaves for the backward pass as integers of 8 or 4 bits, with a range for each block",
            source: "Chen et al. 2021, arXiv:2104.14129 (ActNN)",
            exactness: Exactness::Lossy,
            site: Site::Gap,
            arguments: &ARGUMENTS,
        }
    }

    fn gap(&self, set: &mut StepSet, sites: &Pattern, args: &Args) -> Result<()> {
        let grid = grid(&self.card(), args)?;
        let mut found = false;
        for (_, step) in &mut set.steps {
            found |= compress(step, sites, grid)?;
        }
        if found {
            return Ok(());
        }
        let why = "holds no activations for a backward pass";
        let next = "name layers such as layers.*, or *";
        Err(Error::value(
            "site of `compress_activations`",
            sites.to_string(),
            why,
            next,
        ))
    }
}

/// Compresses each value behind the node that makes it and puts it back before its first later use; true where any was.
fn compress(step: &mut Step, sites: &Pattern, grid: Grid) -> Result<bool> {
    let later = step.nodes.iter().filter(|n| n.phase.is_later());
    let wanted: BTreeSet<TensorId> = later.flat_map(|n| n.inputs.iter().copied()).collect();
    let mut held = BTreeMap::new();
    let mut back = BTreeMap::new();
    for mut node in std::mem::take(&mut step.nodes) {
        if node.phase.is_later() {
            for input in 0..node.inputs.len() {
                let value = node.inputs[input];
                if let Some(&packed) = held.get(&value) {
                    let again = restored(step, &mut back, (value, packed), &node.block, grid)?;
                    step.redirect(&mut node, input, again);
                }
            }
        }
        let kept = |value: &TensorId| wanted.contains(value) && is_kept(step, &node, *value, sites);
        let kept: Vec<TensorId> = node.outputs.iter().copied().filter(kept).collect();
        let (block, origin) = (node.block.clone(), node.origin.clone());
        step.nodes.push(node);
        for value in kept {
            // Below the path of what is compressed, so that what is said of that is said of its bits.
            let name = &step.storage_of(value).name;
            let output = name.strip_prefix(&*origin).unwrap_or_default();
            let path = format!("{origin}/compress{output}");
            let spot = spot(path, &block, Phase::Forward);
            let op = Arc::new(Compress { grid });
            let packed = step.emit(op, &[value], spot, Role::Activation)?[0];
            held.insert(value, packed);
        }
    }
    Ok(!held.is_empty())
}

/// Whether a value is an activation worth compressing.
fn is_kept(step: &Step, node: &Node, value: TensorId, sites: &Pattern) -> bool {
    let storage = step.storage_of(value);
    node.phase == Phase::Forward
        && node.op.name() != MOVE
        && sites.matches_node(node)
        && storage.role == Role::Activation
        && storage.bytes >= LEAST
        && storage.place == Place::Gpu
        && matches!(
            step.type_of(value).dtype,
            DType::F32 | DType::Bf16 | DType::F16
        )
}

/// The value of `packed` again, made here if nobody has made it yet.
fn restored(
    step: &mut Step,
    back: &mut BTreeMap<TensorId, TensorId>,
    (value, packed): (TensorId, TensorId),
    block: &Name,
    grid: Grid,
) -> Result<TensorId> {
    if let Some(&made) = back.get(&value) {
        return Ok(made);
    }
    let at = step.type_of(value).clone();
    let path = format!("{}.decompress", step.storage_of(value).name);
    let spot = spot(path, block, Phase::Backward);
    let op = Arc::new(Decompress { grid, at });
    let made = step.emit(op, &[packed], spot, Role::Activation)?[0];
    back.insert(value, made);
    Ok(made)
}

fn spot(path: String, block: &Name, phase: Phase) -> Spot {
    Spot {
        origin: path.into(),
        phase,
        block: block.clone(),
        stream: Stream::Compute,
    }
}
