//! Mixtures of experts without dropped tokens: every tensor's size is known before routing, only row ranges vary.
//!
//! A token takes `k` slots, numbered `token · k + rank`; N·k slots are always computed, sorted by expert
//! (Gale et al. 2022, MegaBlocks, arXiv:2211.15841), so memory and flops do not depend on where tokens go.

mod grouped;
mod route;
mod rows;

pub(super) use grouped::Experts;
pub use grouped::{GroupedLinear, GroupedLinearInputGradient, GroupedLinearWeightGradient};
pub use route::{Route, RouteBackward, RouteTangent};
pub use rows::{Combine, CombineBackward, Gather, GatherBackward};
