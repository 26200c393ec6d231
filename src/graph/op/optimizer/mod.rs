//! What turns gradients into new parameters: optimizers, and the guard against gradients too large or not finite.

mod adamw;
mod guard;
mod sgd;
mod update;

pub use adamw::AdamW;
pub use guard::{ClipScale, SquareSum};
pub use sgd::Sgd;
