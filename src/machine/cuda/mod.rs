//! The machine that runs programs on an NVIDIA GPU.

pub mod driver;
