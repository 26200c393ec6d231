//! A queue of the device, filled by a thread of its own: what is queued behind an event of the host waits on the host for it.
#![allow(unsafe_code)] // host memory is written by copies of the device

use std::sync::mpsc::Receiver;

use super::driver::{Mark as Point, Queue};
use super::events::{Meeting, Times};
use super::memory::{Memory, Transfer};
use super::prepared::{Kernels, Prepared, Ready, Way, word};
use crate::error::{Error, Result};
use crate::graph::op::kernel::{Memory as Of, Pointer, Task as Work};
use crate::graph::op::transfer::{Feed, Report};
use crate::graph::op::{Op, Port, Scalars};
use crate::graph::random::Key;
use crate::graph::{Node, Stream};
use crate::machine::cpu::arena::Arena;
use crate::machine::cpu::places::Places;
use crate::machine::cpu::stream::{Events, Range, Task, stopped};
use crate::machine::timeline::Mark;
use crate::program::Program;
use crate::spec::job::Place;

/// All that the tasks of a walk touch.
#[derive(Clone, Copy)]
pub struct Ground<'a> {
    /// What is walked.
    pub program: &'a Program,
    /// The same, made ready.
    pub prepared: &'a Prepared,
    /// The device's memory.
    pub memory: &'a Memory,
    /// The host's, and the disk.
    pub places: &'a Places,
    /// Where values from and for the outside wait for their copy.
    pub mailbox: &'a Arena,
    /// The events.
    pub meeting: &'a Meeting<'a>,
    /// The outside.
    pub port: &'a dyn Port,
    /// Numbers of the step.
    pub scalars: Scalars,
    /// Seed of the job.
    pub seed: u64,
    /// When the walk began, on the device.
    pub epoch: &'a Point,
}

/// A queue, and what has been put into it.
pub struct Worker<'a> {
    stream: Stream,
    queue: &'a Queue,
    times: &'a mut Times,
    on: Ground<'a>,
    /// Values of the parameters of a launch, kept so that nothing is allocated for them again.
    words: Vec<u64>,
    /// What is to be handed to the outside once it is there.
    reports: Vec<(usize, u64)>,
}

impl<'a> Worker<'a> {
    /// A worker that fills `queue`.
    pub fn new(
        stream: Stream,
        queue: &'a Queue,
        times: &'a mut Times,
        on: Ground<'a>,
    ) -> Worker<'a> {
        Worker {
            stream,
            queue,
            times,
            on,
            words: Vec::new(),
            reports: Vec::new(),
        }
    }
}

