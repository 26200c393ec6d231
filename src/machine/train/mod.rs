//! Training runs: text comes in, weights come from files or from a seed, and saves survive a crash.

pub mod adapter;
pub mod desk;
pub mod initial;
pub mod memory;
pub mod names;
pub mod origin;
pub mod quantize;
pub mod save;
pub mod session;
pub mod tensors;
pub mod text;
pub mod weights;
