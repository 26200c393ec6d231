//! The simulator: a small event loop in which running instructions share the device's resources fairly.

use std::collections::{BTreeMap, VecDeque};

use super::Machine;
use super::timeline::{Mark, Timeline};
use crate::error::Result;
use crate::graph::Stream;
use crate::graph::op::{Op, Work};
use crate::graph::tensor::{DType, Type};
use crate::program::{BufferId, EventId, Program, Span};
use crate::spec::job::{Place, Target};
use crate::spec::units::Seconds;

/// Fraction of a device's matrix peak that large products reach where nothing was measured: published sweeps
/// (stas00/ml-engineering, compute/accelerator) find 0.78 to 0.87 on A100, H100 and B200.
const MATMUL_EFFICIENCY: f64 = 0.75;

/// Fraction of the memory bandwidth that elementwise kernels reach where nothing was measured.
const MEMORY_EFFICIENCY: f64 = 0.8;

/// What instructions compete for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Resource {
    Cores,
    Memory,
    Dram,
    LinkIn,
    LinkOut,
    DiskRead,
    DiskWrite,
}

const RESOURCES: usize = 7;

/// An instruction's cost when alone: seconds, and the share of each resource it takes meanwhile.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cost {
    seconds: f64,
    share: [f64; RESOURCES],
}

/// Something queued in a stream.
#[derive(Debug, Clone, Copy)]
enum Task {
    Work { at: usize, cost: Cost },
    Signal(EventId),
    Wait(EventId),
}

/// A machine that only keeps time.
pub struct Sim<'a> {
    program: &'a Program,
    target: &'a Target,
    queues: BTreeMap<Stream, VecDeque<Task>>,
}

impl<'a> Sim<'a> {
    /// A simulation of `program` on `target`.
    pub fn new(program: &'a Program, target: &'a Target) -> Sim<'a> {
        Sim {
            program,
            target,
            queues: BTreeMap::new(),
        }
    }

    fn push(&mut self, stream: Stream, task: Task) -> Result<()> {
        self.queues.entry(stream).or_default().push_back(task);
        Ok(())
    }

    /// The cost of a node on this target.
    fn cost(&self, node: u32, stream: Stream) -> Cost {
        let step = &self.program.step;
        let node = &step.nodes[node as usize];
        let types = |ids: &[crate::graph::tensor::TensorId]| {
            ids.iter()
                .map(|&i| step.type_of(i).clone())
                .collect::<Vec<Type>>()
        };
        let (inputs, outputs) = (types(&node.inputs), types(&node.outputs));
        let work = node.op.work(&inputs, &outputs);
        let dtype = inputs
            .first()
            .or(outputs.first())
            .map_or(DType::F32, |t| t.dtype);
        match stream {
            Stream::HostCompute => host_cost(work, self.target),
            _ => device_cost(node.op.as_ref(), work, dtype, self.target),
        }
    }
}

/// Seconds of a kernel on the device: the slowest of its matrix products, its other arithmetic and its traffic, plus the launch.
fn device_cost(op: &dyn Op, work: Work, dtype: DType, target: &Target) -> Cost {
    let device = &target.device;
    let measured = device
        .efficiency
        .get(&efficiency_key(op.name(), dtype))
        .copied();
    let ideal = ideal_seconds(work, dtype, target);
    let reached = measured.unwrap_or(if work.matmul > 0 {
        MATMUL_EFFICIENCY
    } else {
        MEMORY_EFFICIENCY
    });
    let seconds = device.launch.0 + ideal / reached;
    let mut share = [0.0f64; RESOURCES];
    share[Resource::Cores as usize] = 1.0;
    share[Resource::Memory as usize] =
        (work.bytes as f64 / device.bandwidth / seconds.max(1e-12)).min(1.0);
    Cost { seconds, share }
}

/// The name under which a measured efficiency is kept.
pub fn efficiency_key(op: &str, dtype: DType) -> String {
    format!("{op}.{dtype:?}").to_lowercase()
}

