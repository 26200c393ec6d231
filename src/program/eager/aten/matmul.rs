//! Matrix products.

use std::borrow::Borrow;

use crate::program::eager::autograd::Maybe;
use crate::program::eager::recording::Recording;
use crate::program::eager::tensor::{DType, Dims, Tensor};
use crate::program::eager::torch::{Halt, Made, Torch};

impl Torch {
    /// `F.linear(x, weight (O, I), bias)`, or with `turned` the `addmm` of GPT-2's `Conv1D` whose weight is (I, O). `x` is saved for the
    /// weight's gradient, the weight for `x`'s.
    pub fn linear(
        &self,
        x: impl Borrow<Tensor>,
        weight: &Tensor,
        bias: Option<&Tensor>,
        turned: bool,
    ) -> Made {
        let (x, weight, bias) = self.lowered_arguments(x.borrow(), weight, bias, turned)?;
        let x = self.contiguous(x)?;
        let inputs: Vec<&Tensor> = [&x, &weight].into_iter().chain(&bias).collect();
        let mut record = Recording::new(self, "mm", &inputs);
        let needs = [
            record.needs(0),
            record.needs(1),
            bias.is_some() && record.needs(2),
        ];
        if needs[1] {
            record.save(&x)?;
        }
        if needs[0] {
            record.save(&weight)?;
        }
        let wide = weight.shape.all()[usize::from(turned)];
        let name = if bias.is_some() { "addmm" } else { "mm" };
        let (x_shape, w_shape) = (x.shape, weight.shape);
        let narrow = x.shape.last();
        let sizes = [1, x.elements() / narrow.max(1), narrow, wide];
        let shape = x.shape.with_last(wide);
        let made = self.product(name, shape, x.dtype, || self.multiplies(x.dtype, sizes));
        let formula = move |torch: &Torch, g: &[Maybe], _: &[Tensor]| {
            let Some(g) = &g[0] else {
                return Ok(Vec::new());
            };
            // The gradient is seen as a matrix: a copy where its layout does not allow that.
            let g = torch
                .reshape(g, g.shape.all())
                .and_then(|g| torch.contiguous(g))?;
            let made = |needed: bool, name, shape: Dims| {
                needed.then(|| {
                    torch.op(name);
                    match name {
                        "mm" => torch.multiplies(g.dtype, sizes),
                        _ => torch.reads(&[&g]),
                    }
                    torch.empty(shape, g.dtype)
                })
            };
            let bias = made(needs[2], "sum", Dims::new(&[wide]));
            let x = made(needs[0], "mm", x_shape);
            let weight = made(needs[1], "mm", w_shape);
            Ok(vec![x, weight, bias])
        };
        record.finish(made, false, Box::new(formula))
    }

    /// Input, weight and bias in autocast's type. Arguments are cast from the last to the first: of (x, weight, bias), or of `addmm`'s (bias, x,
    /// weight).
    fn lowered_arguments(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
        turned: bool,
    ) -> Result<(Tensor, Tensor, Maybe), Halt> {
        let lowered_bias = || bias.map(|bias| self.lowered(bias)).transpose();
        if turned {
            let weight = self.lowered(weight)?;
            return Ok((self.lowered(x)?, weight, lowered_bias()?));
        }
        let (bias, weight) = (lowered_bias()?, self.lowered(weight)?);
        Ok((self.lowered(x)?, weight, bias))
    }

    /// The result of a product; a selective checkpoint may hold it already.
    fn product(
        &self,
        name: &'static str,
        shape: Dims,
        dtype: DType,
        work: impl FnOnce(),
    ) -> Tensor {
        let selected = self.selected().filter(|s| s.matmul);
        if let Some(kept) = selected.as_ref().and_then(|s| s.replayed())
            && let Some(tensor) = kept.into_iter().next()
        {
            return tensor;
        }
        self.op(name);
        work();
        let made = self.empty(shape, dtype);
        if let Some(selected) = selected {
            self.keep(&made);
            selected.note(std::slice::from_ref(&made));
        }
        made
    }

    /// Marks a result as kept for the backward pass.
    pub(super) fn keep(&self, tensor: &Tensor) {
        if let Some(storage) = &tensor.storage {
            self.saved(storage);
        }
    }

