//! Scaled dot-product attention, by the kernel PyTorch would choose.

use std::borrow::Borrow;

use crate::program::eager::autograd::Maybe;
use crate::program::eager::recording::Recording;
use crate::program::eager::tensor::{DType, Dims, Tensor};
use crate::program::eager::torch::{Halt, Made, Torch};

/// Widest heads of flash attention.
const FLASH_WIDTH: u64 = 256;

/// Matrix products of fused attention: two on the way forward; five on the way back, which makes the scores again.
const FORWARD: u128 = 2;
const BACKWARD: u128 = 5;

/// What `F.scaled_dot_product_attention` is asked for.
#[derive(Debug, Clone)]
pub struct Sdpa {
    /// An additive or boolean mask.
    pub mask: Option<Tensor>,
    /// Whether it is causal without one.
    pub causal: bool,
    /// Dropout of the probabilities.
    pub dropout: f64,
}

impl Torch {
    /// `F.scaled_dot_product_attention(q, k, v)` of (B, heads, T, D): flash for 16-bit tensors without a mask, memory-efficient
    /// with one or in f32, and plain matrix products for grouped heads in f32.
    pub fn attention(
        &self,
        q: impl Borrow<Tensor>,
        k: impl Borrow<Tensor>,
        v: impl Borrow<Tensor>,
        how: &Sdpa,
    ) -> Made {
        // Autocast casts arguments from the last to the first.
        let (v, k) = (self.lowered(v.borrow())?, self.lowered(k.borrow())?);
        let q = self.lowered(q.borrow())?;
        let half = q.dtype.bytes() == 2;
        let fewer = q.shape.all()[1] != k.shape.all()[1];
        let how = Sdpa {
            mask: how.mask.as_ref().map(|mask| self.additive(mask, q.dtype)),
            ..*how
        };
        let width = q.shape.last();
        let aligned = width.is_multiple_of(if half { 8 } else { 4 });
        // Within the operation autocast is off.
        let autocast = self.pause_autocast();
        let made = match (&how.mask, fewer) {
            (None, _) if half && width <= FLASH_WIDTH && !self.habits().no_flash => {
                self.padded_flash(&q, &k, &v, how.causal)
            }
            (_, false) if aligned => self.efficient(&q, &k, &v, &how),
            _ => self.math(&q, &k, &v, &how),
        };
        self.resume_autocast(autocast);
        made
    }

    /// Flash attention of heads whose width is padded to a multiple of eight, and the output cut back.
    fn padded_flash(&self, q: &Tensor, k: &Tensor, v: &Tensor, causal: bool) -> Made {
        let width = q.shape.last();
        if width.is_multiple_of(8) {
            return self.flash(q, k, v, causal);
        }
        let wide = width.next_multiple_of(8);
        let made = {
            let [q, k, v] = [
                self.padded(q, wide)?,
                self.padded(k, wide)?,
                self.padded(v, wide)?,
            ];
            self.flash(&q, &k, &v, causal)?
        };
        self.slice(made, 3, 0, width)
    }

    /// `F.pad` of the last dimension to `wide`: the gradient is cut out of a copy.
    fn padded(&self, x: &Tensor, wide: u64) -> Made {
        let record = Recording::new(self, "constant_pad_nd", &[x]);
        self.op("constant_pad_nd");
        self.reads(&[x]);
        let made = self.empty(x.shape.with_last(wide), x.dtype);
        let before = x.shape;
        let formula = move |torch: &Torch, g: &[Maybe], _: &[Tensor]| -> Result<Vec<Maybe>, Halt> {
            torch.op("clone");
            Ok(vec![g[0].as_ref().map(|g| {
                let made = torch.empty(before, g.dtype);
                torch.reads(&[&made]);
                made
            })])
        };
        record.finish(made, false, Box::new(formula))
    }

    /// A boolean mask as numbers to add, made anew in every call (`convert_boolean_attn_mask`).
    fn additive(&self, mask: &Tensor, dtype: DType) -> Tensor {
        if mask.dtype != DType::Bool {
            return mask.clone();
        }
        let hidden = self.plain("logical_not", mask.shape.all(), DType::Bool);
        let numbers = [(); 2].map(|()| self.plain("scalar_tensor", &[], dtype));
        let made = self.plain("where", mask.shape.all(), dtype);
        drop((hidden, numbers));
        made
    }

