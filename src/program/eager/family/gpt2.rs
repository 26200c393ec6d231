//! GPT-2: learned positions, `Conv1D` projections, dropout on embeddings, attention and residual branches.

use std::rc::Rc;

use super::attention::{Asked, attend};
use super::cache::{Cache, reached};
use super::{Call, Model, masks, through};
use crate::program::eager::nn::{Builder, LayerNorm, Linear};
use crate::program::eager::tape::{Class, Origin};
use crate::program::eager::tensor::{DType, Tensor};
use crate::program::eager::torch::{Halt, Made, Torch};
use crate::spec::model::{Mlp, ModelSpec};
use crate::spec::torch::Attn;

/// `GPT2LMHeadModel`.
#[derive(Debug)]
pub struct Gpt2 {
    tokens: Tensor,
    positions: Tensor,
    layers: Vec<Rc<Block>>,
    norm: LayerNorm,
    head: Linear,
    dropout: f64,
}

/// `GPT2Block`.
#[derive(Debug)]
struct Block {
    first_norm: LayerNorm,
    c_attn: Linear,
    attn_proj: Linear,
    second_norm: LayerNorm,
    c_fc: Linear,
    mlp_proj: Linear,
    /// The causal mask (1, 1, positions, positions), a buffer of each layer, and the number under it.
    triangle: [Tensor; 2],
    shape: Shape,
}

/// Sizes and rates of a block.
#[derive(Debug, Clone, Copy)]
struct Shape {
    heads: u64,
    head_dim: u64,
    attention_dropout: f64,
    dropout: f64,
    mlp: Mlp,
    attn: Attn,
}

impl Gpt2 {
    /// The model with its parameters.
    pub fn new(b: &Builder, spec: &ModelSpec, attn: Attn) -> Gpt2 {
        let tokens = b.parameter(&[spec.vocab, spec.hidden]);
        let positions = b.parameter(&[spec.max_positions, spec.hidden]);
        let layers = (0..spec.layers)
            .map(|_| Rc::new(Block::new(b, spec, attn)))
            .collect();
        let norm = LayerNorm::new(b, spec.hidden);
        let head = match spec.tied {
            true => Linear::tied_to(&tokens),
            false => b.linear("lm_head", spec.hidden, spec.vocab, false),
        };
        Gpt2 {
            tokens,
            positions,
            layers,
            norm,
            head,
            dropout: spec.dropout,
        }
    }
}

