//! The test crate: one binary, one module per subject.
#![allow(clippy::unwrap_used, missing_docs)]

mod derivatives;
mod ops_activation;
mod ops_attention;
mod ops_norm;
mod ops_rope;
mod ops_simd;
mod reference;
