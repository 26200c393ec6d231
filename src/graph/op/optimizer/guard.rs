//! The norm of all gradients, and what it says about this step's update.

use rayon::prelude::*;

use crate::error::Result;
use crate::graph::op::elementwise::CHUNK;
use crate::graph::op::kernel::{Argument, Call, Kernel, Launch, input, output, scratch};
use crate::graph::op::simd::vectorized;
use crate::graph::op::{Element, Io, Op, Output, View, Work, expect, expect_inputs, traffic};
use crate::graph::tensor::{DType, Type};
use crate::spec::job::Backend;
use crate::spec::units::Bytes;
use crate::with_float;

/// Most chunks a sum is made of.
const PARTIALS: usize = 64;
/// Sums that run side by side, so that the loop vectorizes in a fixed order.
const LANES: usize = 16;
/// Sums that one launch adds up on a GPU.
const AT_ONCE: usize = 8;
/// What PyTorch adds to the norm it divides by.
const EPS: f64 = 1e-6;

/// `Σ gradient²` to (1) (F32), summed in f64 by fixed chunks; what is not finite stays so.
#[derive(Debug, Clone)]
pub struct SquareSum;

/// What to do with gradients of this size (Pascanu et al. 2013, arXiv:1211.5063; loss scaling: Micikevicius et al.
/// 2018, arXiv:1710.03740).
///
/// Inputs: any number of [`SquareSum`]s and, with `loss_scale`, scale (2) (F32, the loss scale second). Output: guard
/// (3) (F32): what to multiply gradients by, 1 if they are all finite or else 0, and their norm without loss scale.
#[derive(Debug, Clone)]
pub struct ClipScale {
    /// Norm above which gradients are scaled down to it; `None` never clips.
    pub max_norm: Option<f64>,
    /// Whether the last input is the scale whose second value the gradients carry.
    pub loss_scale: bool,
}

impl Op for SquareSum {
    fn name(&self) -> &'static str {
        "square_sum"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        expect_inputs(self.name(), inputs, 1)?;
        Ok(vec![Output::Fresh(Type::new(&[1], DType::F32))])
    }
    fn scratch(&self, _: &[Type], _: Backend) -> Bytes {
        Bytes(PARTIALS as u64 * 8)
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        Work {
            matmul: 0,
            vector: 2 * inputs[0].elements(),
            bytes: traffic(inputs, outputs),
        }
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        let gradient = io.inputs[0];
        let chunk = (gradient.at.elements() as usize)
            .div_ceil(PARTIALS)
            .max(CHUNK);
        let partials: &mut [f64] = bytemuck::cast_slice_mut(io.scratch);
        partials.fill(0.0);
        with_float!("square_sum", gradient.at.dtype, T => {
            let chunks = gradient.of::<T>().par_chunks(chunk);
            partials.par_iter_mut().zip(chunks).for_each(|(sum, chunk)| *sum = squares(chunk));
            Ok(())
        })?;
        io.outputs[0].of::<f32>()[0] = partials.iter().sum::<f64>() as f32;
        Ok(())
    }
    fn cuda(&self, call: &Call) -> Kernel {
        let launch = |entry| Launch::new("guard", entry).format("T", call.format(0));
        let parts = launch("square_parts").grid(PARTIALS as u64, 1, 1);
        let parts = parts.given([input(0), scratch(0), call.inputs[0].elements().into()]);
        let total = launch("square_total").given([scratch(0), output(0)]);
        Kernel::all([parts, total.given([(PARTIALS as u32).into()])])
    }
}

vectorized! {
    /// `Σ x²` of one chunk.
    fn squares<T: Element>(chunk: &[T]) -> f64 {
        let mut lanes = [0.0f64; LANES];
        let (whole, rest) = chunk.as_chunks::<LANES>();
        for x in whole.iter().map(|x| x.as_slice()).chain([rest]) {
            for (sum, x) in lanes.iter_mut().zip(x) {
                let x = f64::from(x.wide());
                *sum += x * x;
            }
        }
        lanes.iter().sum()
    }
}

impl Op for ClipScale {
    fn name(&self) -> &'static str {
        "clip_scale"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        let sums = inputs.len().saturating_sub(usize::from(self.loss_scale));
        let fits = sums > 0
            && inputs[..sums]
                .iter()
                .all(|t| *t == Type::new(&[1], DType::F32))
            && inputs[sums..]
                .iter()
                .all(|t| *t == Type::new(&[2], DType::F32));
        expect(self.name(), fits, || {
            format!("takes sums of squares, then the scale if any; got {inputs:?}")
        })?;
        Ok(vec![Output::Fresh(Type::new(&[3], DType::F32))])
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        Work {
            matmul: 0,
            vector: inputs.len() as u64 + 5,
            bytes: traffic(inputs, outputs),
        }
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        let (sums, scale) = io
            .inputs
            .split_at(io.inputs.len() - usize::from(self.loss_scale));
        let value = |index: usize| move |view: &View| f64::from(view.of::<f32>()[index]);
        let sum: f64 = sums.iter().map(value(0)).sum();
        let scale = scale.iter().map(value(1)).next().unwrap_or(1.0);
        let norm = sum.sqrt() / scale;
        let clip = self
            .max_norm
            .map_or(1.0, |max| (max / (norm + EPS)).min(1.0));
        let guard = io.outputs[0].of::<f32>();
        guard[0] = (clip / scale) as f32;
        guard[1] = if sum.is_finite() { 1.0 } else { 0.0 };
        guard[2] = norm as f32;
        Ok(())
    }
    fn cuda(&self, call: &Call) -> Kernel {
        let launch = |entry| {
            let launch = Launch::new("guard", entry).format("T", DType::F32);
            launch.given([output(0)])
        };
        let sums = call.inputs.len() - usize::from(self.loss_scale);
        let add = |first: usize| {
            let sum = |i: usize| if i < sums { input(i) } else { Argument::Null };
            let launch = launch("clip_add").given((first..first + AT_ONCE).map(sum));
            launch.given([u32::from(first == 0).into()])
        };
        let scale = if self.loss_scale {
            input(sums)
        } else {
            Argument::Null
        };
        let most = self.max_norm.unwrap_or(0.0);
        let clip = launch("clip_scale").given([scale, most.into()]);
        Kernel::all((0..sums).step_by(AT_ONCE).map(add).chain([clip]))
    }
}
