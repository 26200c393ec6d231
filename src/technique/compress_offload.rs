//! Optimizer state and gradients in fewer bits on their way to host memory or disk, and while they are there.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::compress_activations::{ARGUMENTS, grid};
use super::offload::expect_at_home;
use super::{Args, Argument, Card, Pattern, Site, Technique};
use crate::error::{Error, Result};
use crate::graph::op::Op;
use crate::graph::op::compress::{Compress, Decompress, Grid};
use crate::graph::op::transfer::{MOVE, Move};
use crate::graph::reach::copy_stream;
use crate::graph::tensor::{DType, First, Role, StorageId, TensorId};
use crate::graph::{Node, Phase, Spot, Step, StepSet, Stream};
use crate::spec::job::{Exactness, Place};

/// Compression of what is offloaded.
pub struct CompressOffload;

/// Its own argument before those of all compression.
const ALL: [Argument; 5] = [
    Argument {
        key: "what",
        default: "gradients",
        meaning: "gradients: to where they are used, or away and back | optimizer: its state, except master copies",
    },
    Argument {
        key: "to",
        default: "host",
        meaning: "host | disk",
    },
    ARGUMENTS[0],
    ARGUMENTS[1],
    ARGUMENTS[2],
];

impl Technique for CompressOffload {
    fn card(&self) -> Card {
        Card {
            name: "compress_offload",
            aliases: &["quantize_offload"],
            summary: "sends gradients or optimizer state to host memory or disk as integers of 8 or 4 bits, with a range for each block",
            source: "Chen et al. 2021, arXiv:2104.14129, section 3.2; for gradients Alistarh et al. 2017, arXiv:1610.02132 (QSGD)",
            exactness: Exactness::Lossy,
            site: Site::Gap,
            arguments: &ALL,
        }
    }

    fn gap(&self, set: &mut StepSet, sites: &Pattern, args: &Args) -> Result<()> {
        let card = self.card();
        let grid = grid(&card, args)?;
        let what = args.word(&card, "what", &["gradients", "optimizer"])?;
        let place = match args.word(&card, "to", &["host", "disk"])? {
            "disk" => Place::Disk,
            _ => Place::Pinned,
        };
        expect_at_home(set, &format!("compress_offload:what={what}"))?;
        let mut found = false;
        for (_, step) in &mut set.steps {
            found |= match what {
                "gradients" => gradients(step, sites, place, grid)?,
                _ => states(step, sites, place, grid)?,
            };
        }
        if found {
            return Ok(());
        }
        let why = format!("holds no {what} to send away");
        let next = "name parameters such as layers.*, or *";
        Err(Error::value(
            "site of `compress_offload`",
            sites.to_string(),
            why,
            next,
        ))
    }
}

fn is_update(node: &Node) -> bool {
    node.phase == Phase::Update && !["square_sum", "clip_scale", MOVE].contains(&node.op.name())
}

/// Compresses each whole gradient behind the node that ends it, sends it away, and puts it back where its update runs.
fn gradients(step: &mut Step, sites: &Pattern, place: Place, grid: Grid) -> Result<bool> {
    let mut read: BTreeMap<TensorId, Stream> = BTreeMap::new();
    for node in step.nodes.iter().filter(|n| is_update(n)) {
        let of = |v: &&TensorId| {
            let storage = step.storage_of(**v);
            storage.role == Role::Gradient && !storage.shared && sites.matches(&storage.name)
        };
        read.extend(node.inputs.iter().filter(of).map(|&v| (v, node.stream)));
    }
    let mut away = BTreeMap::new();
    // What updates make of gradients where they read them.
    let mut changed: BTreeMap<TensorId, TensorId> = BTreeMap::new();
    for mut node in std::mem::take(&mut step.nodes) {
        if is_update(&node) {
            for input in 0..node.inputs.len() {
                let value = node.inputs[input];
                node.inputs[input] = changed.get(&value).copied().unwrap_or(value);
                if let Some(&packed) = away.get(&value) {
                    let at = step.type_of(value).clone();
                    let op = Decompress { grid, at };
                    let copy = beside(step, op, (value, packed), &node, "decompress")?;
                    changed.extend(step.redirect(&mut node, input, copy));
                }
            }
        }
        let sent = node
            .outputs
            .iter()
            .copied()
            .filter(|v| read.contains_key(v));
        let sent: Vec<TensorId> = sent.filter(|_| !is_update(&node)).collect();
        step.nodes.push(node.clone());
        for value in sent {
            let packed = beside(step, Compress { grid }, (value, value), &node, "compress")?;
            away.insert(value, moved(step, packed, place, &node)?);
        }
    }
    Ok(!away.is_empty())
}

