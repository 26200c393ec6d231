//! The machine that runs programs on an NVIDIA GPU: places are memory of the planned bytes, streams are the device's queues,
//! and what runs on the host runs as on the machine for CPUs.

mod blas;
pub mod ceilings;
mod compile;
pub mod driver;
mod events;
mod graph;
mod lane;
mod library;
pub mod memory;
mod modules;
mod prepared;
mod products;
mod worker;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use super::cpu::arena::Arena;
use super::cpu::places::Places;
use super::cpu::stream::{self, Board};
use super::cpu::walk::{Walk, buffers};
use super::cpu::{Roles, Settings, Touched, pool, streams, throttle};
use super::timeline::Timeline;
use crate::error::{Error, Result};
use crate::graph::op::{Port, Scalars};
use crate::graph::{Stream, When};
use crate::program::{Program, height};
use crate::spec::job::{PerPlace, Place};
use crate::spec::units::Bytes;
use driver::{Gpu, Mark as Point};
use events::Meeting;
use lane::Lane;
use memory::Memory;
use modules::Modules;
pub use prepared::missing;
use prepared::{Means, Prepared, is_of_device};
use products::Products;
use worker::{Ground, Worker};

/// Host memory the driver has pinned. Dropped, it is pageable again.
#[derive(Debug)]
struct Pinned(*mut std::ffi::c_void);

// SAFETY: an address, used to end the pinning and for nothing else.
#[allow(unsafe_code)]
unsafe impl Send for Pinned {}

impl Drop for Pinned {
    fn drop(&mut self) {
        memory::unpin(self.0);
    }
}

/// An NVIDIA GPU, and this machine's memory and disk beside it. Fields are dropped in this order.
pub struct Cuda {
    lanes: BTreeMap<Stream, Lane>,
    prepared: BTreeMap<When, Prepared>,
    means: Means,
    /// Whose products are used.
    products: String,
    points: Vec<Point>,
    epoch: Point,
    _pinned: Vec<Pinned>,
    pageable: Option<String>,
    mailbox: Arena,
    memory: Memory,
    places: Places,
    settings: Settings,
    host: rayon::ThreadPool,
    mark: PerPlace<Bytes>,
    touched: Touched,
    gpu: Gpu,
}

impl Cuda {
    /// Opens the first GPU, makes `programs` ready for it, and takes exactly their height of each place.
    ///
    /// # Errors
    /// Where there is no GPU, an op has no kernel, or memory is refused.
    pub fn new(programs: &[Program], folder: &Path, settings: Settings) -> Result<Cuda> {
        let gpu = Gpu::open()?;
        let (mut means, products) = means(&gpu)?;
        let prepared = prepare(programs, &mut means)?;
        let height = height(programs);
        let memory = Memory::new(&gpu, height.gpu)?;
        let places = Places::new(
            PerPlace {
                gpu: Bytes::ZERO,
                ..height
            },
            folder,
        )?;
        let mailbox = Arena::new("mailbox", mailbox(&prepared))?;
        let (pinned, pageable) = pin([places.arena(Place::Pinned), &mailbox]);
        let device = || Stream::ALL.into_iter().filter(|s| is_of_device(*s));
        let lanes = device().map(|s| Ok((s, Lane::new()?)));
        let mut cuda = Cuda {
            lanes: lanes.collect::<Result<_>>()?,
            prepared,
            means,
            products,
            points: Vec::new(),
            epoch: Point::new(true)?,
            _pinned: pinned,
            pageable,
            mailbox,
            memory,
            places,
            settings,
            host: pool(1)?,
            mark: PerPlace::default(),
            touched: Touched::default(),
            gpu,
        };
        cuda.grow(programs)?;
        Ok(cuda)
    }

    /// Makes programs ready that take the place of those it was opened with, in the same memory.
    ///
    /// # Errors
    /// As [`Cuda::new`], and where what they exchange with the outside is more than before.
    pub fn prepare(&mut self, programs: &[Program]) -> Result<()> {
        self.gpu.bind()?;
        let prepared = prepare(programs, &mut self.means)?;
        let (needs, has) = (mailbox(&prepared), self.mailbox.bytes());
        if needs > has {
            let next = "report this plan";
            return Err(Error::value(
                "mailbox",
                needs,
                format!("it has {has}"),
                next,
            ));
        }
        self.prepared = prepared;
        self.grow(programs)
    }

    /// Events for all that is signalled and timed in any of the programs.
    fn grow(&mut self, programs: &[Program]) -> Result<()> {
        let events = programs
            .iter()
            .map(|p| p.events as usize)
            .max()
            .unwrap_or(0);
        while self.points.len() < events {
            self.points.push(Point::new(false)?);
        }
        let times = self.prepared.values().map(|p| p.times).max().unwrap_or(0);
        self.lanes
            .values_mut()
            .try_for_each(|lane| lane.renew(times))
    }

