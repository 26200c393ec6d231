//! What a plan may choose for each layer: what becomes of each value the forward pass saves, and where parameters, gradients and
//! optimizer state live.

use std::collections::{BTreeMap, BTreeSet};

use super::may_choose;
use crate::graph::op::compress::COMPRESS;
use crate::graph::op::transfer::MOVE;
use crate::graph::tensor::{Role, StorageId};
use crate::graph::{Node, Phase, Step};
use crate::plan::{Choice, Request};
use crate::spec::model::Head;
use crate::spec::units::Bytes;

/// Values smaller than this stay: a copy's fixed cost is larger than what they save.
const LEAST: Bytes = Bytes(16 << 10);

/// Half layers by which copies go ahead and stay behind where nothing is said.
const PACE: u64 = 2;

/// What the forward pass of a layer saves in one piece: the nodes that make it, by their paths below the layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Saved {
    /// Paths such as `attention/q`, `attention/q_rope`.
    pub leaves: Vec<String>,
    /// Bytes.
    pub bytes: Bytes,
    /// Whether no other layer reads it, so that it may be dropped and computed again.
    pub droppable: bool,
}

/// What becomes of a saved value between forward and backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    /// Dropped, and computed again.
    Recompute,
    /// Sent to the host, and brought back.
    Offload,
    /// Sent to disk, and brought back.
    Disk,
    /// Held in fewer bits.
    Compress,
    /// Sent to the host in fewer bits, and brought back.
    CompressOffload,
}

impl Fate {
    /// All fates beside being kept.
    pub const ALL: [Fate; 5] = [
        Fate::Recompute,
        Fate::Offload,
        Fate::Disk,
        Fate::Compress,
        Fate::CompressOffload,
    ];

    /// The choices that do it at `site`, with copies `pace` half layers ahead and behind.
    pub fn choices(self, site: &str, pace: u64) -> Vec<Choice> {
        let offload = |args: &[(&str, &str)]| {
            let mut choice = Choice::new("offload", site, args);
            paced(&mut choice, pace);
            choice
        };
        let compress = || Choice::new("compress_activations", site, &[]);
        match self {
            Fate::Recompute => vec![Choice::new("recompute", site, &[])],
            Fate::Offload => vec![offload(&[])],
            Fate::Disk => vec![offload(&[("to", "disk")])],
            Fate::Compress => vec![compress()],
            Fate::CompressOffload => vec![compress(), offload(&[])],
        }
    }

    /// What it is called in tables.
    pub fn name(self) -> &'static str {
        match self {
            Fate::Recompute => "recompute",
            Fate::Offload => "offload",
            Fate::Disk => "offload to disk",
            Fate::Compress => "fewer bits",
            Fate::CompressOffload => "offload in fewer bits",
        }
    }

    /// Whether `saved` can have this fate.
    pub fn suits(self, saved: &Saved) -> bool {
        match self {
            Fate::Recompute => saved.droppable,
            _ => saved.bytes >= LEAST,
        }
    }

    /// Whether the value leaves the device.
    pub fn leaves(self) -> bool {
        !matches!(self, Fate::Recompute | Fate::Compress)
    }
}

/// What layer `layer` of `step` saves, in the order in which it is made.
pub fn saved(step: &Step, layer: u64) -> Vec<Saved> {
    let block = format!("layers.{layer}");
    let later: BTreeSet<StorageId> = (step.nodes.iter())
        .filter(|n| n.phase.is_later())
        .flat_map(|n| &n.inputs)
        .map(|&v| step.tensor(v).storage)
        .collect();
    let forward = |n: &&Node| n.phase == Phase::Forward && n.op.name() != MOVE;
    let crossing: BTreeSet<StorageId> = (step.nodes.iter().filter(forward))
        .filter(|n| *n.block != *block)
        .flat_map(|n| &n.inputs)
        .map(|&v| step.tensor(v).storage)
        .collect();
    let mut of: BTreeMap<StorageId, usize> = BTreeMap::new();
    let mut all: Vec<(Saved, bool)> = Vec::new();
    for node in (step.nodes.iter().filter(forward)).filter(|n| *n.block == *block) {
        let homes: BTreeSet<StorageId> =
            (node.outputs.iter().map(|&v| step.tensor(v).storage)).collect();
        if node.op.name() == COMPRESS {
            // What is held in fewer bits stands for the value itself.
            let whole = step.tensor(node.inputs[0]).storage;
            if let Some((group, wanted)) = of.get(&whole).and_then(|&index| all.get_mut(index)) {
                let packed: Bytes = homes.iter().map(|&s| step.storage(s).bytes).sum();
                group.bytes = group.bytes.saturating_sub(step.storage(whole).bytes) + packed;
                *wanted |= homes.iter().any(|s| later.contains(s));
            }
            continue;
        }
        let own = |s: &&StorageId| step.storage(**s).role == Role::Activation;
        let Some(first) = homes.iter().find(own) else {
            continue;
        };
        let index = *of.entry(*first).or_insert_with(|| {
            let leaves = Vec::new();
            let (bytes, droppable) = (Bytes::ZERO, true);
            all.push((
                Saved {
                    leaves,
                    bytes,
                    droppable,
                },
                false,
            ));
            all.len() - 1
        });
        let (group, wanted) = &mut all[index];
        let leaf = node.origin.strip_prefix(&*block).unwrap_or(&node.origin);
        group.leaves.push(leaf.trim_start_matches('/').to_string());
        group.droppable &= !homes.iter().any(|s| crossing.contains(s));
        *wanted |= homes.iter().any(|s| later.contains(s));
        group.bytes = homes.iter().map(|&s| step.storage(s).bytes).sum();
    }
    all.into_iter()
        .filter_map(|(group, wanted)| wanted.then_some(group))
        .collect()
}

