//! Adam that changes the coordinates with the largest directions only, counted over several parameters together.

use std::ops::Range;

use rayon::prelude::*;

use super::adamw::Moments;
use super::update::{Layout, Part, Rule, STATES, State, coefficient, expect_guard, walk};
use crate::error::Result;
use crate::graph::op::kernel::{Argument, Call, Kernel, Launch, THREADS, input, output, scratch};
use crate::graph::op::{Element, Io, Op, Output, Scalars, View, Work};
use crate::graph::op::{expect, expect_inputs, traffic};
use crate::graph::tensor::{DType, Type};
use crate::spec::job::Backend;
use crate::spec::units::Bytes;
use crate::with_float;

/// Adam's numbers, and when its moments began.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Began {
    /// Decay of the mean of gradients.
    pub beta1: f64,
    /// Decay of the mean of their squares.
    pub beta2: f64,
    /// Added to the root of the latter.
    pub eps: f64,
    /// Steps done when the moments were last zero: bias corrections count from there.
    pub since: u64,
}

impl Began {
    /// The constants of this step.
    fn moments(self, decay: f64, scalars: &Scalars) -> Moments {
        let scalars = Scalars {
            step: scalars.step.saturating_sub(self.since).max(1),
            ..*scalars
        };
        Moments::of((self.beta1, self.beta2), self.eps, decay, &scalars)
    }

    /// The same at unit rate, whose steps are directions.
    fn directions(self, scalars: &Scalars) -> Moments {
        let unit = Scalars {
            rate: 1.0,
            ..*scalars
        };
        self.moments(0.0, &unit)
    }
}

impl Moments {
    /// What kernels take of constants without decay.
    fn unit_constants(&self) -> [Argument; 6] {
        let [_, rest @ ..] = self.constants();
        rest
    }

    /// The mean, the mean square and the direction of one coordinate after `gradient`; of unit rate where this is.
    fn ahead(&self, gradient: f32, m: f32, v: f32) -> (f32, f32, f32) {
        let m = m + self.mean * (gradient - m);
        let v = self.beta2 * v + self.square * gradient * gradient;
        (m, v, self.rate * (m / (v.sqrt() * self.root + self.eps)))
    }
}

/// By what coordinates are ranked: the direction to the eight bits of a bfloat16, then the gradient.
///
/// Directions of moments that begin are all ±1 but for rounding: those of larger gradients are nearer to it, by less than f32 tells.
fn key(direction: f32, gradient: f32) -> u64 {
    let direction = direction.abs().to_bits().saturating_add(0x8000) >> 16;
    u64::from(direction) << 32 | u64::from(gradient.abs().to_bits())
}

/// Chunks a sum is made of.
const PARTIALS: usize = 64;

/// `Σ direction²` of the step that [`MaskedAdamW`] would take of this gradient, to (1) (F32), summed in f64 by fixed chunks.
///
/// Inputs: gradient, m and v (F32, with `moments`; else they are zero and begin here), guard (3) (with `guard`).
#[derive(Debug, Clone)]
pub struct DirectionSum {
    /// Adam's numbers.
    pub adam: Began,
    /// Whether there are moments.
    pub moments: bool,
    /// Whether the gradient is scaled as a guard says.
    pub guard: bool,
}

impl DirectionSum {
    /// Adam's numbers; without moments they begin in this step.
    fn began(&self, scalars: &Scalars) -> Began {
        match self.moments {
            true => self.adam,
            false => Began {
                since: scalars.step.saturating_sub(1),
                ..self.adam
            },
        }
    }
}

/// A launch of `masked_adamw.cu`.
fn launch(entry: &'static str, gradient: DType, parameter: DType) -> Launch {
    Launch::new("masked_adamw", entry)
        .format("G", gradient)
        .format("P", parameter)
}

/// The guard, which is input `index` where there is one.
fn guarded(guard: bool, index: usize) -> Argument {
    if guard { input(index) } else { Argument::Null }
}

