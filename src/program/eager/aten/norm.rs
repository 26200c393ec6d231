//! Normalisation and embedding.

use std::borrow::Borrow;

use crate::program::eager::autograd::Maybe;
use crate::program::eager::recording::Recording;
use crate::program::eager::tensor::{DType, Tensor};
use crate::program::eager::torch::{Halt, Made, Torch};

impl Torch {
    /// `F.layer_norm` over the last dimension, in f32 within autocast: saves its input, weight, bias, mean and reciprocal deviation.
    pub fn layer_norm(&self, x: impl Borrow<Tensor>, weight: &Tensor, bias: &Tensor) -> Made {
        let x = self.raised(x.borrow())?;
        let (weight, bias) = (self.raised(weight)?, self.raised(bias)?);
        let mut record = Recording::new(self, "native_layer_norm", &[&x, &weight, &bias]);
        let needs = [0, 1, 2].map(|i| record.needs(i));
        for tensor in [&bias, &x, &weight] {
            record.save(tensor)?;
        }
        self.op("native_layer_norm");
        self.reads(&[&x]);
        let made = self.empty(x.shape, x.dtype);
        // Statistics are in f32, whatever the input is.
        let [mean, rstd] = [(); 2].map(|()| self.empty(x.shape.with_last(1), DType::F32));
        let shapes = [x.shape, weight.shape, bias.shape];
        let formula =
            move |torch: &Torch, g: &[Maybe], saved: &[Tensor]| -> Result<Vec<Maybe>, Halt> {
                let Some(g) = &g[0] else {
                    return Ok(Vec::new());
                };
                torch.op("native_layer_norm_backward");
                // The input's gradient and those of weight and bias are made by kernels of their own.
                torch.reads(&[g, g]);
                if needs[1] {
                    torch.in_place(2 * g.elements() * g.dtype.bytes());
                }
                let made = |i: usize| {
                    let dtype = if i == 0 { g.dtype } else { saved[2].dtype };
                    needs[i].then(|| torch.empty(shapes[i], dtype))
                };
                Ok((0..3).map(made).collect())
            };
        let made = record.finish_all(
            vec![made, mean, rstd],
            &[false, true, true],
            Box::new(formula),
        )?;
        made.into_iter().next().ok_or(Halt::Lost)
    }

    /// `F.embedding(ids, table)`: saves the ids; the gradient is a dense table.
    pub fn embedding(&self, ids: &Tensor, table: &Tensor) -> Made {
        let mut record = Recording::new(self, "embedding", &[table]);
        record.save(ids)?;
        self.op("embedding");
        let width = table.shape.last();
        let shape = ids.shape.inserted(ids.shape.all().len(), width);
        let made = self.empty(shape, table.dtype);
        self.reads(&[&made]);
        let table = table.shape;
        let formula = move |torch: &Torch, g: &[Maybe], _: &[Tensor]| -> Result<Vec<Maybe>, Halt> {
            torch.op("embedding_dense_backward");
            Ok(vec![g[0].as_ref().map(|g| {
                torch.reads(&[g]);
                torch.empty(table, g.dtype)
            })])
        };
        record.finish(made, false, Box::new(formula))
    }
}
