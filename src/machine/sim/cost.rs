//! What an instruction costs when it runs alone, and what it takes of each resource meanwhile.

use crate::graph::op::{Op, Scalars, Work, kernel};
use crate::graph::random::Key;
use crate::graph::tensor::{DType, TensorId, Type};
use crate::graph::{Step, Stream};
use crate::spec::device::Device;
use crate::spec::job::{Backend, Place, Precision, Target};

/// Fraction of a device's matrix peak that large products reach where nothing was measured: published sweeps
/// (stas00/ml-engineering, compute/accelerator) find 0.78 to 0.87 on A100, H100 and B200.
pub const MATMUL_EFFICIENCY: f64 = 0.75;

/// Fraction of the memory bandwidth that elementwise kernels reach where nothing was measured.
pub const MEMORY_EFFICIENCY: f64 = 0.8;

/// Fraction of a calibrated CPU's peaks that an op reaches which calibration did not meet: the middle of those it did.
const UNMET_EFFICIENCY: f64 = 0.15;

/// What instructions compete for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Resource {
    Cores,
    Memory,
    Dram,
    LinkIn,
    LinkOut,
    DiskRead,
    DiskWrite,
}

/// How many resources there are.
pub(super) const RESOURCES: usize = 7;

/// An instruction's cost when alone: seconds, and the share of each resource it takes meanwhile.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cost {
    /// Seconds.
    pub(super) seconds: f64,
    /// Shares, each from 0 to 1.
    pub(super) share: [f64; RESOURCES],
}

impl Cost {
    fn new(seconds: f64, shares: &[(Resource, f64)]) -> Cost {
        let mut share = [0.0f64; RESOURCES];
        for &(resource, part) in shares {
            let old = share[resource as usize];
            share[resource as usize] = old.max(part.min(1.0));
        }
        Cost { seconds, share }
    }
}

/// A node as its cost sees it.
struct Call<'a> {
    op: &'a dyn Op,
    inputs: Vec<Type>,
    outputs: Vec<Type>,
    work: Work,
}

impl Call<'_> {
    fn of(step: &Step, node: u32) -> Call<'_> {
        let node = &step.nodes[node as usize];
        let types = |ids: &[TensorId]| -> Vec<Type> {
            ids.iter().map(|&i| step.type_of(i).clone()).collect()
        };
        let (inputs, outputs) = (types(&node.inputs), types(&node.outputs));
        Call {
            op: &*node.op,
            work: node.op.work(&inputs, &outputs),
            inputs,
            outputs,
        }
    }

    /// The format it computes in.
    fn dtype(&self) -> DType {
        let first = self.inputs.first().or(self.outputs.first());
        first.map_or(DType::F32, |t| t.dtype)
    }

    /// The name under which its measured efficiency is kept.
    fn key(&self) -> String {
        efficiency_key(self.op.name(), self.dtype())
    }

    /// How many launches it is on a GPU.
    fn launches(&self) -> u64 {
        let call = kernel::Call {
            inputs: &self.inputs,
            outputs: &self.outputs,
            key: Key(0),
            scalars: Scalars::default(),
        };
        self.op.cuda(&call).launches()
    }
}

/// The cost of a node on a target. To hand work to the host's threads is taken to cost what a launch does.
pub(super) fn node_cost(step: &Step, node: u32, stream: Stream, target: &Target) -> Cost {
    let call = Call::of(step, node);
    match (target.device.threads, stream) {
        (Some(cores), _) => cpu_cost(&call, stream, cores, target),
        (None, Stream::HostCompute) => {
            let moved = call.work.bytes as f64 / target.host.dram;
            let seconds = target.device.launch.0 + moved;
            Cost::new(seconds, &[(Resource::Dram, moved / seconds)])
        }
        (None, _) => device_cost(&call, &target.device),
    }
}

/// Seconds of a kernel on the device: the slowest of its matrix products, its other arithmetic and its traffic, plus its launches.
fn device_cost(call: &Call, device: &Device) -> Cost {
    let measured = match device.efficiency.is_empty() {
        true => None,
        false => device.efficiency.get(&call.key()),
    };
    let assumed = match call.work.matmul > 0 {
        true => MATMUL_EFFICIENCY,
        false => MEMORY_EFFICIENCY,
    };
    let reached = measured.copied().unwrap_or(assumed);
    let launches = call.launches() as f64 * device.launch.0;
    let seconds = launches + ideal_seconds(call.work, call.dtype(), device) / reached;
    let memory = call.work.bytes as f64 / device.bandwidth / seconds.max(1e-12);
    Cost::new(
        seconds,
        &[(Resource::Cores, 1.0), (Resource::Memory, memory)],
    )
}

/// Seconds of an op on threads of a calibrated CPU, whose cores and memory all streams share.
fn cpu_cost(call: &Call, stream: Stream, cores: u32, target: &Target) -> Cost {
    let device = &target.device;
    let threads = match (stream, target.backend) {
        (Stream::Compute, Backend::Cpu { threads }) => threads,
        (Stream::Compute, Backend::Cuda { .. }) => cores,
        _ => 1,
    };
    let ideal = ideal_seconds(call.work, call.dtype(), device);
    let key = call.key();
    let seconds = match device.curve.get(&curve_key(&key, threads)) {
        Some(curve) => on_curve(curve, ideal),
        None => {
            let reached = device.efficiency.get(&key).copied();
            let slower = f64::from(cores) / f64::from(threads.clamp(1, cores));
            slower * ideal / reached.unwrap_or(UNMET_EFFICIENCY)
        }
    };
    let seconds = seconds + device.launch.0;
    let dram = call.work.bytes as f64 / dram(target) / seconds.max(1e-12);
    let taken = f64::from(threads) / f64::from(cores);
    Cost::new(seconds, &[(Resource::Cores, taken), (Resource::Dram, dram)])
}

