//! Choosing elements: by a condition, by indices, by rank.

use crate::program::eager::autograd::Maybe;
use crate::program::eager::recording::Recording;
use crate::program::eager::tensor::{DType, Dims, Tensor};
use crate::program::eager::torch::{Halt, Made, Torch};

type Gradients = Result<Vec<Maybe>, Halt>;

impl Torch {
    /// `torch.where(condition, x, number)`: the condition is saved.
    ///
    /// # Errors
    /// Where the record is halted.
    pub fn masked_where(&self, condition: &Tensor, x: &Tensor) -> Made {
        let mut record = Recording::new(self, "where", &[x]);
        record.save(condition)?;
        self.op("where");
        self.reads(&[condition, x]);
        let made = self.empty_like(x, x.dtype);
        let formula = |torch: &Torch, g: &[Maybe], _: &[Tensor]| -> Gradients {
            let Some(g) = &g[0] else {
                return Ok(Vec::new());
            };
            let zero = torch.scalar("scalar_tensor", g.dtype);
            torch.op("where");
            torch.reads(&[g]);
            let made = torch.empty_like(g, g.dtype);
            drop(zero);
            Ok(vec![Some(made)])
        };
        record.finish(made, false, Box::new(formula))
    }

    /// `x[indices]` of sizes `shape`: the indices are saved; the gradient is put into zeros.
    ///
    /// # Errors
    /// Where the record is halted.
    pub fn index(&self, x: &Tensor, indices: &[&Tensor], shape: &[u64]) -> Made {
        let mut record = Recording::new(self, "index", &[x]);
        for index in indices {
            record.save(index)?;
        }
        self.op("index");
        let made = self.empty(Dims::new(shape), x.dtype);
        // As many elements are read as are chosen.
        self.reads(&[&made]);
        let before = x.shape;
        let formula = move |torch: &Torch, g: &[Maybe], _: &[Tensor]| -> Gradients {
            torch.op("new_zeros");
            Ok(vec![g[0].as_ref().map(|g| {
                // `index_put_` adds the gradient to the zeros.
                torch.in_place(3 * g.elements() * g.dtype.bytes());
                torch.empty(before, g.dtype)
            })])
        };
        record.finish(made, false, Box::new(formula))
    }

    /// `x.index_add_(0, index, source)`: index and source are saved.
    ///
    /// # Errors
    /// Where the record is halted.
    pub fn index_add_in_place(&self, x: &Tensor, index: &Tensor, source: &Tensor) -> Made {
        let mut record = Recording::new(self, "index_add_", &[x, source]);
        if record.needs(1) {
            record.save(index)?;
            record.save(source)?;
        }
        self.op("index_add_");
        self.reads(&[source, source, source]);
        let shape = source.shape;
        let formula = move |torch: &Torch, g: &[Maybe], _: &[Tensor]| -> Gradients {
            let Some(g) = &g[0] else {
                return Ok(Vec::new());
            };
            torch.op("index_select");
            let made = torch.empty(shape, g.dtype);
            torch.reads(&[&made]);
            Ok(vec![Some(g.clone()), Some(made)])
        };
        record.finish(x.detached(), false, Box::new(formula))
    }

    /// `x.topk(count, -1)`: values and indices; the indices are saved.
    ///
    /// # Errors
    /// Where the record is halted.
    pub fn topk(&self, x: &Tensor, count: u64) -> Result<[Tensor; 2], Halt> {
        let mut record = Recording::new(self, "topk", &[x]);
        self.op("topk");
        self.reads(&[x]);
        let shape = x.shape.with_last(count);
        let (values, indices) = (self.empty(shape, x.dtype), self.empty(shape, DType::I64));
        record.save(&indices)?;
        let before = x.shape;
        let formula = move |torch: &Torch, g: &[Maybe], _: &[Tensor]| -> Gradients {
            torch.op("zeros");
            Ok(vec![g[0].as_ref().map(|g| torch.empty(before, g.dtype))])
        };
        Ok([record.finish(values, false, Box::new(formula))?, indices])
    }

    /// `x.sum(-1, keepdim=True)`: the gradient is seen as wide as `x`.
    ///
    /// # Errors
    /// Where the record is halted.
    pub fn sum_last(&self, x: &Tensor) -> Made {
        let record = Recording::new(self, "sum", &[x]);
        self.op("sum");
        self.reads(&[x]);
        let made = self.empty(x.shape.with_last(1), x.dtype);
        let shape = x.shape;
        let formula = move |_: &Torch, g: &[Maybe], _: &[Tensor]| -> Gradients {
            Ok(vec![g[0].as_ref().map(|g| {
                Tensor::of(g.view(shape, g.strides.with_last(0)))
            })])
        };
        record.finish(made, false, Box::new(formula))
    }
}