/// A set of layers, as it stands in a site.
pub fn layers(of: &BTreeSet<u64>) -> String {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for &layer in of {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == layer => *last = layer,
            _ => ranges.push((layer, layer)),
        }
    }
    let range = |&(from, to): &(u64, u64)| match from == to {
        true => from.to_string(),
        false => format!("{from}-{to}"),
    };
    let ranges: Vec<String> = ranges.iter().map(range).collect();
    format!("layers.{}", ranges.join("|"))
}

/// The site of `saved` in the layers of `sites`.
pub fn site(saved: &[&Saved], sites: &str) -> String {
    let leaves = saved.iter().flat_map(|s| &s.leaves);
    let parts: Vec<String> = leaves.map(|leaf| format!("{sites}/{leaf}")).collect();
    parts.join("+")
}

/// Kernels that keep less and compute the same up to rounding.
pub fn kernels(request: &Request) -> Vec<Choice> {
    if request.job.model.head != Head::Causal {
        return Vec::new();
    }
    let names = ["chunked_loss", "flash_attention"].into_iter();
    let open = names.filter(|name| may_choose(request, name));
    open.map(|name| Choice::new(name, "*", &[])).collect()
}

/// Where parameters, gradients and optimizer state live.
#[derive(Debug, Clone, PartialEq)]
pub struct Home {
    /// What it is called in tables; empty where all stay on the device.
    pub name: String,
    /// Choices for the whole step.
    pub whole: Vec<Choice>,
    /// Choices that may be made for some layers alone.
    pub by_layer: Vec<Choice>,
    /// Half layers by which copies go ahead and stay behind.
    pub pace: u64,
}

impl Home {
    /// Whether something lives on disk.
    pub fn uses_disk(&self) -> bool {
        let to = |choice: &Choice| choice.args.0.get("to").is_some_and(|to| to == "disk");
        self.by_layer.iter().any(to)
    }

    /// Its choices, those by layer at `site`, with copies `pace` half layers ahead and behind.
    pub fn choices(&self, site: &str, pace: u64) -> Vec<Choice> {
        let at = |choice: &Choice| {
            let mut choice = choice.clone();
            choice.site = site.to_string();
            paced(&mut choice, pace);
            choice
        };
        (self.whole.iter().cloned())
            .chain(self.by_layer.iter().map(at))
            .collect()
    }
}

/// The homes that `request` leaves open, from the fastest to the smallest.
///
/// `fuses` tells whether a plan takes a fused update.
pub fn homes(request: &Request, fuses: bool) -> Vec<Home> {
    let fused = fuses.then(|| Choice::new("fused_update", "*", &[]));
    let home = |name: &str, whole: Vec<Choice>, by_layer: Vec<Choice>| Home {
        name: name.to_string(),
        whole,
        by_layer,
        pace: PACE,
    };
    let mut homes = vec![home("", vec![], vec![])];
    if let Some(fused) = &fused {
        homes.push(home("fused", vec![fused.clone()], vec![]));
    }
    if !may_choose(request, "offload") {
        return homes;
    }
    let offload = |args: &[(&str, &str)]| Choice::new("offload", "*", args);
    let host = offload(&[("what", "optimizer"), ("update", "host")]);
    let device = offload(&[("what", "optimizer")]);
    let disk = offload(&[("what", "optimizer"), ("to", "disk"), ("update", "host")]);
    let parameters = offload(&[("what", "parameters")]);
    let parameters_on_disk = offload(&[("what", "parameters"), ("to", "disk")]);
    // With a fused update a gradient is gone before the next one comes; without, it is sent to where its update is.
    // Gradients that micro-batches add to stay on the device.
    let whole = request.job.batch.to_string();
    let divides = |c: &Choice| c.technique == "accumulate" && c.args.0.get("micro") != Some(&whole);
    let accumulates = request.fixed.iter().any(divides);
    let gradients = (fused.is_none() && !accumulates).then(|| offload(&[("what", "gradients")]));
    let whole: Vec<Choice> = fused.into_iter().collect();
    let with = |name: &str, more: Vec<Choice>| {
        home(
            name,
            whole.clone(),
            gradients.iter().cloned().chain(more).collect(),
        )
    };
    let away = [
        with("state on host, updated on device", vec![device.clone()]),
        with("state on host", vec![host.clone()]),
        with(
            "state and weights on host, updated on device",
            vec![device, parameters.clone()],
        ),
        with("state and weights on host", vec![host, parameters.clone()]),
        with(
            "state on disk, weights on host",
            vec![disk.clone(), parameters],
        ),
        with("state and weights on disk", vec![disk, parameters_on_disk]),
    ];
    homes.extend(away.iter().flat_map(|home| [home.clone(), closer(home)]));
    homes
}

/// The same with copies one half layer ahead and behind: less is in flight, and less time is there for it.
fn closer(home: &Home) -> Home {
    let mut closer = home.clone();
    closer.pace = 1;
    closer
}

/// Lets a choice's copies go `pace` half layers ahead and stay as many behind.
pub fn paced(choice: &mut Choice, pace: u64) {
    for key in ["lead", "lag"].into_iter().filter(|_| pace != PACE) {
        choice.args.0.insert(key.to_string(), pace.to_string());
    }
}
