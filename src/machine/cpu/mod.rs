//! The machine that really runs: places are arenas of the planned bytes, streams are threads.

pub mod arena;
pub(in crate::machine) mod places;
pub(in crate::machine) mod stream;
mod touched;
pub(in crate::machine) mod walk;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use super::timeline::Timeline;
use crate::error::{Error, Result};
use crate::graph::Stream;
use crate::graph::op::{Port, Scalars};
use crate::program::{Instr, Program};
use crate::spec::job::{Backend, PerPlace, Place};
use crate::spec::units::Bytes;
use places::Places;
use stream::{Board, Worker};
pub use touched::Roles;
pub(in crate::machine) use touched::Touched;
use walk::{Walk, buffers};

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
        let places = Places::new(height, folder)?;
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
                let pool = match stream {
                    Stream::Compute => &*compute,
                    _ => host,
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
pub(in crate::machine) fn pool(threads: usize) -> Result<rayon::ThreadPool> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .map_err(|e| Error::value("threads", threads, e.to_string(), "use fewer threads"))
}

/// The rate a stream is held to.
pub(in crate::machine) fn throttle(settings: Settings, stream: Stream) -> Option<f64> {
    match stream {
        Stream::ToDevice | Stream::ToHost => settings.link,
        Stream::DiskRead | Stream::DiskWrite => settings.disk,
        Stream::Compute | Stream::HostCompute => None,
    }
}

/// The streams a program uses.
pub(in crate::machine) fn streams(program: &Program) -> Vec<Stream> {
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