/// Seconds at the device's peaks: what no kernel can beat.
pub fn ideal_seconds(work: Work, dtype: DType, target: &Target) -> f64 {
    let device = &target.device;
    let matmul = work.matmul as f64
        / dtype_precision(dtype)
            .peak(device)
            .unwrap_or(device.peak.fp32);
    let vector = work.vector as f64 / device.peak.fp32;
    let memory = work.bytes as f64 / device.bandwidth;
    matmul.max(vector).max(memory)
}

/// The precision a number format computes in.
fn dtype_precision(dtype: DType) -> crate::spec::job::Precision {
    use crate::spec::job::Precision;
    match dtype {
        DType::Bf16 => Precision::Bf16,
        DType::F16 => Precision::Fp16,
        DType::F32 | DType::U32 => Precision::F32,
    }
}

/// Seconds of host arithmetic: bound by the host's memory.
fn host_cost(work: Work, target: &Target) -> Cost {
    let seconds = work.bytes as f64 / target.host.dram;
    let mut share = [0.0f64; RESOURCES];
    share[Resource::Dram as usize] = 1.0;
    Cost { seconds, share }
}

/// Seconds of a copy between places.
fn copy_cost(bytes: u64, from: Place, to: Place, target: &Target) -> Cost {
    let (host, link) = (&target.host, target.link());
    let (resource, rate) = match (from, to) {
        (Place::Gpu, Place::Gpu) => (Resource::Memory, target.device.bandwidth / 2.0),
        (Place::Disk, _) => (Resource::DiskRead, host.disk_rate),
        (_, Place::Disk) => (Resource::DiskWrite, host.disk_rate),
        (Place::Gpu, _) => (Resource::LinkOut, link),
        (_, Place::Gpu) => (Resource::LinkIn, link),
        _ => (Resource::Dram, host.dram / 2.0),
    };
    let seconds = bytes as f64 / rate;
    let mut share = [0.0f64; RESOURCES];
    share[resource as usize] = 1.0;
    share[Resource::Dram as usize] =
        share[Resource::Dram as usize].max((rate / host.dram).min(1.0));
    if from == Place::Gpu || to == Place::Gpu {
        share[Resource::Memory as usize] =
            share[Resource::Memory as usize].max((rate / target.device.bandwidth).min(1.0));
    }
    Cost { seconds, share }
}

impl Machine for Sim<'_> {
    fn alloc(&mut self, _: usize, _: BufferId) -> Result<()> {
        Ok(())
    }
    fn free(&mut self, _: usize, _: BufferId) -> Result<()> {
        Ok(())
    }
    fn launch(&mut self, at: usize, node: u32, _: Option<BufferId>, stream: Stream) -> Result<()> {
        let cost = self.cost(node, stream);
        self.push(stream, Task::Work { at, cost })
    }
    fn copy(&mut self, at: usize, from: Span, to: Span, stream: Stream) -> Result<()> {
        let places = (
            self.program.buffer(from.buffer).place,
            self.program.buffer(to.buffer).place,
        );
        let cost = copy_cost(from.bytes.0, places.0, places.1, self.target);
        self.push(stream, Task::Work { at, cost })
    }
    fn signal(&mut self, stream: Stream, event: EventId) -> Result<()> {
        self.push(stream, Task::Signal(event))
    }
    fn wait(&mut self, stream: Stream, event: EventId) -> Result<()> {
        self.push(stream, Task::Wait(event))
    }
    fn finish(&mut self) -> Result<Timeline> {
        let queues = std::mem::take(&mut self.queues);
        Ok(EventLoop {
            queues,
            ..EventLoop::new(self.program.events)
        }
        .run())
    }
}

/// One instruction under way.
#[derive(Debug, Clone, Copy)]
struct Running {
    at: usize,
    stream: Stream,
    start: f64,
    /// Seconds left if it ran alone.
    left: f64,
    share: [f64; RESOURCES],
}

