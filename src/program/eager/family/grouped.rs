//! The attention module of Llama and most families after it: separate projections, rotary embedding, grouped heads.

use super::attention::{Asked, attend, rotated};
use super::cache::Cache;
use crate::program::eager::nn::{Builder, Linear, RmsNorm};
use crate::program::eager::tensor::Tensor;
use crate::program::eager::torch::{Halt, Made, Torch};
use crate::spec::model::ModelSpec;
use crate::spec::torch::Attn;

/// `q_proj`, `k_proj`, `v_proj`, `o_proj`, and in Qwen 3 a norm of each head of query and key.
#[derive(Debug)]
pub struct Grouped {
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    q_norm: Option<RmsNorm>,
    k_norm: Option<RmsNorm>,
    heads: u64,
    kv_heads: u64,
    head_dim: u64,
    dropout: f64,
    softcap: bool,
    attn: Attn,
}

/// What every layer of a forward pass is given beside the hidden states.
#[derive(Debug, Clone)]
pub struct Around {
    /// The mask, where there is one.
    pub mask: Option<Tensor>,
    /// Cosines and sines.
    pub rotary: [Tensor; 2],
    /// `cache_position`, which a checkpoint holds with the other arguments.
    pub positions: Tensor,
    /// Keys and values so far.
    pub cache: Cache,
}

impl Grouped {
    /// The module with its parameters.
    pub fn new(b: &Builder, spec: &ModelSpec, attn: Attn) -> Grouped {
        let (wide, narrow) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
        let bias = spec.attention.qkv_bias;
        let head_norm = || {
            let normed = spec.attention.qk_norm;
            normed.then(|| RmsNorm::new(b, spec.head_dim))
        };
        Grouped {
            q: b.linear("q_proj", spec.hidden, wide, bias),
            k: b.linear("k_proj", spec.hidden, narrow, bias),
            v: b.linear("v_proj", spec.hidden, narrow, bias),
            o: b.linear("o_proj", wide, spec.hidden, spec.attention.out_bias),
            q_norm: head_norm(),
            k_norm: head_norm(),
            heads: spec.heads,
            kv_heads: spec.kv_heads,
            head_dim: spec.head_dim,
            dropout: spec.attention.dropout,
            softcap: spec.attention.softcap.is_some(),
            attn,
        }
    }

    /// The output (B, T, H), and the probabilities where they are made.
    ///
    /// # Errors
    /// Where an operation halts.
    pub fn call(
        &self,
        t: &Torch,
        x: &Tensor,
        around: &Around,
    ) -> Result<(Tensor, Option<Tensor>), Halt> {
        let (batch, seq) = (x.shape.all()[0], x.shape.all()[1]);
        let heads = |of: &Linear, norm: &Option<RmsNorm>, heads: u64| -> Made {
            let mut made = t.reshape(of.call(t, x)?, &[batch, seq, heads, self.head_dim])?;
            if let Some(norm) = norm {
                made = norm.call(t, &made)?;
            }
            t.transpose(made, 1, 2)
        };
        let mut q = heads(&self.q, &self.q_norm, self.heads)?;
        let mut k = heads(&self.k, &self.k_norm, self.kv_heads)?;
        let v = heads(&self.v, &None, self.kv_heads)?;
        (q, k) = rotated(t, &q, &k, &around.rotary)?;
        let (k, v) = (around.cache.update(t, k)?, around.cache.update(t, v)?);
        let asked = Asked {
            mask: around.mask.clone(),
            group: self.heads / self.kv_heads.max(1),
            dropout: self.dropout,
            causal: true,
            softcap: self.softcap,
        };
        let (mut made, probabilities) = attend(t, self.attn, [&q, &k, &v], &asked)?;
        made = t.reshape(&made, &[batch, seq, self.heads * self.head_dim])?;
        made = self.o.call(t, &made)?;
        Ok((made, probabilities))
    }
}
