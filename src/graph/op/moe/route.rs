//! Which experts each token goes to, and with what weights.

use rayon::prelude::*;

use crate::error::Result;
use crate::graph::backward::Backward;
use crate::graph::op::kernel::{Call, Kernel, Launch, input, output};
use crate::graph::op::{Element, Io, Op, Output, Work, expect, expect_inputs, traffic};
use crate::graph::tangent::Tangent;
use crate::graph::tensor::{DType, Type};
use crate::spec::job::Backend;
use crate::spec::units::Bytes;
use crate::with_float;

/// Tokens one task routes.
const TOKENS: usize = 64;

/// Softmax over experts, the `k` largest, renormalized to one (Jiang et al. 2024, Mixtral, arXiv:2401.04088), which
/// is the softmax of the `k` largest logits; equal logits go to the lower expert.
///
/// Input: logits (N, E). Outputs: weights (N, k) (F32), order (N·k) (slots sorted by expert, then by number),
/// offsets (E + 1) (where each expert's slots begin in `order`), chosen (N, k) (experts by rank); the last three U32.
#[derive(Debug, Clone)]
pub struct Route {
    /// Experts E.
    pub experts: u64,
    /// Experts k of each token.
    pub top_k: u64,
}

/// The logits' gradient: dweights, weights (N, k) (F32) and chosen (N, k) (U32) to dlogits (N, E).
#[derive(Debug, Clone)]
pub struct RouteBackward {
    /// Experts E.
    pub experts: u64,
    /// Format of the logits.
    pub format: DType,
}

/// The weights' tangent: dlogits (N, E), weights (N, k) (F32) and chosen (N, k) (U32) to dweights (N, k) (F32).
#[derive(Debug, Clone)]
pub struct RouteTangent;

impl Op for Route {
    fn name(&self) -> &'static str {
        "route"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        expect_inputs(self.name(), inputs, 1)?;
        let fits = inputs[0].columns() == self.experts && (1..=self.experts).contains(&self.top_k);
        expect(self.name(), fits, || {
            let (experts, top_k) = (self.experts, self.top_k);
            format!("{top_k} of {experts} experts from logits {}", inputs[0])
        })?;
        let rows = inputs[0].rows();
        let u32s = |shape: &[u64]| Output::Fresh(Type::new(shape, DType::U32));
        Ok(vec![
            Output::Fresh(Type::new(&[rows, self.top_k], DType::F32)),
            u32s(&[rows * self.top_k]),
            u32s(&[self.experts + 1]),
            u32s(&[rows, self.top_k]),
        ])
    }
    fn scratch(&self, _: &[Type], _: Backend) -> Bytes {
        Bytes(self.experts * 4)
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        Work {
            matmul: 0,
            vector: self.top_k * inputs[0].elements() + 10 * outputs[0].elements(),
            bytes: traffic(inputs, outputs),
        }
    }
    fn backward(&self, at: &mut Backward) -> Result<()> {
        let Some(dweights) = at.grad(0) else {
            return Ok(());
        };
        let op = RouteBackward {
            experts: self.experts,
            format: at.type_of(at.input(0)).dtype,
        };
        let dlogits = at.emit(op, &[dweights, at.output(0), at.output(3)])?[0];
        at.give(0, dlogits)
    }
    fn tangent(&self, at: &mut Tangent) -> Result<()> {
        let Some(dlogits) = at.of(0) else {
            return Ok(());
        };
        // Where tokens go does not move.
        let inputs = [dlogits, at.output(0), at.output(3)];
        let dweights = at.emit(RouteTangent, &inputs)?[0];
        at.give(0, dweights);
        Ok(())
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        let (experts, k) = (self.experts as usize, self.top_k as usize);
        let logits = io.inputs[0];
        let [weights, order, offsets, chosen] = &mut io.outputs[..] else {
            return Ok(());
        };
        let (weights, chosen) = (weights.of::<f32>(), chosen.of::<u32>());
        with_float!("route", logits.at.dtype, T => {
            let tokens = logits.of::<T>().par_chunks(TOKENS * experts);
            let slots = weights.par_chunks_mut(TOKENS * k).zip(chosen.par_chunks_mut(TOKENS * k));
            tokens.zip(slots).for_each(|(logits, (weights, chosen))| {
                let slots = weights.chunks_mut(k).zip(chosen.chunks_mut(k));
                for (logits, (weights, chosen)) in logits.chunks(experts).zip(slots) {
                    choose(logits, weights, chosen);
                }
            });
            Ok(())
        })?;
        sort(
            chosen,
            order.of(),
            offsets.of(),
            bytemuck::cast_slice_mut(io.scratch),
        );
        Ok(())
    }
    fn cuda(&self, call: &Call) -> Kernel {
        let (tokens, slots) = (call.inputs[0].rows(), call.outputs[1].elements());
        let choose = tokens_launch("route_choose", call.format(0), tokens * 32); // a warp each
        let choose = choose.given([input(0), output(0), output(3), tokens.into()]);
        let choose = choose.given([self.experts, self.top_k].map(|n| (n as u32).into()));
        let sort = Launch::new("moe", "route_sort").format("T", call.format(0));
        let sort = sort.grid(self.experts, 1, 1);
        let sort = sort.given([output(3), output(1), output(2), slots.into()]);
        Kernel::all([choose, sort.given([(self.experts as u32).into()])])
    }
}

/// A launch of a thread for each token.
fn tokens_launch(entry: &'static str, format: DType, tokens: u64) -> Launch {
    let launch = Launch::new("moe", entry).format("T", format);
    launch.each(tokens)
}

