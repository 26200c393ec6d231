//! Which tensors are updated by the paper's rule: those with the largest directions for how often they were selected.
//!
//! Followed (arXiv:2406.17296; its abstract and public summaries, the body was not at hand): tensors are scored by the norm of
//! Adam's direction over the share `f` of past selections they were in, and taken by falling score until their elements reach the
//! budget `n_s = (1 - s) n`, the one that reaches it included; a threshold τ leaves `n_s` of their coordinates; they are selected anew
//! when a loss is at or above the mean of the last `patience`, and losses and moments start again.
//!
//! Decided here: `n` counts what may be selected, as the authors' code does. `f` counts one selection of everything beside those that
//! were, `(1 + selected) / (1 + selections)`, so that a tensor that never was has one. A selection takes the gradients of one step, the
//! first or the one after a loss that stalled, in which the tensors selected before are still updated; the norm of each gradient is
//! taken as soon as it is whole. Tensors without moments are scored by those that begin: ±1 for each coordinate whose gradient is well
//! above eps, so by their size and `f` more than by their gradient. τ is taken anew in each step. Losses compared with are those before.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::selection::{Settings, is_eligible};
use crate::error::{Error, Result};
use crate::technique::{Args, Next, Policy, SCALARS, Seen, Trained};

/// Selected and watched tensors that take most memory: as large a sum as stays below the budget, the largest beside it, which reaches
/// it, and the first of all, whose gradient needs what every layer above it keeps. All others are watched, as when a selection is made.
pub(super) fn worst(settings: &Settings, trained: &[Trained]) -> (Vec<String>, Vec<String>) {
    let mut eligible: Vec<&Trained> = trained.iter().filter(|t| is_eligible(t)).collect();
    let first = eligible.first().map(|t| t.name.to_string());
    // Of equal tensors, those whose wide inputs must be kept.
    eligible.sort_by_key(|t| std::cmp::Reverse((t.elements, t.columns)));
    let budget = settings.budget(trained);
    let mut sum = 0;
    let (mut chosen, mut watched) = (Vec::new(), Vec::new());
    for (index, tensor) in eligible.into_iter().enumerate() {
        let fits = index > 0 && sum + tensor.elements < budget;
        sum += if fits { tensor.elements } else { 0 };
        match fits || index == 0 || Some(&*tensor.name) == first.as_deref() {
            true => chosen.push(tensor.name.to_string()),
            false => watched.push(tensor.name.to_string()),
        }
    }
    (chosen, watched)
}

/// What is kept from step to step.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    selected: Vec<String>,
    /// All others in a step that measures, none else.
    watched: Vec<String>,
    /// Losses since the last selection.
    losses: Vec<f32>,
    /// How often each tensor was selected, and how often any were.
    visits: BTreeMap<String, u64>,
    selections: u64,
    /// Steps done when the moments last started again.
    since: u64,
}

/// The selection as the paper makes it.
pub(super) struct Paper {
    patience: usize,
    budget: u64,
    trained: Vec<Trained>,
    args: Args,
    state: State,
}

impl Paper {
    /// Before the first step, which measures all tensors and updates those that the arguments name.
    pub(super) fn new(settings: Settings, trained: &[Trained], args: Args) -> Paper {
        let budget = settings.budget(trained);
        let trained = trained.iter().filter(|t| is_eligible(t)).cloned().collect();
        let named = super::names(&args, "selected").into_iter();
        let mut paper = Paper {
            patience: settings.patience,
            budget,
            trained,
            state: State {
                selected: named.map(str::to_string).collect(),
                ..State::default()
            },
            args,
        };
        if paper.state.selected.is_empty() {
            paper.measure();
        }
        paper
    }

    /// Watches what is not selected.
    fn measure(&mut self) {
        let selected = &self.state.selected;
        let others = self.trained.iter().map(|t| t.name.to_string());
        self.state.watched = others.filter(|name| !selected.contains(name)).collect();
    }

    /// Whether `loss` is not below the mean of the last losses.
    fn stalls(&self, loss: f32) -> bool {
        let losses = &self.state.losses;
        let Some(last) = losses.len().checked_sub(self.patience) else {
            return false;
        };
        let sum: f64 = losses[last..].iter().map(|l| f64::from(*l)).sum();
        f64::from(loss) >= sum / self.patience as f64
    }

    /// The share of past selections that a tensor was in, one of everything counted beside them.
    fn frequency(&self, name: &str) -> f64 {
        let visits = self.state.visits.get(name).copied().unwrap_or(0);
        (1 + visits) as f64 / (1 + self.state.selections) as f64
    }

    /// Selects by the norms of directions that a step has shown.
    fn select(&mut self, seen: &Seen) {
        let score = |tensor: &Trained| {
            let square = seen.scalars.get(&format!("{SCALARS}{}", tensor.name));
            let norm = square.map_or(0.0, |s| f64::from(*s).sqrt());
            norm / self.frequency(&tensor.name)
        };
        let mut order: Vec<(f64, &Trained)> = self.trained.iter().map(|t| (score(t), t)).collect();
        // Equal scores stay in the order of the model.
        order.sort_by(|a, b| b.0.total_cmp(&a.0));
        let (mut sum, mut chosen) = (0, Vec::new());
        for (_, tensor) in order {
            if sum >= self.budget && !chosen.is_empty() {
                break;
            }
            sum += tensor.elements;
            chosen.push(tensor.name.to_string());
        }
        for name in &chosen {
            *self.state.visits.entry(name.clone()).or_default() += 1;
        }
        self.state.selections += 1;
        self.state.selected = chosen;
        self.state.watched.clear();
        self.state.losses.clear();
        self.state.since = seen.step;
    }
}

impl Policy for Paper {
    fn args(&self) -> Args {
        let mut args = super::with(&self.args, &self.state.selected, &self.state.watched);
        let numbers = [("budget", self.budget.max(1)), ("since", self.state.since)];
        for (key, number) in numbers {
            args.0.insert(key.to_string(), number.to_string());
        }
        args
    }

    fn after(&mut self, seen: &Seen) -> Next {
        if !self.state.watched.is_empty() {
            self.select(seen);
            return Next::Rechoose { fresh: true };
        }
        let stalls = self.stalls(seen.loss);
        self.state.losses.push(seen.loss);
        if stalls {
            self.measure();
        }
        match self.state.watched.is_empty() {
            true => Next::Continue,
            false => Next::Rechoose { fresh: false },
        }
    }

    fn shrink(&mut self) -> bool {
        // What is not measured is not selected.
        if self.state.watched.len() > 1 {
            return self.state.watched.pop().is_some();
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
