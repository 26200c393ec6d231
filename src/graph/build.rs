//! A model's forward pass as a step: the same few lines for all families.

mod block;

use std::collections::BTreeMap;
use std::sync::Arc;

use super::op::Op;
use super::op::activation::Act;
use super::op::cross_entropy::CrossEntropy;
use super::op::dropout::Dropout;
use super::op::elementwise::Add;
use super::op::embedding::{Embedding, PositionEmbedding};
use super::op::matmul::Linear;
use super::op::norm::{LayerNorm, RmsNorm};
use super::op::transfer::{Feed, Report};
use super::tensor::{DType, Role, TensorId, Type};
use super::{Phase, Spot, Step};
use crate::error::Result;
use crate::spec::job::Place;
use crate::spec::model::{Head, ModelSpec, NormKind, NormPlacement, Position};

/// Name of the tokens outside.
pub const TOKENS: &str = "input/tokens";
/// Name of the targets outside.
pub const TARGETS: &str = "input/targets";
/// Name of the two scales of the loss outside: one over the tokens that count in the whole batch, and the loss scale.
pub const SCALE: &str = "input/scale";
/// Name of the loss outside.
pub const LOSS: &str = "output/loss";

/// What a forward pass is built for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options {
    /// Format of parameters and activations.
    pub dtype: DType,
    /// Sequences.
    pub batch: u64,
    /// Positions of each.
    pub seq: u64,
    /// Whether gradients will be taken; without, dropout is off and the loss only evaluated.
    pub training: bool,
}

/// A forward pass and its ends.
#[derive(Debug, Clone)]
pub struct Forward {
    /// The nodes, ending with the report of the loss.
    pub step: Step,
    /// The parameters, in order of first use.
    pub parameters: Vec<TensorId>,
}

/// Builds the forward pass of `model`.
///
/// # Errors
/// Where an op is not defined on the model's dimensions.
pub fn forward(model: &ModelSpec, options: Options) -> Result<Forward> {
    let mut builder = Builder {
        model,
        options,
        step: Step::default(),
        parameters: Vec::new(),
        named: BTreeMap::new(),
        block: "embedding".into(),
    };
    let mut x = builder.embedding()?;
    for layer in 0..model.layers {
        builder.block = format!("layers.{layer}");
        x = builder.layer(layer, x)?;
    }
    builder.block = "head".into();
    builder.head(x)?;
    Ok(Forward {
        step: builder.step,
        parameters: builder.parameters,
    })
}

struct Builder<'a> {
    model: &'a ModelSpec,
    options: Options,
    step: Step,
    parameters: Vec<TensorId>,
    named: BTreeMap<String, TensorId>,
    block: String,
}

