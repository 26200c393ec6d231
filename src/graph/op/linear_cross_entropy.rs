//! The head and its loss in one op, so that the logits of the whole batch never exist.

use super::cross_entropy::{Kernel, Losses, PASS, along, check_targets, expect_targets};
use super::gemm::{Mat, matmul, matmul_scratch};
use super::kernel::{Argument, Call, Gemm, Matrix, Memory, Task, at, input, output, scratch};
use super::{Element, Io, Op, Output, ViewMut, Work, expect, expect_inputs, traffic};
use super::{elementwise, kernel, simd};
use crate::error::Result;
use crate::graph::backward::Backward;
use crate::graph::tangent::Tangent;
use crate::graph::tensor::{DType, Type};
use crate::spec::job::Backend;
use crate::spec::units::Bytes;
use crate::with_float;
use rayon::prelude::*;

/// [`CrossEntropy`](super::cross_entropy::CrossEntropy) of `x · weightᵀ`, `rows` tokens at a time
/// (Hsu et al. 2024, Liger Kernel, arXiv:2410.10989).
///
/// Inputs: x (N, H), weight (V, H), targets (N) (U32), scale (2) (F32). Outputs: loss (1) (F32) and, with `gradient`,
/// dx (N, H) and, unless `frozen`, dweight (V, H) in `format`. Logits and their gradient are f32, in scratch, one chunk at a time;
/// a 16-bit dweight over several chunks is summed in f32 in scratch too and rounded once.
#[derive(Clone)]
pub struct LinearCrossEntropy {
    /// Tokens per chunk.
    pub rows: u64,
    /// As of [`CrossEntropy`](super::cross_entropy::CrossEntropy).
    pub softcap: Option<f64>,
    /// Whether gradients are made; without them this only evaluates.
    pub gradient: bool,
    /// Format of dweight.
    pub format: DType,
    /// Whether the weight gets no gradient.
    pub frozen: bool,
}

impl std::fmt::Debug for LinearCrossEntropy {
    /// Programs are told apart by this text: for a weight that is trained it is as it was before others could be frozen.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut text = f.debug_struct("LinearCrossEntropy");
        text.field("rows", &self.rows)
            .field("softcap", &self.softcap)
            .field("gradient", &self.gradient)
            .field("format", &self.format);
        if self.frozen {
            text.field("frozen", &true);
        }
        text.finish()
    }
}

/// Every part of scratch begins on such a boundary.
const ALIGN: u64 = 64;

/// Bytes of the parts of scratch.
struct Parts {
    logits: Bytes,
    losses: Bytes,
    sum: Bytes,
}

impl LinearCrossEntropy {
    /// How scratch is cut, before what the products need.
    fn parts(&self, x: &Type, weight: &Type) -> Parts {
        let rows = self.rows.min(x.rows());
        let weighs = self.gradient && !self.frozen;
        let summed = weighs && self.format.is_half() && x.rows() > rows;
        Parts {
            logits: Bytes(rows * weight.rows() * 4).round_up(ALIGN),
            losses: Bytes(x.rows() * 8).round_up(ALIGN),
            sum: Bytes(u64::from(summed) * weight.elements() * 4).round_up(ALIGN),
        }
    }
}

