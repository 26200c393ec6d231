//! The loss of next-token prediction: softmax cross entropy over the vocabulary, and its gradient in the logits' place.

use rayon::prelude::*;

use super::kernel::{Argument, Call, Launch, input, output, scratch};
use super::simd::{self, exp, sum_of, tanh, vectorized};
use super::{Element, Io, Op, Output, Work, expect, expect_inputs, kernel, traffic};
use crate::error::{Error, Result};
use crate::graph::backward::Backward;
use crate::graph::tangent::Tangent;
use crate::graph::tensor::{DType, Type};
use crate::spec::job::Backend;
use crate::spec::units::Bytes;
use crate::with_float;

/// The target of a row that does not count.
pub const IGNORED: u32 = u32::MAX;
/// Logits widened at a time, on the stack.
const BLOCK: usize = 1024;
/// Vector operations per logit: widening, maximum, difference, exponential, sum.
pub(super) const PASS: u64 = 16;

/// `loss = scale[0] · Σ -log softmax(logits[n])[targets[n]]` over rows whose target is not [`IGNORED`].
///
/// Inputs: logits (N, V), targets (N) (U32), scale (2) (F32: one over the tokens that count in the whole batch, and
/// the loss scale). Outputs: loss (1) (F32, without loss scale) and, with `gradient`, dlogits in place of the
/// logits, times both scales: the loss is the root of the derivative, so no gradient of it is asked for.
#[derive(Debug, Clone)]
pub struct CrossEntropy {
    /// Logits are first bent to `c · tanh(logit / c)` (Gemma Team 2024, arXiv:2408.00118).
    pub softcap: Option<f64>,
    /// Whether the gradient is made; without it this only evaluates.
    pub gradient: bool,
}

impl Op for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross_entropy"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        expect_inputs(self.name(), inputs, 3)?;
        expect_targets(self.name(), &inputs[0], &inputs[1], &inputs[2])?;
        let mut outputs = vec![Output::Fresh(Type::new(&[1], DType::F32))];
        if self.gradient {
            outputs.push(Output::Overwrite { of: 0 });
        }
        Ok(outputs)
    }
    fn scratch(&self, inputs: &[Type], _: Backend) -> Bytes {
        Bytes(inputs[1].elements() * 8)
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        let passes = 1 + u64::from(self.gradient);
        Work {
            matmul: 0,
            vector: passes * (1 + u64::from(self.softcap.is_some())) * PASS * inputs[0].elements(),
            bytes: traffic(inputs, outputs),
        }
    }
    fn backward(&self, at: &mut Backward) -> Result<()> {
        expect(self.name(), self.gradient, || {
            "was built to evaluate, without its gradient".to_string()
        })?;
        at.give_output(1, 0)
    }
    fn tangent(&self, at: &mut Tangent) -> Result<()> {
        expect(self.name(), self.gradient, || {
            "was built to evaluate, without the gradient its tangent is taken along".to_string()
        })?;
        let Some(tangent) = at.of(0) else {
            return Ok(());
        };
        let inputs = [at.output(1), tangent, at.input(2)];
        let loss = at.emit(CrossEntropyTangent, &inputs)?[0];
        at.give(0, loss);
        Ok(())
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        let (logits, targets) = (io.inputs[0], io.inputs[1].of::<u32>());
        let columns = logits.at.columns() as usize;
        check_targets(targets, columns)?;
        let losses: &mut [f64] = bytemuck::cast_slice_mut(io.scratch);
        let kernel = Kernel::new(self.softcap, io.inputs[2].of());
        with_float!("cross_entropy", logits.at.dtype, T => {
            match self.gradient {
                true => kernel.differentiate(io.outputs[1].of::<T>(), targets, losses),
                false => kernel.evaluate(logits.of::<T>(), targets, losses),
            }
            Ok(())
        })?;
        io.outputs[0].of::<f32>()[0] = kernel.total(losses);
        Ok(())
    }
    fn cuda(&self, call: &Call) -> kernel::Kernel {
        let (rows, logits) = (call.inputs[0].rows(), &call.inputs[0]);
        let at = if self.gradient { output(1) } else { input(0) };
        let losses = Losses {
            softcap: self.softcap,
            gradient: self.gradient,
            dtype: logits.dtype,
        };
        let launch = losses.rows(rows, logits.columns(), [at, input(1), input(2), scratch(0)]);
        let total = losses.total(rows, [scratch(0), input(2), output(0)]);
        kernel::Kernel::all([launch, total])
    }
}

