//! Mixtral: Mistral's attention, and a loop over experts, each on the tokens routed to it. Routing depends on data; every expert is taken
//! to get the same number of tokens.

use std::rc::Rc;

use super::attention::tables;
use super::cache::reached;
use super::grouped::{Around, Grouped};
use super::{Call, Model, layered, masks};
use crate::program::eager::checkpoint::Replay;
use crate::program::eager::nn::{Builder, Linear, RmsNorm};
use crate::program::eager::tape::{Class, Origin};
use crate::program::eager::tensor::{DType, Tensor};
use crate::program::eager::torch::{Halt, Made, Torch};
use crate::spec::model::{Experts, Mlp, ModelSpec};
use crate::spec::torch::Attn;

/// `MixtralForCausalLM`.
#[derive(Debug)]
pub struct Mixtral {
    embedding: Tensor,
    layers: Vec<Rc<Layer>>,
    norm: RmsNorm,
    frequencies: Tensor,
    head: Linear,
}

/// `MixtralDecoderLayer`.
#[derive(Debug)]
struct Layer {
    attention: Grouped,
    router: Linear,
    experts: Vec<Expert>,
    input_norm: RmsNorm,
    output_norm: RmsNorm,
    top_k: u64,
}

/// `MixtralBlockSparseTop2MLP`.
#[derive(Debug)]
struct Expert {
    w1: Linear,
    w2: Linear,
    w3: Linear,
    mlp: Mlp,
}

impl Mixtral {
    /// The model with its parameters.
    pub fn new(b: &Builder, spec: &ModelSpec, attn: Attn) -> Mixtral {
        let embedding = b.parameter(&[spec.vocab, spec.hidden]);
        let layers = (0..spec.layers)
            .map(|_| Rc::new(Layer::new(b, spec, attn)))
            .collect();
        let norm = RmsNorm::new(b, spec.hidden);
        let frequencies = b
            .torch
            .buffer(&[spec.head_dim / 2], DType::F32, Class::Buffers);
        let head = match spec.tied {
            true => Linear::tied_to(&embedding),
            false => b.linear("lm_head", spec.hidden, spec.vocab, false),
        };
        Mixtral {
            embedding,
            layers,
            norm,
            frequencies,
            head,
        }
    }
}

impl Expert {
    fn new(b: &Builder, spec: &ModelSpec) -> Expert {
        Expert {
            w1: b.linear("w1", spec.hidden, spec.ffn, false),
            w2: b.linear("w2", spec.ffn, spec.hidden, false),
            w3: b.linear("w3", spec.hidden, spec.ffn, false),
            mlp: spec.mlp,
        }
    }

    fn call(&self, t: &Torch, x: &Tensor) -> Made {
        let gate = t.activation(&self.w1.call(t, x)?, self.mlp)?;
        let mut x = t.mul(gate, self.w3.call(t, x)?)?;
        x = self.w2.call(t, &x)?;
        Ok(x)
    }
}

impl Layer {
    fn new(b: &Builder, spec: &ModelSpec, attn: Attn) -> Layer {
        let Experts { count, top_k } = spec.experts.unwrap_or(Experts { count: 1, top_k: 1 });
        Layer {
            attention: Grouped::new(b, spec, attn),
            router: b.linear("gate", spec.hidden, count, false),
            experts: (0..count).map(|_| Expert::new(b, spec)).collect(),
            input_norm: RmsNorm::new(b, spec.hidden),
            output_norm: RmsNorm::new(b, spec.hidden),
            top_k,
        }
    }

    /// The layer on hidden states (B, T, H).
    fn call(&self, t: &Torch, hidden: &Tensor, around: &Around) -> Made {
        let residual = hidden.clone();
        let mut hidden = self.input_norm.call(t, hidden)?;
        let (attended, probabilities) = self.attention.call(t, &hidden, around)?;
        hidden = attended;
        hidden = t.add(residual, &hidden)?;
        let residual = hidden.clone();
        hidden = self.output_norm.call(t, &hidden)?;
        let (mixed, _router_logits) = self.mix(t, &hidden)?;
        // The second use of Python's `_` ends the first.
        drop(probabilities);
        hidden = mixed;
        t.add(residual, &hidden)
    }

    /// `MixtralSparseMoeBlock.forward`: its output and the router's.
    fn mix(&self, t: &Torch, hidden: &Tensor) -> Result<(Tensor, Tensor), Halt> {
        let (sizes, width) = (hidden.shape, hidden.shape.last());
        let tokens = sizes.elements() / width.max(1);
        let hidden = t.reshape(hidden, &[tokens, width])?;
        let logits = self.router.call(t, &hidden)?;
        let (weights, _selected) = self.route(t, &logits, hidden.dtype)?;
        let mut mixed = t.plain("zeros", &[tokens, width], hidden.dtype);
        let count = self.experts.len() as u64;
        let _chosen = t.plain("zeros", &[tokens, self.top_k, count], DType::I64);
        let _hit = {
            let _per_expert = t.plain("sum", &[count], DType::I64);
            let _any = t.plain("gt", &[count], DType::Bool);
            t.plain("nonzero", &[count, 1], DType::I64)
        };
        let mut last = None;
        for expert in &self.experts {
            let rows = tokens * self.top_k / count.max(1);
            let found = {
                let _mask = t.plain("index", &[1, self.top_k, tokens], DType::I64);
                t.plain("nonzero", &[rows, 2], DType::I64)
            };
            let (slot, token) = (found.detached(), found);
            let state = t.index(&t.unsqueeze(&hidden, 0)?, &[&token], &[1, rows, width])?;
            let state = t.reshape(state, &[rows, width])?;
            let made = {
                let made = expert.call(t, &state)?;
                let factor = t.index(&t.unsqueeze(&weights, 2)?, &[&token, &slot], &[rows, 1])?;
                t.mul(made, factor)?
            };
            mixed = t.index_add_in_place(&mixed, &token, &t.to(&made, hidden.dtype)?)?;
            // Python's names outlive the turn of the loop.
            last = Some((slot, token, state, made));
        }
        let mixed = t.reshape(&mixed, sizes.all())?;
        drop(last);
        Ok((mixed, logits))
    }

    /// Routing weights of the chosen experts in the type of the hidden states, and their numbers.
    fn route(&self, t: &Torch, logits: &Tensor, dtype: DType) -> Result<(Tensor, Tensor), Halt> {
        let mut weights = t.softmax(logits, Some(DType::F32))?;
        let [values, selected] = t.topk(&weights, self.top_k)?;
        weights = values;
        let sum = t.sum_last(&weights)?;
        weights = t.div_in_place(&weights, &sum)?;
        drop(sum);
        weights = t.to(&weights, dtype)?;
        Ok((weights, selected))
    }
}

impl Model for Mixtral {
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
        let mut hidden = embedded.clone();
        for (index, layer) in self.layers.iter().enumerate() {
            let (layer, around) = (layer.clone(), around.clone());
            let run: Replay = Rc::new(move |t, inputs| layer.call(t, &inputs[0], &around));
            hidden = t.within(Origin::Layer(index as u32), || {
                layered(t, call.options, index, run, &hidden)
            })?;
        }
        self.norm.call(t, &hidden)
    }

    fn head(&self) -> &Linear {
        &self.head
    }
}
