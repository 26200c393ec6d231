//! GaLore: gradients projected to a low rank, moments there, and steps projected back.

use super::adamw::Moments;
use super::adamw8bit::{Bytewise, MOMENTS, WORK};
use super::update::{Layout, Part, Rule, STATES, State, coefficient, expect_guard, walk};
use crate::error::Result;
use crate::graph::op::gemm::{Mat, matmul, matmul_scratch};
use crate::graph::op::kernel::{
    Argument, Call, Gemm, Kernel, Launch, Matrix, Memory, Task, at, input, scratch as room,
};
use crate::graph::op::{
    Io, Op, Output, Scalars, View, ViewMut, Work, expect, expect_inputs, traffic,
};
use crate::graph::tensor::{DType, Type};
use crate::spec::job::Backend;
use crate::spec::units::Bytes;
use crate::with_float;

/// A matrix and the rank its gradient is projected to: from the left where it is wider than tall, else from the right.
#[derive(Debug, Clone, Copy)]
pub struct Low {
    /// Rows of the matrix.
    pub rows: usize,
    /// Columns of the matrix.
    pub columns: usize,
    /// Rows of the projector: the rank wanted, or the matrix's smaller side.
    pub rank: usize,
}

impl Low {
    /// Of a matrix of type `at`.
    pub fn of(at: &Type, rank: u64) -> Low {
        let (rows, columns) = (at.rows() as usize, at.columns() as usize);
        let rank = (rank as usize).min(rows).min(columns);
        Low {
            rows,
            columns,
            rank,
        }
    }

    /// Whether the projector stands on the right, where the matrix's columns are.
    pub fn is_tall(self) -> bool {
        self.rows >= self.columns
    }

    /// The smaller and the larger side.
    pub fn sides(self) -> (usize, usize) {
        match self.is_tall() {
            true => (self.columns, self.rows),
            false => (self.rows, self.columns),
        }
    }

    /// The projector (rank, smaller side), in the gradient's format.
    pub fn projector(self, dtype: DType) -> Type {
        Type::new(&[self.rank as u64, self.sides().0 as u64], dtype)
    }

    /// A projected gradient: the matrix with its smaller side replaced by the rank.
    pub fn projected(self) -> Type {
        let (rows, columns, rank) = (self.rows as u64, self.columns as u64, self.rank as u64);
        match self.is_tall() {
            true => Type::new(&[rows, rank], DType::F32),
            false => Type::new(&[rank, columns], DType::F32),
        }
    }
}

/// A gradient at a low rank (Zhao et al. 2024, arXiv:2403.03507): gradient (m, n) and projector (r, min) to (m, r) or (r, n).
#[derive(Debug, Clone)]
pub struct Project;

impl Op for Project {
    fn name(&self) -> &'static str {
        "galore_project"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        expect_inputs(self.name(), inputs, 2)?;
        let low = Low::of(&inputs[0], inputs[1].rows());
        let fits = inputs[0].shape.len() == 2 && inputs[1] == low.projector(inputs[0].dtype);
        expect(self.name(), fits, || {
            format!("takes a matrix and its projector; got {inputs:?}")
        })?;
        Ok(vec![Output::Fresh(low.projected())])
    }
    fn scratch(&self, inputs: &[Type], backend: Backend) -> Bytes {
        matmul_scratch(inputs[0].dtype, DType::F32, backend)
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        Work {
            matmul: 2 * inputs[0].elements() * inputs[1].rows(),
            vector: 0,
            bytes: traffic(inputs, outputs),
        }
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        let (gradient, projector) = (io.inputs[0], io.inputs[1]);
        let low = Low::of(gradient.at, projector.at.rows());
        let into = io.outputs[0].of::<f32>();
        with_float!(self.name(), gradient.at.dtype, G => {
            let gradient = Mat::new(gradient.of::<G>(), low.rows, low.columns);
            let projector = Mat::new(projector.of::<G>(), low.rank, low.sides().0);
            match low.is_tall() {
                true => matmul(into, low.rank, gradient, projector.t(), false, io.scratch),
                false => matmul(into, low.columns, projector, gradient, false, io.scratch),
            }
            Ok(())
        })
    }
    fn cuda(&self, call: &Call) -> Kernel {
        let low = Low::of(&call.inputs[0], call.inputs[1].rows());
        let (g, p) = (Matrix::input(call, 0), Matrix::input(call, 1));
        let (rows, columns, rank) = (low.rows as u64, low.columns as u64, low.rank as u64);
        let into = Matrix::output(call, 0);
        let gemm = match low.is_tall() {
            true => Gemm::new((rows, rank, columns), g, p.t(), into),
            false => Gemm::new((rank, columns, rows), p, g, into),
        };
        Kernel::Run(vec![Task::Gemm(gemm)])
    }
}

