//! A queue of the device with what is kept for it from walk to walk, and how stretches of its tasks become graphs.
//!
//! A stretch is what a queue is given between two waits, so that it may be launched as one: events that others wait for are recorded within
//! it, and they are told once it is launched. A program's first walk queues everything by itself, and so loads what is loaded on first use; its second captures each
//! stretch; from the third on a stretch is one launch. What depends on the step are parameters of kernels, which are renewed before it.

use std::collections::BTreeMap;

use super::driver::Queue;
use super::events::{Recorded, Times};
use super::graph::{self, Graph};
use super::prepared::Ready;
use super::worker::{Ground, Worker};
use crate::error::Result;
use crate::graph::When;
use crate::machine::cpu::stream::{Events, Range, Task};
use crate::spec::job::Place;

/// Launches and copies that are worth a graph: fewer are queued as fast by themselves. A launch costs the host a few µs, and so does that of a
/// graph that is a straight line, however long (NVIDIA technical blog, "Constant Time Launch for Straight-Line CUDA Graphs", 2024).
const LEAST: usize = 4;

/// A stretch as a graph.
#[derive(Debug)]
pub struct Stretch {
    graph: Graph,
    recorded: Recorded,
}

/// A program's stretches on one queue, in their order; none for those that are not worth a graph.
pub type Stretches = Vec<Option<Stretch>>;

/// A queue of the device, and what is kept for it. Fields are dropped in this order.
#[derive(Debug)]
pub struct Lane {
    /// Stretches of programs that walked, by program.
    stretches: BTreeMap<When, Stretches>,
    /// Why there are no graphs, where there are none.
    without: Option<String>,
    /// Room for times.
    pub times: Times,
    /// The queue.
    pub queue: Queue,
}

impl Lane {
    /// A queue with room for no times.
    ///
    /// # Errors
    /// Where the device is lost.
    pub fn new() -> Result<Lane> {
        let without = "this driver has no CUDA graphs that can be changed (CUDA 12 has)";
        Ok(Lane {
            stretches: BTreeMap::new(),
            without: (!graph::are_had()).then(|| without.to_string()),
            times: Times::new(0)?,
            queue: Queue::new()?,
        })
    }

    /// Forgets what programs were given: others take their place, with `count` times each.
    ///
    /// # Errors
    /// Where the device is lost.
    pub fn renew(&mut self, count: usize) -> Result<()> {
        self.stretches.clear();
        if self.times.room() < count {
            self.times = Times::new(count)?;
        }
        Ok(())
    }

    /// Why there are no graphs, where there are none.
    pub fn without(&self) -> Option<&str> {
        self.without.as_deref()
    }

    /// The stretches of a program, for the length of a walk; none where nothing is to be captured in it: in its first, and where it runs
    /// but now and then.
    pub fn take(&mut self, when: When) -> Option<Stretches> {
        let stretches = self.stretches.remove(&when);
        stretches.filter(|_| self.without.is_none() && is_often(when))
    }

    /// Keeps the stretches of a program that has walked to its end.
    pub fn keep(&mut self, when: When, stretches: Option<Stretches>) {
        self.stretches.insert(when, stretches.unwrap_or_default());
    }
}

/// Whether a program runs in each step, or many times together.
fn is_often(when: When) -> bool {
    match when {
        When::Steady | When::First | When::Micro { .. } | When::Evaluate => true,
        When::Every(_) | When::Renew(_) | When::Start | When::Restart | When::Save => false,
    }
}

impl Worker<'_> {
    /// Whether a task may be part of a stretch: the device does all of it, whenever it comes to it.
    pub(super) fn may_be_captured(&self, task: &Task) -> bool {
        let on: &Ground = &self.on;
        let reached = |range: &Range| {
            range.place == Place::Gpu || (range.place == Place::Pinned && on.pinned)
        };
        match task {
            Task::Launch { node, .. } => match &on.prepared.nodes[*node] {
                Ready::Kernels(kernels) => kernels.may_be_captured(),
                Ready::Feed(_) | Ready::Report(_) => on.pinned,
                Ready::Elsewhere => false,
            },
            Task::Copy { from, to, .. } => reached(from) && reached(to),
            Task::Poison(range) => range.place == Place::Gpu,
            Task::Signal(_) => true,
            Task::Wait(_) => false,
        }
    }

    /// Queues the stretch that has been gathered.
    pub(super) fn flush(&mut self) -> Result<()> {
        if self.stretch.is_empty() {
            return Ok(());
        }
        let mut tasks = std::mem::take(&mut self.stretch);
        let mut stretches = self.stretches.take().unwrap_or_default();
        let queued = self.stretch(&tasks, &mut stretches);
        self.turn += 1;
        tasks.clear();
        (self.stretch, self.stretches) = (tasks, Some(stretches));
        queued
    }

    fn stretch(&mut self, tasks: &[Task], stretches: &mut Stretches) -> Result<()> {
        match stretches.get_mut(self.turn) {
            Some(Some(known)) => self.again(tasks, known),
            Some(None) => self.each(tasks),
            None => {
                let captured = match is_worth(tasks) && self.lane.without.is_none() {
                    true => self.first(tasks)?,
                    false => self.each(tasks).map(|()| None)?,
                };
                stretches.push(captured);
                Ok(())
            }
        }
    }

    /// Queues tasks by themselves.
    fn each(&mut self, tasks: &[Task]) -> Result<()> {
        tasks.iter().try_for_each(|task| self.queue(task))
    }

    /// Captures tasks and launches them; where the driver will not, they are queued by themselves, and none is captured again.
    fn first(&mut self, tasks: &[Task]) -> Result<Option<Stretch>> {
        let (noted, reports) = (self.lane.times.noted(), self.reports.len());
        let launched = self.capture(tasks).and_then(|mut graph| {
            graph.launch(&self.lane.queue)?;
            Ok(graph)
        });
        match launched {
            Ok(graph) => {
                self.tell(tasks);
                let recorded = self.lane.times.since(noted);
                Ok(Some(Stretch { graph, recorded }))
            }
            Err(error) => {
                self.lane.without = Some(error.to_string());
                self.lane.times.back(noted);
                self.reports.truncate(reports);
                self.each(tasks).map(|()| None)
            }
        }
    }

    fn capture(&mut self, tasks: &[Task]) -> Result<Graph> {
        self.lane.queue.begin_capture()?;
        let queued = self.each(tasks);
        let varying = std::mem::take(&mut self.varying);
        let captured = self.lane.queue.end_capture(varying);
        queued.and(captured)
    }

    /// Launches tasks that were captured, with what is this step's.
    fn again(&mut self, tasks: &[Task], stretch: &mut Stretch) -> Result<()> {
        for task in tasks {
            self.launch(task, Some(&mut stretch.graph))?;
        }
        stretch.graph.launch(&self.lane.queue)?;
        self.tell(tasks);
        self.lane.times.again(&stretch.recorded);
        Ok(())
    }

    /// Tells others of the events in tasks that have been launched.
    fn tell(&self, tasks: &[Task]) {
        for task in tasks {
            if let Task::Signal(event) = task {
                self.on.meeting.signal(*event);
            }
        }
    }
}

fn is_worth(tasks: &[Task]) -> bool {
    let work = tasks.iter().filter(|task| !matches!(task, Task::Signal(_)));
    work.count() >= LEAST
}
