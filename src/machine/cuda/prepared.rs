//! A program made ready for the device: for each node its kernels with their functions, and a slot for what it exchanges.

use std::sync::Arc;

use super::modules::{Function, Modules};
use super::products::{Product, Products};
use crate::error::{Error, Result};
use crate::graph::op::kernel::{Argument, Call, Kernel, Launch, Memory, Task};
use crate::graph::op::transfer::{Feed, Report};
use crate::graph::op::{Op, Scalars};
use crate::graph::random::Key;
use crate::graph::tensor::Type;
use crate::graph::{Node, Step, Stream};
use crate::program::{Instr, Program};

/// Alignment of a slot in the mailbox.
const SLOT: u64 = 64;

/// A program made ready.
#[derive(Debug)]
pub struct Prepared {
    /// For each node how it runs.
    pub nodes: Vec<Ready>,
    /// For each event whether a queue of the device signals it.
    pub by_device: Vec<bool>,
    /// Bytes of the mailbox it uses.
    pub mailbox: u64,
    /// Times a queue of the device is asked for at most.
    pub times: usize,
}

/// How a node runs.
#[derive(Debug)]
pub enum Ready {
    /// Not on the device.
    Elsewhere,
    /// A value from outside, by way of the mailbox from this byte on.
    Feed(u64),
    /// A value for the outside, by way of the mailbox from this byte on.
    Report(u64),
    /// Kernels.
    Kernels(Kernels),
}

/// The kernels of one node.
#[derive(Debug)]
pub struct Kernels {
    /// Types of its inputs.
    inputs: Vec<Type>,
    /// Types of its outputs.
    outputs: Vec<Type>,
    /// Input each output overwrites.
    pub overwrites: Vec<Option<usize>>,
    /// How each task runs.
    ways: Vec<Way>,
    /// For each task whether it depends on the step.
    varies: Vec<bool>,
    /// The tasks, where they are the same in every step.
    fixed: Option<Vec<Task>>,
}

/// How a task runs.
#[derive(Debug, Clone)]
pub enum Way {
    /// As a kernel of ours.
    Kernel(Function),
    /// As a product of cuBLASLt's.
    Product(Arc<Product>),
}

impl Way {
    /// `task` as it runs this way: products that cuBLASLt does not take are kernels of ours.
    fn meant(&self, task: Task) -> Task {
        match (self, task) {
            (Way::Kernel(_), Task::Gemm(gemm)) => Task::Launch(gemm.launch()),
            (_, task) => task,
        }
    }
}

impl Kernels {
    /// The tasks of a step, each with the way it runs and whether it depends on the step.
    pub fn of(
        &self,
        op: &dyn Op,
        key: Key,
        scalars: Scalars,
        mut each: impl FnMut(&Way, &Task, bool) -> Result<()>,
    ) -> Result<()> {
        let drawn = match &self.fixed {
            Some(_) => Vec::new(),
            None => self.meant(tasks(op, &self.call(key, scalars))?),
        };
        let all = self.fixed.as_ref().unwrap_or(&drawn);
        let all = self.ways.iter().zip(all).zip(&self.varies);
        all.into_iter()
            .try_for_each(|((way, task), &varies)| each(way, task, varies))
    }

    /// Whether a task depends on the step.
    pub fn vary(&self) -> bool {
        self.varies.contains(&true)
    }

    /// Whether a graph can hold it: the parameters of kernels of ours can be renewed in one, those of cuBLASLt's products cannot.
    pub fn may_be_captured(&self) -> bool {
        let mut all = self.ways.iter().zip(&self.varies);
        all.all(|(way, varies)| !varies || matches!(way, Way::Kernel(_)))
    }

    /// Tasks as they run.
    fn meant(&self, tasks: Vec<Task>) -> Vec<Task> {
        let pairs = self.ways.iter().zip(tasks);
        pairs.map(|(way, task)| way.meant(task)).collect()
    }

