//! Element-wise operations, reductions along the last dimension, dropout.

use std::borrow::Borrow;

use crate::program::eager::autograd::Maybe;
use crate::program::eager::recording::Recording;
use crate::program::eager::tensor::{DType, Dims, Tensor};
use crate::program::eager::torch::{Halt, Made, Torch};

type Gradients = Result<Vec<Maybe>, Halt>;

impl Torch {
    /// The result of an element-wise operation of two tensors: broadcast, promoted, laid out like the first that has its sizes.
    fn joined(&self, a: &Tensor, b: &Tensor) -> Tensor {
        let shape = a.shape.broadcast(&b.shape);
        let dtype = match (a.shape.all().is_empty(), b.shape.all().is_empty()) {
            (true, false) if b.dtype.is_float() || !a.dtype.is_float() => b.dtype,
            (false, true) if a.dtype.is_float() || !b.dtype.is_float() => a.dtype,
            _ => a.dtype.promoted(b.dtype),
        };
        let like = [a, b].into_iter().find(|t| t.shape == shape);
        let strides = like.map_or(shape.contiguous(), Tensor::preserved);
        self.strided(shape, strides, dtype)
    }

    /// `a + b`.
    pub fn add(&self, a: impl Borrow<Tensor>, b: impl Borrow<Tensor>) -> Made {
        let (a, b) = (a.borrow(), b.borrow());
        let record = Recording::new(self, "add", &[a, b]);
        self.op("add");
        self.reads(&[a, b]);
        let made = self.joined(a, b);
        record.finish(
            made,
            false,
            Box::new(|_, g, _| Ok(vec![g[0].clone(), g[0].clone()])),
        )
    }

    /// `a * b`; each factor is saved for the other's gradient.
    pub fn mul(&self, a: impl Borrow<Tensor>, b: impl Borrow<Tensor>) -> Made {
        let (a, b) = (a.borrow(), b.borrow());
        let mut record = Recording::new(self, "mul", &[a, b]);
        let needs = [record.needs(0), record.needs(1)];
        // In the order of the node's fields: other, self.
        if needs[0] {
            record.save(b)?;
        }
        if needs[1] {
            record.save(a)?;
        }
        self.op("mul");
        self.reads(&[a, b]);
        let made = self.joined(a, b);
        let formula = move |torch: &Torch, g: &[Maybe], saved: &[Tensor]| -> Gradients {
            let Some(g) = &g[0] else {
                return Ok(Vec::new());
            };
            let mut saved = saved.iter();
            let mut product = |needed: bool| match (needed, needed.then(|| saved.next()).flatten())
            {
                (true, Some(other)) => torch.mul(g, other).map(Some),
                _ => Ok(None),
            };
            let first = product(needs[0])?;
            Ok(vec![first, product(needs[1])?])
        };
        record.finish(made, false, Box::new(formula))
    }

    /// An operation on one tensor whose gradient is one more of the same (`-x`, `x * 2`, `x + 1`).
    fn linear_in(&self, x: &Tensor, name: &'static str, same: bool) -> Made {
        let record = Recording::new(self, name, &[x]);
        self.op(name);
        self.reads(&[x]);
        let made = self.empty_like(x, x.dtype);
        let formula = move |torch: &Torch, g: &[Maybe], _: &[Tensor]| -> Gradients {
            Ok(vec![match (&g[0], same) {
                (Some(g), false) => Some(torch.linear_in(g, name, false)?),
                (g, _) => g.clone(),
            }])
        };
        record.finish(made, false, Box::new(formula))
    }

    /// `-x`.
    pub fn neg(&self, x: impl Borrow<Tensor>) -> Made {
        self.linear_in(x.borrow(), "neg", false)
    }

    /// `x * number` or `x / number`.
    pub fn scaled(&self, x: impl Borrow<Tensor>) -> Made {
        self.linear_in(x.borrow(), "mul", false)
    }

    /// `x + number`.
    pub fn shifted(&self, x: impl Borrow<Tensor>) -> Made {
        self.linear_in(x.borrow(), "add", true)
    }

    /// An operation whose derivative is one fused kernel of the gradient and what was saved: its input, or with `result` its output.
    fn fused(&self, x: &Tensor, name: &'static str, backward: &'static str, result: bool) -> Made {
        let mut record = Recording::new(self, name, &[x]);
        if !result {
            record.save(x)?;
        }
        self.op(name);
        self.reads(&[x]);
        let made = self.empty_like(x, x.dtype);
        let formula = move |torch: &Torch, g: &[Maybe], _: &[Tensor]| -> Gradients {
            torch.op(backward);
            let made = g[0].as_ref().map(|g| {
                // The gradient, and what was saved.
                torch.reads(&[g, g]);
                let made = torch.empty_like(g, g.dtype);
                if backward == "_softmax_backward_data" {
                    drop(torch.softmax_scratch(g));
                }
                made
            });
            Ok(vec![made])
        };
        record.finish(made, result, Box::new(formula))
    }

    /// `silu(x)`.
    pub fn silu(&self, x: impl Borrow<Tensor>) -> Made {
        self.fused(x.borrow(), "silu", "silu_backward", false)
    }

    /// `gelu(x)`, exact or by tanh.
    pub fn gelu(&self, x: impl Borrow<Tensor>) -> Made {
        self.fused(x.borrow(), "gelu", "gelu_backward", false)
    }

    /// `relu(x)`.
    pub fn relu(&self, x: impl Borrow<Tensor>) -> Made {
        self.fused(x.borrow(), "relu", "threshold_backward", true)
    }

    /// `tanh(x)`.
    pub fn tanh(&self, x: impl Borrow<Tensor>) -> Made {
        self.fused(x.borrow(), "tanh", "tanh_backward", true)
    }