    /// What attention made before, where a selective checkpoint kept it.
    fn selectable(&self, make: impl FnOnce() -> Vec<Tensor>) -> Vec<Tensor> {
        let Some(selected) = self.selected() else {
            return make();
        };
        if let Some(kept) = selected.replayed() {
            return kept;
        }
        let made = make();
        made.iter().for_each(|t| self.keep(t));
        selected.note(&made);
        made
    }

    /// `_scaled_dot_product_flash_attention`: output laid out as the queries are, log-sum-exp, seed and offset.
    fn flash(&self, q: &Tensor, k: &Tensor, v: &Tensor, causal: bool) -> Made {
        let name = "_scaled_dot_product_flash_attention";
        // Head widths are padded to a multiple of eight and the output cut back.
        let mut record = Recording::new(self, name, &[q, k, v]);
        for tensor in [q, k, v] {
            record.save(tensor)?;
        }
        let sizes = q.shape.all().to_vec();
        let (batch, heads, rows) = (sizes[0], sizes[1], sizes[2]);
        let keys = k.shape.all()[2];
        let made = self.selectable(|| {
            self.op(name);
            self.reads(&[q, k, v]);
            self.attends(q, keys, FORWARD, causal);
            vec![
                self.empty_like(q, q.dtype),
                self.empty(Dims::new(&[batch, heads, rows]), DType::F32),
                self.empty(Dims::new(&[2]), DType::U64),
                self.empty(Dims::new(&[]), DType::U64),
            ]
        });
        let formula =
            move |torch: &Torch, _: &[Maybe], saved: &[Tensor]| -> Result<Vec<Maybe>, Halt> {
                torch.op("_scaled_dot_product_flash_attention_backward");
                torch.attention_backward(saved, causal);
                let _own = torch.flash_scratch(&saved[0], &saved[1]);
                Ok(saved[..3]
                    .iter()
                    .map(|t| Some(torch.empty_like(t, t.dtype)))
                    .collect())
            };
        let made = record.finish_all(made, &[true; 4], Box::new(formula))?;
        made.into_iter().next().ok_or(Halt::Lost)
    }

    /// A backward kernel on saved queries, keys and values: it reads them, the output and its gradient (both like the queries).
    fn attention_backward(&self, saved: &[Tensor], causal: bool) {
        if let [q, k, v, ..] = saved {
            self.reads(&[q, q, q, k, v]);
            self.attends(q, k.shape.all()[2], BACKWARD, causal);
        }
    }

    /// What flash attention's backward kernel has to itself (`mha_bwd`, flash_api.cpp): the queries' gradient in f32 and the row sums, rows
    /// padded to 128, widths to 32; for grouped heads gradients of keys and values for every query head.
    fn flash_scratch(&self, q: &Tensor, k: &Tensor) -> Vec<Option<Tensor>> {
        let [b, heads, rows, width] = [0, 1, 2, 3].map(|i| q.shape.all()[i]);
        let (keys, padded) = (k.shape.all()[2], rows.next_multiple_of(128));
        let wide = width.next_multiple_of(32);
        let mut own = vec![
            self.scratch(&[b, heads, padded, wide], DType::F32),
            self.scratch(&[b, heads, padded], DType::F32),
        ];
        if k.shape.all()[1] != heads {
            own.extend([(); 2].map(|()| self.scratch(&[b, heads, keys, width], q.dtype)));
        }
        own
    }

    /// An output (B, heads, T, D) whose bytes are in the order (B, T, heads, D).
    fn heads_last(&self, q: &Tensor) -> Tensor {
        let shape = q.shape.swapped(1, 2);
        self.strided(q.shape, shape.contiguous().swapped(1, 2), q.dtype)
    }

    /// A mask whose rows are padded to a multiple of eight keys.
    fn aligned(&self, mask: &Tensor) -> Tensor {
        let keys = mask.shape.last();
        match keys.is_multiple_of(8) {
            true => mask.clone(),
            false => self.plain(
                "constant_pad_nd",
                mask.shape.with_last(keys + 8 - keys % 8).all(),
                mask.dtype,
            ),
        }
    }