/// One token: its experts by falling logit, and their softmax.
fn choose<T: Element>(logits: &[T], weights: &mut [f32], chosen: &mut [u32]) {
    for (rank, weight) in weights.iter_mut().enumerate() {
        let (before, rest) = chosen.split_at_mut(rank);
        let free = (0..logits.len() as u32).filter(|e| !before.contains(e));
        let logit = |expert: u32| logits[expert as usize].wide();
        let best = free.reduce(|best, e| if logit(e) > logit(best) { e } else { best });
        rest[0] = best.unwrap_or(0);
        *weight = logit(rest[0]);
    }
    let top = weights[0];
    weights.iter_mut().for_each(|w| *w = (*w - top).exp());
    let sum: f32 = weights.iter().sum();
    weights.iter_mut().for_each(|w| *w /= sum);
}

/// Counting sort of slots by expert, stable.
fn sort(chosen: &[u32], order: &mut [u32], offsets: &mut [u32], next: &mut [u32]) {
    offsets.fill(0);
    for &expert in chosen {
        offsets[expert as usize + 1] += 1;
    }
    for expert in 1..offsets.len() {
        offsets[expert] += offsets[expert - 1];
    }
    next.copy_from_slice(&offsets[..next.len()]);
    for (slot, &expert) in chosen.iter().enumerate() {
        let at = &mut next[expert as usize];
        order[*at as usize] = slot as u32;
        *at += 1;
    }
}

impl Op for RouteBackward {
    fn name(&self) -> &'static str {
        "route_backward"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        expect_inputs(self.name(), inputs, 3)?;
        let fits = inputs[0] == inputs[1]
            && inputs[0].dtype == DType::F32
            && inputs[2] == inputs[0].with(DType::U32);
        expect(self.name(), fits, || {
            format!("dweights, weights and chosen (N, k); got {inputs:?}")
        })?;
        let shape = [inputs[0].rows(), self.experts];
        Ok(vec![Output::Fresh(Type::new(&shape, self.format))])
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        Work {
            matmul: 0,
            vector: 4 * inputs[0].elements(),
            bytes: traffic(inputs, outputs),
        }
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        let (experts, k) = (self.experts as usize, io.inputs[0].at.columns() as usize);
        let (dweights, weights) = (io.inputs[0].of::<f32>(), io.inputs[1].of::<f32>());
        let chosen = io.inputs[2].of::<u32>();
        with_float!("route_backward", self.format, T => {
            let tokens = io.outputs[0].of::<T>().par_chunks_mut(experts);
            tokens.enumerate().for_each(|(n, dlogits)| {
                let slots = n * k..(n + 1) * k;
                let (dw, w) = (&dweights[slots.clone()], &weights[slots.clone()]);
                let mean: f32 = dw.iter().zip(w).map(|(dw, w)| dw * w).sum();
                dlogits.fill(T::narrow(0.0));
                for ((dw, w), &expert) in dw.iter().zip(w).zip(&chosen[slots]) {
                    dlogits[expert as usize] = T::narrow(w * (dw - mean));
                }
            });
            Ok(())
        })
    }
    fn cuda(&self, call: &Call) -> Kernel {
        let (tokens, k) = (call.inputs[0].rows(), call.inputs[0].columns());
        let launch = tokens_launch(self.name(), self.format, tokens);
        let launch = launch.given([input(0), input(1), input(2), output(0), tokens.into()]);
        Kernel::one(launch.given([self.experts, k].map(|n| (n as u32).into())))
    }
}

impl Op for RouteTangent {
    fn name(&self) -> &'static str {
        "route_tangent"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        expect_inputs(self.name(), inputs, 3)?;
        let (logits, weights, chosen) = (&inputs[0], &inputs[1], &inputs[2]);
        let fits = logits.rows() == weights.rows()
            && weights.dtype == DType::F32
            && *chosen == weights.with(DType::U32);
        expect(self.name(), fits, || {
            format!("dlogits (N, E), weights and chosen (N, k); got {inputs:?}")
        })?;
        Ok(vec![Output::Fresh(weights.clone())])
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        Work {
            matmul: 0,
            vector: 4 * outputs[0].elements(),
            bytes: traffic(&inputs[1..], outputs) + outputs[0].elements() * inputs[0].dtype.bytes(),
        }
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        let dlogits = io.inputs[0];
        let (weights, chosen) = (io.inputs[1], io.inputs[2].of::<u32>());
        let (experts, k) = (dlogits.at.columns() as usize, weights.at.columns() as usize);
        with_float!("route_tangent", dlogits.at.dtype, T => {
            let tokens = dlogits.of::<T>().par_chunks(experts);
            let slots = weights.of::<f32>().par_chunks(k).zip(chosen.par_chunks(k));
            let made = io.outputs[0].of::<f32>().par_chunks_mut(k);
            made.zip(tokens).zip(slots).for_each(|((dweights, dlogits), (weights, chosen))| {
                let moved = chosen.iter().map(|&expert| dlogits[expert as usize].wide());
                let mean: f32 = moved.clone().zip(weights).map(|(moved, w)| moved * w).sum();
                for ((dweight, w), moved) in dweights.iter_mut().zip(weights).zip(moved) {
                    *dweight = w * (moved - mean);
                }
            });
            Ok(())
        })
    }
    fn cuda(&self, call: &Call) -> Kernel {
        let (tokens, experts) = (call.inputs[0].rows(), call.inputs[0].columns());
        let launch = tokens_launch(self.name(), call.format(0), tokens);
        let launch = launch.given([input(0), input(1), input(2), output(0), tokens.into()]);
        let k = call.inputs[1].columns();
        Kernel::one(launch.given([experts, k].map(|n| (n as u32).into())))
    }
}
