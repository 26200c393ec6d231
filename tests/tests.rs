//! The test crate: one binary, one module per subject.
#![allow(clippy::unwrap_used, missing_docs)]

mod bench;
mod ops_loss;
mod ops_moe;
mod ops_optimizer;
mod ops_simd;
mod reference;
