//! A queue of the device, filled by a thread of its own: what is queued behind an event of the host waits on the host for it.
#![allow(unsafe_code)] // host memory is written by copies of the device

use std::sync::mpsc::Receiver;

use super::driver::Mark as Point;
use super::events::Meeting;
use super::graph::{Graph, Node as Captured};
use super::lane::{Lane, Stretches};
use super::memory::{Memory, Transfer};
use super::modules::Function;
use super::prepared::{Kernels, Prepared, Ready, Way, word};
use crate::error::{Error, Result};
use crate::graph::op::kernel::{Launch, Memory as Of, Pointer, Task as Work};
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
    /// Whether the host's memory is pinned, so that the device may copy it whenever it comes to it.
    pub pinned: bool,
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

impl Ground<'_> {
    fn on_device(&self, range: Range) -> Result<u64> {
        match range.place {
            Place::Gpu => self.memory.at(range.offset, range.bytes),
            place => Err(Error::shape(
                "run",
                format!("a kernel cannot reach {place:?}"),
            )),
        }
    }
}

/// A queue, and what has been put into it.
pub struct Worker<'a> {
    stream: Stream,
    pub(super) lane: &'a mut Lane,
    pub(super) on: Ground<'a>,
    /// Tasks since the queue met another, where they go as one.
    pub(super) stretch: Vec<Task>,
    /// The program's stretches; none where tasks are queued as they come.
    pub(super) stretches: Option<Stretches>,
    /// How many stretches have been queued.
    pub(super) turn: usize,
    /// Kernels captured in this stretch whose parameters are the step's.
    pub(super) varying: Vec<Captured>,
    /// Values of the parameters of a launch, kept so that nothing is allocated for them again.
    words: Vec<u64>,
    /// What is to be handed to the outside once it is there.
    pub(super) reports: Vec<(usize, u64)>,
}

impl<'a> Worker<'a> {
    /// A worker that fills the queue of `lane`.
    pub fn new(stream: Stream, lane: &'a mut Lane, on: Ground<'a>) -> Worker<'a> {
        Worker {
            stream,
            stretches: lane.take(on.program.when),
            lane,
            on,
            stretch: Vec::new(),
            turn: 0,
            varying: Vec::new(),
            words: Vec::new(),
            reports: Vec::new(),
        }
    }
}

