//! The test crate: one binary, one module per subject.
#![allow(clippy::unwrap_used, missing_docs)]

mod bench;
mod configs;
mod derivatives;
mod devices;
mod job;
mod models;

mod agreement;

// Programs: checked and run.
mod ops_activation;
mod ops_attention;
mod ops_embedding;
mod ops_loss;
mod ops_moe;
mod ops_norm;
mod ops_optimizer;
mod ops_rope;
mod ops_simd;
mod programs;
mod reference;

// Training runs: text, weights, saves.
mod initial;
mod pytorch;
mod saves;
mod text;
mod tiny;
mod weights;