    fn call(&self, key: Key, scalars: Scalars) -> Call<'_> {
        Call {
            inputs: &self.inputs,
            outputs: &self.outputs,
            key,
            scalars,
        }
    }

    fn new(step: &Step, node: &Node) -> Result<Kernels> {
        let (inputs, outputs) = types(step, node);
        let mut kernels = Kernels {
            inputs,
            outputs,
            overwrites: step.overwrites(node),
            ways: Vec::new(),
            varies: Vec::new(),
            fixed: None,
        };
        let op = &*node.op;
        let samples = samples().map(|(key, scalars)| tasks(op, &kernels.call(key, scalars)));
        let samples = samples.collect::<Result<Vec<_>>>()?;
        let (first, others) = samples
            .split_first()
            .map_or((&[][..], &[][..]), |(f, o)| (f, o));
        let varies = |index: usize| {
            others
                .iter()
                .any(|tasks| tasks.get(index) != first.get(index))
        };
        kernels.varies = (0..first.len()).map(varies).collect();
        kernels.fixed = (!kernels.vary()).then(|| first.to_vec());
        Ok(kernels)
    }
}

/// Types of what a node reads and makes.
fn types(step: &Step, node: &Node) -> (Vec<Type>, Vec<Type>) {
    let of = |values: &[_]| values.iter().map(|&v| step.type_of(v).clone()).collect();
    (of(&node.inputs), of(&node.outputs))
}

/// Keys and numbers of steps that tell apart what depends on them.
fn samples() -> impl Iterator<Item = (Key, Scalars)> {
    let of = |key, step, micro, rate| (Key(key), Scalars { step, micro, rate });
    [of(0, 1, 0, 0.1), of(5, 91, 7, 0.3), of(9, 100_000, 1, 1e-5)].into_iter()
}

/// The first op that `programs` launch on the device and that has no kernel, by name.
pub fn missing(programs: &[Program]) -> Option<String> {
    let (key, scalars) = samples().next()?;
    let nodes = programs
        .iter()
        .flat_map(|p| p.step.nodes.iter().map(move |n| (&p.step, n)));
    let mut device = nodes.filter(|(_, node)| node.stream == Stream::Compute);
    let lacks = |(step, node): &(&Step, &Node)| {
        let (inputs, outputs) = types(step, node);
        let call = Call {
            inputs: &inputs,
            outputs: &outputs,
            key,
            scalars,
        };
        node.op.cuda(&call) == Kernel::Missing
    };
    device
        .find(lacks)
        .map(|(_, node)| node.op.name().to_string())
}

/// The tasks of a call.
fn tasks(op: &dyn Op, call: &Call) -> Result<Vec<Task>> {
    match op.cuda(call) {
        Kernel::Run(tasks) => Ok(tasks),
        Kernel::Transfer => {
            let why = "it moves values between places, where it was to compute";
            Err(Error::shape(op.name(), why))
        }
        Kernel::Missing => {
            let why = "it has no kernel for NVIDIA GPUs";
            let next = "choose another technique (docs/kernels.md lists what has kernels), or use --device cpu";
            Err(Error::value("op", op.name(), why, next))
        }
    }
}

/// What runs tasks on a device.
#[derive(Debug)]
pub struct Means {
    /// Kernels of ours.
    pub modules: Modules,
    /// Products of cuBLASLt's, where it is found.
    pub products: Option<Products>,
}

/// A task before it is known where its kernel is.
enum Sought {
    Kernel(Launch),
    Product(Arc<Product>),
}

impl Means {
    /// How `tasks` run: what needs to be compiled for them is.
    ///
    /// # Errors
    /// Where a kernel does not compile, or a library fails.
    pub fn ways(&mut self, tasks: &[Vec<Task>]) -> Result<Vec<Vec<Way>>> {
        let sought = tasks.iter().map(|own| {
            let own = own.iter().map(|task| self.sought(task));
            own.collect::<Result<Vec<Sought>>>()
        });
        let sought: Vec<Vec<Sought>> = sought.collect::<Result<_>>()?;
        let launches = sought.iter().flatten().filter_map(|sought| match sought {
            Sought::Kernel(launch) => Some(launch),
            Sought::Product(_) => None,
        });
        self.modules.load(launches)?;
        let mut way = |sought| {
            Ok(match sought {
                Sought::Kernel(launch) => Way::Kernel(self.modules.function(&launch)?),
                Sought::Product(product) => Way::Product(product),
            })
        };
        let ways = sought
            .into_iter()
            .map(|own| own.into_iter().map(&mut way).collect());
        ways.collect()
    }