    /// `a @ b` of batches of matrices: (…, m, k) by (…, k, n), broadcast over the batch.
    pub fn matmul(&self, a: impl Borrow<Tensor>, b: impl Borrow<Tensor>) -> Made {
        // From the last argument to the first, as in `linear`.
        let b = self.lowered(b.borrow())?;
        let a = self.lowered(a.borrow())?;
        let (a, b) = (self.batched(a)?, self.batched(b)?);
        let mut record = Recording::new(self, "bmm", &[&a, &b]);
        let needs = [record.needs(0), record.needs(1)];
        if needs[1] {
            record.save(&a)?;
        }
        if needs[0] {
            record.save(&b)?;
        }
        let shape = a.shape.with_last(b.shape.last());
        let (a_shape, b_shape) = (a.shape, b.shape);
        let rows = a.shape.all().iter().rev().nth(1).copied().unwrap_or(1);
        let (inner, columns) = (a.shape.last(), b.shape.last());
        let sizes = [
            shape.elements() / (rows * columns).max(1),
            rows,
            inner,
            columns,
        ];
        let made = self.product("bmm", shape, a.dtype, || self.multiplies(a.dtype, sizes));
        let formula = move |torch: &Torch, g: &[Maybe], _: &[Tensor]| -> Result<Vec<Maybe>, Halt> {
            let Some(g) = &g[0] else {
                return Ok(Vec::new());
            };
            let g = torch.batched(g.clone())?;
            let made = |needed: bool, shape: Dims| {
                needed.then(|| {
                    torch.op("bmm");
                    torch.multiplies(g.dtype, sizes);
                    torch.empty(shape, g.dtype)
                })
            };
            let first = made(needs[0], a_shape);
            Ok(vec![first, made(needs[1], b_shape)])
        };
        record.finish(made, false, Box::new(formula))
    }

    /// `x` with its batch dimensions as one: a copy where they cannot be seen as one (an expanded or permuted batch).
    fn batched(&self, x: Tensor) -> Made {
        let sizes = x.shape.all().to_vec();
        if sizes.len() <= 3 {
            return Ok(x);
        }
        let (batch, matrix) = sizes.split_at(sizes.len() - 2);
        let folded = [batch.iter().product(), matrix[0], matrix[1]];
        match x.viewed(&Dims::new(&folded)) {
            Some(_) => Ok(x),
            None => self.reshape(self.reshape(x, &folded)?, &sizes),
        }
    }
}

impl Torch {
    /// The product with a weight packed in four bits (inputs, outputs known beside it): the packed weight is saved for the gradient of `x`.
    pub fn packed_linear(&self, x: &Tensor, packed: &Tensor, inputs: u64, outputs: u64) -> Made {
        let mut record = Recording::new(self, "MatMul4Bit", &[x]);
        if self.habits().packed_saves_input {
            record.save(x)?;
        }
        record.save(packed)?;
        self.unpacks(inputs * outputs, x.dtype);
        self.op("mm");
        let rows = x.elements() / inputs.max(1);
        // `F.linear(A, F.dequantize_4bit(B, quant_state))`.
        self.multiplies(x.dtype, [1, rows, inputs, outputs]);
        let weight = self.scratch(&[outputs, inputs], x.dtype);
        let made = self.empty(x.shape.with_last(outputs), x.dtype);
        drop(weight);
        let formula = move |torch: &Torch, g: &[Maybe], _: &[Tensor]| {
            let Some(g) = &g[0] else {
                return Ok(Vec::new());
            };
            torch.unpacks(inputs * outputs, g.dtype);
            torch.op("mm");
            torch.multiplies(g.dtype, [1, rows, outputs, inputs]);
            let weight = torch.scratch(&[outputs, inputs], g.dtype);
            let made = torch.empty(g.shape.with_last(inputs), g.dtype);
            drop(weight);
            Ok(vec![Some(made)])
        };
        record.finish(made, false, Box::new(formula))
    }

    /// Unpacking `weights` values for a product, which then reads them: one kernel, or the eight operations on whole tensors of AutoGPTQ's
    /// `QuantLinear` (shift to int32, to int8, and, gathered zeros, difference, gathered scales, product, and one of the zeros themselves).
    fn unpacks(&self, weights: u64, dtype: DType) {
        let wide = dtype.bytes();
        match self.habits().unpacks_in_steps {
            false => {
                self.launches(1);
                self.unpacks_bytes(weights / 2 + weights * wide);
            }
            true => {
                // Read and written for a value: 1/2 + 4, 4 + 1, 1 + 1, 0 + 1, 2 + 1, 0 + wide, 1 + wide + wide.
                self.launches(8);
                self.moves(weights / 2 + weights * (16 + 3 * wide));
            }
        }
    }
}
