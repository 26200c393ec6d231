//! How far copies run ahead of kernels and behind them, and the clocks that this is counted by.

use std::collections::{BTreeSet, HashMap};

use super::tensor::{Name, Role, Storage};
use super::{Node, Step, StepSet};

/// How copies run, by what is copied.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Paces {
    /// Storages that have a pace of their own: those that were sent away by name, and where they are.
    pub own: HashMap<Name, Pace>,
    /// Other activations.
    pub activations: Pace,
    /// Everything else.
    pub others: Pace,
    /// Layers that some paces do not count, by [`Pace::clock`] less one.
    pub skipped: Vec<BTreeSet<Name>>,
}

impl Paces {
    /// How copies of `storage` run.
    pub fn of(&self, storage: &Storage) -> Pace {
        let own = self.own.get(&storage.name).copied();
        own.unwrap_or(match storage.role {
            Role::Activation => self.activations,
            _ => self.others,
        })
    }

    /// For each clock the half of a layer that every node of `step` lies in; nodes of layers that are not counted lie in the one before.
    pub(super) fn clocks(&self, step: &Step) -> Vec<Vec<usize>> {
        let none = BTreeSet::new();
        let all = [&none].into_iter().chain(&self.skipped);
        all.map(|skipped| units(step, skipped)).collect()
    }
}

/// How far copies run ahead of and behind the kernels, in halves of layers: of those that have some, so that a copy for one of them has
/// the time from one to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pace {
    /// Before a use, at which what it needs is fetched.
    pub lead: usize,
    /// After a copy out, for which its source stays before the compute stream waits.
    pub lag: usize,
    /// Which layers are counted: all for 0.
    pub clock: usize,
}

/// Units that pass where the forward pass ends with layers that are not counted: what was sent away before them has left by then, and comes
/// back no earlier.
const TURN: usize = 3;

/// A run of nodes of one part of a block, such as `layers.3/mlp`, in one half of the step, for each node: what `lead` and `lag` count in.
/// Blocks that are `skipped` belong to the run before.
fn units(step: &Step, skipped: &BTreeSet<Name>) -> Vec<usize> {
    fn part(node: &Node) -> Option<&str> {
        let below = node.origin.strip_prefix(&*node.block);
        let below = below.and_then(|rest| rest.strip_prefix('/'));
        let first = below.and_then(|rest| rest.split('/').next());
        first.filter(|_| node.block.starts_with("layers."))
    }
    let mut units = Vec::with_capacity(step.nodes.len());
    let mut last: Option<(&Name, bool, Option<&str>)> = None;
    let (mut unit, mut idle, mut back) = (0, false, false);
    for node in &step.nodes {
        let later = node.phase.is_later();
        let turns = later && !back;
        unit += if turns && idle { TURN } else { 0 };
        back = later;
        let skips = skipped.contains(&node.block);
        idle = skips || idle && !node.block.starts_with("layers.");
        if !skips {
            let here = Some((&node.block, later, part(node)));
            unit += usize::from(last.is_some() && last != here);
            last = here;
        }
        units.push(unit);
    }
    units
}

impl StepSet {
    /// The clock of the layers that have a node which is `met`. Those between them are not counted; those before the first and behind the
    /// last are, as often as these lie apart, so that copies have as much time there.
    pub fn clock(&mut self, met: impl Fn(&Node) -> bool) -> usize {
        let skipped = skipped(&layers(self, met));
        if skipped.is_empty() {
            return 0;
        }
        // What is sent away of the same layers goes by the same clock.
        let known = &mut self.paces.skipped;
        let index = known.iter().position(|other| *other == skipped);
        let index = index.unwrap_or_else(|| {
            known.push(skipped);
            known.len() - 1
        });
        index + 1
    }
}

/// Those of `layers` that the clock of the ones that are met does not count.
fn skipped(layers: &[(Name, bool)]) -> BTreeSet<Name> {
    let met: Vec<usize> = (0..layers.len()).filter(|&at| layers[at].1).collect();
    let (Some(&first), Some(&last)) = (met.first(), met.last()) else {
        return BTreeSet::new();
    };
    let apart = layers.len().div_ceil(met.len());
    let skips = |at: &usize| match *at {
        at if at < first => (first - at) % apart != 0,
        at if at > last => (at - last) % apart != 0,
        at => !layers[at].1,
    };
    let skipped = (0..layers.len()).filter(skips);
    skipped.map(|at| layers[at].0.clone()).collect()
}

/// The layers of all steps as they come, and whether each has a node that is `met`.
fn layers(set: &StepSet, met: impl Fn(&Node) -> bool) -> Vec<(Name, bool)> {
    let mut layers: Vec<(Name, bool)> = Vec::new();
    let mut index: HashMap<Name, usize> = HashMap::new();
    for node in set.steps.iter().flat_map(|(_, step)| &step.nodes) {
        if node.block.starts_with("layers.") {
            let at = *index.entry(node.block.clone()).or_insert_with(|| {
                layers.push((node.block.clone(), false));
                layers.len() - 1
            });
            layers[at].1 = layers[at].1 || met(node);
        }
    }
    layers
}
