//! BERT with its masked-language head: norms after the branches, attention over all positions, layers that also return their probabilities.

use std::cell::RefCell;
use std::rc::Rc;

use super::cache::reached;
use super::{Call, Model, layered};
use crate::program::eager::aten::attention::Sdpa;
use crate::program::eager::checkpoint::Replay;
use crate::program::eager::nn::{Builder, LayerNorm, Linear};
use crate::program::eager::tape::{Class, Origin};
use crate::program::eager::tensor::{DType, Tensor};
use crate::program::eager::torch::{Halt, Made, Torch};
use crate::spec::model::{Mlp, ModelSpec};
use crate::spec::torch::Attn;

/// `BertForMaskedLM`.
#[derive(Debug)]
pub struct Bert {
    tables: [Tensor; 3],
    norm: LayerNorm,
    /// `position_ids` and `token_type_ids`.
    ids: [Tensor; 2],
    layers: Vec<Rc<Layer>>,
    transform: Linear,
    transform_norm: LayerNorm,
    decoder: Linear,
    dtype: DType,
    dropout: f64,
    mlp: Mlp,
}

/// `BertLayer`.
#[derive(Debug)]
struct Layer {
    query: Linear,
    key: Linear,
    value: Linear,
    attention: Output,
    intermediate: Linear,
    output: Output,
    shape: Shape,
}

/// `BertSelfOutput` and `BertOutput`: a projection, dropout, the norm of the sum with the branch's input.
#[derive(Debug)]
struct Output {
    dense: Linear,
    norm: LayerNorm,
    dropout: f64,
}

/// Sizes and rates of a layer.
#[derive(Debug, Clone, Copy)]
struct Shape {
    heads: u64,
    head_dim: u64,
    dropout: f64,
    mlp: Mlp,
    attn: Attn,
}

/// Where a layer leaves its probabilities, which the encoder's loop holds until the next layer has returned; closed to replays.
type Slot = Rc<RefCell<Option<Option<Tensor>>>>;

impl Bert {
    /// The model with its parameters.
    pub fn new(b: &Builder, spec: &ModelSpec, attn: Attn) -> Bert {
        let hidden = spec.hidden;
        let tables = [spec.vocab, spec.max_positions, spec.token_types]
            .map(|rows| b.parameter(&[rows, hidden]));
        let norm = LayerNorm::new(b, hidden);
        let buffer = || {
            b.torch
                .buffer(&[1, spec.max_positions], DType::I64, Class::Buffers)
        };
        let layers = (0..spec.layers)
            .map(|_| Rc::new(Layer::new(b, spec, attn)))
            .collect();
        let bias = b.parameter(&[spec.vocab]);
        let transform = b.linear("dense", hidden, hidden, true);
        let transform_norm = LayerNorm::new(b, hidden);
        let decoder = match spec.tied {
            true => Linear::tied_to(&tables[0]),
            false => b.linear("decoder", hidden, spec.vocab, false),
        };
        Bert {
            norm,
            ids: [buffer(), buffer()],
            layers,
            transform,
            transform_norm,
            decoder: decoder.with_bias(bias),
            dtype: tables[0].dtype,
            tables,
            dropout: spec.dropout,
            mlp: spec.mlp,
        }
    }

    /// `BertEmbeddings.forward`.
    fn embed(&self, t: &Torch, call: &Call) -> Made {
        let (batch, seq) = (call.options.batch, call.options.seq);
        let words = t.embedding(&call.ids, &self.tables[0])?;
        let words = reached(t, call.options, words);
        let types = t.expand(t.slice(&self.ids[1], 1, 0, seq)?, &[batch, seq])?;
        let types = t.embedding(&types, &self.tables[2])?;
        let mut sum = t.add(&words, &types)?;
        let places = t.embedding(&t.slice(&self.ids[0], 1, 0, seq)?, &self.tables[1])?;
        sum = t.add_in_place(&sum, &places)?;
        sum = self.norm.call(t, &sum)?;
        t.dropout(&sum, self.dropout)
    }

    /// The padding mask as numbers to add; none for sdpa where no token is padding.
    fn mask(&self, t: &Torch, call: &Call) -> Option<Tensor> {
        let (batch, seq) = (call.options.batch, call.options.seq);
        let padding = match &call.mask {
            Some(mask) => mask.clone(),
            None => t.plain("ones", &[batch, seq], DType::F32),
        };
        if call.options.attn == Attn::Sdpa {
            let _ones = t.plain("eq", &[batch, seq], DType::Bool);
            drop(t.scalar("all", DType::Bool));
            return None;
        }
        let one = |name| t.plain(name, &[batch, 1, 1, seq], self.dtype);
        let cast = (padding.dtype != self.dtype).then(|| one("_to_copy"));
        let opposite = one("rsub");
        let mask = one("mul");
        drop((cast, opposite));
        Some(mask)
    }

