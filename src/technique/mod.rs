//! What may change: each technique in a file of its own, all in one list.

mod accumulate;
mod adamw;
mod args;
mod chunked_loss;
mod clip;
mod flash_attention;
mod fused_update;
mod mixed_precision;
mod offload;
mod pattern;
mod recompute;
mod sgd;

use std::sync::Arc;

pub use args::Args;
pub use pattern::Pattern;

use crate::error::{Error, Result};
use crate::graph::op::Op;
use crate::graph::tensor::DType;
use crate::graph::{Step, StepSet};
use crate::spec::job::{Exactness, Precision};

/// All techniques, in the order they are shown and applied.
pub const TECHNIQUES: &[&dyn Technique] = &[
    &mixed_precision::MixedPrecision,
    &accumulate::Accumulate,
    &sgd::Sgd,
    &adamw::AdamW,
    &clip::Clip,
    &flash_attention::FlashAttention,
    &chunked_loss::ChunkedLoss,
    &fused_update::FusedUpdate,
    &recompute::Recompute,
    &offload::Offload,
];

/// What a technique says of itself.
#[derive(Debug, Clone)]
pub struct Card {
    /// Its name in plans and on the command line.
    pub name: &'static str,
    /// Other names it answers to.
    pub aliases: &'static [&'static str],
    /// What it does, in one sentence.
    pub summary: &'static str,
    /// Where it was published.
    pub source: &'static str,
    /// How its result relates to the job without it.
    pub exactness: Exactness,
    /// Its arguments.
    pub arguments: &'static [Argument],
}

/// One argument of a technique.
#[derive(Debug, Clone, Copy)]
pub struct Argument {
    /// Its key.
    pub key: &'static str,
    /// Its value where none is given.
    pub default: &'static str,
    /// What it means.
    pub meaning: &'static str,
}

/// What is decided before any node exists.
#[derive(Debug, Clone, PartialEq)]
pub struct Draft {
    /// Sequences of a step.
    pub batch: u64,
    /// Format of parameters and activations.
    pub precision: Precision,
    /// Micro-batches a step is cut into.
    pub micro_batches: u64,
    /// Format of parameter gradients; `None` for the parameter's own.
    pub gradient_format: Option<DType>,
    /// Whether a parameter of fewer than 32 bits has an f32 copy that updates go to.
    pub master: bool,
    /// Whether gradients carry a loss scale.
    pub loss_scale: bool,
    /// Global norm gradients are clipped to.
    pub max_norm: Option<f64>,
    /// Whether a parameter is updated as soon as its gradient is whole.
    pub fused_update: bool,
}

/// A state an optimizer keeps for a parameter: its suffix; it has the parameter's shape, in f32.
pub type State = &'static str;

/// How one parameter is updated.
#[derive(Debug, Clone)]
pub struct Rule {
    /// The op: inputs gradient, parameter, master if there is one, states, guard if there is one.
    pub op: Arc<dyn Op>,
    /// The states.
    pub states: Vec<State>,
}

/// A change of the step. Each hook is called where it belongs in the order of building; most techniques need one.
pub trait Technique: Sync {
    /// What it is.
    fn card(&self) -> Card;

    /// What it does with these arguments, as a sentence without a subject; [`Card::summary`] where they change little.
    fn describe(&self, args: &Args) -> String {
        let summary = self.card().summary;
        match args.0.is_empty() {
            true => summary.to_string(),
            false => format!("{summary} ({args})"),
        }
    }

    /// Before anything is built.
    ///
    /// # Errors
    /// Where an argument or another choice excludes it.
    fn draft(&self, _draft: &mut Draft, _args: &Args) -> Result<()> {
        Ok(())
    }

    /// On the forward pass.
    ///
    /// # Errors
    /// Where it cannot be applied.
    fn forward(
        &self,
        _step: &mut Step,
        _sites: &Pattern,
        _draft: &Draft,
        _args: &Args,
    ) -> Result<()> {
        Ok(())
    }

    /// The update of one parameter: an optimizer answers, nobody else.
    ///
    /// # Errors
    /// Where an argument is wrong.
    fn rule(&self, _master: bool, _guard: bool, _args: &Args) -> Result<Option<Rule>> {
        Ok(None)
    }

    /// On the gaps between uses, in every step of the set.
    ///
    /// # Errors
    /// Where it cannot be applied.
    fn gap(&self, _set: &mut StepSet, _sites: &Pattern, _args: &Args) -> Result<()> {
        Ok(())
    }
}

/// The technique called `name`, or one of its aliases.
///
/// # Errors
/// Where there is none, naming the nearest.
pub fn find(name: &str) -> Result<&'static dyn Technique> {
    let matches = |t: &&&dyn Technique| t.card().name == name || t.card().aliases.contains(&name);
    TECHNIQUES.iter().find(matches).copied().ok_or_else(|| {
        let known = TECHNIQUES.iter().flat_map(|t| {
            let card = t.card();
            std::iter::once(card.name).chain(card.aliases.iter().copied())
        });
        Error::unknown("technique", name, known, "`memfit techniques` lists them")
    })
}
