//! The test crate: one binary, one module per subject.
#![allow(clippy::unwrap_used)]

// What is given: published models, devices, jobs.
mod configs;
mod devices;
mod job;
mod models;