    /// `BertModel.forward`: the last layer's output.
    fn encode(&self, t: &Torch, call: &Call) -> Made {
        let embedded = t.within(Origin::Embed, || self.embed(t, call))?;
        let mask = self.mask(t, call);
        let mut hidden = embedded.clone();
        let mut _probabilities = None;
        for (index, layer) in self.layers.iter().enumerate() {
            let (layer, mask) = (layer.clone(), mask.clone());
            let slot: Slot = Rc::new(RefCell::new(Some(None)));
            let own = slot.clone();
            let run: Replay = Rc::new(move |t, inputs| {
                let (made, probabilities) = layer.call(t, &inputs[0], mask.as_ref())?;
                if let Some(open) = &mut *own.borrow_mut() {
                    *open = probabilities;
                }
                Ok(made)
            });
            let made = t.within(Origin::Layer(index as u32), || {
                layered(t, call.options, index, run, &hidden)
            })?;
            _probabilities = slot.take().flatten();
            hidden = made;
        }
        Ok(hidden)
    }
}

impl Output {
    fn new(b: &Builder, spec: &ModelSpec, inputs: u64) -> Output {
        Output {
            dense: b.linear("dense", inputs, spec.hidden, true),
            norm: LayerNorm::new(b, spec.hidden),
            dropout: spec.dropout,
        }
    }

    fn call(&self, t: &Torch, hidden: &Tensor, input: &Tensor) -> Made {
        let mut hidden = self.dense.call(t, hidden)?;
        hidden = t.dropout(&hidden, self.dropout)?;
        hidden = self.norm.call(t, t.add(&hidden, input)?)?;
        Ok(hidden)
    }
}

impl Layer {
    fn new(b: &Builder, spec: &ModelSpec, attn: Attn) -> Layer {
        let hidden = spec.hidden;
        let linear = |name, outputs| b.linear(name, hidden, outputs, true);
        Layer {
            query: linear("query", hidden),
            key: linear("key", hidden),
            value: linear("value", hidden),
            attention: Output::new(b, spec, hidden),
            intermediate: linear("dense", spec.ffn),
            output: Output::new(b, spec, spec.ffn),
            shape: Shape {
                heads: spec.heads,
                head_dim: spec.head_dim,
                dropout: spec.attention.dropout,
                mlp: spec.mlp,
                attn,
            },
        }
    }

    /// The layer on hidden states (B, T, H), and the probabilities where they are made.
    fn call(
        &self,
        t: &Torch,
        hidden: &Tensor,
        mask: Option<&Tensor>,
    ) -> Result<(Tensor, Option<Tensor>), Halt> {
        let (attended, probabilities) = {
            let (made, probabilities) = self.attend(t, hidden, mask)?;
            (self.attention.call(t, &made, hidden)?, probabilities)
        };
        let inner = {
            let inner = self.intermediate.call(t, &attended)?;
            t.activation(&inner, self.shape.mlp)?
        };
        Ok((self.output.call(t, &inner, &attended)?, probabilities))
    }

    /// `BertSelfAttention.forward` or `BertSdpaSelfAttention.forward`.
    fn attend(
        &self,
        t: &Torch,
        hidden: &Tensor,
        mask: Option<&Tensor>,
    ) -> Result<(Tensor, Option<Tensor>), Halt> {
        let s = self.shape;
        let (batch, seq) = (hidden.shape.all()[0], hidden.shape.all()[1]);
        let heads = |of: &Linear| -> Made {
            let made = t.reshape(of.call(t, hidden)?, &[batch, seq, s.heads, s.head_dim])?;
            t.transpose(made, 1, 2)
        };
        let (q, k) = (heads(&self.query)?, heads(&self.key)?);
        let v = heads(&self.value)?;
        let (made, probabilities) = match s.attn {
            Attn::Eager => {
                let (made, probabilities) = self.eager(t, [&q, &k, &v], mask)?;
                (made, Some(probabilities))
            }
            Attn::Sdpa => {
                let how = Sdpa {
                    mask: mask.cloned(),
                    causal: false,
                    dropout: s.dropout,
                };
                (t.transpose(t.attention(&q, &k, &v, &how)?, 1, 2)?, None)
            }
        };
        Ok((
            t.reshape(made, &[batch, seq, s.heads * s.head_dim])?,
            probabilities,
        ))
    }

    fn eager(
        &self,
        t: &Torch,
        [q, k, v]: [&Tensor; 3],
        mask: Option<&Tensor>,
    ) -> Result<(Tensor, Tensor), Halt> {
        let mut scores = t.matmul(q, t.transpose(k, 2, 3)?)?;
        scores = t.scaled(&scores)?;
        if let Some(mask) = mask {
            scores = t.add(&scores, mask)?;
        }
        let mut probabilities = t.softmax(&scores, None)?;
        probabilities = t.dropout(&probabilities, self.shape.dropout)?;
        let made = t.matmul(&probabilities, v)?;
        Ok((t.contiguous(t.transpose(made, 1, 2)?)?, probabilities))
    }
}

impl Model for Bert {
    fn hidden(&self, t: &Torch, call: &Call) -> Made {
        let encoded = self.encode(t, call)?;
        let mut hidden = self.transform.call(t, &encoded)?;
        hidden = t.activation(&hidden, self.mlp)?;
        hidden = self.transform_norm.call(t, &hidden)?;
        Ok(hidden)
    }

    fn head(&self) -> &Linear {
        &self.decoder
    }
}