    /// `softmax(x, -1)`, of `x` cast to `dtype` where one is given.
    pub fn softmax(&self, x: impl Borrow<Tensor>, dtype: Option<DType>) -> Made {
        let x = match dtype.or(self.autocast().map(|_| DType::F32)) {
            Some(DType::F32) if x.borrow().dtype == DType::F16 => {
                return self.widening_softmax(x.borrow());
            }
            Some(dtype) => self.to(x, dtype)?,
            None => x.borrow().clone(),
        };
        self.fused(&x, "_softmax", "_softmax_backward_data", true)
    }

    /// The softmax's gradient has the product of gradient and output to itself (`Tensor tmp = grad * output`, SoftMax.cu).
    fn softmax_scratch(&self, g: &Tensor) -> Option<Tensor> {
        self.scratch(g.shape.all(), g.dtype)
    }

    /// The softmax of f16 in f32: one kernel, without a copy of its input.
    fn widening_softmax(&self, x: &Tensor) -> Made {
        let record = Recording::new(self, "_softmax", &[x]);
        self.op("_softmax");
        self.reads(&[x]);
        let made = self.empty_like(x, DType::F32);
        let before = x.dtype;
        let formula = move |torch: &Torch, g: &[Maybe], _: &[Tensor]| -> Gradients {
            torch.op("_softmax_backward_data");
            let made = g[0].as_ref().map(|g| {
                torch.reads(&[g, g]);
                let made = torch.empty_like(g, before);
                drop(torch.softmax_scratch(g));
                made
            });
            Ok(vec![made])
        };
        record.finish(made, true, Box::new(formula))
    }

    /// `x.pow(number)`, in f32 within autocast: its gradient is `g * (exponent * x.pow(exponent - 1))`.
    pub fn pow(&self, x: impl Borrow<Tensor>) -> Made {
        let x = self.raised(x.borrow())?;
        let mut record = Recording::new(self, "pow", &[&x]);
        record.save(&x)?;
        self.op("pow");
        self.reads(&[&x]);
        let made = self.empty_like(&x, x.dtype);
        let formula = move |torch: &Torch, g: &[Maybe], saved: &[Tensor]| -> Gradients {
            let Some(g) = &g[0] else {
                return Ok(Vec::new());
            };
            torch.op("pow");
            torch.reads(&[&saved[0]]);
            let power = torch.empty_like(&saved[0], saved[0].dtype);
            let slope = torch.scaled(&power)?;
            Ok(vec![Some(torch.mul(g, &slope)?)])
        };
        record.finish(made, false, Box::new(formula))
    }

    /// `x.rsqrt()`: its gradient is `-0.5 * g * result.pow(3)`.
    pub fn rsqrt(&self, x: impl Borrow<Tensor>) -> Made {
        let x = self.raised(x.borrow())?;
        let record = Recording::new(self, "rsqrt", &[&x]);
        self.op("rsqrt");
        self.reads(&[&x]);
        let made = self.empty_like(&x, x.dtype);
        let formula = |torch: &Torch, g: &[Maybe], saved: &[Tensor]| -> Gradients {
            let Some(g) = &g[0] else {
                return Ok(Vec::new());
            };
            let half = torch.scaled(g)?;
            torch.op("pow");
            torch.reads(&[&saved[0]]);
            let cube = torch.empty_like(&saved[0], saved[0].dtype);
            Ok(vec![Some(torch.mul(&half, &cube)?)])
        };
        record.finish(made, true, Box::new(formula))
    }

    /// `x.mean(-1, keepdim=True)`: its gradient is expanded, then divided.
    pub fn mean_last(&self, x: impl Borrow<Tensor>) -> Made {
        let x = x.borrow();
        let record = Recording::new(self, "mean", &[x]);
        self.op("mean");
        self.reads(&[x]);
        let made = self.empty(x.shape.with_last(1), x.dtype);
        let shape = x.shape;
        let formula = move |torch: &Torch, g: &[Maybe], _: &[Tensor]| -> Gradients {
            let Some(g) = &g[0] else {
                return Ok(Vec::new());
            };
            torch.op("div");
            Ok(vec![Some(torch.empty(shape, g.dtype))])
        };
        record.finish(made, false, Box::new(formula))
    }

    /// `dropout(x, p, training=True)`: nothing where p is 0, else a mask of bytes is saved.
    pub fn dropout(&self, x: impl Borrow<Tensor>, p: f64) -> Made {
        let x = x.borrow();
        if p == 0.0 {
            return Ok(x.clone());
        }
        let record = Recording::new(self, "native_dropout", &[x]);
        self.op("native_dropout");
        self.reads(&[x]);
        let made = self.empty_like(x, x.dtype);
        let mask = self.empty_like(x, DType::Bool);
        let formula = |torch: &Torch, g: &[Maybe], _: &[Tensor]| -> Gradients {
            torch.op("native_dropout_backward");
            Ok(vec![g[0].as_ref().map(|g| {
                torch.reads(&[g]);
                torch.moves(g.elements());
                torch.empty_like(g, g.dtype)
            })])
        };
        let made = record.finish_all(vec![made, mask], &[false, true], Box::new(formula))?;
        made.into_iter().next().ok_or(Halt::Lost)
    }

    /// A result like `x`, which dies with the operation, that no gradient flows through.
    pub fn plain_from(&self, name: &'static str, x: Tensor) -> Tensor {
        self.op(name);
        self.reads(&[&x]);
        self.empty_like(&x, x.dtype)
    }

    /// A result of `shape` that no gradient flows through (`cos`, `arange`, comparisons).
    pub fn plain(&self, name: &'static str, shape: &[u64], dtype: DType) -> Tensor {
        self.op(name);
        self.empty(Dims::new(shape), dtype)
    }
}
