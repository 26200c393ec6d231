//! OPT: learned positions counted from the padding mask, biases, ReLU, dropout on both branches.

use std::rc::Rc;

use super::attention::{Asked, attend};
use super::cache::{Cache, reached};
use super::{Call, Model, through};
use crate::program::eager::nn::{Builder, LayerNorm, Linear};
use crate::program::eager::tape::Origin;
use crate::program::eager::tensor::{DType, Tensor};
use crate::program::eager::torch::{Halt, Made, Torch};
use crate::spec::model::{Mlp, ModelSpec, Position};
use crate::spec::torch::Attn;

/// `OPTForCausalLM`.
#[derive(Debug)]
pub struct Opt {
    tokens: Tensor,
    positions: Tensor,
    norm: Option<LayerNorm>,
    layers: Vec<Rc<Layer>>,
    head: Linear,
}

/// `OPTDecoderLayer`, with the norms first.
#[derive(Debug)]
struct Layer {
    k: Linear,
    v: Linear,
    q: Linear,
    out: Linear,
    attention_norm: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    final_norm: LayerNorm,
    shape: Shape,
}

/// Sizes and rates of a layer.
#[derive(Debug, Clone, Copy)]
struct Shape {
    heads: u64,
    head_dim: u64,
    attention_dropout: f64,
    dropout: f64,
    mlp: Mlp,
    attn: Attn,
}

impl Opt {
    /// The model with its parameters.
    pub fn new(b: &Builder, spec: &ModelSpec, attn: Attn) -> Opt {
        let rows = match spec.position {
            Position::Learned { rows, .. } => rows,
            Position::Rotary(_) => spec.max_positions,
        };
        let tokens = b.parameter(&[spec.vocab, spec.hidden]);
        let positions = b.parameter(&[rows, spec.hidden]);
        let norm = spec.final_norm.then(|| LayerNorm::new(b, spec.hidden));
        let layers = (0..spec.layers)
            .map(|_| Rc::new(Layer::new(b, spec, attn)))
            .collect();
        let head = match spec.tied {
            true => Linear::tied_to(&tokens),
            false => b.linear("lm_head", spec.hidden, spec.vocab, false),
        };
        Opt {
            tokens,
            positions,
            norm,
            layers,
            head,
        }
    }

    /// `OPTDecoder._update_causal_mask`: none for sdpa where no token is padding.
    fn mask(&self, t: &Torch, call: &Call, padding: &Tensor, dtype: DType) -> Option<Tensor> {
        let (batch, seq) = (call.options.batch, call.options.seq);
        if call.options.attn == Attn::Sdpa {
            let _ones = t.plain("eq", &[batch, seq], DType::Bool);
            drop(t.scalar("all", DType::Bool));
            return None;
        }
        let full = t.plain("full", &[seq, seq], dtype);
        let upper = t.plain("triu", &[seq, seq], dtype);
        drop(full);
        let columns = t.plain("arange", &[seq], DType::I64);
        let later = t.plain("gt", &[seq, seq], DType::Bool);
        drop((columns, later));
        let mask = t.plain("clone", &[batch, 1, seq, seq], dtype);
        drop(upper);
        let sum = t.plain("add", mask.shape.all(), dtype.promoted(padding.dtype));
        let masked = t.plain("eq", mask.shape.all(), DType::Bool);
        drop(sum);
        drop(t.plain("masked_fill", mask.shape.all(), dtype));
        drop(masked);
        Some(mask)
    }

    /// The position of each token, counted in the padding mask.
    fn places(&self, t: &Torch, padding: &Tensor) -> Result<Tensor, Halt> {
        let sizes = padding.shape.all();
        let counted = t.plain("cumsum", sizes, padding.dtype);
        let product = t.plain("mul", sizes, padding.dtype);
        let shifted = t.plain("sub", sizes, padding.dtype);
        drop(product);
        let made = t.to(shifted, DType::I64)?;
        drop(counted);
        Ok(made)
    }
}

