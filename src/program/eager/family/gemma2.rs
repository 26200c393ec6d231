//! Gemma 2: a scaled embedding, norms before and after each branch, windows on even layers, soft caps.

use std::rc::Rc;

use super::attention::tables;
use super::cache::{Cache, reached};
use super::decoder::{frequencies, head};
use super::grouped::{Around, Grouped};
use super::{Call, Model, masks, through};
use crate::program::eager::nn::{Builder, Linear};
use crate::program::eager::tape::Origin;
use crate::program::eager::tensor::{DType, Tensor};
use crate::program::eager::torch::{Made, Torch};
use crate::spec::model::{Mlp, ModelSpec};
use crate::spec::torch::Attn;

/// `Gemma2ForCausalLM`.
#[derive(Debug)]
pub struct Gemma2 {
    embedding: Tensor,
    layers: Vec<Rc<Layer>>,
    norm: Norm,
    frequencies: Tensor,
    head: Linear,
    capped: bool,
}

/// `Gemma2DecoderLayer`.
#[derive(Debug)]
struct Layer {
    attention: Grouped,
    gate: Linear,
    up: Linear,
    down: Linear,
    norms: [Norm; 4],
    mlp: Mlp,
}

/// `Gemma2RMSNorm`: in f32 throughout, times one plus the weight.
#[derive(Debug)]
struct Norm {
    weight: Tensor,
}

impl Norm {
    fn new(b: &Builder, width: u64) -> Norm {
        Norm {
            weight: b.parameter(&[width]),
        }
    }

    fn call(&self, t: &Torch, x: &Tensor) -> Made {
        let mut made = {
            let wide = t.to(x, DType::F32)?;
            let mean = t.mean_last(t.pow(&wide)?)?;
            let factor = t.rsqrt(t.shifted(mean)?)?;
            t.mul(&wide, factor)?
        };
        let weight = t.shifted(t.to(&self.weight, DType::F32)?)?;
        made = t.mul(&made, weight)?;
        t.to(&made, x.dtype)
    }
}

impl Gemma2 {
    /// The model with its parameters.
    pub fn new(b: &Builder, spec: &ModelSpec, attn: Attn) -> Gemma2 {
        let embedding = b.parameter(&[spec.vocab, spec.hidden]);
        let layers = (0..spec.layers)
            .map(|_| Rc::new(Layer::new(b, spec, attn)))
            .collect();
        let norm = Norm::new(b, spec.hidden);
        let frequencies = frequencies(b, spec);
        let head = head(b, spec, &embedding);
        Gemma2 {
            embedding,
            layers,
            norm,
            frequencies,
            head,
            capped: spec.final_softcap.is_some(),
        }
    }
}

impl Layer {
    fn new(b: &Builder, spec: &ModelSpec, attn: Attn) -> Layer {
        let linear = |name, inputs, outputs| b.linear(name, inputs, outputs, spec.mlp.bias);
        Layer {
            attention: Grouped::new(b, spec, attn),
            gate: linear("gate_proj", spec.hidden, spec.ffn),
            up: linear("up_proj", spec.hidden, spec.ffn),
            down: linear("down_proj", spec.ffn, spec.hidden),
            norms: std::array::from_fn(|_| Norm::new(b, spec.hidden)),
            mlp: spec.mlp,
        }
    }

    /// The layer on hidden states (B, T, H).
    fn call(&self, t: &Torch, hidden: &Tensor, around: &Around) -> Made {
        let [before, after, before_mlp, after_mlp] = &self.norms;
        let residual = hidden.clone();
        let mut hidden = before.call(t, hidden)?;
        let (attended, _probabilities) = self.attention.call(t, &hidden, around)?;
        hidden = attended;
        hidden = after.call(t, &hidden)?;
        hidden = t.add(residual, &hidden)?;
        let residual = hidden.clone();
        hidden = before_mlp.call(t, &hidden)?;
        hidden = self.feed(t, &hidden)?;
        hidden = after_mlp.call(t, &hidden)?;
        t.add(residual, &hidden)
    }

    fn feed(&self, t: &Torch, x: &Tensor) -> Made {
        let gate = t.activation(&self.gate.call(t, x)?, self.mlp)?;
        let product = t.mul(gate, self.up.call(t, x)?)?;
        self.down.call(t, product)
    }
}

impl Model for Gemma2 {
    fn hidden(&self, t: &Torch, call: &Call) -> Made {
        let embedded = t.within(Origin::Embed, || t.embedding(&call.ids, &self.embedding))?;
        let embedded = reached(t, call.options, embedded);
        let positions = t.plain("arange", &[call.options.seq], DType::I64);
        let full = masks::causal(t, call, embedded.dtype, None)?;
        let sliding = masks::causal(t, call, embedded.dtype, call.spec.attention.window)?;
        let rotary = tables(t, &self.frequencies, &embedded, &positions)?;
        let scaled = t.scaled(&embedded)?;
        let hidden = through(t, call, &self.layers, scaled, |index, layer| {
            let windowed = index.is_multiple_of(2);
            let around = Around {
                mask: if windowed { &sliding } else { &full }.clone(),
                rotary: rotary.clone(),
                positions: positions.clone(),
                // Gemma 2 makes no cache while it trains.
                cache: Cache::default(),
            };
            Rc::new(move |t, inputs| layer.call(t, &inputs[0], &around))
        })?;
        self.norm.call(t, &hidden)
    }

    fn head(&self) -> &Linear {
        &self.head
    }

    fn after_head(&self, t: &Torch, logits: Tensor) -> Made {
        if !self.capped {
            return Ok(logits);
        }
        let mut logits = t.scaled(logits)?;
        logits = t.tanh(&logits)?;
        logits = t.scaled(&logits)?;
        Ok(logits)
    }
}
