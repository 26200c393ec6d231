//! memfit plans, simulates and runs the memory of transformer training.

pub mod error;
pub mod graph;
pub mod machine;
pub mod program;
pub mod spec;