/// The tangent of the loss: its gradient's product with the logits' tangent.
///
/// Inputs: dlogits (N, V) as [`CrossEntropy`] makes it, the logits' tangent (N, V), scale (2) (F32). Output: (1) (F32),
/// without loss scale, as the loss is.
#[derive(Debug, Clone)]
pub struct CrossEntropyTangent;

impl Op for CrossEntropyTangent {
    fn name(&self) -> &'static str {
        "cross_entropy_tangent"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        expect_inputs(self.name(), inputs, 3)?;
        let fits = inputs[0] == inputs[1] && inputs[2] == Type::new(&[2], DType::F32);
        expect(self.name(), fits, || {
            format!("takes dlogits (N, V), their tangent and (2) F32; got {inputs:?}")
        })?;
        Ok(vec![Output::Fresh(Type::new(&[1], DType::F32))])
    }
    fn scratch(&self, inputs: &[Type], _: Backend) -> Bytes {
        Bytes(inputs[0].rows() * 8)
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        Work {
            matmul: 0,
            vector: 2 * inputs[0].elements(),
            bytes: traffic(inputs, outputs),
        }
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        let (gradient, tangent) = (io.inputs[0], io.inputs[1]);
        let loss_scale = f64::from(io.inputs[2].of::<f32>()[1]);
        let sums: &mut [f64] = bytemuck::cast_slice_mut(io.scratch);
        with_float!("cross_entropy_tangent", gradient.at.dtype, T => {
            along(gradient.of::<T>(), tangent.of::<T>(), sums);
            Ok(())
        })?;
        io.outputs[0].of::<f32>()[0] = (sums.iter().sum::<f64>() / loss_scale) as f32;
        Ok(())
    }
    fn cuda(&self, call: &Call) -> kernel::Kernel {
        let (rows, columns) = (call.inputs[0].rows(), call.inputs[0].columns());
        let losses = Losses {
            softcap: None,
            gradient: false,
            dtype: call.format(0),
        };
        let along = losses.along(rows, columns, [input(0), input(1), scratch(0)]);
        let sum = losses.tangent(rows, [scratch(0), input(2), output(0)]);
        kernel::Kernel::all([along, sum])
    }
}

/// Launches over rows of logits in format `dtype`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Losses {
    /// As of the op.
    pub(super) softcap: Option<f64>,
    /// Whether gradients take the logits' place.
    pub(super) gradient: bool,
    /// Format of the logits.
    pub(super) dtype: DType,
}

impl Losses {
    fn launch(&self, entry: &'static str) -> Launch {
        Launch::new("cross_entropy", entry)
            .format("T", self.dtype)
            .define("CAP", u32::from(self.softcap.is_some()))
            .define("GRADIENT", u32::from(self.gradient))
    }

    /// Of logits, targets, scale and losses (f64).
    pub(super) fn rows(&self, rows: u64, columns: u64, pointers: [Argument; 4]) -> Launch {
        let launch = self.launch("cross_entropy").blocks(rows).given(pointers);
        let cap = self.softcap.unwrap_or(0.0) as f32;
        launch.given([rows.into(), (columns as u32).into(), cap.into()])
    }

