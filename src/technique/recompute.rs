//! Dropping activations after the forward pass and computing them again where the backward pass wants them.

use std::collections::{BTreeMap, BTreeSet};

use super::{Args, Argument, Card, Pattern, Site, Technique};
use crate::error::{Error, Result};
use crate::graph::tensor::{Name, Role, TensorId};
use crate::graph::{Node, Phase, Spot, Step, StepSet};
use crate::spec::job::{Exactness, Place};

/// Recomputation of activations.
pub struct Recompute;

impl Technique for Recompute {
    fn card(&self) -> Card {
        Card {
            name: "recompute",
            aliases: &[
                "gradient_checkpointing",
                "activation_checkpointing",
                "rematerialization",
            ],
            summary: "drops activations after the forward pass and computes them again in the backward pass",
            source: "Chen et al. 2016, arXiv:1604.06174; selective: Korthikanti et al. 2022, arXiv:2205.05198",
            exactness: Exactness::Bitwise,
            site: Site::Gap,
            arguments: &[
                Argument {
                    key: "what",
                    default: "all",
                    meaning: "all: keep only what enters a segment | attention: its core | cheap: norms and activations",
                },
                Argument {
                    key: "segment",
                    default: "1",
                    meaning: "layers of one segment, with what=all",
                },
            ],
        }
    }

    fn describe(&self, args: &Args) -> String {
        let card = self.card();
        let what = args.word(&card, "what", &["all", "attention", "cheap"]);
        let segment = args.number::<u64>(&card, "segment", (1, 1 << 20));
        match (what.unwrap_or("all"), segment.unwrap_or(1)) {
            ("attention", _) => "drops what the core of attention saves and computes it again",
            ("cheap", _) => "drops the outputs of norms and activations and computes them again",
            (_, 1) => "keeps only what enters a layer and computes the rest again",
            (_, n) => {
                return format!("keeps only what enters {n} layers and computes the rest again");
            }
        }
        .to_string()
    }

    fn gap(&self, set: &mut StepSet, sites: &Pattern, args: &Args) -> Result<()> {
        let card = self.card();
        let what = args.word(&card, "what", &["all", "attention", "cheap"])?;
        let segment: usize = args.number(&card, "segment", (1, 1 << 20))?;
        let mut found = false;
        for (_, step) in &mut set.steps {
            found |= Rewrite::new(step, sites, what, segment).apply()?;
        }
        if !found {
            let why = "no layer there leaves anything for the backward pass";
            return Err(Error::value(
                "site of `recompute`",
                sites.to_string(),
                why,
                "name layers, such as layers.* or layers.0-11",
            ));
        }
        Ok(())
    }
}

/// Ops whose work is small beside the bytes they leave.
const CHEAP: [&str; 5] = ["layer_norm", "rms_norm", "act", "gated", "dropout"];

/// Ops of the attention core.
const ATTENTION: [&str; 2] = ["attention", "flash_attention"];

/// What may be computed again, in one step.
struct Layout {
    /// The forward node that makes each value.
    maker: BTreeMap<TensorId, usize>,
    /// The segment of each forward node's block.
    segment: Vec<Option<usize>>,
    /// Whether a node may run again.
    clonable: Vec<bool>,
    /// Values that forward nodes of other segments read, at their newest version: alive anyway.
    kept: BTreeSet<TensorId>,
    /// Values dropped after the forward pass.
    dropped: BTreeSet<TensorId>,
}

impl Layout {
    fn new(step: &Step, sites: &Pattern, what: &str, length: usize) -> Layout {
        let segment = segments(step, sites, length);
        let maker = makers(step);
        let clonable = clonable(step, &segment, (sites, what), &maker);
        let newest = newest_versions(step);
        let mut crossing = BTreeSet::new();
        for (index, node) in step
            .nodes
            .iter()
            .enumerate()
            .filter(|(_, n)| n.phase == Phase::Forward)
        {
            let leaves = |value: &&TensorId| {
                maker
                    .get(*value)
                    .is_some_and(|&m| segment[m] != segment[index])
            };
            crossing.extend(node.inputs.iter().filter(leaves).copied());
        }
        let later = step.nodes.iter().filter(|n| n.phase.is_later());
        let used = later.flat_map(|n| n.inputs.iter().copied());
        let drops = |value: &TensorId| {
            maker.get(value).is_some_and(|&m| clonable[m]) && !crossing.contains(value)
        };
        let dropped = used.filter(drops).collect();
        let is_newest = |value: &TensorId| {
            newest[step.tensor(*value).storage.0 as usize] == step.tensor(*value).version
        };
        let kept = crossing.into_iter().filter(is_newest).collect();
        Layout {
            maker,
            segment,
            clonable,
            kept,
            dropped,
        }
    }

    /// Whether the clone of a node in `segment` must have `value` computed again too.
    fn again(&self, value: TensorId, segment: Option<usize>) -> bool {
        let inside = |&m: &usize| self.segment[m] == segment && self.clonable[m];
        self.maker.get(&value).is_some_and(inside) && !self.kept.contains(&value)
    }
}

