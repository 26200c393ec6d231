//! A stream as a thread: a queue of tasks run in order, beside the other streams.

use std::sync::mpsc::Receiver;
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use super::places::Places;
use crate::error::{Error, Result};
use crate::graph::Stream;
use crate::graph::op::{Io, Port, Scalars, View, ViewMut};
use crate::graph::random::Key;
use crate::machine::timeline::Mark;
use crate::program::Program;
use crate::spec::job::Place;

/// Bytes in a place.
#[derive(Debug, Clone, Copy)]
pub struct Range {
    /// The place.
    pub place: Place,
    /// First byte.
    pub offset: u64,
    /// Length.
    pub bytes: u64,
}

/// Something queued.
#[derive(Debug)]
pub enum Task {
    /// A node with where its values lie.
    Launch {
        at: usize,
        node: usize,
        inputs: Vec<Option<Range>>,
        outputs: Vec<Range>,
        scratch: Option<Range>,
    },
    /// A copy.
    Copy { at: usize, from: Range, to: Range },
    /// An event happens.
    Signal(usize),
    /// An event is awaited.
    Wait(usize),
    /// Overwrites bytes nobody owns any more.
    Poison(Range),
}

/// How a stream of this machine's threads meets the events of a walk.
pub trait Events: Sync {
    /// An event happens.
    fn signal(&self, event: usize);

    /// Waits for an event; false where another stream has failed instead.
    ///
    /// # Errors
    /// Where what it stands for has failed.
    fn wait(&self, event: usize) -> Result<bool>;

    /// Records a failure and lets everybody go.
    fn fail(&self, error: Error);
}

impl Events for Board {
    fn signal(&self, event: usize) {
        Board::signal(self, event);
    }

    fn wait(&self, event: usize) -> Result<bool> {
        Ok(Board::wait(self, event))
    }

    fn fail(&self, error: Error) {
        Board::fail(self, error);
    }
}

/// The events of one walk, and the first failure.
#[derive(Debug)]
pub struct Board {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    happened: Vec<bool>,
    failure: Option<Error>,
    failed: bool,
}

