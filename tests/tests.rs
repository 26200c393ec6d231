//! The test crate: one binary, one module per subject.
#![allow(clippy::unwrap_used, missing_docs)]

mod ops_simd;
mod reference;
