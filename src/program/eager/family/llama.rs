//! Llama and the families that share its code: Mistral, Qwen 2, Qwen 3.

use super::decoder;
use super::grouped::{Around, Grouped};
use crate::program::eager::nn::{Builder, Linear, RmsNorm};
use crate::program::eager::tensor::Tensor;
use crate::program::eager::torch::{Made, Torch};
use crate::spec::model::ModelSpec;
use crate::spec::torch::Attn;

/// `LlamaDecoderLayer`.
#[derive(Debug)]
pub struct Layer {
    attention: Grouped,
    gate: Linear,
    up: Linear,
    down: Linear,
    input_norm: RmsNorm,
    output_norm: RmsNorm,
}

impl decoder::Layer for Layer {
    fn new(b: &Builder, spec: &ModelSpec, attn: Attn) -> Layer {
        let linear = |name, inputs, outputs| b.linear(name, inputs, outputs, spec.mlp.bias);
        Layer {
            attention: Grouped::new(b, spec, attn),
            gate: linear("gate_proj", spec.hidden, spec.ffn),
            up: linear("up_proj", spec.hidden, spec.ffn),
            down: linear("down_proj", spec.ffn, spec.hidden),
            input_norm: RmsNorm::new(b, spec.hidden),
            output_norm: RmsNorm::new(b, spec.hidden),
        }
    }

    fn call(&self, t: &Torch, hidden: &Tensor, around: &Around) -> Made {
        let residual = hidden.clone();
        let x = self.input_norm.call(t, hidden)?;
        // Python's `hidden_states, _ = self.self_attn(…)` keeps the probabilities to the end of the layer.
        let (attended, _probabilities) = self.attention.call(t, &x, around)?;
        drop(x);
        let x = t.add(residual, attended)?;
        let normed = self.output_norm.call(t, &x)?;
        let made = self.mlp(t, &normed)?;
        drop(normed);
        t.add(x, made)
    }
}

impl Layer {
    fn mlp(&self, t: &Torch, x: &Tensor) -> Made {
        let gate = t.silu(self.gate.call(t, x)?)?;
        let product = t.mul(gate, self.up.call(t, x)?)?;
        self.down.call(t, product)
    }
}
