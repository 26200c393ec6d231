//! A queue of the device, filled by a thread of its own: what is queued behind an event of the host waits on the host for it.
#![allow(unsafe_code)] // kernels are launched, and host memory is written by copies of the device

use std::ffi::c_void;
use std::sync::mpsc::Receiver;

use cudarc::driver::result;

use super::driver::{Gpu, Mark as Point, Memory, Queue, Transfer, check};
use super::modules::Function;
use super::prepared::{Kernels, Prepared, Ready, word};
use crate::error::{Error, Result};
use crate::graph::op::kernel::{Launch, Memory as Of, THREADS};
use crate::graph::op::transfer::{Feed, Report};
use crate::graph::op::{Op, Port, Scalars};
use crate::graph::random::Key;
use crate::graph::{Node, Stream};
use crate::machine::cpu::arena::Arena;
use crate::machine::cpu::places::Places;
use crate::machine::cpu::stream::{Board, Events, Range, Task};
use crate::machine::timeline::Mark;
use crate::program::Program;
use crate::spec::job::Place;

/// The events of one walk, of the device's queues and of the host's threads.
pub struct Meeting<'a> {
    /// What has happened; for an event of the device: that it is recorded.
    pub board: &'a Board,
    /// The device's events.
    pub points: &'a [Point],
    /// Which events are the device's.
    pub by_device: &'a [bool],
    /// The device.
    pub gpu: &'a Gpu,
}

impl Events for Meeting<'_> {
    fn signal(&self, event: usize) {
        self.board.signal(event);
    }

    fn wait(&self, event: usize) -> Result<bool> {
        if !self.board.wait(event) {
            return Ok(false);
        }
        if self.by_device[event] {
            self.gpu.bind()?;
            self.points[event].settle()?;
        }
        Ok(true)
    }

    fn fail(&self, error: Error) {
        self.board.fail(error);
    }
}

/// Times along a queue: `Mark`s are made of them once everything is done.
#[derive(Debug)]
pub struct Times {
    points: Vec<Point>,
    used: usize,
    /// For each instruction the points it lies between.
    spans: Vec<(usize, usize, usize)>,
    waited: bool,
}

impl Times {
    /// Room for `count` points.
    ///
    /// # Errors
    /// Where the device is lost.
    pub fn new(count: usize) -> Result<Times> {
        let points = (0..=count).map(|_| Point::new(true));
        Ok(Times {
            points: points.collect::<Result<_>>()?,
            used: 0,
            spans: Vec::with_capacity(count),
            waited: false,
        })
    }

    fn point(&mut self, queue: &Queue) -> Result<usize> {
        self.points[self.used].record(queue)?;
        self.used += 1;
        Ok(self.used - 1)
    }

    fn begin(&mut self, queue: &Queue) -> Result<usize> {
        match std::mem::take(&mut self.waited) || self.used == 0 {
            true => self.point(queue),
            false => Ok(self.used - 1),
        }
    }

    /// How many it has room for.
    pub fn room(&self) -> usize {
        self.points.len() - 1
    }
}

/// A queue and all that its tasks touch.
pub struct Worker<'a> {
    pub stream: Stream,
    pub queue: &'a Queue,
    pub times: &'a mut Times,
    pub program: &'a Program,
    pub prepared: &'a Prepared,
    pub memory: &'a Memory,
    pub places: &'a Places,
    pub mailbox: &'a Arena,
    pub meeting: &'a Meeting<'a>,
    pub port: &'a dyn Port,
    pub scalars: Scalars,
    pub seed: u64,
    /// When the walk began, on the device.
    pub epoch: &'a Point,
    /// Values of the parameters of a launch, kept so that nothing is allocated for them again.
    pub words: Vec<u64>,
    /// What is to be handed to the outside once it is there.
    pub reports: Vec<(usize, u64)>,
}