    /// Of losses, scale and the sum.
    pub(super) fn total(&self, rows: u64, pointers: [Argument; 3]) -> Launch {
        self.launch("cross_entropy_total")
            .given(pointers)
            .given([rows.into()])
    }

    /// Of gradients, tangents and their products (f64).
    pub(super) fn along(&self, rows: u64, columns: u64, pointers: [Argument; 3]) -> Launch {
        let launch = self
            .launch("cross_entropy_along")
            .blocks(rows)
            .given(pointers);
        launch.given([rows.into(), (columns as u32).into()])
    }

    /// Of products, scale (or null) and the sum.
    pub(super) fn tangent(&self, rows: u64, pointers: [Argument; 3]) -> Launch {
        self.launch("cross_entropy_tangent")
            .given(pointers)
            .given([rows.into()])
    }
}

/// Each row's product of gradient and tangent, one row for each of `sums`.
pub(super) fn along<T: Element>(gradient: &[T], tangent: &[T], sums: &mut [f64]) {
    let columns = gradient.len() / sums.len().max(1);
    let rows = gradient.par_chunks(columns.max(1));
    let rows = rows.zip(tangent.par_chunks(columns.max(1)));
    rows.zip(sums).for_each(|((gradient, tangent), sum)| {
        *sum = f64::from(simd::dot(gradient, tangent));
    });
}

/// Fails unless these are logits, targets and scale.
pub(super) fn expect_targets(
    op: &'static str,
    logits: &Type,
    targets: &Type,
    scale: &Type,
) -> Result<()> {
    let fits = logits.rows() == targets.elements()
        && logits.elements() > 0
        && targets.dtype == DType::U32
        && *scale == Type::new(&[2], DType::F32);
    expect(op, fits, || {
        format!("takes (N, V), (N) U32 and (2) F32; got {logits}, {targets} and {scale}")
    })
}

/// Fails on a target outside the vocabulary.
pub(super) fn check_targets(targets: &[u32], vocab: usize) -> Result<()> {
    let wrong = |&target: &u32| target != IGNORED && target as usize >= vocab;
    match targets.iter().position(wrong) {
        None => Ok(()),
        Some(n) => Err(Error::value(
            format!("target {n} of the batch"),
            targets[n],
            format!("the vocabulary has {vocab} tokens"),
            "use the tokenizer the model was made with",
        )),
    }
}

/// The arithmetic of rows of logits, for whatever holds them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kernel {
    /// Logits are bent below this.
    softcap: Option<f32>,
    /// What the sum of losses is multiplied by.
    weight: f32,
    /// What each row's gradient is multiplied by.
    seed: f32,
}

/// What a row's probabilities are relative to: `p = exp(z - base) / sum`.
#[derive(Debug, Clone, Copy)]
struct Softmax {
    base: f32,
    sum: f64,
}

impl Kernel {
    /// With the values of the op's third input.
    pub(super) fn new(softcap: Option<f64>, scale: &[f32]) -> Kernel {
        Kernel {
            softcap: softcap.map(|c| c as f32),
            weight: scale[0],
            seed: scale[0] * scale[1],
        }
    }

    /// Sets `losses[n]` for each row.
    pub(super) fn evaluate<T: Element>(&self, logits: &[T], targets: &[u32], losses: &mut [f64]) {
        let rows = logits.par_chunks(logits.len() / targets.len());
        rows.zip(targets)
            .zip(losses)
            .for_each(|((row, &target), loss)| {
                *loss = match target {
                    IGNORED => 0.0,
                    _ => self.loss(row, target as usize, self.softmax(row)),
                };
            });
    }

    /// Sets `losses[n]` for each row and turns the row into its gradient.
    pub(super) fn differentiate<T: Element>(
        &self,
        logits: &mut [T],
        targets: &[u32],
        losses: &mut [f64],
    ) {
        let rows = logits.par_chunks_mut(logits.len() / targets.len());
        rows.zip(targets)
            .zip(losses)
            .for_each(|((row, &target), loss)| {
                if target == IGNORED {
                    row.fill(T::narrow(0.0));
                    *loss = 0.0;
                    return;
                }
                let softmax = self.softmax(row);
                *loss = self.loss(row, target as usize, softmax);
                self.gradient(row, target as usize, softmax);
            });
    }