impl Op for DirectionSum {
    fn name(&self) -> &'static str {
        "direction_sum"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        let count = if self.moments { 3 } else { 1 };
        expect_inputs(self.name(), inputs, count + usize::from(self.guard))?;
        expect_moments(self.name(), &inputs[..count])?;
        expect_guard(self.name(), self.guard, inputs)?;
        Ok(vec![Output::Fresh(Type::new(&[1], DType::F32))])
    }
    fn scratch(&self, _: &[Type], _: Backend) -> Bytes {
        Bytes(PARTIALS as u64 * 8)
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        Work {
            matmul: 0,
            vector: 14 * inputs[0].elements(),
            bytes: traffic(inputs, outputs),
        }
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        let scale = coefficient(self.guard, io).unwrap_or(1.0);
        let rule = self.began(&io.scalars).directions(&io.scalars);
        let part = Tensor::of(&io.inputs[..if self.moments { 3 } else { 1 }]);
        let partials: &mut [f64] = bytemuck::cast_slice_mut(io.scratch);
        let count = partials.len();
        let each = |(chunk, sum): (usize, &mut f64)| {
            *sum = 0.0;
            part.each(chunk, count, scale, &rule, |direction, _| {
                *sum += f64::from(direction) * f64::from(direction);
            })
        };
        partials.par_iter_mut().enumerate().try_for_each(each)?;
        io.outputs[0].of::<f32>()[0] = partials.iter().sum::<f64>() as f32;
        Ok(())
    }
    fn cuda(&self, call: &Call) -> Kernel {
        let count = if self.moments { 3 } else { 1 };
        let rule = self.began(&call.scalars).directions(&call.scalars);
        let moment = |i: usize| {
            if self.moments {
                input(i)
            } else {
                Argument::Null
            }
        };
        let parts = launch("direction_parts", call.format(0), DType::F32)
            .grid(PARTIALS as u64, 1, 1)
            .given([input(0), moment(1), moment(2), guarded(self.guard, count)])
            .given([scratch(0), call.inputs[0].elements().into()])
            .given(rule.unit_constants());
        let total = launch("direction_total", call.format(0), DType::F32);
        let total = total.given([scratch(0), output(0), (PARTIALS as u32).into()]);
        Kernel::all([parts, total])
    }
}

/// Fails unless these are a gradient and, where there are more, moments of its shape.
fn expect_moments(op: &'static str, inputs: &[Type]) -> Result<()> {
    let wide = inputs[0].with(DType::F32);
    expect(op, inputs[1..].iter().all(|t| *t == wide), || {
        format!("a gradient and F32 moments of its shape; got {inputs:?}")
    })
}

/// A gradient with its moments, which are zero where there are none.
struct Tensor<'a> {
    gradient: View<'a>,
    m: &'a [f32],
    v: &'a [f32],
}

