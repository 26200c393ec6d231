//! A program made ready for the device: for each node its kernels with their functions, and a slot for what it exchanges.

use super::modules::{Function, Modules};
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
    /// One function for each launch.
    functions: Vec<Function>,
    /// The launches, where they are the same in every step.
    fixed: Option<Vec<Launch>>,
}

impl Kernels {
    /// The launches of a step, each with its function.
    pub fn of(
        &self,
        op: &dyn Op,
        key: Key,
        scalars: Scalars,
        mut each: impl FnMut(Function, &Launch) -> Result<()>,
    ) -> Result<()> {
        let drawn;
        let launches = match &self.fixed {
            Some(launches) => launches,
            None => {
                drawn = launches(op, &self.call(key, scalars))?;
                &drawn
            }
        };
        self.functions
            .iter()
            .zip(launches)
            .try_for_each(|(f, launch)| each(*f, launch))
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
            functions: Vec::new(),
            fixed: None,
        };
        let op = &*node.op;
        let mut samples = samples().map(|(key, scalars)| launches(op, &kernels.call(key, scalars)));
        let first = samples.next().unwrap_or(Ok(Vec::new()))?;
        let same = samples.try_fold(true, |same, other| Ok::<_, Error>(same && other? == first))?;
        kernels.fixed = same.then_some(first);
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

/// The launches of a call; products by our own kernel.
fn launches(op: &dyn Op, call: &Call) -> Result<Vec<Launch>> {
    let tasks = match op.cuda(call) {
        Kernel::Run(tasks) => tasks,
        Kernel::Transfer => {
            let why = "it moves values between places, where it was to compute";
            return Err(Error::shape(op.name(), why));
        }
        Kernel::Missing => {
            let why = "it has no kernel for NVIDIA GPUs";
            let next = "choose another technique (docs/kernels.md lists what has kernels), or use --device cpu";
            return Err(Error::value("op", op.name(), why, next));
        }
    };
    let launches = tasks.into_iter().map(|task| match task {
        Task::Launch(launch) => launch,
        Task::Gemm(gemm) => gemm.launch(),
    });
    Ok(launches.collect())
}

impl Prepared {
    /// Makes `program` ready: its modules are compiled and loaded.
    ///
    /// # Errors
    /// Where an op has no kernel, naming it, or a kernel does not compile.
    pub fn new(program: &Program, modules: &mut Modules) -> Result<Prepared> {
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
                needed.push(launches(&*node.op, &kernels.call(key, scalars))?);
            }
        }
        modules.load(needed.iter().flatten())?;
        let mut needed = needed.into_iter();
        for ready in &mut nodes {
            if let Ready::Kernels(kernels) = ready {
                let launches = needed.next().unwrap_or_default();
                let functions = launches.iter().map(|launch| modules.function(launch));
                kernels.functions = functions.collect::<Result<_>>()?;
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