impl Worker<'_> {
    /// Queues tasks until no more come, waits for them, and hands out what was reported; returns when each ran.
    pub fn run(mut self, tasks: Receiver<Task>) -> Vec<Mark> {
        self.times.restart();
        // A range outside of memory stops a task, and with it the run. Tasks are taken until it is known why.
        let queued = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            self.on.meeting.gpu.bind()?;
            self.all(&tasks)
        }));
        let queued = queued.unwrap_or_else(|_| Err(stopped(self.stream)));
        // Whatever happened, nothing of this walk is under way when it ends.
        let settled = self.queue.settle();
        match queued.and_then(|whole| settled.map(|()| whole)) {
            Ok(true) => self.finish().unwrap_or_else(|error| {
                self.on.meeting.fail(error);
                Vec::new()
            }),
            Ok(false) => Vec::new(),
            Err(error) => {
                self.on.meeting.fail(error);
                Vec::new()
            }
        }
    }

    fn all(&mut self, tasks: &Receiver<Task>) -> Result<bool> {
        for task in tasks {
            if !self.task(task)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// One task; false where another stream has failed.
    fn task(&mut self, task: Task) -> Result<bool> {
        match task {
            Task::Signal(event) => {
                self.on.meeting.points[event].record(self.queue)?;
                self.on.meeting.signal(event);
            }
            Task::Wait(event) => {
                if !self.on.meeting.board.wait(event) {
                    return Ok(false);
                }
                if self.on.meeting.by_device[event] {
                    self.queue.wait(&self.on.meeting.points[event])?;
                }
                self.times.wait();
            }
            Task::Poison(range) => self.poison(range)?,
            Task::Copy { at, from, to } => {
                let begin = self.times.begin(self.queue)?;
                self.copy(from, to)?;
                self.times.end(self.queue, at, begin)?;
            }
            Task::Launch {
                at,
                node,
                inputs,
                outputs,
                scratch,
            } => {
                let begin = self.times.begin(self.queue)?;
                self.launch(node, &inputs, &outputs, scratch)?;
                self.times.end(self.queue, at, begin)?;
            }
        }
        Ok(true)
    }

    /// What was reported goes out, and the times come in.
    fn finish(&mut self) -> Result<Vec<Mark>> {
        for &(node, slot) in &self.reports {
            let node = &self.on.program.step.nodes[node];
            let bytes = self.on.program.step.type_of(node.inputs[0]).bytes().0;
            if let Some(report) = as_op::<Report>(&*node.op) {
                // SAFETY: the copies into the mailbox are done, and each slot is one node's.
                let value = unsafe { self.on.mailbox.read(slot, bytes) };
                self.on.port.write(&report.name, report.offset, value)?;
            }
        }
        self.times.marks(self.stream, self.on.epoch)
    }

    fn on_device(&self, range: Range) -> Result<u64> {
        match range.place {
            Place::Gpu => self.on.memory.at(range.offset, range.bytes),
            place => Err(Error::shape(
                "run",
                format!("a kernel cannot reach {place:?}"),
            )),
        }
    }

    fn copy(&self, from: Range, to: Range) -> Result<()> {
        let transfer = match (from.place, to.place) {
            (Place::Gpu, Place::Gpu) => Transfer::Within {
                from: self.on_device(from)?,
                to: self.on_device(to)?,
                bytes: from.bytes,
            },
            (_, Place::Gpu) => Transfer::In {
                from: self.on.places.read(from),
                to: self.on_device(to)?,
            },
            (Place::Gpu, _) => Transfer::Out {
                from: self.on_device(from)?,
                to: self.on.places.write(to).as_mut_ptr(),
                bytes: from.bytes,
            },
            _ => return self.on.places.copy(from, to),
        };
        self.queue.transfer(transfer)
    }

    fn poison(&self, range: Range) -> Result<()> {
        if range.place != Place::Gpu {
            self.queue.settle()?;
            self.on.places.poison(range);
            return Ok(());
        }
        let (to, bytes) = (self.on_device(range)?, range.bytes);
        self.queue.transfer(Transfer::Fill {
            to,
            value: 0xff,
            bytes,
        })
    }

    fn launch(
        &mut self,
        index: usize,
        inputs: &[Option<Range>],
        outputs: &[Range],
        scratch: Option<Range>,
    ) -> Result<()> {
        let (program, prepared) = (self.on.program, self.on.prepared);
        let node = &program.step.nodes[index];
        let place = |range: Option<Range>| range.unwrap_or_else(|| panic!("a value has a range"));
        match &prepared.nodes[index] {
            Ready::Feed(slot) => self.feed(node, *slot, outputs[0]),
            Ready::Report(slot) => {
                let from = place(inputs[0]);
                // SAFETY: each slot is one node's, which runs once in a walk.
                let to = unsafe { self.on.mailbox.write(*slot, from.bytes) }.as_mut_ptr();
                self.reports.push((index, *slot));
                let (from, bytes) = (self.on_device(from)?, from.bytes);
                self.queue.transfer(Transfer::Out { from, to, bytes })
            }
            Ready::Kernels(kernels) => self.kernels(node, kernels, (inputs, outputs, scratch)),
            Ready::Elsewhere => Err(Error::shape(
                node.op.name(),
                "was not made ready for the device",
            )),
        }
    }

    fn feed(&mut self, node: &Node, slot: u64, to: Range) -> Result<()> {
        let Some(feed) = as_op::<Feed>(&*node.op) else {
            return Err(Error::shape(node.op.name(), "feeds nothing"));
        };
        // SAFETY: each slot is one node's, which runs once in a walk.
        let from = unsafe { self.on.mailbox.write(slot, to.bytes) };
        self.on.port.read(&feed.name, feed.offset, from)?;
        let to = self.on_device(to)?;
        self.queue.transfer(Transfer::In { from, to })
    }

    fn kernels(
        &mut self,
        node: &Node,
        kernels: &Kernels,
        at: (&[Option<Range>], &[Range], Option<Range>),
    ) -> Result<()> {
        let (inputs, outputs, scratch) = at;
        let mut words = std::mem::take(&mut self.words);
        let key = Key::new(self.on.seed, self.on.scalars.step, &node.origin);
        let address = |of: Of| {
            let range = match of {
                Of::Output(i) => Some(outputs[i]),
                Of::Scratch => scratch,
                Of::Input(i) => inputs[i].or_else(|| {
                    // An overwritten input is its output's memory.
                    let output = kernels.overwrites.iter().position(|o| *o == Some(i));
                    output.map(|o| outputs[o])
                }),
            };
            let why = || format!("node `{}` has no {of:?}", node.origin);
            self.on_device(range.ok_or_else(|| Error::shape(node.op.name(), why()))?)
        };
        let what = || format!("op {} at {}", node.op.name(), node.origin);
        let ran = kernels.of(&*node.op, key, self.on.scalars, |(way, task)| {
            match (way, task) {
                (Way::Kernel(function), Work::Launch(launch)) => {
                    words.clear();
                    for argument in &launch.arguments {
                        words.push(word(argument, address)?);
                    }
                    function.start(self.queue, launch, &mut words, what)
                }
                (Way::Product(product), Work::Gemm(gemm)) => {
                    let address = |at: Pointer| Ok(address(at.of)? + at.offset);
                    product.start(self.queue, gemm, address, what)
                }
                _ => Err(Error::shape(
                    node.op.name(),
                    "was made ready for another task",
                )),
            }
        });
        self.words = words;
        ran
    }
}

fn as_op<T: Op>(op: &dyn Op) -> Option<&T> {
    let op: &dyn std::any::Any = op;
    op.downcast_ref()
}
