//! What turns gradients into new parameters: optimizers, and the guard against gradients too large or not finite.

mod adafactor;
mod adafactor_sizes;
mod adamw;
mod adamw8bit;
mod eigen;
mod feedback;
pub mod galore;
mod galore_refresh;
mod guard;
mod lion;
pub mod lsp;
mod masked_adamw;
mod microadam;
mod sgd;
mod update;

pub use adafactor::Adafactor;
pub use adamw::AdamW;
pub use adamw8bit::{AdamW8Bit, LEAST};
pub use galore_refresh::{Factorization, Refresh};
pub use guard::{ClipScale, SquareSum};
pub use lion::Lion;
pub use masked_adamw::{Began, DirectionSum, MaskedAdamW, Threshold};
pub use microadam::MicroAdam;
pub use sgd::Sgd;