impl Block {
    fn new(b: &Builder, spec: &ModelSpec, attn: Attn) -> Block {
        let (hidden, rows) = (spec.hidden, spec.max_positions);
        let buffer = |shape: &[u64], dtype| b.torch.buffer(shape, dtype, Class::Buffers);
        Block {
            first_norm: LayerNorm::new(b, hidden),
            c_attn: b.conv1d("c_attn", hidden, 3 * hidden),
            attn_proj: b.conv1d("c_proj", hidden, hidden),
            second_norm: LayerNorm::new(b, hidden),
            c_fc: b.conv1d("c_fc", hidden, spec.ffn),
            mlp_proj: b.conv1d("c_proj", spec.ffn, hidden),
            triangle: [
                buffer(&[1, 1, rows, rows], DType::Bool),
                buffer(&[], b.dtype),
            ],
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

    /// The block on hidden states (B, T, H).
    fn call(&self, t: &Torch, hidden: &Tensor, mask: Option<&Tensor>, cache: &Cache) -> Made {
        let residual = hidden.clone();
        let mut hidden = self.first_norm.call(t, hidden)?;
        let (attended, _probabilities) = self.attend(t, &hidden, mask, cache)?;
        hidden = t.add(&attended, residual)?;
        let residual = hidden.clone();
        hidden = self.second_norm.call(t, &hidden)?;
        let fed = self.feed(t, &hidden)?;
        t.add(residual, &fed)
    }

    fn feed(&self, t: &Torch, hidden: &Tensor) -> Made {
        let mut hidden = self.c_fc.call(t, hidden)?;
        hidden = t.activation(&hidden, self.shape.mlp)?;
        hidden = self.mlp_proj.call(t, &hidden)?;
        t.dropout(&hidden, self.shape.dropout)
    }

    /// `GPT2Attention.forward`: its output, and the probabilities where they are made.
    fn attend(
        &self,
        t: &Torch,
        hidden: &Tensor,
        mask: Option<&Tensor>,
        cache: &Cache,
    ) -> Result<(Tensor, Option<Tensor>), Halt> {
        let s = self.shape;
        let (batch, seq) = (hidden.shape.all()[0], hidden.shape.all()[1]);
        let width = s.heads * s.head_dim;
        let [q, k, v] = {
            let parts = t.split(self.c_attn.call(t, hidden)?, 2, &[width; 3])?;
            <[Tensor; 3]>::try_from(parts).map_err(|_| Halt::Lost)?
        };
        let heads =
            |x: Tensor| t.transpose(t.reshape(x, &[batch, seq, s.heads, s.head_dim])?, 1, 2);
        let (k, v) = (heads(k)?, heads(v)?);
        let q = heads(q)?;
        let (k, v) = (cache.update(t, k)?, cache.update(t, v)?);
        let (made, probabilities) = match s.attn {
            Attn::Eager => {
                let (made, probabilities) = self.eager(t, [&q, &k, &v], mask)?;
                (made, Some(probabilities))
            }
            Attn::Sdpa => {
                let asked = Asked {
                    mask: mask.cloned(),
                    group: 1,
                    dropout: s.attention_dropout,
                    causal: true,
                    softcap: false,
                };
                attend(t, s.attn, [&q, &k, &v], &asked)?
            }
        };
        let mut made = t.reshape(made, &[batch, seq, width])?;
        made = self.attn_proj.call(t, &made)?;
        made = t.dropout(&made, s.dropout)?;
        Ok((made, probabilities))
    }

    /// GPT-2's own `eager_attention_forward`: scores divided by a number on the device, the layer's triangle, then the padding mask.
    fn eager(
        &self,
        t: &Torch,
        [q, k, v]: [&Tensor; 3],
        mask: Option<&Tensor>,
    ) -> Result<(Tensor, Tensor), Halt> {
        let mut scores = t.matmul(q, t.transpose(k, 2, 3)?)?;
        let root = t.scalar("full", scores.dtype);
        scores = t.div_by(&scores, root)?;
        let _lowest = t.scalar("full", scores.dtype);
        scores = t.masked_where(&self.triangle[0], &scores)?;
        if let Some(mask) = mask {
            scores = t.add(&scores, mask)?;
        }
        scores = t.softmax(&scores, None)?;
        scores = t.to(&scores, v.dtype)?;
        scores = t.dropout(&scores, self.shape.attention_dropout)?;
        let made = t.matmul(&scores, v)?;
        Ok((t.transpose(made, 1, 2)?, scores))
    }
}

impl Model for Gpt2 {
    fn hidden(&self, t: &Torch, call: &Call) -> Made {
        let cache = call.cache.clone();
        let embedded = t.within(Origin::Embed, || t.embedding(&call.ids, &self.tokens))?;
        let embedded = reached(t, call.options, embedded);
        let positions = t.plain("arange", &[1, call.options.seq], DType::I64);
        let placed = t.within(Origin::Embed, || t.embedding(&positions, &self.positions))?;
        let mut hidden = t.add(&embedded, &placed)?;
        let mask = masks::causal(t, call, embedded.dtype, None)?;
        hidden = t.dropout(&hidden, self.dropout)?;
        hidden = through(t, call, &self.layers, hidden, |_, layer| {
            let (mask, positions, cache) = (mask.clone(), positions.clone(), cache.clone());
            Rc::new(move |t, inputs| {
                let _held = &positions;
                layer.call(t, &inputs[0], mask.as_ref(), &cache)
            })
        })?;
        self.norm.call(t, &hidden)
    }

    fn head(&self) -> &Linear {
        &self.head
    }
}