/// Adam's step of unit rate from a projected gradient, in the gradient's place.
///
/// Inputs: projected gradient, m and v (F32) or with `bits` 8 the states of [`AdamW8Bit`](super::AdamW8Bit), guard (3) (with
/// `guard`). Outputs overwrite all but the guard. As its authors have it, f32 moments add eps to the root of what is not yet
/// corrected for bias, 8-bit moments as PyTorch does.
#[derive(Debug, Clone)]
pub struct Direction {
    /// Decay of the mean of gradients.
    pub beta1: f64,
    /// Decay of the mean of their squares.
    pub beta2: f64,
    /// Added to the root of the latter.
    pub eps: f64,
    /// Whether moments are held in a byte each.
    pub bytewise: bool,
    /// Whether the gradient is scaled, and the step left out, as a guard says.
    pub guard: bool,
}

impl Direction {
    /// The constants of a step of unit rate.
    fn rule(&self, mut scalars: Scalars) -> Moments {
        scalars.rate = -1.0;
        let correction = (1.0 - self.beta2.powf(scalars.step as f64)).sqrt();
        let eps = match self.bytewise {
            true => self.eps,
            false => self.eps / correction,
        };
        Moments::of((self.beta1, self.beta2), eps, 0.0, &scalars)
    }

    fn layout(&self) -> Layout<'static> {
        Layout {
            parameter: false,
            master: false,
            states: match self.bytewise {
                true => &MOMENTS,
                false => &[State::F32; 2],
            },
            guard: self.guard,
        }
    }
}

impl Op for Direction {
    fn name(&self) -> &'static str {
        "galore_direction"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        self.layout().outputs(self.name(), inputs)
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        Work {
            matmul: 0,
            vector: if self.bytewise { WORK } else { 15 } * outputs[0].elements(),
            bytes: traffic(inputs, outputs),
        }
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        let moments = self.rule(io.scalars);
        match self.bytewise {
            true => self.layout().run(self.name(), io, &Bytewise(moments)),
            false => self.layout().run(self.name(), io, &moments),
        }
    }
    fn cuda(&self, call: &Call) -> Kernel {
        let constants = self.rule(call.scalars).constants();
        match self.bytewise {
            true => self.layout().launch("adamw8bit", call, 4, constants),
            false => self.layout().launch("adamw", call, 2, constants),
        }
    }
}

/// A step at a low rank projected back and taken, panel by panel.
///
/// Inputs: step (m, r) or (r, n), projector (r, min), parameter, master (F32, with `master`), guard (3) (with `guard`).
/// Outputs overwrite parameter and master.
#[derive(Debug, Clone)]
pub struct Apply {
    /// What the step is multiplied by, beside the rate.
    pub scale: f64,
    /// Weight decay λ: after the step the weight shrinks by rate · λ.
    pub decay: f64,
    /// Whether the weight is kept in f32 beside a narrower parameter.
    pub master: bool,
    /// Whether a guard may say to leave the step out.
    pub guard: bool,
}

impl Apply {
    /// The constants of a step.
    fn rule(&self, scalars: Scalars) -> Descend {
        let rate = f64::from(scalars.rate);
        Descend {
            rate: (rate * self.scale) as f32,
            keep: (1.0 - rate * self.decay) as f32,
        }
    }
}

/// Elements of a panel: as few as a CPU's caches like, and on a GPU enough to fill it with each product, for each panel is two launches.
const PANEL: usize = 1 << 18;
const GPU_PANEL: usize = 1 << 22;

impl Low {
    /// Rows that are projected back at a time.
    fn panel(self, elements: usize) -> usize {
        (elements / self.columns.max(1)).clamp(1, self.rows.max(1))
    }
}

