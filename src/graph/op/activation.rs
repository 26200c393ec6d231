//! The activations of the families, alone and as gates.

use rayon::prelude::*;

use super::kernel::{Argument, Call, Kernel, Launch, input, output};
use super::simd::{self, vectorized};
use super::{Element, Io, Op, Output, Work, exactly, expect, expect_inputs, traffic};
use crate::error::Result;
use crate::graph::backward::Backward;
use crate::graph::op::elementwise::CHUNK;
use crate::graph::tangent::Tangent;
use crate::graph::tensor::Type;
use crate::spec::model::Activation;
use crate::with_float;

/// Runs `$body` with `$curve` bound to the curve of `$kind`.
macro_rules! with_curve {
    ($kind:expr, $curve:ident => $body:expr) => {
        match $kind {
            Activation::Relu => {
                let $curve = Relu;
                $body
            }
            Activation::Gelu => {
                let $curve = Gelu;
                $body
            }
            Activation::GeluTanh => {
                let $curve = GeluTanh;
                $body
            }
            Activation::Silu => {
                let $curve = Silu;
                $body
            }
        }
    };
}

/// `y = act(x)`, any shape.
#[derive(Debug, Clone)]
pub struct Act {
    /// The activation.
    pub kind: Activation,
}

/// `dx = dy * act'(x)`: inputs dy, x.
#[derive(Debug, Clone)]
pub struct ActBackward {
    /// The activation.
    pub kind: Activation,
    /// Whether dx overwrites dy; else it has a storage of its own.
    pub in_place: bool,
}

/// `y = act(gate) * up`: inputs gate, up (Shazeer 2020).
#[derive(Debug, Clone)]
pub struct Gated {
    /// The activation.
    pub kind: Activation,
}

/// Inputs dy, gate, up; outputs `dgate = dy * up * act'(gate)` and `dup = dy * act(gate)`.
#[derive(Debug, Clone)]
pub struct GatedBackward {
    /// The activation.
    pub kind: Activation,
    /// Whether dup overwrites dy; else it has a storage of its own.
    pub in_place: bool,
}

/// `dy = dgate * up * act'(gate) + dup * act(gate)`: inputs dgate, dup (tangents), gate, up.
#[derive(Debug, Clone)]
pub struct GatedTangent {
    /// The activation.
    pub kind: Activation,
    /// Whether dy overwrites dup; else it has a storage of its own.
    pub in_place: bool,
}

impl Op for Act {
    fn name(&self) -> &'static str {
        "act"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        expect_alike(self.name(), inputs, 1)?;
        Ok(vec![Output::Fresh(inputs[0].clone())])
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        pointwise(flops(self.kind), inputs, outputs)
    }
    fn backward(&self, at: &mut Backward) -> Result<()> {
        let Some(dy) = at.grad(0) else { return Ok(()) };
        let op = ActBackward {
            kind: self.kind,
            in_place: at.owns_grad(0),
        };
        let inputs = [dy, at.input(0)];
        let dx = at.emit(op, &inputs)?[0];
        at.give(0, dx)
    }
    fn tangent(&self, at: &mut Tangent) -> Result<()> {
        let Some(dx) = at.of(0) else { return Ok(()) };
        // Element by element: the slope takes tangents forward as it takes gradients back.
        let op = ActBackward {
            kind: self.kind,
            in_place: at.owns(0),
        };
        let dy = at.emit(op, &[dx, at.input(0)])?[0];
        at.give(0, dy);
        Ok(())
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        let (x, y) = (io.inputs[0], &mut io.outputs[0]);
        with_float!(self.name(), x.at.dtype, T => with_curve!(self.kind, curve => {
            let tasks = y.of::<T>().par_chunks_mut(CHUNK).zip(x.of::<T>().par_chunks(CHUNK));
            tasks.for_each(|(y, x)| apply(curve, x, y));
            Ok(())
        }))
    }
    fn cuda(&self, call: &Call) -> Kernel {
        pointwise_launch(self.name(), self.kind, call, &[input(0), output(0)])
    }
}