impl Layer {
    fn new(b: &Builder, spec: &ModelSpec, attn: Attn) -> Layer {
        let hidden = spec.hidden;
        let bias = spec.attention.qkv_bias;
        Layer {
            k: b.linear("k_proj", hidden, hidden, bias),
            v: b.linear("v_proj", hidden, hidden, bias),
            q: b.linear("q_proj", hidden, hidden, bias),
            out: b.linear("out_proj", hidden, hidden, spec.attention.out_bias),
            attention_norm: LayerNorm::new(b, hidden),
            fc1: b.linear("fc1", hidden, spec.ffn, spec.mlp.bias),
            fc2: b.linear("fc2", spec.ffn, hidden, spec.mlp.bias),
            final_norm: LayerNorm::new(b, hidden),
            shape: Shape {
                heads: spec.heads,
                head_dim: spec.head_dim,
                attention_dropout: spec.attention.dropout,
                dropout: spec.dropout,
                mlp: spec.mlp,
                attn,
            },
        }
    }

    /// The layer on hidden states (B, T, H); the MLP sees them as (B T, H).
    fn call(&self, t: &Torch, hidden: &Tensor, mask: Option<&Tensor>, cache: &Cache) -> Made {
        let sizes = hidden.shape;
        let residual = hidden.clone();
        let mut hidden = self.attention_norm.call(t, hidden)?;
        hidden = self.attend(t, &hidden, mask, cache)?;
        hidden = t.dropout(&hidden, self.shape.dropout)?;
        hidden = t.add(&residual, &hidden)?;
        hidden = t.reshape(
            &hidden,
            &[sizes.elements() / sizes.last().max(1), sizes.last()],
        )?;
        let residual = hidden.clone();
        hidden = self.final_norm.call(t, &hidden)?;
        hidden = self.fc1.call(t, &hidden)?;
        hidden = t.activation(&hidden, self.shape.mlp)?;
        hidden = self.fc2.call(t, &hidden)?;
        hidden = t.dropout(&hidden, self.shape.dropout)?;
        hidden = t.reshape(t.add(&residual, &hidden)?, sizes.all())?;
        Ok(hidden)
    }

    /// `OPTAttention.forward`: the probabilities die with it.
    fn attend(&self, t: &Torch, hidden: &Tensor, mask: Option<&Tensor>, cache: &Cache) -> Made {
        let s = self.shape;
        let (batch, seq) = (hidden.shape.all()[0], hidden.shape.all()[1]);
        let heads =
            |x: Tensor| t.transpose(t.reshape(x, &[batch, seq, s.heads, s.head_dim])?, 1, 2);
        let q = heads(t.scaled(self.q.call(t, hidden)?)?)?;
        let (k, v) = (self.k.call(t, hidden)?, self.v.call(t, hidden)?);
        let (k, v) = (heads(k)?, heads(v)?);
        let (k, v) = (cache.update(t, k)?, cache.update(t, v)?);
        let asked = Asked {
            mask: mask.cloned(),
            group: 1,
            dropout: s.attention_dropout,
            causal: true,
            softcap: false,
        };
        let (mut made, _probabilities) = attend(t, s.attn, [&q, &k, &v], &asked)?;
        made = t.reshape(&made, &[batch, seq, s.heads * s.head_dim])?;
        made = self.out.call(t, &made)?;
        Ok(made)
    }
}

impl Model for Opt {
    fn hidden(&self, t: &Torch, call: &Call) -> Made {
        let cache = call.cache.clone();
        let embedded = t.within(Origin::Embed, || t.embedding(&call.ids, &self.tokens))?;
        let embedded = reached(t, call.options, embedded);
        let positions = t.plain("arange", &[call.options.seq], DType::I64);
        let padding = match &call.mask {
            Some(mask) => mask.clone(),
            None => t.plain("ones", &[call.options.batch, call.options.seq], DType::F32),
        };
        let mask = self.mask(t, call, &padding, embedded.dtype);
        let places = self.places(t, &padding)?;
        let placed = {
            let rows = t.plain("add", places.shape.all(), DType::I64);
            t.within(Origin::Embed, || t.embedding(&rows, &self.positions))?
        };
        let placed = t.add(&embedded, &placed)?;
        let hidden = through(t, call, &self.layers, placed, |_, layer| {
            let (mask, cache) = (mask.clone(), cache.clone());
            let held = (positions.clone(), places.clone());
            Rc::new(move |t, inputs| {
                let _held = &held;
                layer.call(t, &inputs[0], mask.as_ref(), &cache)
            })
        })?;
        match &self.norm {
            Some(norm) => norm.call(t, &hidden),
            None => Ok(hidden),
        }
    }

    fn head(&self) -> &Linear {
        &self.head
    }
}
