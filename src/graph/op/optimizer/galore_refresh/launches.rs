//! How a projector is refreshed on a GPU: what lies where in the scratch, and the tasks in their order.

use super::{Factorization, Refresh};
use crate::graph::op::kernel::{
    Argument, Call, Gemm, Kernel, Launch, Matrix, Memory, SHARED, Task, at, input, output, scratch,
};
use crate::graph::op::optimizer::galore::Low;
use crate::graph::tensor::DType;

/// What tasks are made from.
struct Plan<'a> {
    call: &'a Call<'a>,
    low: Low,
    /// Directions sought, the smaller and the larger side.
    sought: u64,
    least: u64,
    most: u64,
    guard: Argument,
}

/// All of a refresh; none where a row is too long for a block's memory.
pub(super) fn kernel(op: &Refresh, call: &Call) -> Kernel {
    let low = Low::of(&call.inputs[0], call.inputs[1].rows());
    let (least, most) = low.sides();
    let plan = Plan {
        call,
        low,
        sought: op.sought(low) as u64,
        least: least as u64,
        most: most as u64,
        guard: if op.guard { input(2) } else { Argument::Null },
    };
    let mut tasks = Vec::new();
    match op.factorization {
        Factorization::Exact => tasks.push(Task::Launch(plan.gram())),
        Factorization::Randomized { .. } if 4 * plan.least > SHARED => return Kernel::Missing,
        Factorization::Randomized { power, .. } => plan.find(power, &mut tasks),
    }
    let is_found = op.factorization != Factorization::Exact;
    tasks.extend(plan.placed(is_found).map(Task::Launch));
    if op.guard {
        let rank = low.rank as u64;
        let unit = plan.launch("galore_unit");
        let unit = unit.given([output(0), plan.guard, rank.into(), plan.least.into()]);
        tasks.push(Task::Launch(unit));
    }
    Kernel::Run(tasks)
}

impl Plan<'_> {
    fn launch(&self, entry: &'static str) -> Launch {
        Launch::new("galore_refresh", entry).format("G", self.call.format(0))
    }

    /// Where eigenvalues lie, behind the Gram matrix.
    fn values(&self) -> u64 {
        8 * self.sought * self.sought
    }

    /// Where directions lie (sought, least), and the gradient along them (most, sought).
    fn found(&self) -> (u64, u64) {
        let found = self.values() + 8 * super::eigen::room(self.sought as usize) as u64;
        (found, found + 4 * self.sought * self.least)
    }

    fn tiled(&self, entry: &'static str) -> Launch {
        let tiles = self.sought.div_ceil(16);
        self.launch(entry).grid(tiles, tiles, 1)
    }

    /// The Gram matrix of the smaller side.
    fn gram(&self) -> Launch {
        let (down, across) = match self.low.is_tall() {
            true => (self.least, 1),
            false => (1, self.most),
        };
        (self
            .tiled("galore_gram")
            .given([input(0), scratch(0), self.guard]))
        .given([self.most, self.least, down, across].map(Argument::U64))
    }

    /// A random block of directions turned towards the largest, and the Gram matrix of the gradient along them.
    fn find(&self, power: u32, tasks: &mut Vec<Task>) {
        let (found_at, along_at) = self.found();
        let count = self.sought * self.least;
        let matrix = |offset, columns| Matrix {
            at: at(Memory::Scratch, offset),
            ..Matrix::new(Memory::Scratch, DType::F32, columns)
        };
        let (found, along) = (matrix(found_at, self.least), matrix(along_at, self.sought));
        let tall = match self.low.is_tall() {
            true => Matrix::input(self.call, 0),
            false => Matrix::input(self.call, 0).t(),
        };
        let orthonormalize = || {
            let launch = self.launch("galore_orthonormalize").shared(4 * self.least);
            let launch = launch.given([scratch(found_at), self.guard, (self.sought as u32).into()]);
            Task::Launch(launch.given([self.least.into()]))
        };
        let draw = self.launch("galore_draw").each(count);
        let draw = draw.given([scratch(found_at), count.into(), self.call.key.0.into()]);
        tasks.extend([Task::Launch(draw), orthonormalize()]);
        let forward = Gemm::new((self.most, self.sought, self.least), tall, found.t(), along);
        let back = Gemm::new((self.sought, self.least, self.most), along.t(), tall, found);
        for _ in 0..power {
            tasks.extend([Task::Gemm(forward.clone()), Task::Gemm(back.clone())]);
            tasks.push(orthonormalize());
        }
        tasks.push(Task::Gemm(forward));
        let gram = self.tiled("galore_gram_along");
        let gram = gram.given([scratch(along_at), scratch(0), self.guard]);
        tasks.push(Task::Launch(
            gram.given([self.most, self.sought].map(Argument::U64)),
        ));
    }

    /// Its eigenvectors, and the largest in the old ones' places.
    fn placed(&self, is_found: bool) -> [Launch; 2] {
        let n = self.sought;
        let (found, along) = match is_found {
            true => (scratch(self.found().0), scratch(self.found().1)),
            false => (Argument::Null, Argument::Null),
        };
        let (matrix, values) = (scratch(0), scratch(self.values()));
        let order = scratch(self.values() + 8 * n);
        [
            (self.launch("galore_eigen")).given([matrix, values, self.guard, (n as u32).into()]),
            (self.launch("galore_place").grid(self.low.rank as u64, 1, 1))
                .given([matrix, order, found, along, output(0), self.guard])
                .given([n, self.least].map(Argument::U64)),
        ]
    }
}
