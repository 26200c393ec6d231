//! Operations in place: the result is the same storage, at a later place in the graph.

use std::borrow::Borrow;

use crate::program::eager::autograd::Maybe;
use crate::program::eager::recording::Recording;
use crate::program::eager::tensor::Tensor;
use crate::program::eager::torch::{Halt, Made, Torch};

type Gradients = Result<Vec<Maybe>, Halt>;

impl Torch {
    /// `x += y`.
    ///
    /// # Errors
    /// Where the record is halted.
    pub fn add_in_place(&self, x: &Tensor, y: &Tensor) -> Made {
        let record = Recording::new(self, "add_", &[x, y]);
        self.op("add_");
        self.reads(&[x, x, y]);
        record.finish(
            x.detached(),
            false,
            Box::new(|_, g, _| Ok(vec![g[0].clone(), g[0].clone()])),
        )
    }

    /// `x /= y`, where `y` has one element in the last dimension: `x` as it was is copied for the gradient of `y`.
    ///
    /// # Errors
    /// Where the record is halted.
    pub fn div_in_place(&self, x: &Tensor, y: &Tensor) -> Made {
        let mut record = Recording::new(self, "div_", &[x, y]);
        let needs = record.needs(1);
        if needs {
            let before = self.no_grad(|| self.clone_of(x))?;
            record.save(&before)?;
        }
        record.save(y)?;
        self.op("div_");
        self.reads(&[x, x, y]);
        let formula = move |torch: &Torch, g: &[Maybe], _: &[Tensor]| -> Gradients {
            let Some(g) = &g[0] else {
                return Ok(Vec::new());
            };
            // `-g * ((x / y) / y)`, whose intermediate results live as long as the expression.
            let divisor = needs.then(|| {
                let quotients = ["div", "div", "neg"].map(|name| torch.plain_from(name, g.clone()));
                let made = torch.plain_from("mul", g.clone());
                drop(quotients);
                made
            });
            torch.op("div");
            torch.reads(&[g]);
            Ok(vec![Some(torch.empty_like(g, g.dtype)), divisor])
        };
        record.finish(x.detached(), false, Box::new(formula))
    }

    /// `x / y` where `y` is a number on the device, which is saved.
    ///
    /// # Errors
    /// Where the record is halted.
    pub fn div_by(&self, x: impl Borrow<Tensor>, y: Tensor) -> Made {
        let x = x.borrow();
        let mut record = Recording::new(self, "div", &[x]);
        record.save(&y)?;
        self.op("div");
        self.reads(&[x]);
        let made = self.empty_like(x, x.dtype);
        let formula = |torch: &Torch, g: &[Maybe], _: &[Tensor]| -> Gradients {
            torch.op("div");
            Ok(vec![g[0].as_ref().map(|g| {
                torch.reads(&[g]);
                torch.empty_like(g, g.dtype)
            })])
        };
        record.finish(made, false, Box::new(formula))
    }
}
