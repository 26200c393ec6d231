//! The two branches of a block: attention, and the MLP or its experts.

use super::Builder;
use crate::error::Result;
use crate::graph::op::activation::{Act, Gated};
use crate::graph::op::attention::{Attention, AttentionShape};
use crate::graph::op::moe::{Combine, Gather, GroupedLinear, Route};
use crate::graph::op::norm::RmsNorm;
use crate::graph::op::rope::Rope;
use crate::graph::tensor::{Role, TensorId};
use crate::spec::model::{Experts, Position, Windowed};

impl Builder<'_> {
    pub(super) fn attention(&mut self, layer: u64, x: TensorId) -> Result<TensorId> {
        let (model, attention) = (self.model, &self.model.attention);
        let (q_width, kv_width) = (
            model.heads * model.head_dim,
            model.kv_heads * model.head_dim,
        );
        let q = self.head_input("q", x, q_width, model.heads)?;
        let k = self.head_input("k", x, kv_width, model.kv_heads)?;
        let v = self.linear("attention/v", x, kv_width, attention.qkv_bias)?;
        let windowed = attention.windowed == Windowed::All || layer.is_multiple_of(2);
        let shape = AttentionShape {
            batch: self.options.batch,
            seq: self.options.seq,
            past: 0,
            heads: model.heads,
            kv_heads: model.kv_heads,
            head_dim: model.head_dim,
            causal: attention.causal,
            window: attention.window.filter(|_| windowed),
            scale: attention.scale,
            softcap: attention.softcap,
            dropout: if self.options.training {
                attention.dropout
            } else {
                0.0
            },
        };
        let y = self.emit("attention/core", Attention { shape }, &[q, k, v])?;
        self.linear("attention/o", y, model.hidden, attention.out_bias)
    }

    /// Queries or keys: projected, normed per head where the family does, rotated where positions are rotary.
    fn head_input(&mut self, name: &str, x: TensorId, width: u64, heads: u64) -> Result<TensorId> {
        let model = self.model;
        let mut y = self.linear(
            &format!("attention/{name}"),
            x,
            width,
            model.attention.qkv_bias,
        )?;
        if model.attention.qk_norm {
            let leaf = format!("attention/{name}_norm");
            let weight = self.own(&format!("{leaf}.weight"), &[model.head_dim]);
            let op = RmsNorm {
                eps: model.norm.eps,
                unit_offset: model.norm.unit_offset,
                width: model.head_dim,
            };
            y = self.emit(&leaf, op, &[y, weight])?;
        }
        match &model.position {
            Position::Rotary(rotary) => {
                let rope = Rope {
                    batch: self.options.batch,
                    seq: self.options.seq,
                    first: 0,
                    heads,
                    head_dim: model.head_dim,
                    rotary: rotary.clone(),
                    inverse: false,
                    in_place: true,
                };
                self.emit(&format!("attention/{name}_rope"), rope, &[y])
            }
            Position::Learned { .. } => Ok(y),
        }
    }

    pub(super) fn mlp(&mut self, x: TensorId) -> Result<TensorId> {
        let (ffn, mlp) = (self.model.ffn, self.model.mlp);
        let inner = if mlp.gated {
            let gate = self.linear("mlp/gate", x, ffn, mlp.bias)?;
            let up = self.linear("mlp/up", x, ffn, mlp.bias)?;
            self.emit(
                "mlp/act",
                Gated {
                    kind: mlp.activation,
                },
                &[gate, up],
            )?
        } else {
            let up = self.linear("mlp/up", x, ffn, mlp.bias)?;
            self.emit(
                "mlp/act",
                Act {
                    kind: mlp.activation,
                },
                &[up],
            )?
        };
        self.linear("mlp/down", inner, self.model.hidden, mlp.bias)
    }

    pub(super) fn experts(&mut self, experts: Experts, x: TensorId) -> Result<TensorId> {
        let Experts { count, top_k } = experts;
        let (hidden, ffn) = (self.model.hidden, self.model.ffn);
        let logits = self.linear("mlp/router", x, count, false)?;
        let routed = self.emit_as(
            "mlp/route",
            Route {
                experts: count,
                top_k,
            },
            &[logits],
            Role::Activation,
        )?;
        let (weights, order, offsets) = (routed[0], routed[1], routed[2]);
        let rows = self.emit("mlp/gather", Gather, &[x, order])?;
        let grouped = |builder: &mut Self, leaf: &str, rows: TensorId, out: u64, inner: u64| {
            let weight = builder.own(&format!("mlp/experts.{leaf}.weight"), &[count, out, inner]);
            builder.emit(
                &format!("mlp/experts.{leaf}"),
                GroupedLinear,
                &[rows, weight, offsets],
            )
        };
        let gate = grouped(self, "gate", rows, ffn, hidden)?;
        let up = grouped(self, "up", rows, ffn, hidden)?;
        let inner = self.emit(
            "mlp/act",
            Gated {
                kind: self.model.mlp.activation,
            },
            &[gate, up],
        )?;
        let out = grouped(self, "down", inner, hidden, ffn)?;
        self.emit("mlp/combine", Combine, &[out, weights, order])
    }
}
