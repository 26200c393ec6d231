//! The trunk of decoders with rotary positions: embedding, layers of one kind, a norm, a head that may be the embedding.

use std::rc::Rc;

use super::attention::tables;
use super::cache::reached;
use super::grouped::Around;
use super::{Call, Model, masks, through};
use crate::program::eager::nn::{Builder, Linear, RmsNorm};
use crate::program::eager::tape::{Class, Origin};
use crate::program::eager::tensor::{DType, Tensor};
use crate::program::eager::torch::{Made, Torch};
use crate::spec::model::{ModelSpec, Position};
use crate::spec::torch::Attn;

/// A layer of such a decoder.
pub trait Layer: Sized + 'static {
    /// The layer with its parameters.
    fn new(b: &Builder, spec: &ModelSpec, attn: Attn) -> Self;

    /// The layer on hidden states (B, T, H).
    ///
    /// # Errors
    /// Where an operation halts.
    fn call(&self, t: &Torch, hidden: &Tensor, around: &Around) -> Made;
}

/// `…ForCausalLM` of a kind of layer.
#[derive(Debug)]
pub struct Decoder<L> {
    embedding: Tensor,
    layers: Vec<Rc<L>>,
    norm: RmsNorm,
    frequencies: Tensor,
    head: Linear,
}

impl<L: Layer> Decoder<L> {
    /// The model with its parameters.
    pub fn new(b: &Builder, spec: &ModelSpec, attn: Attn) -> Decoder<L> {
        let embedding = b.parameter(&[spec.vocab, spec.hidden]);
        Decoder {
            layers: (0..spec.layers)
                .map(|_| Rc::new(L::new(b, spec, attn)))
                .collect(),
            norm: RmsNorm::new(b, spec.hidden),
            frequencies: frequencies(b, spec),
            head: head(b, spec, &embedding),
            embedding,
        }
    }
}

/// The buffer of rotary frequencies.
pub fn frequencies(b: &Builder, spec: &ModelSpec) -> Tensor {
    let turned = match &spec.position {
        Position::Rotary(rotary) => rotary.dims,
        Position::Learned { .. } => spec.head_dim,
    };
    b.torch.buffer(&[turned / 2], DType::F32, Class::Buffers)
}

/// The output projection: the embedding itself where they are tied.
pub fn head(b: &Builder, spec: &ModelSpec, embedding: &Tensor) -> Linear {
    match spec.tied {
        true => Linear::tied_to(embedding),
        false => b.linear("lm_head", spec.hidden, spec.vocab, false),
    }
}

impl<L: Layer> Model for Decoder<L> {
    fn hidden(&self, t: &Torch, call: &Call) -> Made {
        let embedded = t.within(Origin::Embed, || t.embedding(&call.ids, &self.embedding))?;
        let embedded = reached(t, call.options, embedded);
        let positions = t.plain("arange", &[call.options.seq], DType::I64);
        let mask = masks::causal(t, call, embedded.dtype, call.spec.attention.window)?;
        let rotary = tables(t, &self.frequencies, &embedded, &positions)?;
        let around = Around {
            mask,
            rotary,
            positions,
            cache: call.cache.clone(),
        };
        let hidden = through(t, call, &self.layers, embedded.clone(), |_, layer| {
            let around = around.clone();
            Rc::new(move |t, inputs| layer.call(t, &inputs[0], &around))
        })?;
        self.norm.call(t, &hidden)
    }

    fn head(&self) -> &Linear {
        &self.head
    }
}
