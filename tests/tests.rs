//! The test crate: one binary, one module per subject.
#![allow(clippy::unwrap_used, missing_docs)]

mod before;
mod bench;
mod caching_allocator;
mod caching_allocator_laws;
mod checker;
mod checker_order;
mod cli;
mod compare;
mod compare_cli;
mod compare_published;
mod configs;
mod damage;
mod derivatives;
mod devices;
mod eager_fold;
mod eager_optimizer;
mod estimate;
mod families;
mod job;
mod models;
mod torch_options;
mod trainers;

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
mod ops_tangent;
mod placement;
mod programs;
mod published;
mod reference;
mod rooms;
mod tangents;
mod threads;

// Training runs: text, weights, saves.
mod initial;
mod pytorch;
mod readme;
mod run;
mod saves;
mod text;
mod tiny;
mod training;
mod weights;