    fn sought(&mut self, task: &Task) -> Result<Sought> {
        let gemm = match task {
            Task::Launch(launch) => return Ok(Sought::Kernel(launch.clone())),
            Task::Gemm(gemm) => gemm,
        };
        let products = self.products.as_mut();
        let taken = products.map(|products| products.take(gemm)).transpose()?;
        Ok(match taken.flatten() {
            Some(product) => Sought::Product(product),
            None => Sought::Kernel(gemm.launch()),
        })
    }
}

impl Prepared {
    /// Makes `program` ready: its modules are compiled and loaded.
    ///
    /// # Errors
    /// Where an op has no kernel, naming it, or a kernel does not compile.
    pub fn new(program: &Program, means: &mut Means) -> Result<Prepared> {
        let step = &program.step;
        let mut mailbox = 0;
        let mut nodes = Vec::with_capacity(step.nodes.len());
        for node in &step.nodes {
            nodes.push(ready(step, node, &mut mailbox)?);
        }
        let (key, scalars) = samples().next().unwrap_or_default();
        let mut needed = Vec::new();
        for (ready, node) in nodes.iter().zip(&step.nodes) {
            if let Ready::Kernels(kernels) = ready {
                needed.push(tasks(&*node.op, &kernels.call(key, scalars))?);
            }
        }
        let mut ways = means.ways(&needed)?.into_iter();
        for ready in &mut nodes {
            if let Ready::Kernels(kernels) = ready {
                kernels.ways = ways.next().unwrap_or_default();
                let fixed = kernels.fixed.take();
                kernels.fixed = fixed.map(|tasks| kernels.meant(tasks));
            }
        }
        Ok(Prepared {
            nodes,
            by_device: by_device(program),
            mailbox,
            times: times(program),
        })
    }
}

fn ready(step: &Step, node: &Node, mailbox: &mut u64) -> Result<Ready> {
    use crate::graph::op::transfer::{MOVE, SETTLE};
    let name = node.op.name();
    if node.stream != Stream::Compute || name == MOVE || name == SETTLE {
        return Ok(Ready::Elsewhere);
    }
    let op: &dyn std::any::Any = &*node.op;
    let slot = |value, mailbox: &mut u64| {
        let at = *mailbox;
        *mailbox += step.type_of(value).bytes().round_up(SLOT).0;
        at
    };
    if op.is::<Feed>() {
        return Ok(Ready::Feed(slot(node.outputs[0], mailbox)));
    }
    if op.is::<Report>() {
        return Ok(Ready::Report(slot(node.inputs[0], mailbox)));
    }
    Ok(Ready::Kernels(Kernels::new(step, node)?))
}

/// Whether a stream is a queue of the device.
pub fn is_of_device(stream: Stream) -> bool {
    matches!(stream, Stream::Compute | Stream::ToDevice | Stream::ToHost)
}

fn by_device(program: &Program) -> Vec<bool> {
    let mut by = vec![false; program.events as usize];
    for instr in &program.code {
        if let Instr::Signal(stream, event) = instr {
            by[event.0 as usize] = is_of_device(*stream);
        }
    }
    by
}

/// Most points in time that one queue of the device records: one behind each instruction, one behind each wait.
fn times(program: &Program) -> usize {
    let of = |stream: Stream| {
        let own = program.code.iter().filter(|instr| match instr {
            Instr::Launch { stream: s, .. } | Instr::Copy { stream: s, .. } => *s == stream,
            Instr::Wait(s, _) => *s == stream,
            _ => false,
        });
        own.count()
    };
    let device = Stream::ALL.into_iter().filter(|s| is_of_device(*s));
    device.map(of).max().unwrap_or(0)
}

/// The value of an argument; `address` tells where a memory begins.
pub fn word(argument: &Argument, address: impl Fn(Memory) -> Result<u64>) -> Result<u64> {
    Ok(match *argument {
        Argument::Pointer(at) => address(at.of)? + at.offset,
        Argument::Null => 0,
        Argument::U32(value) => u64::from(value),
        Argument::U64(value) => value,
        Argument::F32(value) => u64::from(value.to_bits()),
        Argument::F64(value) => value.to_bits(),
    })
}
