//! One walk over a program: the machine's side of the run loop.

use std::collections::BTreeMap;
use std::sync::mpsc::Sender;
use std::time::Instant;

use super::stream::{Board, Range, Task};
use super::touched::Touched;
use crate::error::{Error, Result};
use crate::graph::Stream;
use crate::graph::tensor::TensorId;
use crate::machine::Machine;
use crate::machine::timeline::{Mark, Timeline};
use crate::program::{BufferId, EventId, Program, Span, alignment};
use crate::spec::job::PerPlace;
use crate::spec::units::{Bytes, Seconds};

/// The buffer of each storage.
pub(in crate::machine) fn buffers(program: &Program) -> Vec<Option<BufferId>> {
    let mut of = vec![None; program.step.storages.len()];
    for (index, buffer) in program.buffers.iter().enumerate() {
        if let Some(storage) = buffer.storage {
            of[storage.0 as usize] = Some(BufferId(index as u32));
        }
    }
    of
}

/// One walk over a program: the machine's side of the run loop.
pub(in crate::machine) struct Walk<'a, 'scope> {
    pub(in crate::machine) program: &'a Program,
    pub(in crate::machine) queues: BTreeMap<Stream, Sender<Task>>,
    pub(in crate::machine) threads: Vec<std::thread::ScopedJoinHandle<'scope, Vec<Mark>>>,
    pub(in crate::machine) board: &'a Board,
    pub(in crate::machine) epoch: Instant,
    pub(in crate::machine) poison: bool,
    pub(in crate::machine) mark: &'a mut PerPlace<Bytes>,
    pub(in crate::machine) touched: &'a mut Touched,
    /// Live transient ranges, start to end: a last guard against overlap.
    pub(in crate::machine) live: PerPlace<BTreeMap<u64, u64>>,
    pub(in crate::machine) buffers: Vec<Option<BufferId>>,
}

impl Walk<'_, '_> {
    /// The whole walk; what is queued is done, or everything has stopped, when it returns.
    pub(in crate::machine) fn all(mut self) -> Result<Timeline> {
        let ran = crate::machine::run(self.program, &mut self);
        if ran.is_err() {
            // Streams may be waiting for events that will not come.
            self.board.fail(Error::Interrupted { saved: None });
            self.join();
        }
        ran
    }

    fn join(&mut self) -> Vec<Mark> {
        self.queues.clear();
        let mut marks: Vec<Mark> = self
            .threads
            .drain(..)
            .flat_map(|t| t.join().unwrap_or_default())
            .collect();
        marks.sort_by(|a, b| a.start.total_cmp(&b.start).then(a.at.cmp(&b.at)));
        marks
    }

    fn push(&self, stream: Stream, task: Task) -> Result<()> {
        let sent = self.queues[&stream].send(task);
        // A closed queue means that its stream failed: the board knows why.
        sent.map_err(|_| {
            self.board
                .failure()
                .unwrap_or(Error::Interrupted { saved: None })
        })
    }

    /// The range of a buffer's part, counted towards the mark.
    fn hand_out(&mut self, id: BufferId, offset: u64, bytes: u64) -> Range {
        let buffer = self.program.buffer(id);
        let place = buffer.place;
        let offset = buffer.offset.0 + offset;
        let end = Bytes(offset + bytes).round_up(alignment(place));
        self.mark[place] = self.mark[place].max(end);
        self.touched.hand_out(self.program, id);
        Range {
            place,
            offset,
            bytes,
        }
    }

    fn value(&mut self, value: TensorId) -> Range {
        let tensor = self.program.step.tensor(value);
        let (offset, bytes) = (tensor.offset, tensor.at.bytes().0);
        let buffer = self.buffers[tensor.storage.0 as usize];
        let buffer = buffer.unwrap_or_else(|| {
            panic!(
                "`{}` has no buffer",
                self.program.step.storage(tensor.storage).name
            )
        });
        self.hand_out(buffer, offset, bytes)
    }

    fn poison(&self, id: BufferId) -> Result<()> {
        let buffer = self.program.buffer(id);
        let range = Range {
            place: buffer.place,
            offset: buffer.offset.0,
            bytes: buffer.bytes.0,
        };
        if self.poison {
            self.push(buffer.home, Task::Poison(range))
        } else {
            Ok(())
        }
    }
}

impl Machine for Walk<'_, '_> {
    fn alloc(&mut self, at: usize, id: BufferId) -> Result<()> {
        let buffer = self.program.buffer(id);
        let (start, end) = (buffer.offset.0, (buffer.offset + buffer.bytes).0);
        let taken = self.live[buffer.place]
            .range(..end)
            .next_back()
            .is_some_and(|(_, other)| *other > start);
        if taken || buffer.offset + buffer.bytes > self.program.height[buffer.place] {
            let why = format!(
                "`{}` at {start}..{end} of {:?} overlaps a live buffer or leaves the arena",
                buffer.name, buffer.place
            );
            return Err(Error::Rule {
                rule: "overlap",
                instruction: at,
                why,
            });
        }
        self.live[buffer.place].insert(start, end);
        self.poison(id)
    }

    fn free(&mut self, _: usize, id: BufferId) -> Result<()> {
        let buffer = self.program.buffer(id);
        self.live[buffer.place].remove(&buffer.offset.0);
        self.touched.free(self.program, id);
        self.poison(id)
    }

    fn launch(
        &mut self,
        at: usize,
        node: u32,
        scratch: Option<BufferId>,
        stream: Stream,
    ) -> Result<()> {
        let program = self.program;
        let what = &program.step.nodes[node as usize];
        if what.op.name() == crate::graph::op::transfer::SETTLE {
            return Ok(()); // It only orders; the waits before it have done so.
        }
        let overwritten: Vec<usize> = program
            .step
            .overwrites(what)
            .into_iter()
            .flatten()
            .collect();
        let outputs = what.outputs.iter().map(|&v| self.value(v)).collect();
        let inputs = what.inputs.iter().enumerate();
        let inputs = inputs
            .map(|(i, &v)| {
                if overwritten.contains(&i) {
                    None
                } else {
                    Some(self.value(v))
                }
            })
            .collect();
        let scratch = scratch.map(|id| self.hand_out(id, 0, program.buffer(id).exact.0));
        self.push(
            stream,
            Task::Launch {
                at,
                node: node as usize,
                inputs,
                outputs,
                scratch,
            },
        )
    }

    fn copy(&mut self, at: usize, from: Span, to: Span, stream: Stream) -> Result<()> {
        let from = self.hand_out(from.buffer, from.offset.0, from.bytes.0);
        let to = self.hand_out(to.buffer, to.offset.0, to.bytes.0);
        self.push(stream, Task::Copy { at, from, to })
    }

    fn signal(&mut self, stream: Stream, event: EventId) -> Result<()> {
        self.push(stream, Task::Signal(event.0 as usize))
    }

    fn wait(&mut self, stream: Stream, event: EventId) -> Result<()> {
        self.push(stream, Task::Wait(event.0 as usize))
    }

    fn finish(&mut self) -> Result<Timeline> {
        let marks = self.join();
        match self.board.failure() {
            Some(error) => Err(error),
            None => Ok(Timeline {
                marks,
                total: Seconds(self.epoch.elapsed().as_secs_f64()),
            }),
        }
    }
}
