//! MicroAdam: moments from a window of sparse gradients, what is left out fed back in four bits.

use std::sync::Mutex;

use half::bf16;
use rayon::prelude::*;

use super::feedback::Left;
use super::update::{Part, Rule, STATES, coefficient, expect_guard, walk};
use crate::error::Result;
use crate::graph::op::kernel::{Argument, Call, Kernel, Launch, input, output};
use crate::graph::op::{Element, Io, Op, Output, View, ViewMut, Work, exactly};
use crate::graph::op::{expect, expect_inputs, traffic};
use crate::graph::tensor::{DType, Type};
use crate::spec::job::Backend;
use crate::spec::units::Bytes;
use crate::with_float;

/// MicroAdam (Modoranu et al. 2024, arXiv:2405.15593, algorithm 1), as its authors' code has it.
///
/// Inputs: gradient, parameter, master (F32, with `master`), the states of [`MicroAdam::states`], guard (3) (with `guard`, see
/// [`ClipScale`](super::ClipScale)). Outputs overwrite all but the guard, in this order: the gradient becomes the accumulator,
/// then the step. Where the guard says that the gradient is not finite, the window gets an empty row and nothing else changes.
#[derive(Debug, Clone)]
pub struct MicroAdam {
    /// Gradients in the window.
    pub window: u32,
    /// Share of a block that is kept.
    pub density: f64,
    /// Elements of a block that the largest are sought in; at most 65,536, since indices are relative to it.
    pub block: u32,
    /// Elements of a block that shares a range of four-bit codes; even.
    pub quant: u32,
    /// Decay of the mean of gradients.
    pub beta1: f64,
    /// Decay of the mean of their squares.
    pub beta2: f64,
    /// Added to the root of the latter.
    pub eps: f64,
    /// Weight decay λ: the weight shrinks by rate · λ.
    pub decay: f64,
    /// Share of what is left out that joins the step at once.
    pub alpha: f64,
    /// Whether the weight is kept in f32 beside a narrower parameter.
    pub master: bool,
    /// Whether the gradient is scaled, and the update skipped, as a guard says.
    pub guard: bool,
}

/// How a parameter is cut into blocks.
#[derive(Debug, Clone, Copy)]
struct Cut {
    elements: usize,
    /// Elements of a block but the last.
    block: usize,
    /// Elements kept of such a block, and of all.
    kept: usize,
    all: usize,
    /// Rows of the window.
    window: usize,
    /// Elements that share a range.
    quant: usize,
}

impl MicroAdam {
    fn cut(&self, at: &Type) -> Cut {
        let elements = at.elements() as usize;
        let block = (self.block as usize).min(elements).max(1);
        let of = |elements: usize| (elements as f64 * self.density).ceil() as usize;
        Cut {
            elements,
            block,
            kept: of(block),
            all: elements / block * of(block) + of(elements % block),
            window: self.window as usize,
            quant: self.quant as usize,
        }
    }

