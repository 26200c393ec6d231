//! Which tensors are updated: at the start by chance, then those whose gradients are large.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::graph::random::Key;
use crate::technique::{Args, Next, Policy, SCALARS, Seen, Trained};

/// Arguments of the selection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Settings {
    pub sparsity: f64,
    pub every: u64,
    pub patience: usize,
    pub refresh: u64,
    pub sampled: usize,
}

impl Settings {
    /// Tensors of the first selection, as the authors' code counts them.
    fn count(&self, tensors: usize) -> usize {
        (((1.0 - self.sparsity) * tensors as f64) as usize).max(1)
    }

    /// Elements of every later selection.
    pub(super) fn budget(&self, trained: &[Trained]) -> u64 {
        let all: u64 = trained
            .iter()
            .filter(|t| is_eligible(t))
            .map(|t| t.elements)
            .sum();
        ((1.0 - self.sparsity) * all as f64) as u64
    }
}

/// Whether a tensor may be selected: embeddings and the output never are.
pub(super) fn is_eligible(tensor: &Trained) -> bool {
    !tensor.name.starts_with("embedding/") && !tensor.name.starts_with("head/output")
}

/// Selected and watched tensors that take most memory: as many of the largest as the first selection has, or, where that is more, as
/// many elements as later ones have; and the first of all, whose gradient needs what every layer above it keeps.
pub(super) fn worst(settings: &Settings, trained: &[Trained]) -> (Vec<String>, Vec<String>) {
    let mut eligible: Vec<&Trained> = trained.iter().filter(|t| is_eligible(t)).collect();
    let first = eligible.first().map(|t| t.name.to_string());
    // Of equal tensors, those whose wide inputs must be kept.
    eligible.sort_by_key(|t| std::cmp::Reverse((t.elements, t.columns)));
    let (count, budget) = (settings.count(eligible.len()), settings.budget(trained));
    let (mut sum, mut chosen) = (0, Vec::new());
    let mut rest = eligible.into_iter().peekable();
    while let Some(tensor) = rest.next_if(|t| chosen.len() < count || sum + t.elements <= budget) {
        sum += tensor.elements;
        chosen.push(tensor.name.to_string());
    }
    let watched = rest.filter(|t| Some(&*t.name) != first.as_deref());
    let watched = watched
        .take(settings.sampled)
        .map(|t| t.name.to_string())
        .collect();
    if let Some(first) = first.filter(|first| !chosen.contains(first)) {
        chosen.push(first);
    }
    (chosen, watched)
}

/// What is kept from step to step.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    selected: Vec<String>,
    watched: Vec<String>,
    /// Losses since the last selection.
    losses: Vec<f32>,
    /// Norm of the last gradient each tensor had.
    norms: BTreeMap<String, f64>,
    /// How often each tensor was selected.
    visits: BTreeMap<String, u64>,
}

/// The selection as the authors' code makes it.
pub(super) struct Selection {
    settings: Settings,
    trained: Vec<Trained>,
    seed: u64,
    args: Args,
    state: State,
}

impl Selection {
    /// The first selection: tensors by chance, unless the arguments name them.
    pub(super) fn new(settings: Settings, trained: &[Trained], seed: u64, args: Args) -> Selection {
        let trained: Vec<Trained> = trained.iter().filter(|t| is_eligible(t)).cloned().collect();
        let state = State::default();
        let mut selection = Selection {
            settings,
            trained,
            seed,
            args,
            state,
        };
        let named = super::names(&selection.args, "selected");
        selection.state.selected = match named.is_empty() {
            false => named.into_iter().map(str::to_string).collect(),
            true => {
                let count = settings.count(selection.trained.len());
                selection
                    .shuffled(0, |_| true)
                    .into_iter()
                    .take(count)
                    .collect()
            }
        };
        selection.visit();
        selection.watch(0);
        selection
    }