impl Builder<'_> {
    /// Rows of activations: N = B · T.
    fn rows(&self) -> u64 {
        self.options.batch * self.options.seq
    }

    /// The parameter at `path`, made at its first use.
    fn parameter(&mut self, path: &str, shape: &[u64]) -> TensorId {
        if let Some(&id) = self.named.get(path) {
            return id;
        }
        let id = self.step.persistent(
            path,
            Type::new(shape, self.options.dtype),
            Place::Gpu,
            Role::Parameter,
        );
        self.parameters.push(id);
        self.named.insert(path.to_string(), id);
        id
    }

    /// The parameter `leaf` of the current block.
    fn own(&mut self, leaf: &str, shape: &[u64]) -> TensorId {
        let path = format!("{}/{leaf}", self.block);
        self.parameter(&path, shape)
    }

    fn emit_as(
        &mut self,
        leaf: &str,
        op: impl Op + 'static,
        inputs: &[TensorId],
        role: Role,
    ) -> Result<Vec<TensorId>> {
        let spot = Spot::compute(Phase::Forward, &self.block, leaf);
        self.step.emit(Arc::new(op), inputs, spot, role)
    }

    fn emit(&mut self, leaf: &str, op: impl Op + 'static, inputs: &[TensorId]) -> Result<TensorId> {
        Ok(self.emit_as(leaf, op, inputs, Role::Activation)?[0])
    }

    fn feed(&mut self, name: &str, at: Type) -> Result<TensorId> {
        let leaf = name.rsplit('/').next().unwrap_or(name);
        let op = Feed {
            name: name.to_string(),
            offset: 0,
            at,
        };
        Ok(self.emit_as(leaf, op, &[], Role::Input)?[0])
    }

    fn linear(&mut self, leaf: &str, x: TensorId, out: u64, bias: bool) -> Result<TensorId> {
        let columns = self.step.type_of(x).columns();
        let mut inputs = vec![x, self.own(&format!("{leaf}.weight"), &[out, columns])];
        if bias {
            inputs.push(self.own(&format!("{leaf}.bias"), &[out]));
        }
        self.emit(leaf, Linear { bias }, &inputs)
    }

    fn norm(&mut self, leaf: &str, x: TensorId) -> Result<TensorId> {
        let width = self.model.hidden;
        let norm = self.model.norm;
        let weight = self.own(&format!("{leaf}.weight"), &[width]);
        match norm.kind {
            NormKind::LayerNorm => {
                let bias = self.own(&format!("{leaf}.bias"), &[width]);
                self.emit(leaf, LayerNorm { eps: norm.eps }, &[x, weight, bias])
            }
            NormKind::RmsNorm => {
                let op = RmsNorm {
                    eps: norm.eps,
                    unit_offset: norm.unit_offset,
                    width,
                };
                self.emit(leaf, op, &[x, weight])
            }
        }
    }

    fn dropout(&mut self, leaf: &str, x: TensorId) -> Result<TensorId> {
        match self.model.dropout {
            rate if rate > 0.0 && self.options.training => self.emit(
                leaf,
                Dropout {
                    rate,
                    in_place: true,
                },
                &[x],
            ),
            _ => Ok(x),
        }
    }

    fn embedding(&mut self) -> Result<TensorId> {
        let model = self.model;
        let tokens = self.feed(TOKENS, Type::new(&[self.rows()], DType::U32))?;
        let table = self.own("token.weight", &[model.vocab, model.hidden]);
        let mut x = self.emit(
            "token",
            Embedding {
                scale: model.embedding_scale,
            },
            &[table, tokens],
        )?;
        if model.token_types > 0 {
            let table = self.own("type.weight", &[model.token_types, model.hidden]);
            x = self.emit("type", PositionEmbedding { seq: 1, offset: 0 }, &[x, table])?;
        }
        if let Position::Learned { rows, offset } = model.position {
            let table = self.own("position.weight", &[rows, model.hidden]);
            x = self.emit(
                "position",
                PositionEmbedding {
                    seq: self.options.seq,
                    offset,
                },
                &[x, table],
            )?;
        }
        if model.embedding_norm {
            x = self.norm("norm", x)?;
        }
        // Hugging Face's OPT has no dropout on embeddings.
        match model.family {
            crate::spec::model::Family::Opt => Ok(x),
            _ => self.dropout("dropout", x),
        }
    }

    fn layer(&mut self, layer: u64, x: TensorId) -> Result<TensorId> {
        let x = self.branch("attention", x, |builder, x| builder.attention(layer, x))?;
        let experts = self.model.experts;
        self.branch("mlp", x, |builder, x| match experts {
            Some(experts) => builder.experts(experts, x),
            None => builder.mlp(x),
        })
    }

    /// One residual branch with its norms where the family has them.
    fn branch(
        &mut self,
        part: &str,
        x: TensorId,
        body: impl FnOnce(&mut Self, TensorId) -> Result<TensorId>,
    ) -> Result<TensorId> {
        let (norm, drop, add) = (
            format!("{part}/norm"),
            format!("{part}/dropout"),
            format!("{part}/residual"),
        );
        let placement = self.model.norm_placement;
        let inner = if placement == NormPlacement::Post {
            x
        } else {
            self.norm(&norm, x)?
        };
        let mut y = body(self, inner)?;
        y = self.dropout(&drop, y)?;
        if placement == NormPlacement::Sandwich {
            y = self.norm(&format!("{part}/post_norm"), y)?;
        }
        let sum = self.emit(&add, Add, &[x, y])?;
        if placement == NormPlacement::Post {
            self.norm(&norm, sum)
        } else {
            Ok(sum)
        }
    }

    fn head(&mut self, mut x: TensorId) -> Result<()> {
        let model = self.model;
        if model.final_norm {
            x = self.norm("norm", x)?;
        }
        if model.head == Head::MaskedLm {
            x = self.linear("dense", x, model.hidden, true)?;
            x = self.emit(
                "act",
                Act {
                    kind: model.mlp.activation,
                },
                &[x],
            )?;
            x = self.norm("transform_norm", x)?;
        }
        let matrix = if model.tied {
            "embedding/token.weight"
        } else {
            "head/output.weight"
        };
        let mut inputs = vec![x, self.parameter(matrix, &[model.vocab, model.hidden])];
        let bias = model.head == Head::MaskedLm;
        if bias {
            inputs.push(self.own("output.bias", &[model.vocab]));
        }
        let logits = self.emit("output", Linear { bias }, &inputs)?;
        let targets = self.feed(TARGETS, Type::new(&[self.rows()], DType::U32))?;
        let scale = self.feed(SCALE, Type::new(&[2], DType::F32))?;
        let op = CrossEntropy {
            softcap: model.final_softcap,
            gradient: self.options.training,
        };
        let loss = self.emit("loss", op, &[logits, targets, scale])?;
        let report = Report {
            name: LOSS.to_string(),
            offset: 0,
        };
        self.emit_as("report", report, &[loss], Role::Activation)?;
        Ok(())
    }
}

/// Parameters of a model, counted in its graph.
pub fn parameters(model: &ModelSpec) -> u64 {
    let options = Options {
        dtype: DType::F32,
        batch: 1,
        seq: model.max_positions.clamp(1, 4),
        training: false,
    };
    let count = |built: Forward| {
        let each = built.parameters.iter();
        each.map(|&p| built.step.type_of(p).elements()).sum()
    };
    forward(model, options).map_or(0, count)
}
