//! The loss.

use std::borrow::Borrow;

use crate::program::eager::autograd::Maybe;
use crate::program::eager::recording::Recording;
use crate::program::eager::tensor::{DType, Dims, Tensor};
use crate::program::eager::torch::{Halt, Made, Torch};

impl Torch {
    /// `F.cross_entropy(logits (N, V), targets (N), reduction)`, its last part in f32 within autocast: the log-softmax is saved, its gradient and that of
    /// the logits are tensors of their own.
    pub fn cross_entropy(&self, logits: impl Borrow<Tensor>, targets: &Tensor) -> Made {
        // The call names its own type to the log-softmax, which autocast respects; the loss after it is on the f32 list.
        let probabilities = self.log_softmax(logits.borrow().clone())?;
        let raised = self.raised(&probabilities)?;
        self.nll_loss(raised, targets)
    }

    fn log_softmax(&self, x: Tensor) -> Made {
        let record = Recording::new(self, "_log_softmax", &[&x]);
        self.op("_log_softmax");
        self.reads(&[&x]);
        let made = self.empty_like(&x, x.dtype);
        let formula = |torch: &Torch, g: &[Maybe], _: &[Tensor]| -> Result<Vec<Maybe>, Halt> {
            torch.op("_log_softmax_backward_data");
            Ok(vec![g[0].as_ref().map(|g| {
                // The gradient, and the result that was saved.
                torch.reads(&[g, g]);
                torch.empty_like(g, g.dtype)
            })])
        };
        record.finish(made, true, Box::new(formula))
    }

    fn nll_loss(&self, x: Tensor, targets: &Tensor) -> Made {
        let mut record = Recording::new(self, "nll_loss_forward", &[&x]);
        record.save(&x)?;
        record.save(targets)?;
        self.op("nll_loss_forward");
        let scalar = Dims::new(&[]);
        let (loss, weight) = (self.empty(scalar, x.dtype), self.empty(scalar, x.dtype));
        let formula = |torch: &Torch, _: &[Maybe], saved: &[Tensor]| -> Result<Vec<Maybe>, Halt> {
            torch.op("nll_loss_backward");
            Ok(vec![Some(torch.empty_like(&saved[0], saved[0].dtype))])
        };
        let made = record.finish_all(vec![loss, weight], &[false, true], Box::new(formula))?;
        made.into_iter().next().ok_or(Halt::Lost)
    }

    /// The gradient a backward pass starts from: one, in the loss's type.
    pub fn one_like(&self, loss: &Tensor) -> Tensor {
        self.op("ones_like");
        self.empty(loss.shape, loss.dtype)
    }

    /// A scalar number on the device.
    pub fn scalar(&self, name: &'static str, dtype: DType) -> Tensor {
        self.plain(name, &[], dtype)
    }
}