    /// `_scaled_dot_product_efficient_attention`: the log-sum-exp is padded to 32 rows.
    fn efficient(&self, q: &Tensor, k: &Tensor, v: &Tensor, how: &Sdpa) -> Made {
        let name = "_scaled_dot_product_efficient_attention";
        let mask = how.mask.as_ref().map(|mask| self.aligned(mask));
        let mut record = Recording::new(self, name, &[q, k, v]);
        for tensor in [q, k, v].into_iter().chain(&mask) {
            record.save(tensor)?;
        }
        let sizes = q.shape.all().to_vec();
        let padded = sizes[2].next_multiple_of(32);
        let on = record.is_on();
        let keys = k.shape.all()[2];
        // A causal kernel passes over blocks; one with a mask computes them all.
        let causal = how.causal && mask.is_none();
        let made = self.selectable(|| {
            self.op(name);
            self.reads(&[q, k, v]);
            mask.iter().for_each(|mask| self.reads(&[mask]));
            self.attends(q, keys, FORWARD, causal);
            let lse = if on { padded } else { 0 };
            vec![
                self.heads_last(q),
                self.empty(Dims::new(&[sizes[0], sizes[1], lse]), DType::F32),
                self.empty(Dims::new(&[]), DType::I64),
                self.empty(Dims::new(&[]), DType::I64),
            ]
        });
        let formula =
            move |torch: &Torch, _: &[Maybe], saved: &[Tensor]| -> Result<Vec<Maybe>, Halt> {
                torch.op("_scaled_dot_product_efficient_attention_backward");
                torch.attention_backward(saved, causal);
                let made = saved[..3].iter().map(|t| {
                    let strides = t.shape.swapped(1, 2).contiguous().swapped(1, 2);
                    Some(torch.strided(t.shape, strides, t.dtype))
                });
                Ok(made.collect())
            };
        let made = record.finish_all(made, &[true; 4], Box::new(formula))?;
        made.into_iter().next().ok_or(Halt::Lost)
    }

    /// `_scaled_dot_product_attention_math`: 16-bit tensors in f32, both operands scaled, products, softmax, dropout; the probabilities are also
    /// made in the type of the inputs.
    fn math(&self, q: &Tensor, k: &Tensor, v: &Tensor, how: &Sdpa) -> Made {
        let (dtype, rows) = (q.dtype, q.shape.all()[2]);
        let [q, k, v] = [
            self.to(q, DType::F32)?,
            self.to(k, DType::F32)?,
            self.to(v, DType::F32)?,
        ];
        let mask = match (&how.mask, how.causal) {
            (Some(mask), _) => Some(mask.clone()),
            (None, true) => Some(self.causal_bias(rows, k.shape.all()[2], q.dtype)?),
            (None, false) => None,
        };
        let group = q.shape.all()[1] / k.shape.all()[1].max(1);
        let (k, v) = match group > 1 {
            true => (self.interleaved(&k, group)?, self.interleaved(&v, group)?),
            false => (k, v),
        };
        let scores = {
            let q = self.scaled(&q)?;
            let k = self.scaled(self.transpose(&k, 2, 3)?)?;
            self.matmul(q, k)?
        };
        let scores = match mask {
            Some(mask) => self.add(scores, mask)?,
            None => scores,
        };
        let probabilities = self.softmax(scores, None)?;
        let probabilities = self.dropout(probabilities, how.dropout)?;
        let _narrow = self.to(&probabilities, dtype)?;
        self.to(self.matmul(probabilities, &v)?, dtype)
    }

    /// `repeat_interleave` of key heads: a copy.
    fn interleaved(&self, x: &Tensor, group: u64) -> Made {
        let sizes = x.shape.all().to_vec();
        let wide = self.expand(
            self.unsqueeze(x, 2)?,
            &[sizes[0], sizes[1], group, sizes[2], sizes[3]],
        )?;
        self.reshape(wide, &[sizes[0], sizes[1] * group, sizes[2], sizes[3]])
    }

    /// The additive mask that plain attention builds for `is_causal`.
    fn causal_bias(&self, rows: u64, keys: u64, dtype: DType) -> Made {
        let ones = self.plain("ones", &[rows, keys], DType::Bool);
        let lower = self.plain("tril", &[rows, keys], DType::Bool);
        drop(ones);
        let bias = self.plain("zeros", &[rows, keys], dtype);
        drop(self.plain("logical_not", &[rows, keys], DType::Bool));
        drop(lower);
        Ok(bias)
    }
}
