//! The families' model code, as Hugging Face `transformers` writes it: each Python local is a binding of the same scope.

pub mod attention;
pub mod bert;
pub mod cache;
pub mod decoder;
pub mod gemma2;
pub mod gpt2;
pub mod grouped;
pub mod llama;
pub mod masks;
pub mod mixtral;
pub mod opt;
pub mod phi3;

use std::rc::Rc;

use super::checkpoint::{Replay, Selected};
use super::nn::{Builder, Linear};
use super::tape::Origin;
use super::tensor::Tensor;
use super::torch::{Made, Torch};
use crate::spec::model::{Family, ModelSpec};
use crate::spec::torch::{Checkpointing, TorchOptions};
use decoder::Decoder;

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
            Box::new(Decoder::<llama::Layer>::new(builder, spec, attn))
        }
        Family::Gpt2 => Box::new(gpt2::Gpt2::new(builder, spec, attn)),
        Family::Opt => Box::new(opt::Opt::new(builder, spec, attn)),
        Family::Bert => Box::new(bert::Bert::new(builder, spec, attn)),
        Family::Gemma2 => Box::new(gemma2::Gemma2::new(builder, spec, attn)),
        Family::Phi3 => Box::new(Decoder::<phi3::Layer>::new(builder, spec, attn)),
        Family::Mixtral => Box::new(Decoder::<mixtral::Layer>::new(builder, spec, attn)),
    }
}

/// Hidden states through all layers, each called as [`layered`] does; `replay` makes the call of a layer.
///
/// # Errors
/// Where an operation halts.
pub fn through<L>(
    torch: &Torch,
    call: &Call,
    layers: &[Rc<L>],
    mut hidden: Tensor,
    replay: impl Fn(usize, Rc<L>) -> Replay,
) -> Made {
    for (index, layer) in layers.iter().enumerate() {
        let layer = replay(index, layer.clone());
        hidden = torch.within(Origin::Layer(index as u32), || {
            layered(torch, call.options, index, layer, &hidden)
        })?;
    }
    Ok(hidden)
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