impl Op for Apply {
    fn name(&self) -> &'static str {
        "galore_apply"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        let count = 3 + usize::from(self.master);
        expect_inputs(self.name(), inputs, count + usize::from(self.guard))?;
        let (projector, at) = (&inputs[1], &inputs[2]);
        let low = Low::of(at, projector.rows());
        let fits = at.shape.len() == 2
            && inputs[0] == low.projected()
            && *projector == low.projector(projector.dtype)
            && (!self.master || inputs[3] == at.with(DType::F32));
        expect(self.name(), fits, || {
            format!("takes a step, its projector and parameter; got {inputs:?}")
        })?;
        expect_guard(self.name(), self.guard, inputs)?;
        Ok((2..count).map(|of| Output::Overwrite { of }).collect())
    }
    fn scratch(&self, inputs: &[Type], backend: Backend) -> Bytes {
        let low = Low::of(&inputs[2], inputs[1].rows());
        let rows = low.panel(match backend {
            Backend::Cpu { .. } => PANEL,
            Backend::Cuda { .. } => GPU_PANEL,
        });
        let panel = Bytes((rows * low.columns * 4) as u64);
        panel + matmul_scratch(inputs[1].dtype, DType::F32, backend)
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        Work {
            matmul: 2 * inputs[2].elements() * inputs[1].rows(),
            vector: 4 * inputs[2].elements(),
            bytes: traffic(inputs, outputs),
        }
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        if coefficient(self.guard, io).is_none() {
            return Ok(());
        }
        let (step, projector) = (io.inputs[0], io.inputs[1]);
        let Some((parameter, masters)) = io.outputs.split_first_mut() else {
            return Ok(());
        };
        let low = Low::of(parameter.at, projector.at.rows());
        let rows = low.panel(PANEL);
        let (panel, scratch) = io.scratch.split_at_mut(rows * low.columns * 4);
        let rule = self.rule(io.scalars);
        let width = parameter.at.dtype.bytes() as usize * low.columns;
        let mut master = masters.first_mut().map(ViewMut::of).unwrap_or_default();
        for from in (0..low.rows).step_by(rows) {
            let rows = rows.min(low.rows - from);
            let here = &mut panel[..rows * low.columns * 4];
            low.back(
                self.name(),
                step,
                projector,
                (from, rows),
                (&mut *here, &mut *scratch),
            )?;
            let wide = Type::new(&[rows as u64, low.columns as u64], DType::F32);
            let mut strip = ViewMut {
                at: parameter.at,
                bytes: &mut parameter.bytes[from * width..(from + rows) * width],
            };
            let gradient = View {
                at: &wide,
                bytes: here,
            };
            let (this, rest) = master.split_at_mut((rows * low.columns).min(master.len()));
            master = rest;
            walk(
                self.name(),
                1.0,
                gradient,
                &mut strip,
                this,
                Default::default(),
                &rule,
            )?;
        }
        Ok(())
    }
    fn cuda(&self, call: &Call) -> Kernel {
        let (rule, at_parameter) = (self.rule(call.scalars), &call.inputs[2]);
        let low = Low::of(at_parameter, call.inputs[1].rows());
        let (columns, rank) = (low.columns as u64, low.rank as u64);
        let (step, p) = (Matrix::input(call, 0), Matrix::input(call, 1));
        let panel = Matrix::new(Memory::Scratch, DType::F32, columns);
        let guard = match self.guard {
            true => input(3 + usize::from(self.master)),
            false => Argument::Null,
        };
        let most = low.panel(GPU_PANEL);
        let tasks = (0..low.rows).step_by(most).flat_map(|first| {
            let (from, rows) = (first as u64, most.min(low.rows - first) as u64);
            let (a, b) = match low.is_tall() {
                true => (step.skip(from * rank), p),
                false => (p.skip(from).t(), step),
            };
            let gemm = Gemm::new((rows, columns, rank), a, b, panel);
            let part = |index: usize, bytes: u64| {
                Argument::from(at(Memory::Input(index), from * columns * bytes))
            };
            let master = if self.master {
                part(3, 4)
            } else {
                Argument::Null
            };
            let take = Launch::new("update", "take_low")
                .format("G", DType::F32)
                .format("P", at_parameter.dtype)
                .format("M", DType::F32)
                .elements(rows * columns)
                .given([room(0), part(2, at_parameter.dtype.bytes()), master, guard])
                .given([(rows * columns).into(), rule.rate.into(), rule.keep.into()]);
            [Task::Gemm(gemm), Task::Launch(take)]
        });
        Kernel::Run(tasks.collect())
    }
}

impl Low {
    /// Rows `from..` of a step projected back into `panel`.
    fn back(
        self,
        op: &'static str,
        step: View,
        projector: View,
        (from, rows): (usize, usize),
        (panel, scratch): (&mut [u8], &mut [u8]),
    ) -> Result<()> {
        let panel = bytemuck::cast_slice_mut::<u8, f32>(panel);
        let (step, rank, columns) = (step.of::<f32>(), self.rank, self.columns);
        with_float!(op, projector.at.dtype, P => {
            let projector = projector.of::<P>();
            match self.is_tall() {
                true => {
                    let step = Mat::new(&step[from * rank..(from + rows) * rank], rows, rank);
                    let projector = Mat::new(projector, rank, columns);
                    matmul(panel, columns, step, projector, false, scratch);
                }
                false => {
                    let strip = Mat {
                        cols: rows,
                        data: &projector[from..],
                        ..Mat::new(projector, rank, self.rows)
                    };
                    matmul(panel, columns, strip.t(), Mat::new(step, rank, columns), false, scratch);
                }
            }
            Ok(())
        })
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
            *w = (*w - self.rate * step) * self.keep;
        }
    }
}
