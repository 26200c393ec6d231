//! The families' model code, as Hugging Face `transformers` writes it: each Python local is a binding of the same scope.

pub mod attention;
pub mod bert;
pub mod cache;
pub mod gemma2;
pub mod gpt2;
pub mod grouped;
pub mod llama;
pub mod masks;
pub mod mixtral;
pub mod opt;
pub mod phi3;

use super::checkpoint::{Replay, Selected};
use super::nn::{Builder, Linear};
use super::tensor::Tensor;
use super::torch::{Made, Torch};
use crate::spec::model::{Family, ModelSpec};
use crate::spec::torch::{Checkpointing, TorchOptions};

/// What a forward pass is given beside its token ids.
#[derive(Debug)]
pub struct Call<'a> {
    /// The architecture.
    pub spec: &'a ModelSpec,
    /// The job.
    pub options: &'a TorchOptions,
    /// Token ids (B, T).
    pub ids: Tensor,
    /// The padding mask (B, T), all ones.
    pub mask: Option<Tensor>,
    /// Keys and values kept for later calls; part of what the call returns.
    pub cache: cache::Cache,
}

/// A model of any family.
pub trait Model {
    /// The hidden states (B, T, H) before the head.
    ///
    /// # Errors
    /// Where an operation halts.
    fn hidden(&self, torch: &Torch, call: &Call) -> Made;

    /// The output projection.
    fn head(&self) -> &Linear;

    /// What follows the head (Gemma 2's soft cap).
    ///
    /// # Errors
    /// Where an operation halts.
    fn after_head(&self, _torch: &Torch, logits: Tensor) -> Made {
        Ok(logits)
    }
}

/// The model of a spec, its parameters made in the order of its modules.
pub fn build(builder: &Builder, spec: &ModelSpec, options: &TorchOptions) -> Box<dyn Model> {
    let attn = options.attn;
    match spec.family {
        Family::Llama | Family::Mistral | Family::Qwen2 | Family::Qwen3 => {
            Box::new(llama::Llama::new(builder, spec, attn))
        }
        Family::Gpt2 => Box::new(gpt2::Gpt2::new(builder, spec, attn)),
        Family::Opt => Box::new(opt::Opt::new(builder, spec, attn)),
        Family::Bert => Box::new(bert::Bert::new(builder, spec, attn)),
        Family::Gemma2 => Box::new(gemma2::Gemma2::new(builder, spec, attn)),
        Family::Phi3 => Box::new(phi3::Phi3::new(builder, spec, attn)),
        Family::Mixtral => Box::new(mixtral::Mixtral::new(builder, spec, attn)),
    }
}

/// A layer called as `GradientCheckpointingLayer` does: checkpointed where the job says so.
///
/// # Errors
/// Where an operation halts.
pub fn layered(
    torch: &Torch,
    options: &TorchOptions,
    index: usize,
    layer: Replay,
    hidden: &Tensor,
) -> Made {
    let inputs = std::slice::from_ref(hidden);
    match options.checkpointing {
        Checkpointing::Full => torch.checkpoint(layer, inputs, None),
        Checkpointing::Every2 if index.is_multiple_of(2) => torch.checkpoint(layer, inputs, None),
        Checkpointing::None | Checkpointing::Every2 => layer(torch, inputs),
        Checkpointing::FullReentrant => torch.checkpoint_reentrant(layer, inputs),
        Checkpointing::SacMatmul => torch.checkpoint(layer, inputs, Some(Selected::new(true))),
        Checkpointing::SacAttn => torch.checkpoint(layer, inputs, Some(Selected::new(false))),
    }
}
