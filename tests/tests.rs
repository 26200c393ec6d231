//! The test crate: one binary, one module per subject.
#![allow(clippy::unwrap_used, missing_docs)]

// What is given: published models, devices, jobs.
mod configs;
mod derivatives;
mod devices;
mod job;
mod models;
mod ops_norm;
mod ops_simd;
mod reference;

// Training runs: text, weights, saves.
mod initial;
mod pytorch;
mod saves;
mod text;
mod tiny;
mod weights;
