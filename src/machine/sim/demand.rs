//! What each block of a program asks of streams and resources when nothing else runs: the coefficients of bounds and proposals.

use std::collections::BTreeMap;
use std::ops::{Add, Mul, Sub};

use super::cost::{Cost, RESOURCES, copy_cost, node_cost};
use crate::graph::Stream;
use crate::graph::tensor::Name;
use crate::program::{Instr, Program};
use crate::spec::job::Target;

/// How many servers there are: each stream works off one instruction at a time, and no resource gives more than all of itself.
pub const SERVERS: usize = Stream::ALL.len() + RESOURCES;

/// Seconds of each server, the streams first: no schedule of the work is shorter than the longest of them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Demand(pub [f64; SERVERS]);

impl Default for Demand {
    fn default() -> Demand {
        Demand([0.0; SERVERS])
    }
}

impl Demand {
    fn of(stream: Stream, cost: &Cost) -> Demand {
        let mut demand = Demand::default();
        demand.0[stream as usize] = cost.seconds;
        let shared = &mut demand.0[Stream::ALL.len()..];
        for (seconds, share) in shared.iter_mut().zip(cost.share) {
            *seconds = share * cost.seconds;
        }
        demand
    }

    /// The longest.
    pub fn longest(&self) -> f64 {
        self.0.iter().copied().fold(0.0, f64::max)
    }

    fn zip(self, other: Demand, f: impl Fn(f64, f64) -> f64) -> Demand {
        Demand(std::array::from_fn(|i| f(self.0[i], other.0[i])))
    }
}

impl Add for Demand {
    type Output = Demand;
    fn add(self, other: Demand) -> Demand {
        self.zip(other, |a, b| a + b)
    }
}

impl Sub for Demand {
    type Output = Demand;
    fn sub(self, other: Demand) -> Demand {
        self.zip(other, |a, b| a - b)
    }
}

impl Mul<f64> for Demand {
    type Output = Demand;
    fn mul(self, times: f64) -> Demand {
        Demand(self.0.map(|seconds| seconds * times))
    }
}

impl std::iter::Sum for Demand {
    fn sum<I: Iterator<Item = Demand>>(all: I) -> Demand {
        all.fold(Demand::default(), Add::add)
    }
}

/// The demand of `program` on `target` by block, forward (false) and later (true); that of a copy by the path of what is copied, which
/// may be of another block than what waits for it.
pub fn demand(program: &Program, target: &Target) -> BTreeMap<(Name, bool), Demand> {
    let mut demands: BTreeMap<(Name, bool), Demand> = BTreeMap::new();
    for instr in &program.code {
        let (index, stream, cost) = match *instr {
            Instr::Launch { node, stream, .. } => {
                (node, stream, node_cost(&program.step, node, stream, target))
            }
            Instr::Copy {
                from,
                to,
                stream,
                node,
            } => {
                let places = (
                    program.buffer(from.buffer).place,
                    program.buffer(to.buffer).place,
                );
                let cost = copy_cost(from.bytes.0, places.0, places.1, target);
                (node, stream, cost)
            }
            _ => continue,
        };
        let node = &program.step.nodes[index as usize];
        let owner = match instr {
            Instr::Copy { .. } => &node.origin,
            _ => &node.block,
        };
        let half = (owner.clone(), node.phase.is_later());
        let sum = demands.entry(half).or_default();
        *sum = *sum + Demand::of(stream, &cost);
    }
    demands
}
