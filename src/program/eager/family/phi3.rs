//! Phi-3: query, key and value in one projection, gate and up in another, rotary embedding of a part of each head.

use super::attention::{Asked, attend};
use super::decoder;
use super::grouped::Around;
use crate::program::eager::nn::{Builder, Linear, RmsNorm};
use crate::program::eager::tensor::Tensor;
use crate::program::eager::torch::{Halt, Made, Torch};
use crate::spec::model::{Mlp, ModelSpec};
use crate::spec::torch::Attn;

/// `Phi3DecoderLayer`.
#[derive(Debug)]
pub struct Layer {
    o: Linear,
    qkv: Linear,
    gate_up: Linear,
    down: Linear,
    input_norm: RmsNorm,
    output_norm: RmsNorm,
    shape: Shape,
}

/// Sizes and rates of a layer.
#[derive(Debug, Clone, Copy)]
struct Shape {
    heads: u64,
    kv_heads: u64,
    head_dim: u64,
    ffn: u64,
    attention_dropout: f64,
    dropout: f64,
    mlp: Mlp,
    attn: Attn,
}

impl decoder::Layer for Layer {
    fn new(b: &Builder, spec: &ModelSpec, attn: Attn) -> Layer {
        let (wide, narrow) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
        let hidden = spec.hidden;
        Layer {
            o: b.linear("o_proj", wide, hidden, false),
            qkv: b.linear("qkv_proj", hidden, wide + 2 * narrow, false),
            gate_up: b.linear("gate_up_proj", hidden, 2 * spec.ffn, false),
            down: b.linear("down_proj", spec.ffn, hidden, false),
            input_norm: RmsNorm::new(b, hidden),
            output_norm: RmsNorm::new(b, hidden),
            shape: Shape {
                heads: spec.heads,
                kv_heads: spec.kv_heads,
                head_dim: spec.head_dim,
                ffn: spec.ffn,
                attention_dropout: spec.attention.dropout,
                dropout: spec.dropout,
                mlp: spec.mlp,
                attn,
            },
        }
    }

    fn call(&self, t: &Torch, hidden: &Tensor, around: &Around) -> Made {
        let residual = hidden.clone();
        let mut hidden = self.input_norm.call(t, hidden)?;
        let (attended, _probabilities) = self.attend(t, &hidden, around)?;
        hidden = attended;
        hidden = t.add(residual, t.dropout(&hidden, self.shape.dropout)?)?;
        let residual = hidden.clone();
        hidden = self.output_norm.call(t, &hidden)?;
        hidden = self.feed(t, &hidden)?;
        t.add(residual, t.dropout(&hidden, self.shape.dropout)?)
    }
}

impl Layer {
    fn feed(&self, t: &Torch, hidden: &Tensor) -> Made {
        let at = hidden.shape.all().len() - 1;
        let both = self.gate_up.call(t, hidden)?;
        let [gate, mut up] = <[Tensor; 2]>::try_from(t.split(&both, at, &[self.shape.ffn; 2])?)
            .map_err(|_| Halt::Lost)?;
        drop(both);
        up = t.mul(&up, t.activation(&gate, self.shape.mlp)?)?;
        self.down.call(t, &up)
    }

    /// `Phi3Attention.forward`: its output, and the probabilities where they are made.
    fn attend(
        &self,
        t: &Torch,
        hidden: &Tensor,
        around: &Around,
    ) -> Result<(Tensor, Option<Tensor>), Halt> {
        let s = self.shape;
        let (batch, seq) = (hidden.shape.all()[0], hidden.shape.all()[1]);
        let (wide, narrow) = (s.heads * s.head_dim, s.kv_heads * s.head_dim);
        let qkv = self.qkv.call(t, hidden)?;
        let q = t.slice(&qkv, 2, 0, wide)?;
        let k = t.slice(&qkv, 2, wide, wide + narrow)?;
        let v = t.slice(&qkv, 2, wide + narrow, wide + 2 * narrow)?;
        let heads = |x: Tensor, heads: u64| {
            t.transpose(t.reshape(x, &[batch, seq, heads, s.head_dim])?, 1, 2)
        };
        let (q, k) = (heads(q, s.heads)?, heads(k, s.kv_heads)?);
        let v = heads(v, s.kv_heads)?;
        let (q, k) = partly_rotated(t, q, k, &around.rotary)?;
        let (k, v) = (around.cache.update(t, k)?, around.cache.update(t, v)?);
        let asked = Asked {
            mask: around.mask.clone(),
            group: s.heads / s.kv_heads.max(1),
            dropout: s.attention_dropout,
            causal: true,
            softcap: false,
        };
        let (mut made, probabilities) = attend(t, s.attn, [&q, &k, &v], &asked)?;
        made = t.reshape(&made, &[batch, seq, wide])?;
        made = self.o.call(t, &made)?;
        Ok((made, probabilities))
    }
}

/// Phi-3's `apply_rotary_pos_emb`: the first dimensions of each head are turned, the rest (perhaps none) is put behind them.
fn partly_rotated(
    t: &Torch,
    q: Tensor,
    k: Tensor,
    rotary: &[Tensor; 2],
) -> Result<(Tensor, Tensor), Halt> {
    let (cos, sin) = (t.unsqueeze(&rotary[0], 1)?, t.unsqueeze(&rotary[1], 1)?);
    let turned = cos.shape.last();
    let parts = |x: &Tensor| -> Result<[Tensor; 2], Halt> {
        Ok([
            t.slice(x, 3, 0, turned)?,
            t.slice(x, 3, turned, x.shape.last())?,
        ])
    };
    let ([q_turned, q_rest], [k_turned, k_rest]) = (parts(&q)?, parts(&k)?);
    let one = |x: &Tensor, rest: &Tensor| {
        let straight = t.mul(x, &cos)?;
        let first = t.slice(x, 3, 0, turned / 2)?;
        let second = t.neg(t.slice(x, 3, turned / 2, turned)?)?;
        let half = t.cat(&[&second, &first], 3)?;
        drop((second, first));
        let across = t.mul(half, &sin)?;
        let sum = t.add(straight, across)?;
        // Autocast's `cat` casts all parts to the widest type first.
        let rest = match t.autocast() {
            Some(_) => t.to(rest, rest.dtype.promoted(sum.dtype))?,
            None => rest.clone(),
        };
        t.cat(&[&sum, &rest], 3)
    };
    Ok((one(&q_turned, &q_rest)?, one(&k_turned, &k_rest)?))
}