    /// The device.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Sentences about how it runs: what compiles kernels, and what could not be had.
    pub fn notes(&self) -> Vec<String> {
        let compiler = self.means.modules.compiler().describe();
        let compiler = format!("kernels compiled by {compiler}");
        let mailbox = format!(
            "beside the plan: {} of pinned memory for what enters and leaves",
            self.mailbox.bytes()
        );
        let launches = match self.lanes.values().find_map(Lane::without) {
            Some(why) => format!("launches go one by one: {why}"),
            None => "launches go in CUDA graphs from the third walk of a program on".to_string(),
        };
        [compiler, self.products.clone(), launches, mailbox]
            .into_iter()
            .chain(self.pageable.clone())
            .collect()
    }

    /// The largest end address handed out so far in each place.
    pub fn mark(&self) -> PerPlace<Bytes> {
        self.mark
    }

    /// Bytes of each role in each place when those handed out and not yet freed were most.
    pub fn roles(&self) -> PerPlace<Roles> {
        self.touched.roles()
    }

    /// A walk begins: the device is idle, and its clock and the host's start together.
    fn begin(&mut self, program: &Program) -> Result<Instant> {
        self.touched.begin(program);
        self.gpu.bind()?;
        self.epoch.record(&self.lanes[&Stream::Compute].queue)?;
        Ok(Instant::now())
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
        let begun = self.begin(program)?;
        let prepared = self.prepared.get(&program.when);
        let prepared = prepared.unwrap_or_else(|| panic!("{:?} was not made ready", program.when));
        let board = Board::new(program.events);
        let meeting = Meeting {
            board: &board,
            points: &self.points,
            by_device: &prepared.by_device,
            gpu: &self.gpu,
        };
        let ground = Ground {
            program,
            prepared,
            memory: &self.memory,
            places: &self.places,
            mailbox: &self.mailbox,
            pinned: self.pageable.is_none(),
            meeting: &meeting,
            port,
            scalars,
            seed: self.settings.seed,
            epoch: &self.epoch,
        };
        let (settings, host) = (self.settings, &self.host);
        std::thread::scope(|scope| {
            let (mut senders, mut threads) = (BTreeMap::new(), Vec::new());
            for (stream, lane) in with_lanes(program, &mut self.lanes) {
                let (sender, receiver) = std::sync::mpsc::channel();
                senders.insert(stream, sender);
                threads.push(scope.spawn(move || match lane {
                    Some(lane) => Worker::new(stream, lane, ground).run(receiver),
                    None => on_host(stream, ground, (settings, host, begun)).run(receiver),
                }));
            }
            let walk = Walk {
                program,
                queues: senders,
                threads,
                board: &board,
                epoch: begun,
                poison: settings.poison,
                mark: &mut self.mark,
                touched: &mut self.touched,
                live: PerPlace::default(),
                buffers: buffers(program),
            };
            walk.all()
        })
    }
}

/// The streams of a program; those that are queues of the device with what is kept for them.
fn with_lanes<'a>(
    program: &Program,
    lanes: &'a mut BTreeMap<Stream, Lane>,
) -> Vec<(Stream, Option<&'a mut Lane>)> {
    let mut lanes: BTreeMap<_, _> = lanes.iter_mut().collect();
    let with = |stream| (stream, lanes.remove(&stream));
    streams(program).into_iter().map(with).collect()
}

/// A stream that is a thread of this machine, as the machine for CPUs runs it.
fn on_host<'a>(
    stream: Stream,
    on: Ground<'a>,
    (settings, pool, epoch): (Settings, &'a rayon::ThreadPool, Instant),
) -> stream::Worker<'a> {
    stream::Worker {
        stream,
        program: on.program,
        places: on.places,
        board: on.meeting,
        port: on.port,
        scalars: on.scalars,
        seed: on.seed,
        pool,
        throttle: throttle(settings, stream),
        epoch,
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        // Events, queues and memory are given back by a thread that uses the device; a lost one takes nothing back.
        let _ = self.gpu.settle();
    }
}

/// What runs tasks on a device, and a sentence about whose products are used.
fn means(gpu: &Gpu) -> Result<(Means, String)> {
    let modules = Modules::new(gpu)?;
    let (products, whose) = match Products::open() {
        Ok(products) => {
            let whose = format!("products by {}", products.describe());
            (Some(products), whose)
        }
        Err(error) => (None, format!("products by kernels of our own: {error}")),
    };
    Ok((Means { modules, products }, whose))
}

fn prepare(programs: &[Program], means: &mut Means) -> Result<BTreeMap<When, Prepared>> {
    let ready = programs
        .iter()
        .map(|p| Ok((p.when, Prepared::new(p, means)?)));
    ready.collect()
}

fn mailbox(prepared: &BTreeMap<When, Prepared>) -> Bytes {
    Bytes(prepared.values().map(|p| p.mailbox).max().unwrap_or(0))
}

/// Pins arenas; where that is refused, they stay pageable and the reason is told.
fn pin(arenas: [&Arena; 2]) -> (Vec<Pinned>, Option<String>) {
    let mut pinned = Vec::new();
    for arena in arenas.into_iter().filter(|a| a.bytes() > Bytes::ZERO) {
        let (at, bytes) = arena.pages();
        match memory::pin(at, bytes) {
            Ok(()) => pinned.push(Pinned(at)),
            Err(error) => {
                return (
                    pinned,
                    Some(format!(
                        "host memory stays pageable, copies are slower: {error}"
                    )),
                );
            }
        }
    }
    (pinned, None)
}