impl Op for ActBackward {
    fn name(&self) -> &'static str {
        "act_backward"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        expect_alike(self.name(), inputs, 2)?;
        Ok(vec![fresh_or_overwrite(self.in_place, &inputs[0])])
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        pointwise(flops(self.kind) + 4, inputs, outputs)
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        let (dy, x, dx) = (io.inputs[0], io.inputs[1], &mut io.outputs[0]);
        if !self.in_place {
            dx.bytes.copy_from_slice(dy.bytes);
        }
        with_float!(self.name(), x.at.dtype, T => with_curve!(self.kind, curve => {
            let tasks = dx.of::<T>().par_chunks_mut(CHUNK).zip(x.of::<T>().par_chunks(CHUNK));
            tasks.for_each(|(dx, x)| apply_backward(curve, x, dx));
            Ok(())
        }))
    }
    fn cuda(&self, call: &Call) -> Kernel {
        pointwise_launch(
            self.name(),
            self.kind,
            call,
            &[input(0), input(1), output(0)],
        )
    }
}

impl Op for Gated {
    fn name(&self) -> &'static str {
        "gated"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        expect_alike(self.name(), inputs, 2)?;
        Ok(vec![Output::Fresh(inputs[0].clone())])
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        pointwise(flops(self.kind) + 1, inputs, outputs)
    }
    fn backward(&self, at: &mut Backward) -> Result<()> {
        let Some(dy) = at.grad(0) else { return Ok(()) };
        let op = GatedBackward {
            kind: self.kind,
            in_place: at.owns_grad(0),
        };
        let inputs = [dy, at.input(0), at.input(1)];
        for (index, gradient) in at.emit(op, &inputs)?.into_iter().enumerate() {
            if at.wants(index) {
                at.give(index, gradient)?;
            }
        }
        Ok(())
    }
    fn tangent(&self, at: &mut Tangent) -> Result<()> {
        let op = GatedTangent {
            kind: self.kind,
            in_place: at.owns(1),
        };
        let [dgate, dup] = [at.of_or_zero(0)?, at.of_or_zero(1)?];
        let dy = at.emit(op, &[dgate, dup, at.input(0), at.input(1)])?[0];
        at.give(0, dy);
        Ok(())
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        let (gate, up, y) = (io.inputs[0], io.inputs[1], &mut io.outputs[0]);
        with_float!(self.name(), gate.at.dtype, T => with_curve!(self.kind, curve => {
            let sources = gate.of::<T>().par_chunks(CHUNK).zip(up.of::<T>().par_chunks(CHUNK));
            let tasks = y.of::<T>().par_chunks_mut(CHUNK).zip(sources);
            tasks.for_each(|(y, (gate, up))| apply_gate(curve, gate, up, y));
            Ok(())
        }))
    }
    fn cuda(&self, call: &Call) -> Kernel {
        pointwise_launch(
            self.name(),
            self.kind,
            call,
            &[input(0), input(1), output(0)],
        )
    }
}

impl Op for GatedBackward {
    fn name(&self) -> &'static str {
        "gated_backward"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        expect_alike(self.name(), inputs, 3)?;
        let dup = fresh_or_overwrite(self.in_place, &inputs[0]);
        Ok(vec![Output::Fresh(inputs[1].clone()), dup])
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        pointwise(flops(self.kind) + 6, inputs, outputs)
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        let [dy, gate, up] = [io.inputs[0], io.inputs[1], io.inputs[2]];
        let [dgate, dup] = exactly(self.name(), &mut io.outputs)?;
        if !self.in_place {
            dup.bytes.copy_from_slice(dy.bytes);
        }
        with_float!(self.name(), gate.at.dtype, T => with_curve!(self.kind, curve => {
            let sources = gate.of::<T>().par_chunks(CHUNK).zip(up.of::<T>().par_chunks(CHUNK));
            let made = dgate.of::<T>().par_chunks_mut(CHUNK).zip(dup.of::<T>().par_chunks_mut(CHUNK));
            made.zip(sources).for_each(|((dgate, dup), (gate, up))| {
                apply_gate_backward(curve, gate, up, dgate, dup);
            });
            Ok(())
        }))
    }
    fn cuda(&self, call: &Call) -> Kernel {
        pointwise_launch(
            self.name(),
            self.kind,
            call,
            &[input(0), input(1), input(2), output(0), output(1)],
        )
    }
}