impl Board {
    /// No event has happened yet.
    pub fn new(events: u32) -> Board {
        let state = State {
            happened: vec![false; events as usize],
            failure: None,
            failed: false,
        };
        Board {
            state: Mutex::new(state),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// An event happens.
    pub fn signal(&self, event: usize) {
        self.lock().happened[event] = true;
        self.changed.notify_all();
    }

    /// Waits for `event`; false where a stream has failed instead.
    pub fn wait(&self, event: usize) -> bool {
        let mut state = self.lock();
        while !state.happened[event] && !state.failed {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(std::sync::PoisonError::into_inner);
        }
        !state.failed
    }

    /// Records the first failure and lets everybody go.
    pub fn fail(&self, error: Error) {
        let mut state = self.lock();
        state.failed = true;
        state.failure.get_or_insert(error);
        self.changed.notify_all();
    }

    /// The first failure.
    pub fn failure(&self) -> Option<Error> {
        self.lock().failure.take()
    }
}

/// A task of `stream` that panicked: a range outside of its memory stops it, and with it the run.
pub fn stopped(stream: Stream) -> Error {
    let why = format!("the {stream:?} stream stopped inside a task");
    Error::shape("run", why)
}

/// What one stream's thread needs.
pub struct Worker<'a> {
    /// Its stream.
    pub stream: Stream,
    /// The program.
    pub program: &'a Program,
    /// The memory.
    pub places: &'a Places,
    /// Events.
    pub board: &'a dyn Events,
    /// The outside.
    pub port: &'a dyn Port,
    /// Numbers of the step.
    pub scalars: Scalars,
    /// Seed of the job.
    pub seed: u64,
    /// The threads its ops may use.
    pub pool: &'a rayon::ThreadPool,
    /// Bytes per second its copies are held to.
    pub throttle: Option<f64>,
    /// When the walk began.
    pub epoch: Instant,
}

/// Pieces of a throttled copy: small, so that the pauses between them are even.
const PIECE: u64 = 256 << 10;

/// How much later than asked a sleep may end.
const OVERSLEPT: Duration = Duration::from_micros(100);

impl Worker<'_> {
    /// Runs tasks until the queue closes; returns when each ran.
    pub fn run(self, queue: Receiver<Task>) -> Vec<Mark> {
        let mut marks = Vec::new();
        for task in queue {
            // A range outside the arena stops the task, and with it the run.
            let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                self.task(task, &mut marks)
            }));
            match ran.unwrap_or_else(|_| Err(stopped(self.stream))) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    self.board.fail(error);
                    break;
                }
            }
        }
        marks
    }

    /// One task; false where another stream has failed.
    fn task(&self, task: Task, marks: &mut Vec<Mark>) -> Result<bool> {
        let start = self.epoch.elapsed().as_secs_f64();
        let at = match task {
            Task::Signal(event) => {
                self.board.signal(event);
                return Ok(true);
            }
            Task::Wait(event) => return self.board.wait(event),
            Task::Poison(range) => {
                self.places.poison(range);
                return Ok(true);
            }
            Task::Copy { at, from, to } => {
                self.copy(from, to)?;
                at
            }
            Task::Launch {
                at,
                node,
                inputs,
                outputs,
                scratch,
            } => {
                self.launch(node, &inputs, &outputs, scratch)?;
                at
            }
        };
        marks.push(Mark {
            at,
            stream: self.stream,
            start,
            end: self.epoch.elapsed().as_secs_f64(),
        });
        Ok(true)
    }

    fn copy(&self, from: Range, to: Range) -> Result<()> {
        let Some(rate) = self.throttle else {
            return self.places.copy(from, to);
        };
        let begin = Instant::now();
        for at in (0..from.bytes).step_by(PIECE as usize) {
            let bytes = PIECE.min(from.bytes - at);
            let piece = |range: Range| Range {
                offset: range.offset + at,
                bytes,
                ..range
            };
            self.places.copy(piece(from), piece(to))?;
            let due = Duration::from_secs_f64((at + bytes) as f64 / rate);
            let early = due.saturating_sub(OVERSLEPT);
            std::thread::sleep(early.saturating_sub(begin.elapsed()));
        }
        // Sleeping ends late: the rest is waited out awake, or short copies would seem slower than the link.
        let due = Duration::from_secs_f64(from.bytes as f64 / rate);
        while begin.elapsed() < due {
            std::thread::yield_now();
        }
        Ok(())
    }

    fn launch(
        &self,
        node: usize,
        inputs: &[Option<Range>],
        outputs: &[Range],
        scratch: Option<Range>,
    ) -> Result<()> {
        let step = &self.program.step;
        let node = &step.nodes[node];
        let inputs = node.inputs.iter().zip(inputs).map(|(&value, range)| View {
            at: step.type_of(value),
            bytes: range.map_or(&[][..], |r| self.places.read(r)),
        });
        let inputs = inputs.collect();
        let outputs = node
            .outputs
            .iter()
            .zip(outputs)
            .map(|(&value, &range)| ViewMut {
                at: step.type_of(value),
                bytes: self.places.write(range),
            });
        let outputs = outputs.collect();
        let scratch = scratch.map_or(&mut [][..], |r| self.places.write(r));
        let key = Key::new(self.seed, self.scalars.step, &node.origin);
        let mut io = Io {
            inputs,
            outputs,
            scratch,
            key,
            scalars: self.scalars,
            port: self.port,
        };
        let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            self.pool.install(|| node.op.cpu(&mut io))
        }));
        ran.unwrap_or_else(|_| {
            Err(Error::shape(
                node.op.name(),
                format!("stopped inside node `{}`", node.origin),
            ))
        })
    }
}
