//! What may change: each technique in a file of its own, all in one list.

mod accumulate;
mod adafactor;
mod adamw;
mod adamw8bit;
mod adapter;
mod args;
mod blockllm;
mod chunked_loss;
mod clip;
mod compress_activations;
mod compress_offload;
mod estimator;
mod flash_attention;
mod forward_gradient;
mod frozen;
mod fused_update;
mod galore;
mod int8_weights;
mod lion;
mod lora;
mod lsp_offload;
mod microadam;
mod mixed_precision;
mod nf4_weights;
mod offload;
mod pattern;
mod policy;
mod prefix_tuning;
mod prompt_tuning;
mod recipe;
mod recompute;
mod sgd;
mod update;
mod zeroth_order;
mod zo_adam;
mod zo_conservative;
mod zo_momentum;
mod zo_sgd;
mod zo_sign;

pub use args::Args;
pub use pattern::Pattern;
pub use policy::{Next, Policy, SCALARS, Seen};
pub use recipe::{RECIPES, Recipe, recipe};
pub use update::{Ahead, Emitted, Given, Update};

use crate::error::{Error, Result};
use crate::graph::build::Forward;
use crate::graph::tensor::{DType, Name, TensorId, Type};
use crate::graph::{Step, StepSet};
use crate::spec::job::{Exactness, Precision};
use crate::spec::model::Family;

/// All techniques, in the order they are shown and applied.
pub const TECHNIQUES: &[&dyn Technique] = &[
    &mixed_precision::MixedPrecision,
    &accumulate::Accumulate,
    &sgd::Sgd,
    &adamw::AdamW,
    &adamw8bit::AdamW8Bit,
    &lion::Lion,
    &adafactor::Adafactor,
    &galore::GaLore,
    &microadam::MicroAdam,
    &clip::Clip,
    &lora::Lora,
    &adapter::Adapter,
    &prefix_tuning::PrefixTuning,
    &prompt_tuning::PromptTuning,
    &nf4_weights::Nf4Weights,
    &int8_weights::Int8Weights,
    &flash_attention::FlashAttention,
    &chunked_loss::ChunkedLoss,
    &fused_update::FusedUpdate,
    &lsp_offload::LspOffload,
    &blockllm::BlockLlm,
    &zo_sgd::ZoSgd,
    &zo_sign::ZoSign,
    &zo_momentum::ZoMomentum,
    &zo_conservative::ZoConservative,
    &zo_adam::ZoAdam,
    &forward_gradient::ForwardGradient,
    &recompute::Recompute,
    &compress_activations::CompressActivations,
    &offload::Offload,
    &compress_offload::CompressOffload,
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
    /// What part of a step it changes.
    pub site: Site,
    /// Its arguments.
    pub arguments: &'static [Argument],
}

impl Card {
    /// Whether it says how parameters are updated: a plan has exactly one that does.
    pub fn is_rule(&self) -> bool {
        matches!(self.site, Site::Update | Site::Step)
    }
}

/// A parameter that is trained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trained {
    /// Its name.
    pub name: Name,
    /// Its number of elements.
    pub elements: u64,
    /// Its last length: the width of what a matrix is multiplied by.
    pub columns: u64,
}

impl Trained {
    /// Those of a forward pass.
    pub fn of(forward: &Forward) -> Vec<Trained> {
        let trained = |&id| Trained {
            name: forward.step.storage_of(id).name.clone(),
            elements: forward.step.type_of(id).elements(),
            columns: forward.step.type_of(id).columns(),
        };
        forward.parameters.iter().map(trained).collect()
    }
}

/// The part of a step that a technique changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Site {
    /// How the step is put together: formats, micro-batches, what updates wait for.
    Draft,
    /// The forward pass, and with it what is differentiated.
    Forward,
    /// The update of each parameter.
    Update,
    /// The whole step: it has no backward pass.
    Step,
    /// What becomes of bytes between two uses.
    Gap,
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
    /// The model's family.
    pub family: Family,
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
    /// The technique that trains parameters of its own in place of the model's, which are frozen.
    pub adapter: Option<&'static str>,
    /// How the loss is differentiated.
    pub derivative: Derivative,
}