/// Keeps states of updates compressed where they are sent: each is put back before its update, and compressed anew behind it.
fn states(step: &mut Step, sites: &Pattern, place: Place, grid: Grid) -> Result<bool> {
    let mut homes: BTreeMap<StorageId, TensorId> = BTreeMap::new();
    for mut node in std::mem::take(&mut step.nodes) {
        let mut changed = Vec::new();
        for input in 0..node.inputs.len() {
            let value = node.inputs[input];
            if !is_update(&node) || !is_state(step, value, sites) {
                continue;
            }
            let home = homed(step, &mut homes, value, place, grid);
            let at = step.type_of(value).clone();
            let op = Decompress { grid, at };
            let copy = beside(step, op, (value, home), &node, "decompress")?;
            if let Some((_, made)) = step.redirect(&mut node, input, copy) {
                changed.push((value, made));
            }
        }
        step.nodes.push(node.clone());
        for (value, made) in changed {
            let storage = step.tensor(value).storage;
            let packed = beside(step, Compress { grid }, (value, made), &node, "compress")?;
            let newest = written(step, packed, homes[&storage], &node)?;
            homes.insert(storage, newest);
        }
    }
    let found = !homes.is_empty();
    for storage in homes.into_keys() {
        // Nobody reads the state itself any more: it is no part of the step.
        step.storages[storage.0 as usize].shared = false;
    }
    Ok(found)
}

/// Whether a value is a float state of a matching parameter, other than a master copy.
fn is_state(step: &Step, value: TensorId, sites: &Pattern) -> bool {
    let storage = step.storage_of(value);
    let float = matches!(
        step.type_of(value).dtype,
        DType::F32 | DType::Bf16 | DType::F16
    );
    storage.role == Role::OptimizerState
        && storage.shared
        && storage.first == First::Zero
        && float
        && sites.matches(&storage.name)
}

/// The compressed home of a state: zero bytes are zeros.
fn homed(
    step: &mut Step,
    homes: &mut BTreeMap<StorageId, TensorId>,
    value: TensorId,
    place: Place,
    grid: Grid,
) -> TensorId {
    let storage = step.tensor(value).storage;
    if let Some(&home) = homes.get(&storage) {
        return home;
    }
    let name = format!("{}.int{}", step.storage(storage).name, grid.bits);
    let held = grid.held(step.type_of(value).elements());
    let home = step.persistent_as(&name, held, place, Role::OptimizerState, First::Zero);
    homes.insert(storage, home);
    home
}

/// Emits `op` over `from` in the stream of `node`, named after `value`.
fn beside(
    step: &mut Step,
    op: impl Op + 'static,
    (value, from): (TensorId, TensorId),
    node: &Node,
    leaf: &str,
) -> Result<TensorId> {
    let spot = Spot {
        origin: format!("{}.{leaf}", step.storage_of(value).name).into(),
        phase: node.phase,
        block: node.block.clone(),
        stream: node.stream,
    };
    let (role, place) = match node.stream {
        Stream::HostCompute => (step.storage_of(value).role, Place::Pinned),
        _ => (step.storage_of(value).role, Place::Gpu),
    };
    let node = step.node(Arc::new(op), &[from], spot, role, place)?;
    let made = node.outputs[0];
    step.nodes.push(node);
    Ok(made)
}

/// A copy of `packed` in `place`.
fn moved(step: &mut Step, packed: TensorId, place: Place, node: &Node) -> Result<TensorId> {
    let spot = copied(step, packed, place, node, "away");
    let role = step.storage_of(packed).role;
    let node = step.node(Arc::new(Move { into: false }), &[packed], spot, role, place)?;
    let made = node.outputs[0];
    step.nodes.push(node);
    Ok(made)
}

/// `packed` written over `home`.
fn written(step: &mut Step, packed: TensorId, home: TensorId, node: &Node) -> Result<TensorId> {
    let place = step.storage_of(home).place;
    let spot = copied(step, packed, place, node, "write_back");
    let role = Role::OptimizerState;
    let node = step.node(
        Arc::new(Move { into: true }),
        &[packed, home],
        spot,
        role,
        place,
    )?;
    let made = node.outputs[0];
    step.nodes.push(node);
    Ok(made)
}

fn copied(step: &Step, packed: TensorId, to: Place, node: &Node, leaf: &str) -> Spot {
    let storage = step.storage_of(packed);
    Spot {
        origin: format!("{}.{leaf}", storage.name).into(),
        phase: node.phase,
        block: node.block.clone(),
        stream: copy_stream(storage.place, to),
    }
}
