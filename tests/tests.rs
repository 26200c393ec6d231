//! The test crate: one binary, one module per subject.
#![allow(clippy::unwrap_used, missing_docs)]

mod adapted_runs;
mod adapters;
mod agreement;
mod before;
mod bench;
mod blockllm;
mod blockllm_paper;
mod caching_allocator;
mod caching_allocator_laws;
mod checker;
mod checker_order;
mod claims;
mod cli;
mod compare;
mod compare_cli;
mod compare_published;
mod compression;
mod configs;
mod damage;
mod derivatives;
mod devices;
mod eager_fold;
mod eager_optimizer;
mod eager_work;
mod estimate;
mod evidence;
mod families;
mod initial;
mod job;
mod kernels;
mod learning;
mod low_memory;
mod lsp_offload;
mod models;
mod ops_activation;
mod ops_attention;
mod ops_embedding;
mod ops_galore;
mod ops_loss;
mod ops_low_memory;
mod ops_lsp;
mod ops_masked_adamw;
mod ops_microadam;
mod ops_moe;
mod ops_norm;
mod ops_optimizer;
mod ops_quantized;
mod ops_rope;
mod ops_simd;
mod ops_tangent;
mod optimizers;
mod packing;
mod placement;
mod plan_torch;
mod programs;
mod published;
mod pytorch;
mod readme;
mod reference;
mod rooms;
mod run;
mod saves;
mod search;
mod speed;
mod tangents;
mod text;
mod threads;
mod tiny;
mod torch_options;
mod trainers;
mod training;
mod trial;
mod weights;
mod zeroth_order;
mod zo_hybrid;

// Programs: checked and run.

// Programs: checked and run.

// Training runs: text, weights, saves.