/// A program of its own that looks at whole gradients every so many steps, ahead of the step.
#[derive(Debug, Clone, Copy)]
pub struct Renewal {
    /// Steps from one run of it to the next; the first is before the first step.
    pub period: u32,
    /// Whether it looks at the gradient of a parameter, by its name and type.
    pub of: fn(&str, &Type) -> bool,
}

/// How the loss is differentiated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Derivative {
    /// By a backward pass: gradients of all parameters.
    Reverse,
    /// By differences between forward passes, which are those of evaluation.
    Differences,
    /// Along with the forward pass, in one direction.
    Forward,
}

impl Draft {
    /// Whether updates read a guard: what gradients are multiplied by, and whether they are finite.
    pub fn guarded(&self) -> bool {
        self.max_norm.is_some() || self.loss_scale
    }
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

    /// On the forward pass: its nodes, and which of its parameters are trained.
    ///
    /// # Errors
    /// Where it cannot be applied.
    fn forward(
        &self,
        _forward: &mut Forward,
        _sites: &Pattern,
        _draft: &Draft,
        _args: &Args,
    ) -> Result<()> {
        Ok(())
    }

    /// Emits the update of one parameter: of those at [`Site::Update`].
    ///
    /// # Errors
    /// Where an argument is wrong, or the technique has no updates.
    fn update(&self, _at: &mut Update, _args: &Args) -> Result<()> {
        let next = "choose an optimizer; `memfit techniques` lists them";
        let name = self.card().name;
        Err(Error::value("optimizer", name, "it updates nothing", next))
    }

    /// Emits what all updates of a step read, once all gradients are whole: of those at [`Site::Update`] that have such a value.
    ///
    /// # Errors
    /// Where an argument is wrong.
    fn ahead(&self, _at: &mut Ahead, _args: &Args) -> Result<Option<TensorId>> {
        Ok(None)
    }

    /// Every how many steps its updates renew what they project with; `None` where they never do.
    ///
    /// # Errors
    /// Where an argument is wrong.
    fn period(&self, _args: &Args) -> Result<Option<u32>> {
        Ok(None)
    }

    /// The program that renews what its updates project with ahead of a step, where it has one: a forward pass without this
    /// technique, gradients of some parameters, and for each of them what [`Technique::renew`] emits.
    ///
    /// # Errors
    /// Where an argument is wrong.
    fn renewal(&self, _args: &Args) -> Result<Option<Renewal>> {
        Ok(None)
    }

    /// Emits what [`Technique::renewal`] does with the gradient of one parameter.
    ///
    /// # Errors
    /// Where an argument is wrong.
    fn renew(&self, _at: &mut Update, _args: &Args) -> Result<()> {
        Ok(())
    }

    /// Arguments with what depends on the model filled in, where anything does: over the parameters that would be trained without it.
    ///
    /// # Errors
    /// Where an argument is wrong.
    fn resolve(
        &self,
        _trained: &dyn Fn() -> Result<Vec<Trained>>,
        _args: &Args,
    ) -> Result<Option<Args>> {
        Ok(None)
    }

    /// What decides between steps, where anything does: over the parameters that would be trained without it.
    ///
    /// # Errors
    /// Where an argument is wrong.
    fn policy(
        &self,
        _trained: &dyn Fn() -> Result<Vec<Trained>>,
        _seed: u64,
        _args: &Args,
    ) -> Result<Option<Box<dyn Policy>>> {
        Ok(None)
    }

    /// The whole step, made from a forward pass without derivative: of those at [`Site::Step`].
    ///
    /// # Errors
    /// Where an argument is wrong, or the technique takes gradients from a backward pass.
    fn step(&self, _forward: Forward, _draft: &Draft, _args: &Args) -> Result<Step> {
        let next = "choose a gradient estimator; `memfit techniques` lists them";
        let name = self.card().name;
        Err(Error::value(
            "estimator",
            name,
            "it estimates nothing",
            next,
        ))
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
        let recipes = RECIPES.iter().map(|r| r.name);
        Error::unknown(
            "technique",
            name,
            known.chain(recipes),
            "`memfit techniques` lists them",
        )
    })
}
