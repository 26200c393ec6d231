//! Views, and the copies that are made where a view is not possible.

use std::borrow::Borrow;

use crate::program::eager::recording::Recording;
use crate::program::eager::tensor::{DType, Dims, Inner, Tensor};
use crate::program::eager::torch::{Halt, Made, Torch};

impl Torch {
    /// A view of `x`; `back` turns the gradient of the view into the gradient of `x`.
    fn viewing(
        &self,
        x: &Tensor,
        made: Inner,
        back: impl Fn(&Torch, &Tensor) -> Made + 'static,
    ) -> Made {
        let record = Recording::new(self, "view", &[x]);
        let formula = move |torch: &Torch, gradients: &[Option<Tensor>], _: &[Tensor]| {
            let gradient = gradients[0].as_ref();
            Ok(vec![gradient.map(|g| back(torch, g)).transpose()?])
        };
        record.finish(Tensor::of(made), false, Box::new(formula))
    }

    /// `x.reshape(shape)`: a view where that is possible, else a copy.
    pub fn reshape(&self, x: impl Borrow<Tensor>, shape: &[u64]) -> Made {
        let x = x.borrow();
        let shape = Dims::new(shape);
        let before = x.shape;
        match x.viewed(&shape) {
            Some(strides) => self.viewing(x, x.view(shape, strides), move |torch, g| {
                torch.reshape(g, before.all())
            }),
            None => {
                let copy = self.clone_contiguous(x)?;
                self.reshape(copy, shape.all())
            }
        }
    }

    /// `x.transpose(a, b)`.
    pub fn transpose(&self, x: impl Borrow<Tensor>, a: usize, b: usize) -> Made {
        let x = x.borrow();
        let made = x.view(x.shape.swapped(a, b), x.strides.swapped(a, b));
        self.viewing(x, made, move |torch, g| torch.transpose(g, a, b))
    }

    /// `x.unsqueeze(at)`.
    pub fn unsqueeze(&self, x: impl Borrow<Tensor>, at: usize) -> Made {
        let x = x.borrow();
        let stride = x.strides.all().get(at).map_or(1, |s| s * x.shape.all()[at]);
        let made = x.view(x.shape.inserted(at, 1), x.strides.inserted(at, stride));
        let before = x.shape;
        self.viewing(x, made, move |torch, g| torch.reshape(g, before.all()))
    }

    /// `x.expand(shape)`, of the same number of dimensions.
    pub fn expand(&self, x: impl Borrow<Tensor>, shape: &[u64]) -> Made {
        let x = x.borrow();
        let shape = Dims::new(shape);
        let mut strides = x.strides;
        for (at, (&old, &new)) in x.shape.all().iter().zip(shape.all()).enumerate() {
            if old != new {
                strides = strides.with(at, 0);
            }
        }
        let before = x.shape;
        self.viewing(x, x.view(shape, strides), move |torch, g| {
            torch.sum_to(g.clone(), before)
        })
    }

    /// `x[..., from:to]` along dimension `at`; the gradient of the whole is made of zeros.
    pub fn slice(&self, x: impl Borrow<Tensor>, at: usize, from: u64, to: u64) -> Made {
        let x = x.borrow();
        if from == 0 && to == x.shape.all()[at] {
            // Python's full slice is an alias, whose gradient is passed through.
            return self.viewing(x, x.view(x.shape, x.strides), |_, g| Ok(g.clone()));
        }
        let before = x.shape;
        let made = x.view(x.shape.with(at, to - from), x.strides);
        self.viewing(x, made, move |torch, g| {
            torch.op("slice_backward");
            torch.reads(&[g, g]);
            Ok(torch.empty(before, g.dtype))
        })
    }

