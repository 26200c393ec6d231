//! Mixtral: Mistral's attention, and a loop over experts, each on the tokens routed to it. Routing depends on data; every expert is taken
//! to get the same number of tokens.

use super::decoder;
use super::grouped::{Around, Grouped};
use crate::program::eager::nn::{Builder, Linear, RmsNorm};
use crate::program::eager::tensor::{DType, Tensor};
use crate::program::eager::torch::{Halt, Made, Torch};
use crate::spec::model::{Experts, Mlp, ModelSpec};
use crate::spec::torch::Attn;

/// `MixtralDecoderLayer`.
#[derive(Debug)]
pub struct Layer {
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

impl decoder::Layer for Layer {
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
}

impl Layer {
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