impl Op for LinearCrossEntropy {
    fn name(&self) -> &'static str {
        "linear_cross_entropy"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        expect_inputs(self.name(), inputs, 4)?;
        let (x, weight) = (&inputs[0], &inputs[1]);
        let fits = weight.shape.len() == 2
            && x.columns() == weight.columns()
            && x.dtype == weight.dtype
            && self.rows > 0;
        expect(self.name(), fits, || {
            format!("{x} by {weight}, {} rows at a time", self.rows)
        })?;
        let logits = Type::new(&[x.rows(), weight.rows()], DType::F32);
        expect_targets(self.name(), &logits, &inputs[2], &inputs[3])?;
        let mut outputs = vec![Output::Fresh(Type::new(&[1], DType::F32))];
        if self.gradient {
            outputs.push(Output::Fresh(x.clone()));
        }
        if self.gradient && !self.frozen {
            outputs.push(Output::Fresh(weight.with(self.format)));
        }
        Ok(outputs)
    }
    fn scratch(&self, inputs: &[Type], backend: Backend) -> Bytes {
        let Parts {
            logits,
            losses,
            sum,
        } = self.parts(&inputs[0], &inputs[1]);
        logits + losses + sum + matmul_scratch(inputs[0].dtype, self.format, backend)
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        let (x, weight) = (&inputs[0], &inputs[1]);
        let logits = x.rows() * weight.rows();
        let again = x.rows().div_ceil(self.rows) - 1;
        let capped = 1 + u64::from(self.softcap.is_some());
        // Logits are written and read; with gradients overwritten by theirs, which two products read. Every chunk
        // reads the weight, with gradients twice, and adds to the f32 sum of its gradient.
        let (products, passes, moves, weights) = match (self.gradient, self.frozen) {
            (true, false) => (3, 2, 5, 2 * weight.bytes().0 + 8 * weight.elements()),
            (true, true) => (2, 2, 4, 2 * weight.bytes().0),
            (false, _) => (1, 1, 2, weight.bytes().0),
        };
        Work {
            matmul: products * 2 * logits * x.columns(),
            vector: passes * capped * PASS * logits,
            bytes: traffic(inputs, outputs) + 4 * moves * logits + again * weights,
        }
    }
    fn backward(&self, at: &mut Backward) -> Result<()> {
        expect(self.name(), self.gradient, || {
            "was built to evaluate, without its gradients".to_string()
        })?;
        if at.wants(1) && !self.frozen {
            at.give_output(2, 1)?;
        }
        if at.wants(0) {
            at.give_output(1, 0)?;
        }
        Ok(())
    }
    fn tangent(&self, at: &mut Tangent) -> Result<()> {
        let op = LinearCrossEntropyTangent {
            rows: self.rows,
            softcap: self.softcap,
            input: at.of(0).is_some(),
            weight: at.of(1).is_some(),
        };
        let mut inputs = [0, 1, 2, 3].map(|i| at.input(i)).to_vec();
        inputs.extend([0, 1].into_iter().filter_map(|i| at.of(i)));
        let loss = at.emit(op, &inputs)?[0];
        at.give(0, loss);
        Ok(())
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        let (x, weight) = (io.inputs[0], io.inputs[1]);
        check_targets(io.inputs[2].of(), weight.at.rows() as usize)?;
        with_float!("linear_cross_entropy", x.at.dtype, T => {
            match self.gradient {
                false => self.evaluate::<T>(io),
                true => with_float!("linear_cross_entropy", self.format, G => self.differentiate::<T, G>(io)),
            }
        })
    }
    fn cuda(&self, call: &Call) -> kernel::Kernel {
        let (x, weight) = (&call.inputs[0], &call.inputs[1]);
        let (rows, hidden, vocab) = (x.rows(), weight.columns(), weight.rows());
        let parts = self.parts(x, weight);
        let sum = (parts.sum > Bytes::ZERO).then_some((parts.logits + parts.losses).0);
        let losses = Losses {
            softcap: self.softcap,
            gradient: self.gradient,
            dtype: DType::F32,
        };
        let mut tasks = Vec::new();
        for from in (0..rows).step_by(self.rows.max(1) as usize) {
            let count = self.rows.min(rows - from);
            let logits = Matrix::new(Memory::Scratch, DType::F32, vocab);
            let x = Matrix::input(call, 0).skip(from * hidden);
            let weight = Matrix::input(call, 1);
            let product = |shape, a, b, d| Task::Gemm(Gemm::new(shape, a, b, d));
            tasks.push(product((count, vocab, hidden), x, weight.t(), logits));
            let targets = at(Memory::Input(2), from * 4).into();
            let loss = scratch(parts.logits.0 + from * 8);
            let pointers = [scratch(0), targets, input(3), loss];
            tasks.push(Task::Launch(losses.rows(count, vocab, pointers)));
            if self.gradient {
                let dx = Matrix::output(call, 1).skip(from * hidden);
                tasks.push(product((count, hidden, vocab), logits, weight, dx));
            }
            if self.gradient && !self.frozen {
                let into = match sum {
                    None => Matrix::output(call, 2),
                    Some(offset) => {
                        Matrix::new(Memory::Scratch, DType::F32, hidden).skip(offset / 4)
                    }
                };
                let mut gemm = Gemm::new((vocab, hidden, count), logits.t(), x, into);
                gemm.accumulate = from > 0;
                tasks.push(Task::Gemm(gemm));
            }
        }
        if let Some(offset) = sum {
            let weight = &call.outputs[2];
            let launch = elementwise::narrow(scratch(offset), output(2), weight);
            tasks.push(Task::Launch(launch));
        }
        let pointers: [Argument; 3] = [scratch(parts.logits.0), input(3), output(0)];
        tasks.push(Task::Launch(losses.total(rows, pointers)));
        kernel::Kernel::Run(tasks)
    }
}