    /// `x.split(sizes, at)`; the gradients are put together again by one concatenation.
    pub fn split(
        &self,
        x: impl Borrow<Tensor>,
        at: usize,
        sizes: &[u64],
    ) -> Result<Vec<Tensor>, Halt> {
        let x = x.borrow();
        let parts: Vec<Tensor> = sizes
            .iter()
            .map(|&size| Tensor::of(x.view(x.shape.with(at, size), x.strides)))
            .collect();
        let record = Recording::new(self, "split", &[x]);
        let before = x.shape;
        let save = vec![false; parts.len()];
        let shapes: Vec<Dims> = parts.iter().map(|p| p.shape).collect();
        let formula = move |torch: &Torch, gradients: &[Option<Tensor>], _: &[Tensor]| {
            let dtype = gradients
                .iter()
                .flatten()
                .next()
                .map_or(DType::F32, |g| g.dtype);
            // A part nobody used counts as zeros.
            let missing = gradients.iter().zip(&shapes).filter(|(g, _)| g.is_none());
            torch.op("zeros");
            let zeros: Vec<Tensor> = missing
                .map(|(_, shape)| torch.empty(*shape, dtype))
                .collect();
            torch.op("cat");
            let made = torch.empty(before, dtype);
            torch.reads(&[&made]);
            drop(zeros);
            Ok(vec![Some(made)])
        };
        record.finish_all(parts, &save, Box::new(formula))
    }

    /// `x.contiguous()`: `x` itself where it is.
    pub fn contiguous(&self, x: impl Borrow<Tensor>) -> Made {
        let x = x.borrow();
        match x.is_contiguous() {
            true => Ok(x.clone()),
            false => self.clone_contiguous(x),
        }
    }

    /// `x.clone(memory_format=torch.contiguous_format)`.
    fn clone_contiguous(&self, x: &Tensor) -> Made {
        let record = Recording::new(self, "clone", &[x]);
        self.op("clone");
        self.reads(&[x]);
        let made = self.empty(x.shape, x.dtype);
        record.finish(made, false, Box::new(|_, g, _| Ok(vec![g[0].clone()])))
    }

    /// `x.clone()`.
    pub fn clone_of(&self, x: &Tensor) -> Made {
        let record = Recording::new(self, "clone", &[x]);
        self.op("clone");
        self.reads(&[x]);
        let made = self.empty_like(x, x.dtype);
        record.finish(made, false, Box::new(|_, g, _| Ok(vec![g[0].clone()])))
    }

    /// `x.to(dtype)`: `x` itself where it has that type.
    pub fn to(&self, x: impl Borrow<Tensor>, dtype: DType) -> Made {
        let x = x.borrow();
        if x.dtype == dtype {
            return Ok(x.clone());
        }
        let record = Recording::new(self, "_to_copy", &[x]);
        self.op("_to_copy");
        self.reads(&[x]);
        let made = self.empty_like(x, dtype);
        let before = x.dtype;
        let formula = move |torch: &Torch, g: &[Option<Tensor>], _: &[Tensor]| {
            Ok(vec![
                g[0].as_ref().map(|g| torch.to(g, before)).transpose()?,
            ])
        };
        record.finish(made, false, Box::new(formula))
    }

    /// `torch.cat(parts, at)`; the gradients of the parts are views of one gradient.
    pub fn cat(&self, parts: &[&Tensor], at: usize) -> Made {
        let dtype = parts
            .iter()
            .fold(parts[0].dtype, |d, p| d.promoted(p.dtype));
        let sizes: Vec<u64> = parts.iter().map(|p| p.shape.all()[at]).collect();
        let record = Recording::new(self, "cat", parts);
        self.op("cat");
        self.reads(parts);
        let made = self.empty(parts[0].shape.with(at, sizes.iter().sum()), dtype);
        let formula = move |_: &Torch, g: &[Option<Tensor>], _: &[Tensor]| {
            let Some(g) = &g[0] else {
                return Ok(Vec::new());
            };
            let part = |&size: &u64| {
                let view = g.view(g.shape.with(at, size), g.strides);
                Some(Tensor::of(view))
            };
            Ok(sizes.iter().map(part).collect())
        };
        record.finish(made, false, Box::new(formula))
    }

    /// Sums a gradient over the dimensions in which `shape` was broadcast to it.
    pub fn sum_to(&self, gradient: Tensor, shape: Dims) -> Made {
        if gradient.shape == shape {
            return Ok(gradient);
        }
        let lead = gradient.shape.all().len() - shape.all().len();
        let differs = gradient.shape.all()[lead..] != *shape.all();
        if !differs && gradient.shape.elements() == shape.elements() {
            return self.reshape(gradient, shape.all());
        }
        self.op("sum");
        self.reads(&[&gradient]);
        Ok(self.empty(shape, gradient.dtype))
    }
}