/// Bandwidth of the memory behind the caches.
fn dram(target: &Target) -> f64 {
    target.device.dram.unwrap_or(target.host.dram)
}

/// Seconds at `ideal` on a curve: the first point's below it, the last point's efficiency above it, and between two
/// points a straight line of the logarithms.
fn on_curve(curve: &[[f64; 2]], ideal: f64) -> f64 {
    let (Some(first), Some(last)) = (curve.first(), curve.last()) else {
        return ideal;
    };
    if ideal <= first[0] {
        return first[1];
    }
    match curve.windows(2).find(|w| ideal < w[1][0]) {
        None => last[1] * ideal / last[0],
        Some(pair) => {
            let [[x0, y0], [x1, y1]] = [pair[0], pair[1]];
            let way = (ideal / x0).ln() / (x1 / x0).ln();
            y0 * (y1 / y0).powf(way)
        }
    }
}

/// The name under which a measured efficiency is kept.
pub fn efficiency_key(op: &str, dtype: DType) -> String {
    format!("{op}.{dtype:?}").to_lowercase()
}

/// The name under which the curve of an op on a number of threads is kept.
pub fn curve_key(efficiency_key: &str, threads: u32) -> String {
    format!("{efficiency_key}@{threads}")
}

/// The efficiency key of a node, its work, and the format it computes in.
pub fn node_work(step: &Step, node: u32) -> (String, Work, DType) {
    let call = Call::of(step, node);
    (call.key(), call.work, call.dtype())
}

/// How many launches a node is on a GPU.
pub fn node_launches(step: &Step, node: u32) -> u64 {
    Call::of(step, node).launches()
}

/// Seconds at the device's peaks: what no kernel can beat.
pub fn ideal_seconds(work: Work, dtype: DType, device: &Device) -> f64 {
    let precision = match dtype {
        DType::Bf16 => Precision::Bf16,
        DType::F16 => Precision::Fp16,
        DType::F32 | DType::U32 | DType::U16 | DType::U8 => Precision::F32,
    };
    let peak = precision.peak(device).unwrap_or(device.peak.fp32);
    let matmul = work.matmul as f64 / peak;
    let vector = work.vector as f64 / device.peak.fp32;
    let memory = work.bytes as f64 / device.bandwidth;
    matmul.max(vector).max(memory)
}

/// The queue a copy between places competes for, where it is not plain memory.
fn queue(from: Place, to: Place) -> Option<Resource> {
    match (from, to) {
        (Place::Disk, _) => Some(Resource::DiskRead),
        (_, Place::Disk) => Some(Resource::DiskWrite),
        (Place::Gpu, Place::Gpu) => None,
        (Place::Gpu, _) => Some(Resource::LinkOut),
        (_, Place::Gpu) => Some(Resource::LinkIn),
        _ => None,
    }
}

/// Seconds of a copy between places: what it moves at its rate, plus its launch.
pub(super) fn copy_cost(bytes: u64, from: Place, to: Place, target: &Target) -> Cost {
    if let Some(cores) = target.device.threads {
        return cpu_copy_cost(bytes, queue(from, to), cores, target);
    }
    let (host, device) = (&target.host, &target.device);
    let (resource, rate) = match (queue(from, to), from) {
        (Some(queue @ (Resource::DiskRead | Resource::DiskWrite)), _) => (queue, host.disk_rate),
        (Some(queue), _) => (queue, target.link()),
        (None, Place::Gpu) => (Resource::Memory, device.bandwidth / 2.0),
        (None, _) => (Resource::Dram, host.dram / 2.0),
    };
    let moved = bytes as f64 / rate;
    let seconds = device.launch.0 + moved;
    let share = |most: f64| rate / most * moved / seconds;
    let mut shares = vec![
        (resource, moved / seconds),
        (Resource::Dram, share(host.dram)),
    ];
    if from == Place::Gpu || to == Place::Gpu {
        shares.push((Resource::Memory, share(device.bandwidth)));
    }
    Cost::new(seconds, &shares)
}

/// Seconds of a copy by one of a CPU's cores: held to the link's or the disk's rate, busy for the part of the time in
/// which it copies and asleep for the rest.
fn cpu_copy_cost(bytes: u64, queue: Option<Resource>, cores: u32, target: &Target) -> Cost {
    let device = &target.device;
    let most = device.copy_rate.unwrap_or(dram(target) / 2.0);
    let rate = match queue {
        Some(Resource::DiskRead | Resource::DiskWrite) => {
            let disk = device.disk_rate.unwrap_or(f64::INFINITY);
            most.min(target.host.disk_rate.min(disk))
        }
        Some(_) => most.min(target.link()),
        None => most,
    };
    let seconds = device.launch.0 + bytes as f64 / rate;
    let mut shares = vec![
        (Resource::Cores, rate / most / f64::from(cores)),
        (Resource::Dram, 2.0 * rate / dram(target)),
    ];
    shares.extend(queue.map(|queue| (queue, 1.0)));
    Cost::new(seconds, &shares)
}