/// Clones nodes of one step before their first use in the backward pass.
struct Rewrite<'a> {
    step: &'a mut Step,
    layout: Layout,
    before: Vec<Node>,
    after: Vec<Node>,
    /// The new value of each value computed again.
    again: BTreeMap<TensorId, TensorId>,
}

impl<'a> Rewrite<'a> {
    fn new(step: &'a mut Step, sites: &Pattern, what: &str, length: usize) -> Rewrite<'a> {
        let layout = Layout::new(step, sites, what, length);
        Rewrite {
            step,
            layout,
            before: Vec::new(),
            after: Vec::new(),
            again: BTreeMap::new(),
        }
    }

    /// Rewrites the step; false where nothing is dropped.
    fn apply(mut self) -> Result<bool> {
        if self.layout.dropped.is_empty() {
            return Ok(false);
        }
        self.before = std::mem::take(&mut self.step.nodes);
        for index in 0..self.before.len() {
            let mut node = self.before[index].clone();
            if node.phase.is_later() {
                for input in &mut node.inputs {
                    if self.layout.dropped.contains(input) {
                        *input = self.compute_again(*input)?;
                    }
                }
            }
            self.after.push(node);
        }
        self.step.nodes = self.after;
        Ok(true)
    }

    /// The clone of `value`, made here if nobody has made it yet.
    fn compute_again(&mut self, value: TensorId) -> Result<TensorId> {
        if let Some(&again) = self.again.get(&value) {
            return Ok(again);
        }
        let maker = self.layout.maker[&value];
        let node = self.before[maker].clone();
        let overwritten: Vec<usize> = self.step.overwrites(&node).into_iter().flatten().collect();
        let mut inputs = node.inputs.clone();
        for (index, input) in inputs.iter_mut().enumerate() {
            if overwritten.contains(&index) || self.layout.again(*input, self.layout.segment[maker])
            {
                *input = self.compute_again(*input)?;
            }
        }
        let Node {
            op,
            origin,
            block,
            stream,
            ..
        } = node;
        let spot = Spot {
            origin,
            phase: Phase::Recompute,
            block,
            stream,
        };
        let clone = self
            .step
            .node(op, &inputs, spot, Role::Activation, Place::Gpu)?;
        self.again.extend(
            node.outputs
                .iter()
                .copied()
                .zip(clone.outputs.iter().copied()),
        );
        self.after.push(clone);
        Ok(self.again[&value])
    }
}

/// The segment of each forward node: `length` neighbouring blocks in which something matches `sites`.
fn segments(step: &Step, sites: &Pattern, length: usize) -> Vec<Option<usize>> {
    let forward = |node: &&Node| node.phase == Phase::Forward && node.block.starts_with("layers.");
    let matched: BTreeSet<&Name> = (step.nodes.iter().filter(forward))
        .filter(|node| sites.matches_node(node))
        .map(|node| &node.block)
        .collect();
    let mut blocks: BTreeMap<Name, usize> = BTreeMap::new();
    let of = |node: &Node, blocks: &mut BTreeMap<Name, usize>| {
        let inside = forward(&node) && matched.contains(&node.block);
        let next = blocks.len();
        inside.then(|| *blocks.entry(node.block.clone()).or_insert(next) / length)
    };
    step.nodes
        .iter()
        .map(|node| of(node, &mut blocks))
        .collect()
}

/// The node that makes each value.
fn makers(step: &Step) -> BTreeMap<TensorId, usize> {
    let made = |(index, node): (usize, &Node)| {
        node.outputs
            .iter()
            .map(move |&o| (o, index))
            .collect::<Vec<_>>()
    };
    step.nodes
        .iter()
        .enumerate()
        .filter(|(_, n)| n.phase == Phase::Forward)
        .flat_map(made)
        .collect()
}

/// Which nodes may run again: those of the wanted kind that overwrite nothing but what is computed again too.
fn clonable(
    step: &Step,
    segment: &[Option<usize>],
    (sites, what): (&Pattern, &str),
    maker: &BTreeMap<TensorId, usize>,
) -> Vec<bool> {
    let mut clonable: Vec<bool> = Vec::with_capacity(step.nodes.len());
    for (index, node) in step.nodes.iter().enumerate() {
        let kind = match what {
            "attention" => ATTENTION.contains(&node.op.name()),
            "cheap" => CHEAP.contains(&node.op.name()),
            _ => true,
        };
        let overwrites = step.overwrites(node);
        let owns = |input: &usize| {
            let made = maker.get(&node.inputs[*input]);
            made.is_some_and(|&m| m < index && clonable[m] && segment[m] == segment[index])
        };
        let wanted = segment[index].is_some() && kind && sites.matches_node(node);
        clonable.push(wanted && overwrites.iter().flatten().all(owns));
    }
    clonable
}

/// The newest version of each storage.
fn newest_versions(step: &Step) -> Vec<u32> {
    let mut newest = vec![0; step.storages.len()];
    for tensor in &step.tensors {
        let version = &mut newest[tensor.storage.0 as usize];
        *version = tensor.version.max(*version);
    }
    newest
}
