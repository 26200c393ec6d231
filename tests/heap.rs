//! The heap during a step: everything of size is in the plan. A binary of its own, for it counts every allocation.
#![allow(clippy::unwrap_used, missing_docs, unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};

use memfit::error::Result;
use memfit::graph::When;
use memfit::graph::backward::Backward;
use memfit::graph::op::{Io, Op, Output, Port, Scalars, Work};
use memfit::graph::tensor::Type;
use memfit::machine::agreement::nominal;
use memfit::machine::cpu::{Cpu, Settings};
use memfit::machine::estimate;
use memfit::plan::{Choice, Plan};
use memfit::program::{Program, height};
use memfit::spec::catalog;
use memfit::spec::job::{Backend, Host, Job, Optimizer, Precision, Target};
use memfit::spec::units::Bytes;

/// The most a steady step may add to the heap.
const LIMIT: i64 = 8 << 20;

static NOW: AtomicI64 = AtomicI64::new(0);
static MOST: AtomicI64 = AtomicI64::new(0);

/// The system's allocator, counting.
struct Counting;

// SAFETY: every call is passed on unchanged; counting touches atomics only.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as i64);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-(layout.size() as i64));
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as i64 - layout.size() as i64);
        // SAFETY: the caller's promise.
        unsafe { System.realloc(at, layout, size) }
    }
}

fn count(bytes: i64) {
    let now = NOW.fetch_add(bytes, Relaxed) + bytes;
    MOST.fetch_max(now, Relaxed);
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Zeros in, losses nowhere.
struct Zeros;

impl Port for Zeros {
    fn read(&self, name: &str, _: u64, into: &mut [u8]) -> Result<()> {
        into.fill(0);
        if name == "input/scale" {
            into[..4].copy_from_slice(&0.01f32.to_le_bytes());
            into[4..].copy_from_slice(&1f32.to_le_bytes());
        }
        Ok(())
    }
    fn write(&self, _: &str, _: u64, _: &[u8]) -> Result<()> {
        Ok(())
    }
}

/// An op that takes 16 MiB of heap behind the plan's back.
#[derive(Debug)]
struct Greedy(Arc<dyn Op>);

impl Op for Greedy {
    fn name(&self) -> &'static str {
        self.0.name()
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        self.0.outputs(inputs)
    }
    fn scratch(&self, inputs: &[Type], backend: Backend) -> Bytes {
        self.0.scratch(inputs, backend)
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        self.0.work(inputs, outputs)
    }
    fn backward(&self, at: &mut Backward) -> Result<()> {
        self.0.backward(at)
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        let hidden = std::hint::black_box(vec![1u8; 16 << 20]);
        let ran = self.0.cpu(io);
        drop(hidden);
        ran
    }
}

/// The programs of `small` with a technique of each kind.
fn programs(precision: Precision, choices: &[&str]) -> Vec<Program> {
    let mut target = Target::new(nominal().unwrap(), Host::default());
    target.backend = Backend::Cpu { threads: 2 };
    let job = Job {
        model: catalog::open("small").unwrap(),
        seq: 64,
        batch: 2,
        precision,
        optimizer: Optimizer("adamw".into()),
        target,
    };
    let choices = choices.iter().map(|c| Choice::parse(c).unwrap()).collect();
    estimate::all(&Plan::new(job, choices).unwrap()).unwrap()
}

/// Heap growth inside the third step.
fn growth(programs: &[Program]) -> i64 {
    let folder = tempfile::tempdir().unwrap();
    let backend = Backend::Cpu { threads: 2 };
    let mut cpu = Cpu::new(
        height(programs),
        backend,
        folder.path(),
        Settings::default(),
    )
    .unwrap();
    let mut run = |when: When, step: u64| {
        let program = programs.iter().find(|p| p.when == when).unwrap();
        cpu.run(
            program,
            &Zeros,
            Scalars {
                step,
                micro: 0,
                rate: 1e-3,
            },
        )
        .unwrap();
    };
    run(When::Start, 0);
    run(When::Steady, 1);
    run(When::Steady, 2);
    let before = NOW.load(Relaxed);
    MOST.store(before, Relaxed);
    run(When::Steady, 3);
    MOST.load(Relaxed) - before
}

#[test]
fn a_steady_step_leaves_the_heap_alone_and_a_planted_allocation_does_not() {
    for (precision, choices) in [
        (Precision::F32, &[][..]),
        (
            Precision::Bf16,
            &["recompute", "offload:what=activations", "flash_attention"],
        ),
        (
            Precision::Fp16,
            &[
                "chunked_loss:rows=64",
                "offload:what=optimizer,to=disk,update=host",
            ],
        ),
    ] {
        let mut programs = programs(precision, choices);
        let grown = growth(&programs);
        println!("{precision} {choices:?}: {grown} bytes");
        assert!(grown < LIMIT, "{precision} {choices:?}: {grown} bytes");
        let steady = programs
            .iter_mut()
            .find(|p| p.when == When::Steady)
            .unwrap();
        let node = steady
            .step
            .nodes
            .iter_mut()
            .find(|n| n.op.name() == "rms_norm")
            .unwrap();
        node.op = Arc::new(Greedy(node.op.clone()));
        assert!(growth(&programs) >= LIMIT, "16 MiB went unseen");
    }
}