    /// The loss of all rows, summed in their order.
    pub(super) fn total(&self, losses: &[f64]) -> f32 {
        (losses.iter().sum::<f64>() * f64::from(self.weight)) as f32
    }

    /// -log p of the target.
    fn loss<T: Element>(&self, row: &[T], target: usize, softmax: Softmax) -> f64 {
        let mut logit = [0.0];
        load(&row[target..=target], &mut logit, self.softcap);
        f64::from(softmax.base) + softmax.sum.ln() - f64::from(logit[0])
    }

    /// The row's maximum and sum in one pass: block sums in f32, brought to the newest maximum (Milakov and
    /// Gimelshein 2018, arXiv:1805.02867), joined in f64.
    fn softmax<T: Element>(&self, row: &[T]) -> Softmax {
        let mut block = [0.0f32; BLOCK];
        let (mut top, mut sum) = (f32::NEG_INFINITY, 0.0f64);
        for logits in row.chunks(BLOCK) {
            let z = &mut block[..logits.len()];
            load(logits, z, self.softcap);
            let above = top.max(simd::max(z));
            // With nothing but -∞ so far every term is zero, whatever it is relative to.
            let base = if above == f32::NEG_INFINITY {
                0.0
            } else {
                above
            };
            sum *= f64::from(top - base).exp();
            sum += f64::from(sum_exp(z, base));
            top = above;
        }
        let base = if top == f32::NEG_INFINITY { 0.0 } else { top };
        Softmax { base, sum }
    }

    /// `row = seed · (p - onehot) · dz/dlogit`.
    fn gradient<T: Element>(&self, row: &mut [T], target: usize, softmax: Softmax) {
        let (mut block, mut slopes) = ([0.0f32; BLOCK], [0.0f32; BLOCK]);
        let scale = (f64::from(self.seed) / softmax.sum) as f32;
        for (index, logits) in row.chunks_mut(BLOCK).enumerate() {
            let z = &mut block[..logits.len()];
            load(logits, z, self.softcap);
            if let Some(cap) = self.softcap {
                slope(z, &mut slopes, cap);
            }
            scaled_exp(z, softmax.base, scale);
            if let Some(z) = target.checked_sub(index * BLOCK).and_then(|i| z.get_mut(i)) {
                *z -= self.seed;
            }
            if self.softcap.is_some() {
                z.iter_mut().zip(&slopes).for_each(|(z, slope)| *z *= slope);
            }
            simd::narrow(z, logits);
        }
    }
}

vectorized! {
    /// `z = logits`, widened, and bent below the cap where there is one.
    fn load<T: Element>(logits: &[T], z: &mut [f32], softcap: Option<f32>) {
        match softcap {
            None => z.iter_mut().zip(logits).for_each(|(z, l)| *z = l.wide()),
            Some(cap) => z.iter_mut().zip(logits).for_each(|(z, l)| *z = cap * tanh(l.wide() / cap)),
        }
    }

    /// `slope = dz/dlogit` of bent logits.
    fn slope(z: &[f32], slope: &mut [f32], cap: f32) {
        for (slope, z) in slope.iter_mut().zip(z) {
            *slope = 1.0 - (z / cap) * (z / cap);
        }
    }

    /// `Σ exp(z - base)`.
    fn sum_exp(z: &[f32], base: f32) -> f32 {
        sum_of(z, |z| exp(z - base))
    }

    /// `z = scale · exp(z - base)`.
    fn scaled_exp(z: &mut [f32], base: f32, scale: f32) {
        for z in z {
            *z = scale * exp(*z - base);
        }
    }
}