impl LinearCrossEntropy {
    /// The loss alone.
    fn evaluate<T: Element>(&self, io: &mut Io) -> Result<()> {
        let (x, weight) = (io.inputs[0], io.inputs[1]);
        let kernel = Kernel::new(self.softcap, io.inputs[3].of());
        let parts = self.parts(x.at, weight.at);
        let (logits, rest) = carve::<f32>(io.scratch, parts.logits);
        let (losses, products) = carve::<f64>(rest, parts.losses);
        let losses = &mut losses[..x.at.rows() as usize];
        let (vocab, hidden) = (weight.at.rows() as usize, weight.at.columns() as usize);
        let weight = Mat::new(weight.of::<T>(), vocab, hidden);
        let rows = self.rows as usize;
        let chunks = x.of::<T>().chunks(rows * hidden);
        let targets = io.inputs[2].of::<u32>().chunks(rows);
        for ((x, targets), losses) in chunks.zip(targets).zip(losses.chunks_mut(rows)) {
            let logits = &mut logits[..targets.len() * vocab];
            let x = Mat::new(x, targets.len(), hidden);
            matmul(logits, vocab, x, weight.t(), false, products);
            kernel.evaluate(logits, targets, losses);
        }
        set_loss(&mut io.outputs[0], kernel.total(losses))
    }

    /// The loss and both gradients.
    fn differentiate<T: Element, G: Element>(&self, io: &mut Io) -> Result<()> {
        let (x, weight) = (io.inputs[0], io.inputs[1]);
        let kernel = Kernel::new(self.softcap, io.inputs[3].of());
        let parts = self.parts(x.at, weight.at);
        let (logits, rest) = carve::<f32>(io.scratch, parts.logits);
        let (losses, rest) = carve::<f64>(rest, parts.losses);
        let (sum, products) = carve::<f32>(rest, parts.sum);
        let losses = &mut losses[..x.at.rows() as usize];
        let [loss, dx, rest @ ..] = &mut io.outputs[..] else {
            return Ok(());
        };
        let mut dweight = rest.first_mut().map(|dweight| dweight.of::<G>());
        let (vocab, hidden) = (weight.at.rows() as usize, weight.at.columns() as usize);
        let weight = Mat::new(weight.of::<T>(), vocab, hidden);
        let rows = self.rows as usize;
        let chunks = x.of::<T>().chunks(rows * hidden);
        let chunks = chunks.zip(dx.of::<T>().chunks_mut(rows * hidden));
        let labels = io.inputs[2].of::<u32>().chunks(rows);
        let labels = labels.zip(losses.chunks_mut(rows));
        for (index, ((x, dx), (targets, losses))) in chunks.zip(labels).enumerate() {
            let logits = &mut logits[..targets.len() * vocab];
            let x = Mat::new(x, targets.len(), hidden);
            matmul(logits, vocab, x, weight.t(), false, products);
            kernel.differentiate(logits, targets, losses);
            let dlogits = Mat::new(&*logits, targets.len(), vocab);
            matmul(dx, hidden, dlogits, weight, false, products);
            match &mut dweight {
                None => {}
                Some(dweight) if sum.is_empty() => {
                    matmul(dweight, hidden, dlogits.t(), x, index > 0, products);
                }
                Some(_) => matmul(sum, hidden, dlogits.t(), x, index > 0, products),
            }
        }
        if let Some(dweight) = dweight {
            narrow(dweight, sum);
        }
        set_loss(loss, kernel.total(losses))
    }
}