impl Op for GatedTangent {
    fn name(&self) -> &'static str {
        "gated_tangent"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        expect_alike(self.name(), inputs, 4)?;
        Ok(vec![match self.in_place {
            true => Output::Overwrite { of: 1 },
            false => Output::Fresh(inputs[1].clone()),
        }])
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        pointwise(flops(self.kind) + 7, inputs, outputs)
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        let [dgate, dup, gate, up] = [0, 1, 2, 3].map(|i| io.inputs[i]);
        let dy = &mut io.outputs[0];
        if !self.in_place {
            dy.bytes.copy_from_slice(dup.bytes);
        }
        with_float!(self.name(), gate.at.dtype, T => with_curve!(self.kind, curve => {
            let sources = gate.of::<T>().par_chunks(CHUNK).zip(up.of::<T>().par_chunks(CHUNK));
            let tangents = dy.of::<T>().par_chunks_mut(CHUNK).zip(dgate.of::<T>().par_chunks(CHUNK));
            tangents.zip(sources).for_each(|((dy, dgate), (gate, up))| {
                apply_gate_tangent(curve, gate, up, dgate, dy);
            });
            Ok(())
        }))
    }
    fn cuda(&self, call: &Call) -> Kernel {
        pointwise_launch(
            self.name(),
            self.kind,
            call,
            &[input(0), input(1), input(2), input(3), output(0)],
        )
    }
}

/// A smooth (or almost smooth) function of one number.
trait Curve: Copy + Send + Sync {
    /// Its value and its slope at `x`; where only one is used, the compiler drops the other.
    fn at(self, x: f32) -> (f32, f32);
}

#[derive(Clone, Copy)]
struct Relu;
#[derive(Clone, Copy)]
struct Gelu;
#[derive(Clone, Copy)]
struct GeluTanh;
#[derive(Clone, Copy)]
struct Silu;

impl Curve for Relu {
    #[inline(always)]
    fn at(self, x: f32) -> (f32, f32) {
        // Written so that NaN stays NaN.
        if x <= 0.0 { (0.0, 0.0) } else { (x, 1.0) }
    }
}

impl Curve for Gelu {
    #[inline(always)]
    fn at(self, x: f32) -> (f32, f32) {
        let (below, density) = simd::normal(x);
        (x * below, below + x * density)
    }
}

impl Curve for GeluTanh {
    // (1 + tanh u) / 2 = σ(2u), which keeps relative accuracy for negative u.
    #[inline(always)]
    fn at(self, x: f32) -> (f32, f32) {
        const TWICE_ROOT: f32 = 1.595_769; // 2 sqrt(2 / π)
        const CUBE: f32 = 0.044_715;
        let gate = simd::sigmoid(TWICE_ROOT * (x + CUBE * x * x * x));
        let inner = TWICE_ROOT * (1.0 + 3.0 * CUBE * x * x);
        (x * gate, gate + x * gate * (1.0 - gate) * inner)
    }
}

impl Curve for Silu {
    #[inline(always)]
    fn at(self, x: f32) -> (f32, f32) {
        let gate = simd::sigmoid(x);
        (x * gate, gate * (1.0 + x * (1.0 - gate)))
    }
}

