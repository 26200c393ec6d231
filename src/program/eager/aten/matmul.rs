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
        let made = self.product(name, x.shape.with_last(wide), x.dtype);
        let (x_shape, w_shape) = (x.shape, weight.shape);
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
    fn product(&self, name: &'static str, shape: Dims, dtype: DType) -> Tensor {
        let selected = self.selected().filter(|s| s.matmul);
        if let Some(kept) = selected.as_ref().and_then(|s| s.replayed())
            && let Some(tensor) = kept.into_iter().next()
        {
            return tensor;
        }
        self.op(name);
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
        let made = self.product("bmm", shape, a.dtype);
        let (a_shape, b_shape) = (a.shape, b.shape);
        let formula = move |torch: &Torch, g: &[Maybe], _: &[Tensor]| -> Result<Vec<Maybe>, Halt> {
            let Some(g) = &g[0] else {
                return Ok(Vec::new());
            };
            let g = torch.batched(g.clone())?;
            let made = |needed: bool, shape: Dims| {
                needed.then(|| {
                    torch.op("bmm");
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
        self.op("mm");
        // `F.linear(A, F.dequantize_4bit(B, quant_state))`.
        let weight = self.scratch(&[outputs, inputs], x.dtype);
        let made = self.empty(x.shape.with_last(outputs), x.dtype);
        drop(weight);
        let formula = move |torch: &Torch, g: &[Maybe], _: &[Tensor]| {
            let Some(g) = &g[0] else {
                return Ok(Vec::new());
            };
            torch.op("mm");
            let weight = torch.scratch(&[outputs, inputs], g.dtype);
            let made = torch.empty(g.shape.with_last(inputs), g.dtype);
            drop(weight);
            Ok(vec![Some(made)])
        };
        record.finish(made, false, Box::new(formula))
    }
}
