//! What a GPU reaches: a product, a copy within its memory, and the link, each way and both ways at once.
#![allow(unsafe_code)] // pinned memory is handed to copies

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::driver::{Gpu, Mark, Queue};
use super::graph;
use super::means;
use super::memory::{Memory, Transfer, pin, unpin};
use super::modules::Function;
use super::prepared::{Means, Way, word};
use crate::error::Result;
use crate::graph::op::kernel::{Gemm, Launch, Matrix, Memory as Of, Pointer, Task};
use crate::graph::tensor::DType;
use crate::machine::cpu::arena::Arena;
use crate::spec::units::Bytes;

/// A measurement that took this long is long enough; sizes are doubled until then, up to a largest.
const LONG: f64 = 0.05;
const MOST_BYTES: u64 = 1 << 30;
const MOST_SIDE: u64 = 8192;

/// Rates that were reached.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Ceilings {
    /// Bytes per second read and written by a copy within the device.
    pub copy: f64,
    /// FLOP/s of a product in f32: cuBLASLt's where it is found, our own otherwise, as of all products here.
    pub product_f32: f64,
    /// FLOP/s of a product of bf16, summed in f32.
    pub product_bf16: f64,
    /// FLOP/s of a product of fp16, summed in f32.
    pub product_fp16: f64,
    /// Bytes per second to the device.
    pub to_device: f64,
    /// Bytes per second to the host.
    pub to_host: f64,
    /// Bytes per second of both together, each at the same time.
    pub both: f64,
    /// Seconds of a kernel that does next to nothing and of the event behind it, the mean of many queued together.
    pub launch: f64,
    /// Whether host memory could be pinned.
    pub pinned: bool,
}

/// Measures them.
///
/// # Errors
/// Where the device fails.
pub fn ceilings(gpu: &Gpu) -> Result<Ceilings> {
    gpu.bind()?;
    let mut queues = [Queue::new()?, Queue::new()?];
    let free = gpu.room()?.free.0;
    let most = MOST_BYTES.min(free / 8).next_power_of_two() / 2;
    let memory = Memory::new(gpu, Bytes(2 * most))?;
    let (to, back) = (memory.at(0, most)?, memory.at(most, most)?);
    let within = |bytes| {
        let one = Transfer::Within {
            from: to,
            to: back,
            bytes,
        };
        timed(&queues[..1], || queues[0].transfer(one))
    };
    let mut found = Ceilings {
        copy: 2.0 * grown(1 << 16, most, within)?,
        ..Ceilings::default()
    };
    link(&queues, [to, back], most, &mut found)?;
    drop(memory);
    let (mut means, _) = means(gpu)?;
    found.product_f32 = product(gpu, &queues[0], &mut means, DType::F32)?;
    found.product_bf16 = product(gpu, &queues[0], &mut means, DType::Bf16)?;
    found.product_fp16 = product(gpu, &queues[0], &mut means, DType::F16)?;
    found.launch = launch(gpu, &mut queues[0], &mut means)?;
    gpu.settle()?;
    Ok(found)
}

/// Seconds until what `queue` queues is done in all `queues`.
fn timed(queues: &[Queue], queue: impl FnOnce() -> Result<()>) -> Result<f64> {
    queues.iter().try_for_each(Queue::settle)?;
    let begin = Instant::now();
    queue()?;
    queues.iter().try_for_each(Queue::settle)?;
    Ok(begin.elapsed().as_secs_f64())
}

/// The best rate of `amount` doubled until it takes long enough.
fn grown(first: u64, most: u64, seconds: impl Fn(u64) -> Result<f64>) -> Result<f64> {
    let (mut amount, mut best) = (first.min(most), 0.0f64);
    loop {
        let took = seconds(amount)?;
        best = best.max(amount as f64 / took.max(1e-9));
        if took >= LONG || 2 * amount > most {
            return Ok(best);
        }
        amount *= 2;
    }
}