vectorized! {
    /// `y = curve(x)`.
    fn apply<C: Curve, T: Element>(curve: C, x: &[T], y: &mut [T]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y = T::narrow(curve.at(x.wide()).0);
        }
    }

    /// `dx *= curve'(x)`.
    fn apply_backward<C: Curve, T: Element>(curve: C, x: &[T], dx: &mut [T]) {
        for (dx, x) in dx.iter_mut().zip(x) {
            *dx = T::narrow(dx.wide() * curve.at(x.wide()).1);
        }
    }

    /// `y = curve(gate) * up`.
    fn apply_gate<C: Curve, T: Element>(curve: C, gate: &[T], up: &[T], y: &mut [T]) {
        for (y, (gate, up)) in y.iter_mut().zip(gate.iter().zip(up)) {
            *y = T::narrow(curve.at(gate.wide()).0 * up.wide());
        }
    }

    /// `dgate = dup * up * curve'(gate)`, then `dup *= curve(gate)`; `dup` holds dy on entry.
    fn apply_gate_backward<C: Curve, T: Element>(
        curve: C, gate: &[T], up: &[T], dgate: &mut [T], dup: &mut [T],
    ) {
        let made = dgate.iter_mut().zip(dup);
        for ((dgate, dup), (gate, up)) in made.zip(gate.iter().zip(up)) {
            let (dy, (value, slope)) = (dup.wide(), curve.at(gate.wide()));
            *dgate = T::narrow(dy * up.wide() * slope);
            *dup = T::narrow(dy * value);
        }
    }

    /// `dy = dgate * up * curve'(gate) + dy * curve(gate)`; `dy` holds dup on entry.
    fn apply_gate_tangent<C: Curve, T: Element>(curve: C, gate: &[T], up: &[T], dgate: &[T], dy: &mut [T]) {
        for ((dy, dgate), (gate, up)) in dy.iter_mut().zip(dgate).zip(gate.iter().zip(up)) {
            let (value, slope) = curve.at(gate.wide());
            *dy = T::narrow(dgate.wide() * up.wide() * slope + dy.wide() * value);
        }
    }
}

/// A launch over all elements of input 0.
fn pointwise_launch(
    entry: &'static str,
    kind: Activation,
    call: &Call,
    pointers: &[Argument],
) -> Kernel {
    let curve = match kind {
        Activation::Relu => "relu",
        Activation::Gelu => "gelu",
        Activation::GeluTanh => "gelu_tanh",
        Activation::Silu => "silu",
    };
    let launch = Launch::new("activation", entry)
        .format("T", call.format(0))
        .define("CURVE", curve)
        .elements(call.inputs[0].elements())
        .given(pointers.iter().copied());
    Kernel::one(launch.given([call.inputs[0].elements().into()]))
}

/// Flops of one value, an exponential counted as ten and a division as four.
fn flops(kind: Activation) -> u64 {
    match kind {
        Activation::Relu => 1,
        Activation::Gelu => 34,
        Activation::GeluTanh => 21,
        Activation::Silu => 16,
    }
}

/// `flops` per element and all bytes once.
fn pointwise(flops: u64, inputs: &[Type], outputs: &[Type]) -> Work {
    Work {
        matmul: 0,
        vector: flops * inputs[0].elements(),
        bytes: traffic(inputs, outputs),
    }
}

/// Output 0 of a backward op that may reuse dy.
fn fresh_or_overwrite(in_place: bool, at: &Type) -> Output {
    match in_place {
        true => Output::Overwrite { of: 0 },
        false => Output::Fresh(at.clone()),
    }
}

/// `count` inputs of one type.
fn expect_alike(op: &'static str, inputs: &[Type], count: usize) -> Result<()> {
    expect_inputs(op, inputs, count)?;
    expect(op, inputs.iter().all(|t| *t == inputs[0]), || {
        format!("takes inputs of one type; got {inputs:?}")
    })
}