    /// Suffixes and types of the states of a parameter: indices and values of the window, codes of what was left out, and
    /// both ends of their ranges, of which the authors keep one more than there are where the last is whole.
    pub fn states(&self, parameter: &Type) -> [(&'static str, Type); 5] {
        let Cut {
            elements,
            all,
            window,
            quant,
            ..
        } = self.cut(parameter);
        let row = |dtype| Type::new(&[window as u64, all as u64], dtype);
        let flat = |count: usize, dtype| Type::new(&[count as u64], dtype);
        let ends = flat(elements / quant + 1, DType::Bf16);
        [
            ("index", row(DType::U16)),
            ("value", row(DType::Bf16)),
            ("error", flat(elements.div_ceil(2), DType::U8)),
            ("low", ends.clone()),
            ("high", ends),
        ]
    }
}

impl Op for MicroAdam {
    fn name(&self) -> &'static str {
        "microadam"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        let takes = || format!("takes gradient and parameter; got {inputs:?}");
        expect(self.name(), inputs.len() > 1, takes)?;
        let at = &inputs[1];
        let master = self.master.then(|| at.with(DType::F32));
        let states = self.states(at).into_iter().map(|(_, at)| at);
        let kept: Vec<Type> = master.into_iter().chain(states).collect();
        let count = 2 + kept.len();
        expect_inputs(self.name(), inputs, count + usize::from(self.guard))?;
        let fits = inputs[0].shape == at.shape && inputs[2..count] == kept[..];
        expect(self.name(), fits, || {
            format!("gradient, parameter and {kept:?}; got {inputs:?}")
        })?;
        expect_guard(self.name(), self.guard, inputs)?;
        Ok((0..count).map(|of| Output::Overwrite { of }).collect())
    }
    /// On a CPU, a block's sizes or its moments for each thread; on a GPU those lie in shared memory.
    fn scratch(&self, inputs: &[Type], backend: Backend) -> Bytes {
        match backend {
            Backend::Cpu { threads } => {
                let block = self.cut(&inputs[1]).block;
                Bytes(u64::from(threads.max(1)) * 8 * block as u64)
            }
            Backend::Cuda { .. } => Bytes::ZERO,
        }
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        let cut = self.cut(&inputs[1]);
        // The gradient is read and written twice more: restored, sought, coded, stepped along. One row of the window is written.
        let again = 4 * inputs[0].bytes().0;
        let unwritten = 4 * ((cut.window - 1) * cut.all) as u64;
        Work {
            matmul: 0,
            vector: 40 * outputs[0].elements() + 6 * (cut.window * cut.all) as u64,
            bytes: traffic(inputs, outputs) + again - unwritten,
        }
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        let coefficient = coefficient(self.guard, io);
        let (gradient, rest) = io.outputs.split_at_mut(1);
        let (parameter, rest) = rest.split_at_mut(1);
        let (masters, states) = rest.split_at_mut(usize::from(self.master));
        let [gradient] = exactly(self.name(), gradient)?;
        let [parameter] = exactly(self.name(), parameter)?;
        let [index, value, error, low, high] = exactly(self.name(), states)?;
        let cut = self.cut(parameter.at);
        let mut window = Window {
            index: index.of(),
            value: value.of(),
            now: (io.scalars.step as usize - 1) % cut.window,
        };
        let Some(coefficient) = coefficient else {
            window.row(cut).1.fill(bf16::ZERO);
            return Ok(());
        };
        let mut left = Left {
            quant: cut.quant,
            codes: error.bytes,
            low: low.of(),
            high: high.of(),
        };
        let slots = Slots::new(io.scratch, cut.block);
        with_float!(self.name(), gradient.at.dtype, G => {
            let a = gradient.of::<G>();
            left.restore(coefficient, a);
            window.select(cut, a, &slots);
            left.keep(a);
            window.step(cut, self, io.scalars.step, a, &slots);
            left.release(self.alpha, a);
            Ok(())
        })?;
        let rate = f64::from(io.scalars.rate);
        let rule = Descend {
            rate: rate as f32,
            keep: (1.0 - rate * self.decay) as f32,
        };
        let step = View {
            at: gradient.at,
            bytes: &*gradient.bytes,
        };
        let master = masters.first_mut().map(ViewMut::of).unwrap_or_default();
        walk(
            self.name(),
            1.0,
            step,
            parameter,
            master,
            Default::default(),
            &rule,
        )
    }
    fn cuda(&self, call: &Call) -> Kernel {
        Kernel::all(self.launches(call))
    }
}

/// Elements of which a block of threads holds the moments (`TILE` in the kernel).
const TILE: u64 = 2048;

impl MicroAdam {
    /// The largest into the window, codes of the rest, the step, and what of the rest is left behind it.
    fn launches(&self, call: &Call) -> Vec<Launch> {
        let cut = self.cut(&call.inputs[1]);
        let step = call.scalars.step.max(1);
        let first = 2 + usize::from(self.master);
        let [index, value, error, low, high] = [0, 1, 2, 3, 4].map(|i| output(first + i));
        let optional = |there: bool, argument: Argument| match there {
            true => argument,
            false => Argument::Null,
        };
        let master = optional(self.master, output(2));
        let guard = optional(self.guard, input(first + 5));
        let [n, block, kept, all, quant] =
            [cut.elements, cut.block, cut.kept, cut.all, cut.quant].map(|x| x as u64);
        let blocks = n.div_ceil(block);
        let sizes = [n, block, kept, all, quant].map(Argument::U64);
        let launch = |entry| {
            let launch = Launch::new("microadam", entry).format("G", call.format(0));
            launch.format("P", call.format(1))
        };
        let select = launch("microadam_select").grid(blocks, 1, 1);
        let keep = launch("microadam_keep").blocks(n.div_ceil(quant).div_ceil(8));
        let take = launch("microadam_step").grid(blocks, block.div_ceil(TILE), 1);
        let rest = launch("microadam_rest").blocks(n.div_ceil(quant).div_ceil(256));
        let (rate, correct) = (f64::from(call.scalars.rate), |beta| share(beta, step));
        let now = ((step - 1) % u64::from(self.window)) as u32;
        let mut launches = vec![
            select
                .given([output(0), error, low, high, index, value, guard])
                .given(sizes)
                .given([now.into()]),
            keep.given([output(0), error, low, high, guard, n.into(), quant.into()]),
            take.given([output(0), output(1), master, index, value])
                .given([error, low, high, guard])
                .given(sizes)
                .given([step.into(), self.window.into()])
                .given([self.beta1.into(), self.beta2.into()])
                .given([correct(self.beta1).into(), correct(self.beta2).into()])
                .given([self.eps as f32, self.alpha as f32].map(Argument::F32))
                .given([(1.0 - rate * self.decay) as f32, rate as f32].map(Argument::F32)),
        ];
        if self.alpha != 0.0 {
            let ranges = n.div_ceil(quant);
            let share = ((1.0 - self.alpha) as f32).into();
            launches.push(rest.given([low, high, guard, ranges.into(), share]));
        }
        launches
    }
}