impl Worker<'_> {
    /// Queues tasks until no more come, waits for them, and hands out what was reported; returns when each ran.
    pub fn run(mut self, tasks: Receiver<Task>) -> Vec<Mark> {
        (self.times.used, self.times.waited) = (0, false);
        self.times.spans.clear();
        let queued = self.meeting.gpu.bind().and_then(|()| self.all(tasks));
        // Whatever happened, nothing of this walk is under way when it ends.
        let settled = self.queue.settle();
        match queued.and_then(|whole| settled.map(|()| whole)) {
            Ok(true) => self.finish().unwrap_or_else(|error| {
                self.meeting.fail(error);
                Vec::new()
            }),
            Ok(false) => Vec::new(),
            Err(error) => {
                self.meeting.fail(error);
                Vec::new()
            }
        }
    }

    fn all(&mut self, tasks: Receiver<Task>) -> Result<bool> {
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
                self.meeting.points[event].record(self.queue)?;
                self.meeting.signal(event);
            }
            Task::Wait(event) => {
                if !self.meeting.board.wait(event) {
                    return Ok(false);
                }
                if self.meeting.by_device[event] {
                    self.queue.wait(&self.meeting.points[event])?;
                }
                self.times.waited = true;
            }
            Task::Poison(range) => self.poison(range)?,
            Task::Copy { at, from, to } => {
                let begin = self.times.begin(self.queue)?;
                self.copy(from, to)?;
                self.end(at, begin)?;
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
                self.end(at, begin)?;
            }
        }
        Ok(true)
    }

    fn end(&mut self, at: usize, begin: usize) -> Result<()> {
        let end = self.times.point(self.queue)?;
        self.times.spans.push((at, begin, end));
        Ok(())
    }

    /// What was reported goes out, and the times come in.
    fn finish(&mut self) -> Result<Vec<Mark>> {
        for &(node, slot) in &self.reports {
            let node = &self.program.step.nodes[node];
            let bytes = self.program.step.type_of(node.inputs[0]).bytes().0;
            if let Some(report) = as_op::<Report>(&*node.op) {
                // SAFETY: the copies into the mailbox are done, and each slot is one node's.
                let value = unsafe { self.mailbox.read(slot, bytes) };
                self.port.write(&report.name, report.offset, value)?;
            }
        }
        let time = |point: usize| self.times.points[point].since(self.epoch);
        let marks = self.times.spans.iter().map(|&(at, begin, end)| {
            Ok(Mark {
                at,
                stream: self.stream,
                start: time(begin)?,
                end: time(end)?,
            })
        });
        marks.collect()
    }

    fn on_device(&self, range: Range) -> Result<u64> {
        match range.place {
            Place::Gpu => self.memory.at(range.offset, range.bytes),
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
                from: self.places.read(from),
                to: self.on_device(to)?,
            },
            (Place::Gpu, _) => Transfer::Out {
                from: self.on_device(from)?,
                to: self.places.write(to).as_mut_ptr(),
                bytes: from.bytes,
            },
            _ => return self.places.copy(from, to),
        };
        self.queue.transfer(transfer)
    }

    fn poison(&self, range: Range) -> Result<()> {
        if range.place != Place::Gpu {
            self.queue.settle()?;
            self.places.poison(range);
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
        let (program, prepared) = (self.program, self.prepared);
        let node = &program.step.nodes[index];
        let place = |range: Option<Range>| range.unwrap_or_else(|| panic!("a value has a range"));
        match &prepared.nodes[index] {
            Ready::Feed(slot) => self.feed(node, *slot, outputs[0]),
            Ready::Report(slot) => {
                let from = place(inputs[0]);
                // SAFETY: each slot is one node's, which runs once in a walk.
                let to = unsafe { self.mailbox.write(*slot, from.bytes) }.as_mut_ptr();
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
        let from = unsafe { self.mailbox.write(slot, to.bytes) };
        self.port.read(&feed.name, feed.offset, from)?;
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
        let key = Key::new(self.seed, self.scalars.step, &node.origin);
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
        let ran = kernels.of(&*node.op, key, self.scalars, |function, launch| {
            words.clear();
            for argument in &launch.arguments {
                words.push(word(argument, address)?);
            }
            start(self.queue, function, launch, &mut words, node)
        });
        self.words = words;
        ran
    }
}

/// Most parameters a kernel has.
const PARAMETERS: usize = 48;

/// Queues one kernel.
fn start(
    queue: &Queue,
    Function(function): Function,
    launch: &Launch,
    words: &mut [u64],
    node: &Node,
) -> Result<()> {
    if launch.grid.contains(&0) {
        return Ok(());
    }
    let mut parameters = [std::ptr::null_mut::<c_void>(); PARAMETERS];
    let Some(parameters) = parameters.get_mut(..words.len()) else {
        return Err(Error::shape(
            node.op.name(),
            format!("more than {PARAMETERS} parameters"),
        ));
    };
    for (parameter, word) in parameters.iter_mut().zip(words) {
        *parameter = std::ptr::from_mut(word).cast();
    }
    let [x, y, z] = launch.grid;
    // SAFETY: the function of this launch; the driver copies parameters before it returns; addresses are of live memory.
    let queued = unsafe {
        result::launch_kernel(
            function,
            (x, y, z),
            (THREADS, 1, 1),
            launch.shared,
            queue.0,
            parameters,
        )
    };
    let what = || {
        format!(
            "kernel {} of op {} at {}",
            launch.entry,
            node.op.name(),
            node.origin
        )
    };
    check(what, queued)
}

fn as_op<T: Op>(op: &dyn Op) -> Option<&T> {
    let op: &dyn std::any::Any = op;
    op.downcast_ref()
}