/// The tangent of the loss of [`LinearCrossEntropy`], `rows` tokens at a time, from logits made again.
///
/// Inputs: x (N, H), weight (V, H), targets (N) (U32), scale (2) (F32), then the tangent of x where `input`, then that of the
/// weight where `weight`. Output: (1) (F32), without loss scale, as the loss is. Logits and their tangent are f32, in scratch.
#[derive(Debug, Clone)]
pub struct LinearCrossEntropyTangent {
    /// As in the forward op.
    pub rows: u64,
    /// As in the forward op.
    pub softcap: Option<f64>,
    /// Whether x moves.
    pub input: bool,
    /// Whether the weight moves.
    pub weight: bool,
}

impl LinearCrossEntropyTangent {
    /// How many of the two move.
    fn terms(&self) -> u64 {
        u64::from(self.input) + u64::from(self.weight)
    }

    /// Bytes of one chunk's logits and of as many tangents, and of a number for each row.
    fn parts(&self, x: &Type, weight: &Type) -> [Bytes; 2] {
        let logits = self.rows.min(x.rows()) * weight.rows();
        [logits * 4, x.rows() * 8].map(|bytes| Bytes(bytes).round_up(ALIGN))
    }

    /// The sum over all rows of the logits' gradient times their tangent.
    fn sum<T: Element>(&self, io: &mut Io) -> f32 {
        let (x, weight) = (io.inputs[0], io.inputs[1]);
        let [logits, numbers] = self.parts(x.at, weight.at);
        let (logits, rest) = carve::<f32>(io.scratch, logits + logits);
        let (sums, products) = carve::<f64>(rest, numbers);
        let (logits, tangents) = logits.split_at_mut(logits.len() / 2);
        let sums = &mut sums[..x.at.rows() as usize];
        // Without loss scale.
        let kernel = Kernel::new(self.softcap, &[io.inputs[3].of::<f32>()[0], 1.0]);
        let (vocab, hidden) = (weight.at.rows() as usize, weight.at.columns() as usize);
        let matrix = |values, rows| Mat::<T>::new(values, rows, hidden);
        let mut moved = io.inputs[4..].iter();
        let dx = moved.next().filter(|_| self.input);
        let dx = dx.map(|view| matrix(view.of(), sums.len()));
        let dweight = io.inputs.last().filter(|_| self.weight);
        let dweight = dweight.map(|view| matrix(view.of(), vocab));
        let (x, weight) = (matrix(x.of(), sums.len()), matrix(weight.of(), vocab));
        let (rows, targets) = (self.rows as usize, io.inputs[2].of::<u32>());
        for (index, sums) in sums.chunks_mut(rows).enumerate() {
            let chunk = index * rows..index * rows + sums.len();
            let size = sums.len() * vocab;
            let (logits, tangents) = (&mut logits[..size], &mut tangents[..size]);
            let (x, targets) = (x.rows_of(chunk.clone()), &targets[chunk.clone()]);
            matmul(logits, vocab, x, weight.t(), false, products);
            if let Some(dx) = dx {
                let dx = dx.rows_of(chunk);
                matmul(tangents, vocab, dx, weight.t(), false, products);
            }
            if let Some(dweight) = dweight {
                matmul(tangents, vocab, x, dweight.t(), self.input, products);
            }
            kernel.differentiate(logits, targets, sums);
            along(logits, tangents, sums);
        }
        sums.iter().sum::<f64>() as f32
    }
}

