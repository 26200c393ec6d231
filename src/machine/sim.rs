//! The simulator: a small event loop in which running instructions share the device's resources fairly.

mod cost;
pub mod demand;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::Machine;
use super::timeline::{Mark, Timeline};
use crate::error::Result;
use crate::graph::Stream;
use crate::program::{BufferId, EventId, Program, Span};
use crate::spec::job::Target;
use crate::spec::units::Seconds;
pub use cost::{
    Cost, MATMUL_EFFICIENCY, MEMORY_EFFICIENCY, curve_key, efficiency_key, ideal_seconds,
    node_launches, node_work,
};
use cost::{RESOURCES, copy_cost, node_cost};

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
}

impl Machine for Sim<'_> {
    fn alloc(&mut self, _: usize, _: BufferId) -> Result<()> {
        Ok(())
    }
    fn free(&mut self, _: usize, _: BufferId) -> Result<()> {
        Ok(())
    }
    fn launch(&mut self, at: usize, node: u32, _: Option<BufferId>, stream: Stream) -> Result<()> {
        let cost = node_cost(&self.program.step, node, stream, self.target);
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
            now: self.target.device.start.map_or(0.0, |start| start.0),
            wake: self.target.device.wake.map_or(0.0, |wake| wake.0),
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
    /// Streams that wait for an event, and the time it takes one to notice it.
    asleep: BTreeSet<Stream>,
    wake: f64,
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
            asleep: BTreeSet::new(),
            wake: 0.0,
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
                        Task::Wait(event) if !self.happened[event.0 as usize] => {
                            self.asleep.insert(stream);
                            break;
                        }
                        Task::Wait(_) => {}
                        Task::Signal(event) => {
                            self.happened[event.0 as usize] = true;
                            changed = true;
                        }
                        Task::Work { at, cost } => {
                            let woken = self.asleep.remove(&stream);
                            let late = if woken { self.wake } else { 0.0 };
                            let (start, left) = (self.now + late, cost.seconds + late);
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
