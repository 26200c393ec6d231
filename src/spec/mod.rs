//! What is given: units, the model, the device, the job.

pub mod catalog;
pub mod config;
pub mod cost;
pub mod device;
pub mod job;
pub mod model;
pub mod modules;
pub mod torch;
pub mod trainer;
pub mod units;