    /// Names for which `keep` holds, in an order drawn for `step`.
    fn shuffled(&self, step: u64, keep: impl Fn(&str) -> bool) -> Vec<String> {
        let key = Key::new(self.seed, step, "blockllm");
        let mut names: Vec<(u64, String)> = Vec::new();
        for (index, tensor) in self
            .trained
            .iter()
            .enumerate()
            .filter(|(_, t)| keep(&t.name))
        {
            names.push((key.bits(index as u64), tensor.name.to_string()));
        }
        names.sort();
        names.into_iter().map(|(_, name)| name).collect()
    }

    fn visit(&mut self) {
        for name in &self.state.selected {
            *self.state.visits.entry(name.clone()).or_default() += 1;
        }
        self.state.losses.clear();
    }

    /// Samples tensors to watch among those not selected.
    fn watch(&mut self, step: u64) {
        let selected = &self.state.selected;
        let others = self.shuffled(step.wrapping_add(1), |name| {
            !selected.iter().any(|s| s == name)
        });
        self.state.watched = others.into_iter().take(self.settings.sampled).collect();
    }

    /// Whether the last losses are on average above all since the last selection.
    fn stalls(&self, step: u64) -> bool {
        let (losses, patience) = (&self.state.losses, self.settings.patience);
        let mean =
            |part: &[f32]| part.iter().map(|l| f64::from(*l)).sum::<f64>() / part.len() as f64;
        losses.len() > patience
            && step.is_multiple_of(self.settings.every)
            && mean(losses) < mean(&losses[losses.len() - patience..])
    }

    /// Tensors by falling score until the next one would reach the budget; that one is left out. What was never measured comes
    /// last, by chance.
    fn select(&mut self, step: u64) {
        let score = |name: &String| {
            let norm = self.state.norms.get(name)?;
            let visits = self.state.visits.get(name).copied().unwrap_or(0);
            Some(norm / (visits as f64 / step as f64).exp())
        };
        let mut order: Vec<(f64, String)> = Vec::new();
        for name in self.shuffled(step, |_| true) {
            order.push((score(&name).unwrap_or(-1.0), name));
        }
        order.sort_by(|a, b| b.0.total_cmp(&a.0));
        let budget = self.settings.budget(&self.trained);
        let (mut sum, mut chosen) = (0, Vec::new());
        for (_, name) in order {
            let elements = self
                .trained
                .iter()
                .find(|t| *t.name == *name)
                .map_or(0, |t| t.elements);
            if sum + elements >= budget {
                continue;
            }
            sum += elements;
            chosen.push(name);
        }
        if !chosen.is_empty() {
            self.state.selected = chosen;
        }
        self.visit();
    }
}

impl Policy for Selection {
    fn args(&self) -> Args {
        super::with(&self.args, &self.state.selected, &self.state.watched)
    }

    fn after(&mut self, seen: &Seen) -> Next {
        for (name, square) in seen.scalars {
            if let Some(name) = name.strip_prefix(SCALARS) {
                self.state
                    .norms
                    .insert(name.to_string(), f64::from(*square).sqrt());
            }
        }
        self.state.losses.push(seen.loss);
        if self.stalls(seen.step) {
            self.select(seen.step);
            self.watch(seen.step);
            return Next::Rechoose { fresh: true };
        }
        match seen.step.is_multiple_of(self.settings.refresh) && self.settings.sampled > 0 {
            true => {
                self.watch(seen.step);
                Next::Rechoose { fresh: false }
            }
            false => Next::Continue,
        }
    }

    fn shrink(&mut self) -> bool {
        if self.state.watched.pop().is_some() {
            return true;
        }
        self.state.selected.len() > 1 && self.state.selected.pop().is_some()
    }

    fn save(&self) -> Value {
        serde_json::to_value(&self.state).unwrap_or_default()
    }

    fn load(&mut self, from: &Value) -> Result<()> {
        let next = "resume with the plan the save was made with";
        self.state = serde_json::from_value(from.clone())
            .map_err(|e| Error::value("policy of the save", "blockllm", e.to_string(), next))?;
        Ok(())
    }
}
