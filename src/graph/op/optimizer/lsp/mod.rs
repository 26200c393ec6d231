//! LSP-Offload: Adam's step where the host has the moments, what takes it on the device, and how sparse projectors are renewed.

mod apply;
mod direction;
mod fit;
mod launches;
mod renew;
mod step;

pub use apply::ApplyProjected;
pub use direction::AdamStep;
pub use renew::Renew;
pub use step::TakeStep;
