//! The machine that really runs: places are arenas of the planned bytes, streams are threads.

pub mod arena;
mod stream;
mod touched;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc::Sender;
use std::time::Instant;

use super::Machine;
use super::timeline::{Mark, Timeline};
use crate::error::{Error, Result};
use crate::graph::Stream;
use crate::graph::op::{Port, Scalars};
use crate::graph::tensor::TensorId;
use crate::program::{BufferId, EventId, Instr, Program, Span, alignment};
use crate::spec::job::{Backend, PerPlace, Place};
use crate::spec::units::{Bytes, Seconds};
use arena::{Arena, DiskFile};
use stream::{Board, Range, Task, Worker};
pub use touched::Roles;
use touched::Touched;

/// How the CPU stands in for another device.
#[derive(Debug, Clone, Copy, Default)]
pub struct Settings {
    /// Bytes per second, each way, that copies between device and host are held to.
    pub link: Option<f64>,
    /// Bytes per second that disk reads and writes are held to.
    pub disk: Option<f64>,
    /// Whether bytes are overwritten with garbage when they are freed and when they are handed out.
    pub poison: bool,
    /// Seed of all randomness.
    pub seed: u64,
}

/// The memory of a set of programs on this machine.
#[derive(Debug)]
pub struct Places {
    gpu: Arena,
    pinned: Arena,
    host: Arena,
    disk: Option<DiskFile>,
}

impl Places {
    fn arena(&self, place: Place) -> &Arena {
        match place {
            Place::Gpu => &self.gpu,
            Place::Pinned => &self.pinned,
            Place::Host => &self.host,
            Place::Disk => panic!("the disk is a file: it is read and written, never mapped"),
        }
    }

    fn file(&self) -> &DiskFile {
        self.disk
            .as_ref()
            .unwrap_or_else(|| panic!("a program without disk buffers touched the disk"))
    }

    #[allow(unsafe_code)]
    fn read(&self, range: Range) -> &[u8] {
        // SAFETY: `check` proved that no write to these bytes is unordered with this read.
        unsafe { self.arena(range.place).read(range.offset, range.bytes) }
    }

    #[allow(unsafe_code, clippy::mut_from_ref)]
    fn write(&self, range: Range) -> &mut [u8] {
        // SAFETY: `check` proved that no other access to these bytes is unordered with this write.
        unsafe { self.arena(range.place).write(range.offset, range.bytes) }
    }

    fn copy(&self, from: Range, to: Range) -> Result<()> {
        match (from.place, to.place) {
            (Place::Disk, Place::Disk) => panic!("nothing copies disk to disk"),
            (Place::Disk, _) => self.file().read(from.offset, self.write(to)),
            (_, Place::Disk) => self.file().write(to.offset, self.read(from)),
            _ => {
                self.write(to).copy_from_slice(self.read(from));
                Ok(())
            }
        }
    }

    fn poison(&self, range: Range) {
        if range.place != Place::Disk {
            self.write(range).fill(0xff); // NaN in every float format
        }
    }
}

/// This machine's cores and memory as device, host and disk.
pub struct Cpu {
    places: Places,
    settings: Settings,
    compute: rayon::ThreadPool,
    host: rayon::ThreadPool,
    /// Largest end address handed to an op or a copy, rounded up to the place's unit.
    mark: PerPlace<Bytes>,
    /// Who held what was handed out when it was most.
    touched: Touched,
}

impl Cpu {
    /// Takes exactly `height` bytes of each place; the disk is an unnamed file in `folder`.
    ///
    /// # Errors
    /// Where memory or the folder is refused.
    pub fn new(
        height: PerPlace<Bytes>,
        backend: Backend,
        folder: &Path,
        settings: Settings,
    ) -> Result<Cpu> {
        let threads = match backend {
            Backend::Cpu { threads } => threads.max(1) as usize,
            Backend::Cuda { .. } => {
                let next = "lower the plan for this CPU first";
                return Err(Error::value(
                    "backend",
                    format!("{backend:?}"),
                    "this machine is a CPU",
                    next,
                ));
            }
        };
        let disk = (height.disk > Bytes::ZERO)
            .then(|| DiskFile::new(folder))
            .transpose()?;
        let places = Places {
            gpu: Arena::new("gpu", height.gpu)?,
            pinned: Arena::new("pinned", height.pinned)?,
            host: Arena::new("host", height.host)?,
            disk,
        };
        let mark = PerPlace::default();
        Ok(Cpu {
            places,
            settings,
            compute: pool(threads)?,
            host: pool(1)?,
            mark,
            touched: Touched::default(),
        })
    }