fn link(queues: &[Queue; 2], device: [u64; 2], most: u64, found: &mut Ceilings) -> Result<()> {
    let arenas = [(); 2].map(|()| Arena::new("link", Bytes(most / 4)));
    let [up, down] = arenas;
    let (up, down) = (up?, down?);
    let pins = [&up, &down].map(Arena::pages);
    let pinned = pins.map(|(at, bytes)| pin(at, bytes).is_ok());
    found.pinned = pinned == [true; 2];
    // SAFETY: nobody else has these arenas; copies are settled before they go.
    let (source, target) = unsafe { (up.read(0, most / 4), down.write(0, most / 4)) };
    let target = target.as_mut_ptr();
    let send = |bytes: u64| {
        let from = &source[..bytes as usize];
        queues[0].transfer(Transfer::In {
            from,
            to: device[0],
        })
    };
    let fetch = |bytes| {
        let from = device[1];
        queues[1].transfer(Transfer::Out {
            from,
            to: target,
            bytes,
        })
    };
    let rate = |work: &dyn Fn(u64) -> Result<()>| {
        grown(1 << 16, most / 4, |bytes| timed(queues, || work(bytes)))
    };
    let rates = [
        rate(&send),
        rate(&fetch),
        rate(&|bytes| send(bytes).and_then(|()| fetch(bytes))),
    ];
    for (pinned, (at, _)) in pinned.into_iter().zip(pins) {
        if pinned {
            unpin(at);
        }
    }
    let [to_device, to_host, both] = rates;
    (found.to_device, found.to_host, found.both) = (to_device?, to_host?, 2.0 * both?);
    Ok(())
}

/// A square product of `side`.
fn square(side: u64, dtype: DType) -> Gemm {
    let matrix = |at: u64| Matrix {
        at: Pointer {
            of: Of::Scratch,
            offset: at * side * side * 4,
        },
        dtype,
        stride: side,
        transposed: false,
    };
    let (a, b, d) = (matrix(0), matrix(1), matrix(2));
    Gemm {
        m: side,
        n: side,
        k: side,
        a,
        b,
        d,
        alpha: 1.0,
        accumulate: false,
        bias: None,
    }
}

fn product(gpu: &Gpu, queue: &Queue, means: &mut Means, dtype: DType) -> Result<f64> {
    let (mut side, mut best) = (64, 0.0f64);
    loop {
        let memory = Memory::new(gpu, Bytes(3 * side * side * 4))?;
        let (at, bytes) = (memory.at(0, 3 * side * side * 4)?, 3 * side * side * 4);
        queue.transfer(Transfer::Fill {
            to: at,
            value: 0,
            bytes,
        })?;
        let gemm = square(side, dtype);
        let ways = means.ways(&[vec![Task::Gemm(gemm.clone())]])?;
        let queues = std::slice::from_ref(queue);
        let took = timed(queues, || multiply(queue, &ways[0][0], &gemm, at))?;
        best = best.max(2.0 * (side * side * side) as f64 / took.max(1e-9));
        if took >= LONG || side >= MOST_SIDE {
            return Ok(best);
        }
        side *= 2;
    }
}

/// Queues a product whose memory all begins `at`.
fn multiply(queue: &Queue, way: &Way, gemm: &Gemm, at: u64) -> Result<()> {
    match way {
        Way::Kernel(function) => start(queue, *function, &gemm.launch(), at),
        Way::Product(product) => {
            let address = |pointer: Pointer| Ok(at + pointer.offset);
            product.start(queue, gemm, address, || "the ceilings".to_string())
        }
    }
}

/// Seconds of each of many small kernels with the event that tells its time, queued as programs queue them: in a graph where there are any.
fn launch(gpu: &Gpu, queue: &mut Queue, means: &mut Means) -> Result<f64> {
    const COUNT: u32 = 64;
    let memory = Memory::new(gpu, Bytes(4096))?;
    let at = memory.at(0, 4096)?;
    let launch = square(1, DType::F32).launch();
    means.modules.load([&launch].into_iter())?;
    let function = means.modules.function(&launch)?;
    let points = (0..COUNT).map(|_| Mark::new(true));
    let points = points.collect::<Result<Vec<_>>>()?;
    let all = |queue: &Queue| {
        points.iter().try_for_each(|point| {
            start(queue, function, &launch, at)?;
            point.record(queue)
        })
    };
    let took = |queue: &Queue, all: &mut dyn FnMut() -> Result<()>| {
        timed(std::slice::from_ref(queue), &mut *all)?;
        timed(std::slice::from_ref(queue), all)
    };
    let seconds = match graph::captured(queue, all) {
        Some(mut graph) => took(queue, &mut || graph.launch(queue))?,
        None => took(queue, &mut || all(queue))?,
    };
    Ok(seconds / f64::from(COUNT))
}

/// Queues a launch whose memory all begins `at`.
fn start(queue: &Queue, function: Function, launch: &Launch, at: u64) -> Result<()> {
    let words = launch.arguments.iter().map(|a| word(a, |_| Ok(at)));
    let mut words = words.collect::<Result<Vec<u64>>>()?;
    function.start(queue, launch, &mut words, || "the ceilings".to_string())
}