impl Worker<'_> {
    /// Queues tasks until no more come, waits for them, and hands out what was reported; returns when each ran.
    pub fn run(mut self, tasks: Receiver<Task>) -> Vec<Mark> {
        self.lane.times.restart();
        // A range outside of memory stops a task, and with it the run. Tasks are taken until it is known why.
        let queued = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            self.on.meeting.gpu.bind()?;
            self.all(&tasks)
        }));
        let queued = queued.unwrap_or_else(|_| Err(stopped(self.stream)));
        // Whatever happened, nothing of this walk is under way when it ends.
        let settled = self.lane.queue.settle();
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
        self.flush()?;
        Ok(true)
    }

    /// One task; false where another stream has failed.
    fn task(&mut self, task: Task) -> Result<bool> {
        if self.stretches.is_some() && self.may_be_captured(&task) {
            self.stretch.push(task);
            return Ok(true);
        }
        self.flush()?;
        match task {
            Task::Wait(event) => {
                if !self.on.meeting.board.wait(event) {
                    return Ok(false);
                }
                if self.on.meeting.by_device[event] {
                    self.lane.queue.wait(&self.on.meeting.points[event])?;
                }
                self.lane.times.wait();
            }
            task => self.queue(&task)?,
        }
        Ok(true)
    }

    /// Queues a task that waits for nobody.
    pub(super) fn queue(&mut self, task: &Task) -> Result<()> {
        let at = match task {
            Task::Copy { at, .. } | Task::Launch { at, .. } => *at,
            Task::Poison(range) => return self.poison(*range),
            Task::Signal(event) => return self.signal(*event),
            Task::Wait(_) => return Ok(()),
        };
        let begin = self.lane.times.begin(&self.lane.queue)?;
        match task {
            Task::Copy { from, to, .. } => self.copy(*from, *to)?,
            task => self.launch(task, None)?,
        }
        self.lane.times.end(&self.lane.queue, at, begin)
    }

    /// An event stands for what is in the queue now; nobody is told as long as that is captured only.
    fn signal(&self, event: usize) -> Result<()> {
        self.on.meeting.points[event].record(&self.lane.queue)?;
        if !self.lane.queue.captures {
            self.on.meeting.signal(event);
        }
        Ok(())
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
        let stretches = self.stretches.take();
        self.lane.keep(self.on.program.when, stretches);
        self.lane.times.marks(self.stream, self.on.epoch)
    }

    fn copy(&self, from: Range, to: Range) -> Result<()> {
        let transfer = match (from.place, to.place) {
            (Place::Gpu, Place::Gpu) => Transfer::Within {
                from: self.on.on_device(from)?,
                to: self.on.on_device(to)?,
                bytes: from.bytes,
            },
            (_, Place::Gpu) => Transfer::In {
                from: self.on.places.read(from),
                to: self.on.on_device(to)?,
            },
            (Place::Gpu, _) => Transfer::Out {
                from: self.on.on_device(from)?,
                to: self.on.places.write(to).as_mut_ptr(),
                bytes: from.bytes,
            },
            _ => return self.on.places.copy(from, to),
        };
        self.lane.queue.transfer(transfer)
    }

    fn poison(&self, range: Range) -> Result<()> {
        if range.place != Place::Gpu {
            self.lane.queue.settle()?;
            self.on.places.poison(range);
            return Ok(());
        }
        let (to, bytes) = (self.on.on_device(range)?, range.bytes);
        self.lane.queue.transfer(Transfer::Fill {
            to,
            value: 0xff,
            bytes,
        })
    }

    /// Queues a launch; where it is in `graph`, renews what in it is this step's instead.
    pub(super) fn launch(&mut self, task: &Task, graph: Option<&mut Graph>) -> Result<()> {
        let Task::Launch {
            node: index,
            inputs,
            outputs,
            scratch,
            ..
        } = task
        else {
            return Ok(());
        };
        let (program, prepared) = (self.on.program, self.on.prepared);
        let node = &program.step.nodes[*index];
        match &prepared.nodes[*index] {
            Ready::Feed(slot) => self.feed(node, *slot, outputs[0], graph.is_none()),
            Ready::Report(slot) => {
                self.reports.push((*index, *slot));
                match (graph, inputs[0]) {
                    (None, Some(from)) => self.report(*slot, from),
                    _ => Ok(()),
                }
            }
            Ready::Kernels(kernels) => match graph {
                Some(_) if !kernels.vary() => Ok(()),
                graph => self.kernels(node, kernels, (inputs, outputs, *scratch), graph),
            },
            Ready::Elsewhere => Err(Error::shape(
                node.op.name(),
                "was not made ready for the device",
            )),
        }
    }

    /// A value from outside goes to the mailbox, and a copy of it from there `to` the device into the queue, where that is not in a graph.
    fn feed(&mut self, node: &Node, slot: u64, to: Range, queued: bool) -> Result<()> {
        let Some(feed) = as_op::<Feed>(&*node.op) else {
            return Err(Error::shape(node.op.name(), "feeds nothing"));
        };
        // SAFETY: each slot is one node's, which runs once in a walk.
        let from = unsafe { self.on.mailbox.write(slot, to.bytes) };
        self.on.port.read(&feed.name, feed.offset, from)?;
        let to = self.on.on_device(to)?;
        match queued {
            true => self.lane.queue.transfer(Transfer::In { from, to }),
            false => Ok(()),
        }
    }

    fn report(&mut self, slot: u64, from: Range) -> Result<()> {
        // SAFETY: each slot is one node's, which runs once in a walk.
        let to = unsafe { self.on.mailbox.write(slot, from.bytes) }.as_mut_ptr();
        let (from, bytes) = (self.on.on_device(from)?, from.bytes);
        let out = Transfer::Out { from, to, bytes };
        self.lane.queue.transfer(out)
    }

    fn kernels(
        &mut self,
        node: &Node,
        kernels: &Kernels,
        at: (&[Option<Range>], &[Range], Option<Range>),
        mut graph: Option<&mut Graph>,
    ) -> Result<()> {
        let (inputs, outputs, scratch) = at;
        let (on, mut words) = (self.on, std::mem::take(&mut self.words));
        let key = Key::new(on.seed, on.scalars.step, &node.origin);
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
            on.on_device(range.ok_or_else(|| Error::shape(node.op.name(), why()))?)
        };
        let what = || format!("op {} at {}", node.op.name(), node.origin);
        let ran = kernels.of(&*node.op, key, on.scalars, |way, task, varies| {
            if graph.is_some() && !varies {
                return Ok(());
            }
            match (way, task) {
                (Way::Kernel(function), Work::Launch(launch)) => {
                    words.clear();
                    for argument in &launch.arguments {
                        words.push(word(argument, address)?);
                    }
                    let task = (*function, launch, &mut words[..]);
                    self.start(task, varies, graph.as_deref_mut(), what)
                }
                (Way::Product(product), Work::Gemm(gemm)) => {
                    let address = |at: Pointer| Ok(address(at.of)? + at.offset);
                    product.start(&self.lane.queue, gemm, address, what)
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

    /// Queues a kernel, to be renewed where it `varies` and is captured; where it is in `graph`, renews it.
    fn start(
        &mut self,
        (function, launch, words): (Function, &Launch, &mut [u64]),
        varies: bool,
        graph: Option<&mut Graph>,
        what: impl Fn() -> String,
    ) -> Result<()> {
        if launch.is_empty() {
            return Ok(());
        }
        if let Some(graph) = graph {
            return graph.renew(function, launch, words, what);
        }
        let queue = &self.lane.queue;
        function.start(queue, launch, words, what)?;
        if varies && queue.captures {
            self.varying.push(queue.last_captured()?);
        }
        Ok(())
    }
}

fn as_op<T: Op>(op: &dyn Op) -> Option<&T> {
    let op: &dyn std::any::Any = op;
    op.downcast_ref()
}