    /// The largest end address handed out so far in each place.
    pub fn mark(&self) -> PerPlace<Bytes> {
        self.mark
    }

    /// Bytes of each role in each place when those handed out and not yet freed were most.
    pub fn roles(&self) -> PerPlace<Roles> {
        self.touched.roles()
    }

    /// Whether every byte of the arenas above the marks is as the system gave it: zero.
    #[allow(unsafe_code)]
    pub fn is_untouched_above_mark(&self) -> bool {
        [Place::Gpu, Place::Pinned, Place::Host]
            .into_iter()
            .all(|place| {
                let (arena, mark) = (self.places.arena(place), self.mark[place]);
                // SAFETY: no program runs while the machine is borrowed, so nobody writes.
                let above = unsafe { arena.read(mark.0, arena.bytes().saturating_sub(mark).0) };
                above.iter().all(|byte| *byte == 0)
            })
    }

    /// Walks `program` once.
    ///
    /// # Errors
    /// The first failure of any instruction.
    pub fn run(
        &mut self,
        program: &Program,
        port: &dyn Port,
        scalars: Scalars,
    ) -> Result<Timeline> {
        let Cpu {
            places,
            settings,
            compute,
            host,
            mark,
            touched,
        } = self;
        touched.begin(program);
        let board = Board::new(program.events);
        let epoch = Instant::now();
        let (places, board, host) = (&*places, &board, &*host);
        std::thread::scope(|scope| {
            let mut queues = BTreeMap::new();
            let mut threads = Vec::new();
            for stream in streams(program) {
                let (sender, receiver) = std::sync::mpsc::channel();
                let pool = if stream == Stream::Compute {
                    &*compute
                } else {
                    host
                };
                let throttle = throttle(*settings, stream);
                let seed = settings.seed;
                let worker = Worker {
                    stream,
                    program,
                    places,
                    board,
                    port,
                    scalars,
                    seed,
                    pool,
                    throttle,
                    epoch,
                };
                threads.push(scope.spawn(move || worker.run(receiver)));
                queues.insert(stream, sender);
            }
            let poison = settings.poison;
            let walk = Walk {
                program,
                queues,
                threads,
                board,
                epoch,
                poison,
                mark,
                touched,
                live: PerPlace::default(),
                buffers: buffers(program),
            };
            walk.all()
        })
    }
}

/// A pool of `threads`.
fn pool(threads: usize) -> Result<rayon::ThreadPool> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .map_err(|e| Error::value("threads", threads, e.to_string(), "use fewer threads"))
}

/// The rate a stream is held to.
fn throttle(settings: Settings, stream: Stream) -> Option<f64> {
    match stream {
        Stream::ToDevice | Stream::ToHost => settings.link,
        Stream::DiskRead | Stream::DiskWrite => settings.disk,
        Stream::Compute | Stream::HostCompute => None,
    }
}

/// The streams a program uses.
fn streams(program: &Program) -> Vec<Stream> {
    let used = |stream: &Stream| {
        program.code.iter().any(|i| match i {
            Instr::Launch { stream: s, .. } | Instr::Copy { stream: s, .. } => s == stream,
            Instr::Signal(s, _) | Instr::Wait(s, _) => s == stream,
            _ => false,
        })
    };
    Stream::ALL
        .into_iter()
        .filter(|s| *s == Stream::Compute || used(s))
        .collect()
}

/// The buffer of each storage.
fn buffers(program: &Program) -> Vec<Option<BufferId>> {
    let mut of = vec![None; program.step.storages.len()];
    for (index, buffer) in program.buffers.iter().enumerate() {
        if let Some(storage) = buffer.storage {
            of[storage.0 as usize] = Some(BufferId(index as u32));
        }
    }
    of
}

/// One walk over a program: the machine's side of the run loop.
struct Walk<'a, 'scope> {
    program: &'a Program,
    queues: BTreeMap<Stream, Sender<Task>>,
    threads: Vec<std::thread::ScopedJoinHandle<'scope, Vec<Mark>>>,
    board: &'a Board,
    epoch: Instant,
    poison: bool,
    mark: &'a mut PerPlace<Bytes>,
    touched: &'a mut Touched,
    /// Live transient ranges, start to end: a last guard against overlap.
    live: PerPlace<BTreeMap<u64, u64>>,
    buffers: Vec<Option<BufferId>>,
}

impl Walk<'_, '_> {
    fn all(mut self) -> Result<Timeline> {
        let ran = super::run(self.program, &mut self);
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