impl Op for LinearCrossEntropyTangent {
    fn name(&self) -> &'static str {
        "linear_cross_entropy_tangent"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        expect_inputs(self.name(), inputs, 4 + self.terms() as usize)?;
        let forward = LinearCrossEntropy {
            rows: self.rows,
            softcap: self.softcap,
            gradient: false,
            format: inputs[1].dtype,
            frozen: true,
        };
        let moved = [(self.input, &inputs[0]), (self.weight, &inputs[1])];
        let moved = moved.into_iter().filter(|(moves, _)| *moves);
        let fits = self.terms() > 0 && inputs[4..].iter().eq(moved.map(|(_, at)| at));
        expect(self.name(), fits, || {
            format!("takes tangents like what moves; got {inputs:?}")
        })?;
        forward.outputs(&inputs[..4])
    }
    fn scratch(&self, inputs: &[Type], backend: Backend) -> Bytes {
        let [logits, numbers] = self.parts(&inputs[0], &inputs[1]);
        let dtype = inputs[0].dtype;
        logits + logits + numbers + matmul_scratch(dtype, dtype, backend)
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        let (x, weight) = (&inputs[0], &inputs[1]);
        let logits = x.rows() * weight.rows();
        let again = x.rows().div_ceil(self.rows) - 1;
        let capped = 1 + u64::from(self.softcap.is_some());
        let products = 1 + self.terms();
        // Logits are written, read, overwritten by their gradient and read again, as are the tangents that are summed. Every
        // chunk reads each weight.
        let moves = 4 + 2 * self.terms();
        Work {
            matmul: products * 2 * logits * x.columns(),
            vector: (2 * capped * PASS + 2) * logits,
            bytes: traffic(inputs, outputs)
                + 4 * moves * logits
                + again * (1 + u64::from(self.weight)) * weight.bytes().0,
        }
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        let (x, weight) = (io.inputs[0], io.inputs[1]);
        check_targets(io.inputs[2].of(), weight.at.rows() as usize)?;
        with_float!("linear_cross_entropy_tangent", x.at.dtype, T => {
            let loss = self.sum::<T>(io);
            set_loss(&mut io.outputs[0], loss)
        })
    }
    fn cuda(&self, call: &Call) -> kernel::Kernel {
        let (x, weight) = (&call.inputs[0], &call.inputs[1]);
        let (rows, hidden, vocab) = (x.rows(), weight.columns(), weight.rows());
        let [size, _] = self.parts(x, weight).map(|bytes| bytes.0);
        let losses = Losses {
            softcap: self.softcap,
            gradient: true,
            dtype: DType::F32,
        };
        let logits = Matrix::new(Memory::Scratch, DType::F32, vocab);
        let tangents = logits.skip(size / 4);
        let mut tasks = Vec::new();
        for from in (0..rows).step_by(self.rows.max(1) as usize) {
            let count = self.rows.min(rows - from);
            let mut product = |a, b: Matrix, into, accumulate| {
                let mut gemm = Gemm::new((count, vocab, hidden), a, b.t(), into);
                gemm.accumulate = accumulate;
                tasks.push(Task::Gemm(gemm));
            };
            let row = |index| Matrix::input(call, index).skip(from * hidden);
            product(row(0), Matrix::input(call, 1), logits, false);
            if self.input {
                product(row(4), Matrix::input(call, 1), tangents, false);
            }
            if self.weight {
                let moved = Matrix::input(call, call.inputs.len() - 1);
                product(row(0), moved, tangents, self.input);
            }
            let targets = at(Memory::Input(2), from * 4).into();
            let sums = scratch(2 * size + from * 8);
            let pointers = [scratch(0), targets, input(3), sums];
            let along = [scratch(0), scratch(size), sums];
            tasks.push(Task::Launch(losses.rows(count, vocab, pointers)));
            tasks.push(Task::Launch(losses.along(count, vocab, along)));
        }
        // The gradients carry the loss scale, which the sum is divided by.
        let pointers = [scratch(2 * size), input(3), output(0)];
        tasks.push(Task::Launch(losses.tangent(rows, pointers)));
        kernel::Kernel::Run(tasks)
    }
}

/// The first `bytes` of `scratch`, and the rest.
fn carve<T: bytemuck::Pod>(scratch: &mut [u8], bytes: Bytes) -> (&mut [T], &mut [u8]) {
    let (part, rest) = scratch.split_at_mut(bytes.0 as usize);
    (bytemuck::cast_slice_mut(part), rest)
}

/// Rounds `from`, where there is one.
fn narrow<G: Element>(into: &mut [G], from: &[f32]) {
    let chunk = super::elementwise::CHUNK;
    into.par_chunks_mut(chunk)
        .zip(from.par_chunks(chunk))
        .for_each(|(into, from)| {
            simd::narrow(from, into);
        });
}

/// Writes the loss.
fn set_loss(into: &mut ViewMut, loss: f32) -> Result<()> {
    into.of::<f32>()[0] = loss;
    Ok(())
}