/// What the sum of a window is multiplied by: (1 - β) over what the weights add up to.
fn share(beta: f64, step: u64) -> f32 {
    ((1.0 - beta) / (1.0 - beta.powf(step as f64))) as f32
}

/// Room for one block for each thread.
struct Slots<'a>(Vec<Mutex<&'a mut [u64]>>);

impl<'a> Slots<'a> {
    fn new(scratch: &'a mut [u8], block: usize) -> Slots<'a> {
        let words: &mut [u64] = bytemuck::cast_slice_mut(scratch);
        Slots(words.chunks_exact_mut(block).map(Mutex::new).collect())
    }

    /// Runs `task` with the room of this thread; where there are more threads than rooms, they take turns.
    fn with(&self, task: impl FnOnce(&mut [u64])) {
        let thread = rayon::current_thread_index().unwrap_or(0);
        match self.0[thread % self.0.len()].lock() {
            Ok(mut room) => task(&mut room),
            Err(_) => panic!("a task of this op panicked"),
        }
    }
}

/// The ring of sparse gradients.
struct Window<'a> {
    index: &'a mut [u16],
    value: &'a mut [bf16],
    /// The row of this step.
    now: usize,
}

impl Window<'_> {
    fn row(&mut self, cut: Cut) -> (&mut [u16], &mut [bf16]) {
        let range = self.now * cut.all..(self.now + 1) * cut.all;
        (&mut self.index[range.clone()], &mut self.value[range])
    }

    /// Moves the largest of each block from the accumulator to the row of this step; of two as large, the first.
    fn select<G: Element>(&mut self, cut: Cut, a: &mut [G], slots: &Slots) {
        let (index, value) = self.row(cut);
        let rows = index
            .par_chunks_mut(cut.kept)
            .zip(value.par_chunks_mut(cut.kept));
        a.par_chunks_mut(cut.block)
            .zip(rows)
            .for_each(|(a, (index, value))| {
                slots.with(|room| {
                    let keys = &mut room[..a.len()];
                    for (i, (key, x)) in keys.iter_mut().zip(&*a).enumerate() {
                        let size = u64::from(x.wide().abs().to_bits());
                        *key = !(size << 32 | (u32::MAX - i as u32) as u64);
                    }
                    keys.select_nth_unstable(index.len() - 1);
                    for (index, key) in index.iter_mut().zip(&*keys) {
                        *index = (u32::MAX - !*key as u32) as u16;
                    }
                });
                index.sort_unstable();
                for (value, i) in value.iter_mut().zip(index) {
                    let x = &mut a[usize::from(*i)];
                    *value = Element::narrow(x.wide());
                    *x = G::narrow(0.0);
                }
            });
    }

    /// Puts Adam's step of unit rate, from the moments of the window, in the accumulator's place.
    fn step<G: Element>(&self, cut: Cut, rule: &MicroAdam, step: u64, a: &mut [G], slots: &Slots) {
        let rows = cut.window.min(step as usize);
        let (c1, c2) = (share(rule.beta1, step), share(rule.beta2, step));
        let eps = rule.eps as f32;
        a.par_chunks_mut(cut.block)
            .enumerate()
            .for_each(|(block, a)| {
                slots.with(|room| {
                    let moments: &mut [f32] = bytemuck::cast_slice_mut(room);
                    let (m, v) = moments.split_at_mut(cut.block);
                    m.fill(0.0);
                    v.fill(0.0);
                    let from = block * cut.kept;
                    let to = (from + cut.kept).min(cut.all);
                    for row in 0..rows {
                        let age = (step as usize - 1 - row) % cut.window;
                        let weight = |beta: f64| beta.powi(age as i32) as f32;
                        let (b1, b2) = (weight(rule.beta1), weight(rule.beta2));
                        let range = row * cut.all + from..row * cut.all + to;
                        for (i, x) in self.index[range.clone()].iter().zip(&self.value[range]) {
                            let (i, x) = (usize::from(*i), x.wide());
                            m[i] += b1 * x;
                            v[i] += b2 * x * x;
                        }
                    }
                    for ((a, m), v) in a.iter_mut().zip(m).zip(v) {
                        *a = G::narrow(c1 * *m / ((c2 * *v).sqrt() + eps));
                    }
                });
            });
    }
}

/// The constants of one step.
struct Descend {
    rate: f32,
    keep: f32,
}

impl Rule for Descend {
    fn apply(&self, _: usize, step: &[f32], weight: &mut [f32], _: &mut [Part<'_>; STATES]) {
        for (w, step) in weight.iter_mut().zip(step) {
            *w = *w * self.keep - self.rate * step;
        }
    }
}
