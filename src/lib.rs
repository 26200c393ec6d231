//! memfit plans, simulates and runs the memory of transformer training.

pub mod error;
pub mod graph;
pub mod machine;
pub mod plan;
pub mod program;
pub mod search;
pub mod show;
pub mod spec;
pub mod technique;
