//! Llama and the families that share its code: Mistral, Qwen 2, Qwen 3.

use std::rc::Rc;

use super::attention::{Asked, attend, rotated, tables};
use super::cache::{Cache, reached};
use super::{Call, Model, layered, masks};
use crate::program::eager::checkpoint::Replay;
use crate::program::eager::nn::{Builder, Linear, RmsNorm};
use crate::program::eager::tape::{Class, Origin};
use crate::program::eager::tensor::{DType, Tensor};
use crate::program::eager::torch::{Halt, Made, Torch};
use crate::spec::model::ModelSpec;
use crate::spec::torch::Attn;

/// `LlamaForCausalLM`.
#[derive(Debug)]
pub struct Llama {
    embedding: Tensor,
    frequencies: Tensor,
    layers: Vec<Rc<Layer>>,
    norm: RmsNorm,
    head: Linear,
}

/// `LlamaDecoderLayer`.
#[derive(Debug)]
struct Layer {
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    q_norm: Option<RmsNorm>,
    k_norm: Option<RmsNorm>,
    gate: Linear,
    up: Linear,
    down: Linear,
    input_norm: RmsNorm,
    output_norm: RmsNorm,
    shape: Shape,
}

/// Sizes a layer needs.
#[derive(Debug, Clone, Copy)]
struct Shape {
    heads: u64,
    kv_heads: u64,
    head_dim: u64,
    dropout: f64,
    attn: Attn,
}

/// The keyword arguments of every layer's call, all of which a checkpoint keeps.
#[derive(Debug)]
struct Around {
    mask: Option<Tensor>,
    rotary: [Tensor; 2],
    cache: Cache,
    _positions: Tensor,
}

impl Llama {
    /// The model with its parameters.
    pub fn new(b: &Builder, spec: &ModelSpec, attn: Attn) -> Llama {
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
        Llama {
            embedding,
            frequencies,
            layers,
            norm,
            head,
        }
    }
}

impl Layer {
    fn new(b: &Builder, spec: &ModelSpec, attn: Attn) -> Layer {
        let (hidden, d) = (spec.hidden, spec.head_dim);
        let (wide, narrow) = (spec.heads * d, spec.kv_heads * d);
        let bias = spec.attention.qkv_bias;
        let q = b.linear("q_proj", hidden, wide, bias);
        let k = b.linear("k_proj", hidden, narrow, bias);
        let v = b.linear("v_proj", hidden, narrow, bias);
        let o = b.linear("o_proj", wide, hidden, spec.attention.out_bias);
        let head_norm = || spec.attention.qk_norm.then(|| RmsNorm::new(b, d));
        Layer {
            q,
            k,
            v,
            o,
            q_norm: head_norm(),
            k_norm: head_norm(),
            gate: b.linear("gate_proj", hidden, spec.ffn, spec.mlp.bias),
            up: b.linear("up_proj", hidden, spec.ffn, spec.mlp.bias),
            down: b.linear("down_proj", spec.ffn, hidden, spec.mlp.bias),
            input_norm: RmsNorm::new(b, hidden),
            output_norm: RmsNorm::new(b, hidden),
            shape: Shape {
                heads: spec.heads,
                kv_heads: spec.kv_heads,
                head_dim: d,
                dropout: spec.attention.dropout,
                attn,
            },
        }
    }

    /// The layer on hidden states (B, T, H).
    fn call(&self, t: &Torch, hidden: &Tensor, around: &Around) -> Made {
        let residual = hidden.clone();
        let x = self.input_norm.call(t, hidden)?;
        // Python's `hidden_states, _ = self.self_attn(…)` keeps the probabilities to the end of the layer.
        let (attended, _probabilities) = self.attend(t, &x, around)?;
        drop(x);
        let x = t.add(residual, attended)?;
        let normed = self.output_norm.call(t, &x)?;
        let made = self.mlp(t, &normed)?;
        drop(normed);
        t.add(x, made)
    }

    fn mlp(&self, t: &Torch, x: &Tensor) -> Made {
        let gate = t.silu(self.gate.call(t, x)?)?;
        let product = t.mul(gate, self.up.call(t, x)?)?;
        self.down.call(t, product)
    }

    /// One projection as heads (B, heads, T, D), normed where the family does.
    fn heads(
        &self,
        t: &Torch,
        x: &Tensor,
        of: &Linear,
        norm: Option<&RmsNorm>,
        heads: u64,
    ) -> Made {
        let sizes = [
            x.shape.all()[0],
            x.shape.all()[1],
            heads,
            self.shape.head_dim,
        ];
        let mut x = t.reshape(of.call(t, x)?, &sizes)?;
        if let Some(norm) = norm {
            x = norm.call(t, &x)?;
        }
        t.transpose(x, 1, 2)
    }

    fn attend(
        &self,
        t: &Torch,
        x: &Tensor,
        around: &Around,
    ) -> Result<(Tensor, Option<Tensor>), Halt> {
        let s = self.shape;
        let (batch, seq) = (x.shape.all()[0], x.shape.all()[1]);
        let mut q = self.heads(t, x, &self.q, self.q_norm.as_ref(), s.heads)?;
        let mut k = self.heads(t, x, &self.k, self.k_norm.as_ref(), s.kv_heads)?;
        let mut v = self.heads(t, x, &self.v, None, s.kv_heads)?;
        (q, k) = rotated(t, &q, &k, &around.rotary)?;
        (k, v) = (around.cache.update(t, k)?, around.cache.update(t, v)?);
        let asked = Asked {
            mask: around.mask.clone(),
            group: s.heads / s.kv_heads,
            dropout: s.dropout,
            causal: true,
            softcap: false,
        };
        let (made, probabilities) = attend(t, s.attn, [&q, &k, &v], &asked)?;
        let made = t.contiguous(t.reshape(made, &[batch, seq, s.heads * s.head_dim])?)?;
        Ok((self.o.call(t, made)?, probabilities))
    }
}

impl Model for Llama {
    fn hidden(&self, t: &Torch, call: &Call) -> Made {
        let embedded = t.within(Origin::Embed, || t.embedding(&call.ids, &self.embedding))?;
        let embedded = reached(t, call.options, embedded);
        let positions = t.plain("arange", &[call.options.seq], DType::I64);
        let mask = masks::causal(t, call, embedded.dtype, call.spec.attention.window)?;
        let rotary = tables(t, &self.frequencies, &embedded, &positions)?;
        let mut x = embedded.clone();
        let around = Rc::new(Around {
            mask,
            rotary,
            cache: call.cache.clone(),
            _positions: positions,
        });
        for (index, layer) in self.layers.iter().enumerate() {
            let (layer, around) = (layer.clone(), around.clone());
            let run: Replay = Rc::new(move |t, inputs| layer.call(t, &inputs[0], &around));
            x = t.within(Origin::Layer(index as u32), || {
                layered(t, call.options, index, run, &x)
            })?;
        }
        self.norm.call(t, &x)
    }

    fn head(&self) -> &Linear {
        &self.head
    }
}