/// The loop: at most one instruction per stream; rates change only where one starts or ends.
struct EventLoop {
    queues: BTreeMap<Stream, VecDeque<Task>>,
    running: Vec<Running>,
    happened: Vec<bool>,
    now: f64,
    marks: Vec<Mark>,
}

impl EventLoop {
    fn new(events: u32) -> EventLoop {
        let happened = vec![false; events as usize];
        EventLoop {
            queues: BTreeMap::new(),
            running: Vec::new(),
            happened,
            now: 0.0,
            marks: Vec::new(),
        }
    }

    fn run(mut self) -> Timeline {
        loop {
            self.start_what_can();
            if self.running.is_empty() {
                break;
            }
            let rates = fair_rates(&self.running);
            let next = self
                .running
                .iter()
                .zip(&rates)
                .map(|(r, rate)| r.left / rate)
                .fold(f64::INFINITY, f64::min);
            self.advance(next, &rates);
        }
        Timeline {
            marks: self.marks,
            total: Seconds(self.now),
        }
    }

    /// Starts the head of every idle stream, events included, until nothing changes.
    fn start_what_can(&mut self) {
        let mut changed = true;
        while changed {
            changed = false;
            for (&stream, queue) in &mut self.queues {
                if self.running.iter().any(|r| r.stream == stream) {
                    continue;
                }
                while let Some(&task) = queue.front() {
                    match task {
                        Task::Wait(event) if !self.happened[event.0 as usize] => break,
                        Task::Wait(_) => {}
                        Task::Signal(event) => {
                            self.happened[event.0 as usize] = true;
                            changed = true;
                        }
                        Task::Work { at, cost } => {
                            let (start, left) = (self.now, cost.seconds);
                            self.running.push(Running {
                                at,
                                stream,
                                start,
                                left,
                                share: cost.share,
                            });
                            queue.pop_front();
                            break;
                        }
                    }
                    queue.pop_front();
                }
            }
        }
    }

    /// Lets `seconds` pass at `rates` and takes out what ended.
    fn advance(&mut self, seconds: f64, rates: &[f64]) {
        self.now += seconds;
        for (running, rate) in self.running.iter_mut().zip(rates) {
            running.left -= seconds * rate;
        }
        let now = self.now;
        let marks = &mut self.marks;
        self.running.retain(|r| {
            let ended = r.left <= 1e-12;
            if ended {
                marks.push(Mark {
                    at: r.at,
                    stream: r.stream,
                    start: r.start,
                    end: now,
                });
            }
            !ended
        });
    }
}

/// Max-min fair rates: all grow together until a resource is full; who uses it stops there, the others go on.
fn fair_rates(running: &[Running]) -> Vec<f64> {
    let mut rates = vec![1.0; running.len()];
    if running.len() < 2 {
        return rates;
    }
    let mut open: Vec<bool> = vec![true; running.len()];
    let mut level = 0.0;
    while open.iter().any(|o| *o) {
        let (reach, full) = next_full(running, &rates, &open, level);
        for (index, is_open) in open.iter_mut().enumerate().filter(|(_, o)| **o) {
            rates[index] = reach;
            if reach >= 1.0 || full.is_some_and(|r| running[index].share[r] > 0.0) {
                *is_open = false;
            }
        }
        level = reach;
    }
    rates
}

/// The level at which the next resource fills, at most 1, and that resource.
fn next_full(
    running: &[Running],
    rates: &[f64],
    open: &[bool],
    level: f64,
) -> (f64, Option<usize>) {
    let mut best = (1.0, None);
    for resource in 0..RESOURCES {
        let fixed: f64 = (0..running.len())
            .filter(|&i| !open[i])
            .map(|i| running[i].share[resource] * rates[i])
            .sum();
        let growing: f64 = (0..running.len())
            .filter(|&i| open[i])
            .map(|i| running[i].share[resource])
            .sum();
        if growing > 0.0 {
            let reach = ((1.0 - fixed) / growing).max(level.max(1e-3));
            if reach < best.0 {
                best = (reach, Some(resource));
            }
        }
    }
    best
}