impl<'a> Tensor<'a> {
    fn of(inputs: &[View<'a>]) -> Tensor<'a> {
        let moment = |at: usize| inputs.get(at).map(View::of).unwrap_or_default();
        Tensor {
            gradient: inputs[0],
            m: moment(1),
            v: moment(2),
        }
    }

    /// Shows direction and gradient of the coordinates of chunk `chunk` of `chunks`.
    fn each(
        &self,
        chunk: usize,
        chunks: usize,
        scale: f32,
        rule: &Moments,
        mut show: impl FnMut(f32, f32),
    ) -> Result<()> {
        let elements = self.gradient.at.elements() as usize;
        let size = elements.div_ceil(chunks);
        let range = (chunk * size).min(elements)..((chunk + 1) * size).min(elements);
        with_float!("direction", self.gradient.at.dtype, G => {
            self.over::<G>(range, scale, rule, &mut show);
            Ok(())
        })
    }

    fn over<G: Element>(
        &self,
        range: Range<usize>,
        scale: f32,
        rule: &Moments,
        show: &mut impl FnMut(f32, f32),
    ) {
        let zero = |moments: &[f32], i: usize| moments.get(i).copied().unwrap_or(0.0);
        let gradients = &self.gradient.of::<G>()[range.clone()];
        for (i, gradient) in range.zip(gradients) {
            let gradient = gradient.wide() * scale;
            let (_, _, direction) = rule.ahead(gradient, zero(self.m, i), zero(self.v, i));
            show(direction, gradient);
        }
    }
}

/// The threshold that the `keep` coordinates with the largest directions of several parameters reach, and no others but those that
/// are equal to the last in direction and gradient.
///
/// Inputs: gradient, m and v (F32) of each of `tensors` parameters, guard (3) (with `guard`). Output (2) (F32): the least direction
/// that survives, to the eight bits of a bfloat16, and the least gradient at that direction.
#[derive(Debug, Clone)]
pub struct Threshold {
    /// Adam's numbers.
    pub adam: Began,
    /// Parameters.
    pub tensors: usize,
    /// Coordinates that survive, of all.
    pub keep: u64,
    /// Whether gradients are scaled as a guard says.
    pub guard: bool,
}

/// Bits of a digit of keys that is counted at a time, digits of a key, and counts that run side by side.
const DIGIT: u32 = 12;
const DIGITS: u32 = 4;
const LANES: usize = 8;
const BINS: usize = 1 << DIGIT;

/// Most blocks that count on a GPU: each brings its counts of all digits to the others' once.
const COUNTERS: u64 = 1024;

impl Op for Threshold {
    fn name(&self) -> &'static str {
        "direction_threshold"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        let count = 3 * self.tensors + usize::from(self.guard);
        expect_inputs(self.name(), inputs, count)?;
        for tensor in inputs[..3 * self.tensors].chunks(3) {
            expect_moments(self.name(), tensor)?;
        }
        expect_guard(self.name(), self.guard, inputs)?;
        Ok(vec![Output::Fresh(Type::new(&[2], DType::F32))])
    }
    fn scratch(&self, _: &[Type], _: Backend) -> Bytes {
        Bytes((LANES * BINS * 8) as u64)
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        let gradients = inputs.iter().step_by(3).take(self.tensors);
        let elements: u64 = gradients.map(Type::elements).sum();
        Work {
            matmul: 0,
            vector: u64::from(DIGITS) * 18 * elements,
            bytes: u64::from(DIGITS) * traffic(inputs, outputs),
        }
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        let scale = coefficient(self.guard, io).unwrap_or(1.0);
        let rule = self.adam.directions(&io.scalars);
        let lanes: &mut [u64] = bytemuck::cast_slice_mut(io.scratch);
        let tensors = &io.inputs[..3 * self.tensors];
        let (mut prefix, mut left) = (0u64, self.keep.max(1));
        for digit in (0..DIGITS).rev() {
            let shift = digit * DIGIT;
            let count = |(lane, bins): (usize, &mut [u64])| -> Result<()> {
                bins.fill(0);
                let mut add = |direction: f32, gradient: f32| {
                    let key = key(direction, gradient) >> shift;
                    if key >> DIGIT == prefix {
                        bins[key as usize & (BINS - 1)] += 1;
                    }
                };
                tensors
                    .chunks(3)
                    .map(Tensor::of)
                    .try_for_each(|tensor| tensor.each(lane, LANES, scale, &rule, &mut add))
            };
            lanes.par_chunks_mut(BINS).enumerate().try_for_each(count)?;
            let of = |bin: usize| lanes.iter().skip(bin).step_by(BINS).sum::<u64>();
            let mut bin = BINS - 1;
            while bin > 0 && of(bin) < left {
                left -= of(bin);
                bin -= 1;
            }
            prefix = prefix << DIGIT | bin as u64;
        }
        let into = io.outputs[0].of::<f32>();
        into[0] = f32::from_bits(((prefix >> 32) as u32) << 16);
        into[1] = f32::from_bits(prefix as u32);
        Ok(())
    }
    fn cuda(&self, call: &Call) -> Kernel {
        let rule = self.adam.directions(&call.scalars);
        let guard = guarded(self.guard, 3 * self.tensors);
        let plain = |entry| launch(entry, DType::F32, DType::F32).given([scratch(0)]);
        let mut launches = Vec::new();
        for digit in (0..DIGITS).rev() {
            let is_first = u32::from(digit + 1 == DIGITS);
            let begin = plain("threshold_begin").blocks(BINS as u64 / 256);
            launches.push(begin.given([is_first.into(), self.keep.max(1).into()]));
            for tensor in 0..self.tensors {
                let (at, elements) = (3 * tensor, call.inputs[3 * tensor].elements());
                let count = launch("threshold_count", call.format(at), DType::F32)
                    .blocks(elements.div_ceil(u64::from(THREADS) * 8).min(COUNTERS))
                    .given([input(at), input(at + 1), input(at + 2), guard])
                    .given([scratch(0), elements.into(), (digit * DIGIT).into()]);
                launches.push(count.given(rule.unit_constants()));
            }
            let is_last = u32::from(digit == 0);
            launches.push(plain("threshold_digit").given([output(0), is_last.into()]));
        }
        Kernel::all(launches)
    }
}

/// AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) that moves all moments, and with `mask` only the weights whose direction
/// reaches a threshold; moments begin where [`Began`] says.
///
/// Inputs: gradient, parameter, m and v (F32), threshold (2) (F32, with `mask`, see [`Threshold`]), guard (3) (with `guard`).
/// Outputs overwrite parameter, m and v.
#[derive(Debug, Clone)]
pub struct MaskedAdamW {
    /// Adam's numbers.
    pub adam: Began,
    /// Weight decay λ: a weight that moves shrinks by rate · λ.
    pub decay: f64,
    /// Whether there is a threshold.
    pub mask: bool,
    /// Whether the gradient is scaled, and the update skipped, as a guard says.
    pub guard: bool,
}

impl MaskedAdamW {
    /// The constants of a step that moves what reaches `least`.
    fn rule(&self, scalars: &Scalars, least: u64) -> Masked {
        Masked {
            directions: self.adam.directions(scalars),
            rate: scalars.rate,
            keep: (1.0 - f64::from(scalars.rate) * self.decay) as f32,
            least,
        }
    }
}

impl Op for MaskedAdamW {
    fn name(&self) -> &'static str {
        "masked_adamw"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        let layout = Layout {
            parameter: true,
            master: false,
            states: &[State::F32; 2],
            guard: self.guard,
        };
        if !self.mask {
            return layout.outputs(self.name(), inputs);
        }
        let threshold = inputs.get(4) == Some(&Type::new(&[2], DType::F32));
        expect(self.name(), threshold, || {
            format!("a threshold (2) F32 behind the moments; got {inputs:?}")
        })?;
        let others: Vec<Type> = [&inputs[..4], &inputs[5..]].concat();
        layout.outputs(self.name(), &others)
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        Work {
            matmul: 0,
            vector: 18 * outputs[0].elements(),
            bytes: traffic(inputs, outputs),
        }
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        let Some(scale) = coefficient(self.guard, io) else {
            return Ok(());
        };
        let least = match (self.mask, io.inputs.get(4)) {
            (true, Some(threshold)) => {
                let threshold = threshold.of::<f32>();
                u64::from(threshold[0].to_bits() >> 16) << 32 | u64::from(threshold[1].to_bits())
            }
            _ => 0,
        };
        let rule = self.rule(&io.scalars, least);
        let gradient = io.inputs[0];
        let Some((parameter, states)) = io.outputs.split_first_mut() else {
            return Ok(());
        };
        let mut parts = states.iter_mut().map(|s| Part::new(s, State::F32));
        let states = std::array::from_fn(|_| parts.next().unwrap_or_default());
        walk(
            self.name(),
            scale,
            gradient,
            parameter,
            &mut [],
            states,
            &rule,
        )
    }
    fn cuda(&self, call: &Call) -> Kernel {
        let Masked {
            directions,
            rate,
            keep,
            ..
        } = self.rule(&call.scalars, 0);
        let threshold = if self.mask { input(4) } else { Argument::Null };
        let guard = guarded(self.guard, 4 + usize::from(self.mask));
        let elements = call.inputs[1].elements();
        let launch = launch(self.name(), call.format(0), call.format(1))
            .elements(elements)
            .given([0, 1, 2, 3].map(input))
            .given([threshold, guard, elements.into()])
            .given(directions.unit_constants());
        Kernel::one(launch.given([rate, keep].map(Argument::F32)))
    }
}

/// The constants of one step.
struct Masked {
    directions: Moments,
    rate: f32,
    /// What remains of a weight that moves.
    keep: f32,
    /// The least key that moves.
    least: u64,
}

impl Rule for Masked {
    fn apply(
        &self,
        _: usize,
        gradient: &[f32],
        weight: &mut [f32],
        [m, v, ..]: &mut [Part<'_>; STATES],
    ) {
        let moments = m.of().iter_mut().zip(v.of());
        for ((&g, w), (m, v)) in gradient.iter().zip(weight).zip(moments) {
            let direction;
            (*m, *v, direction) = self.directions.ahead(g, *m, *v);
            if key(direction, g) >= self.least {
                *w = *w * self.keep - self.rate * direction;
            }
        }
    }
}
