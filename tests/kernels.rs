//! CUDA kernels without a GPU: the same text compiled for this CPU, held to each op's definition under drawn schedules.

mod coverage;
pub mod emulator;
mod samples;

use std::collections::BTreeMap;
use std::sync::Arc;

use memfit::graph::op::kernel::{self, Argument, Call, Gemm, Kernel, Launch, Memory, Task};
use memfit::graph::op::{Io, Output, Scalars, View, ViewMut};
use memfit::graph::random::Key;
use memfit::graph::tensor::{DType, Type};
use memfit::spec::job::Backend;

use crate::bench::{bytes_of, floats};
use crate::reference::Silent;
use emulator::{Emulator, compiler};
use samples::{FLOATS, Fill, Near, Sample, samples};

/// The memory of one value: aligned as on a GPU, between guards.
struct Buffer {
    words: Vec<u128>,
    bytes: usize,
}

/// Words before and behind a value that nobody may write.
const GUARD: usize = 16;
const UNTOUCHED: u128 = 0xa5a5_a5a5_a5a5_a5a5_a5a5_a5a5_a5a5_a5a5;

impl Buffer {
    /// Nothing written yet: NaNs.
    fn new(bytes: u64) -> Buffer {
        let bytes = bytes as usize;
        let mut words = vec![UNTOUCHED; bytes.div_ceil(16) + 2 * GUARD];
        let end = words.len() - GUARD;
        words[GUARD..end].fill(u128::MAX);
        Buffer { words, bytes }
    }

    fn of(from: &[u8]) -> Buffer {
        let mut buffer = Buffer::new(from.len() as u64);
        buffer.all().copy_from_slice(from);
        buffer
    }

    fn all(&mut self) -> &mut [u8] {
        let end = self.words.len() - GUARD;
        &mut bytemuck::cast_slice_mut(&mut self.words[GUARD..end])[..self.bytes]
    }

    fn is_whole(&self) -> bool {
        let end = self.words.len() - GUARD;
        let last: &[u8] = bytemuck::cast_slice(&self.words[GUARD..end]);
        let guards = self.words[..GUARD].iter().chain(&self.words[end..]);
        guards.into_iter().all(|w| *w == UNTOUCHED) && last[self.bytes..].iter().all(|b| *b == 255)
    }
}

/// The values of an input of a sample.
fn values(seed: u64, at: &Type, fill: &Fill) -> Vec<u8> {
    let key = Key(seed);
    let normal = |i: u64| key.normal(i);
    let numbers = 0..at.elements();
    match fill {
        Fill::Normal(scale) => {
            let made: Vec<f32> = numbers.map(|i| scale * normal(i)).collect();
            bytes_of(&made, at.dtype)
        }
        Fill::Positive(scale) => {
            let made: Vec<f32> = numbers.map(|i| scale * normal(i) * normal(i)).collect();
            bytes_of(&made, at.dtype)
        }
        Fill::Below(limit) => {
            let made = numbers.map(|i| key.bits(i) % limit);
            match at.dtype {
                DType::U8 => made.map(|x| x as u8).collect(),
                DType::U16 => made.flat_map(|x| (x as u16).to_ne_bytes()).collect(),
                _ => made.flat_map(|x| (x as u32).to_ne_bytes()).collect(),
            }
        }
        Fill::Bytes(bytes) => bytes.clone(),
    }
}

impl Sample {
    fn types(&self) -> Vec<Type> {
        self.inputs.iter().map(|(at, _)| at.clone()).collect()
    }

    /// Types of the outputs, and the input that each overwrites.
    fn outputs(&self) -> Vec<(Type, Option<usize>)> {
        let inputs = self.types();
        let made = self.op.outputs(&inputs).unwrap().into_iter();
        made.map(|output| match output {
            Output::Fresh(at) => (at, None),
            Output::Overwrite { of } => (inputs[of].clone(), Some(of)),
        })
        .collect()
    }

    fn kernel_with(&self, key: Key, scalars: Scalars) -> Kernel {
        let inputs = self.types();
        let outputs: Vec<_> = self.outputs().into_iter().map(|(at, _)| at).collect();
        self.op.cuda(&Call {
            inputs: &inputs,
            outputs: &outputs,
            key,
            scalars,
        })
    }

    fn kernel(&self) -> Kernel {
        self.kernel_with(Key(77), self.scalars)
    }

    fn launches(&self) -> Vec<Launch> {
        let Kernel::Run(tasks) = self.kernel() else {
            return Vec::new();
        };
        let launch = |task| match task {
            Task::Launch(launch) => launch,
            Task::Gemm(gemm) => gemm.launch(),
        };
        tasks.into_iter().map(launch).collect()
    }

    fn describe(&self) -> String {
        let inputs: Vec<_> = self.types().iter().map(Type::to_string).collect();
        format!("{:?} on {}", self.op, inputs.join(", "))
    }

    /// Inputs and outputs before the call.
    fn buffers(&self, seed: u64) -> (Vec<Buffer>, Vec<Buffer>) {
        let inputs = self.inputs.iter().enumerate();
        let inputs: Vec<_> = inputs
            .map(|(i, (at, fill))| values(seed + i as u64, at, fill))
            .collect();
        let outputs = self.outputs();
        let outputs = outputs.iter().map(|(at, of)| match of {
            Some(of) => Buffer::of(&inputs[*of]),
            None => Buffer::new(at.bytes().0),
        });
        let outputs = outputs.collect();
        (inputs.iter().map(|i| Buffer::of(i)).collect(), outputs)
    }

    /// What the definition computes.
    fn on_cpu(&self, seed: u64) -> Vec<Vec<u8>> {
        let (mut inputs, mut outputs) = self.buffers(seed);
        let (types, made) = (self.types(), self.outputs());
        let gone: Vec<_> = made.iter().filter_map(|(_, of)| *of).collect();
        let scratch = self.op.scratch(&types, Backend::Cpu { threads: 1 });
        let mut scratch = vec![[u64::MAX; 8]; scratch.0.div_ceil(64) as usize + 1];
        let scratch: &mut [u8] = bytemuck::cast_slice_mut(&mut scratch);
        let scratch =
            &mut scratch[..self.op.scratch(&types, Backend::Cpu { threads: 1 }).0 as usize];
        let views = types.iter().zip(&mut inputs).enumerate();
        let views = views.map(|(i, (at, buffer))| View {
            at,
            bytes: if gone.contains(&i) { &[] } else { buffer.all() },
        });
        let written = made.iter().zip(&mut outputs);
        let written = written.map(|((at, _), buffer)| ViewMut {
            at,
            bytes: buffer.all(),
        });
        let mut io = Io {
            inputs: views.collect(),
            outputs: written.collect(),
            scratch,
            key: Key(77),
            scalars: self.scalars,
            port: &Silent,
        };
        self.op.cpu(&mut io).unwrap();
        outputs.iter_mut().map(|b| b.all().to_vec()).collect()
    }

    /// What the kernels compute under schedule `schedule`.
    fn on_emulator(
        &self,
        emulators: &BTreeMap<&str, Arc<Emulator>>,
        seed: u64,
        schedule: u64,
    ) -> Result<Vec<Vec<u8>>, String> {
        let (mut inputs, mut outputs) = self.buffers(seed);
        let of: Vec<_> = self.outputs().into_iter().map(|(_, of)| of).collect();
        let backend = Backend::Cuda { capability: 80 };
        let mut scratch = Buffer::new(self.op.scratch(&self.types(), backend).0);
        let starts = |buffers: &mut Vec<Buffer>| -> Vec<*mut u8> {
            buffers.iter_mut().map(|b| b.all().as_mut_ptr()).collect()
        };
        let (ins, outs) = (starts(&mut inputs), starts(&mut outputs));
        let room = scratch.all().as_mut_ptr();
        let address = |argument: &Argument| {
            let Argument::Pointer(at) = argument else {
                unreachable!()
            };
            let start = match at.of {
                // An overwritten input is its output's memory.
                Memory::Input(i) => match of.iter().position(|o| *o == Some(i)) {
                    Some(output) => outs[output],
                    None => ins[i],
                },
                Memory::Output(i) => outs[i],
                Memory::Scratch => room,
            };
            start.wrapping_add(at.offset as usize)
        };
        for launch in self.launches() {
            let ran = emulators[launch.stem].launch(&launch, schedule, address);
            ran.map_err(|e| format!("{}: {e}", launch.entry))?;
        }
        let all = inputs.iter().chain(&outputs).chain([&scratch]);
        if !all.into_iter().all(Buffer::is_whole) {
            return Err("a write beyond a buffer".to_string());
        }
        Ok(outputs.iter_mut().map(|b| b.all().to_vec()).collect())
    }

    /// Fails where an output of the kernels is not near the definition's.
    fn compare(&self, got: &[Vec<u8>], wanted: &[Vec<u8>]) -> Result<(), String> {
        for (index, (at, _)) in self.outputs().iter().enumerate() {
            let (got, wanted) = (&got[index], &wanted[index]);
            let float = FLOATS.contains(&at.dtype);
            if self.near == Near::Exact || !float {
                if let Some(byte) = got.iter().zip(wanted).position(|(g, w)| g != w) {
                    let element = byte as u64 / at.dtype.bytes();
                    return Err(format!(
                        "output {index} has other bits at element {element}"
                    ));
                }
                continue;
            }
            let (got, wanted) = (floats(got, at.dtype), floats(wanted, at.dtype));
            near(&got, &wanted, self.tolerance(at.dtype))
                .map_err(|e| format!("output {index} {e}"))?;
        }
        Ok(())
    }

    fn tolerance(&self, dtype: DType) -> f32 {
        let unit = match dtype {
            DType::F32 => 4e-6,
            DType::Bf16 => 1.0 / 128.0,
            _ => 1.0 / 1024.0,
        };
        match self.near {
            Near::Within(least) => f32::max(unit, least),
            _ => unit,
        }
    }
}

/// Fails unless every element is within `tolerance` of what is wanted, relative to it and to the typical element.
fn near(got: &[f32], wanted: &[f32], tolerance: f32) -> Result<(), String> {
    let squares: f64 = wanted.iter().map(|x| f64::from(*x).powi(2)).sum();
    let typical = (squares / wanted.len().max(1) as f64).sqrt() as f32;
    for (i, (got, wanted)) in got.iter().zip(wanted).enumerate() {
        let close = (got - wanted).abs() <= tolerance * (wanted.abs() + typical);
        if !(got == wanted || close) {
            return Err(format!("is {got} at element {i}, not {wanted}"));
        }
    }
    Ok(())
}

/// Runs all samples whose op is in `stem`'s file under several schedules.
fn agree(stem: &'static str) {
    if let Err(reason) = compiler() {
        return println!("{reason}");
    }
    let chosen: Vec<_> = samples()
        .into_iter()
        .filter(|s| s.launches().iter().any(|l| l.stem == stem))
        .collect();
    assert!(!chosen.is_empty(), "no sample runs kernels/{stem}.cu");
    let mut needed: BTreeMap<&str, Vec<Launch>> = BTreeMap::new();
    for launch in chosen.iter().flat_map(Sample::launches) {
        needed.entry(launch.stem).or_default().push(launch);
    }
    let emulators = needed.iter();
    let emulators: BTreeMap<_, _> = emulators.map(|(s, l)| (*s, Emulator::of(l))).collect();
    let mut wrong = Vec::new();
    for (index, sample) in chosen.iter().enumerate() {
        let seed = 1000 * index as u64;
        let wanted = sample.on_cpu(seed);
        let mut first = None;
        for schedule in 0..3 {
            let ran = sample.on_emulator(&emulators, seed, schedule);
            let same = ran.and_then(|got| {
                sample.compare(&got, &wanted)?;
                let first = first.get_or_insert_with(|| got.clone());
                match *first == got {
                    true => Ok(()),
                    false => Err("has other bits under another schedule".to_string()),
                }
            });
            if let Err(why) = same {
                wrong.push(format!("{}, schedule {schedule}: {why}", sample.describe()));
                break;
            }
        }
    }
    let count = (wrong.len(), chosen.len());
    assert!(wrong.is_empty(), "{count:?} wrong:\n{}", wrong.join("\n"));
}

macro_rules! agreement {
    ($($stem:ident)+) => { $(
        #[test]
        fn $stem() {
            agree(stringify!($stem));
        }
    )+
        /// Stems that are held to definitions.
        const HELD: &[&str] = &[$(stringify!($stem)),+];
    };
}

agreement!(activation adafactor attention attention_mma bias compress cross_entropy direction dropout elementwise embedding galore_refresh gemm guard lsp_renew masked_adamw microadam moe norm prepend quantized rope sparse update);

#[test]
fn every_file_of_kernels_is_held_to_definitions() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "cu") {
            files.push(path.file_stem().unwrap().to_str().unwrap().to_string());
        }
    }
    files.sort();
    assert_eq!(files, kernel::stems().collect::<Vec<_>>());
    assert_eq!(files, HELD);
}

#[test]
fn only_scalar_arguments_depend_on_the_numbers_of_a_step() {
    let shape = |kernel: Kernel| match kernel {
        Kernel::Run(tasks) => {
            let tasks = tasks.into_iter().map(|task| match task {
                Task::Launch(mut launch) => {
                    let pointer = |a: &mut Argument| matches!(a, Argument::Pointer(_));
                    launch.arguments.retain_mut(pointer);
                    Task::Launch(launch)
                }
                Task::Gemm(gemm) => Task::Gemm(Gemm { alpha: 0.0, ..gemm }),
            });
            Kernel::Run(tasks.collect())
        }
        other => other,
    };
    let other = Scalars {
        step: 91,
        micro: 7,
        rate: 0.3,
    };
    for sample in samples() {
        let (one, two) = (sample.kernel(), sample.kernel_with(Key(5), other));
        assert_eq!(shape(one), shape(two), "{}", sample.describe());
    }
}

/// Where `.ci/kernels` finds every module's text, to compile it by NVRTC.
#[test]
fn every_module_is_written_out() {
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("modules");
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    for launch in samples().iter().flat_map(Sample::launches) {
        let name = launch.module().replace(' ', ",");
        std::fs::write(folder.join(format!("{name}.cu")), launch.text()).unwrap();
    }
}

/// How many of `schedules` show that the last kernel of the first sample that is `chosen` has `instead` where its text has `place`.
fn found_without(
    chosen: impl Fn(&Sample) -> bool,
    (place, instead): (&str, &str),
    schedules: u64,
) -> usize {
    let all = samples();
    let sample = all.iter().find(|s| chosen(s)).unwrap();
    let launches = sample.launches();
    let launch = launches.last().unwrap();
    let text = launch.text();
    assert_eq!(text.matches(place).count(), 1, "{place}");
    let broken = text.replace(place, instead);
    let emulators = BTreeMap::from([(launch.stem, Emulator::of_text(launch, &broken))]);
    let wanted = sample.on_cpu(0);
    let shows = |schedule: &u64| {
        let ran = sample.on_emulator(&emulators, 0, *schedule);
        ran.and_then(|got| sample.compare(&got, &wanted)).is_err()
    };
    (0..schedules).filter(shows).count()
}

/// The RMSNorm of long rows, without the barrier between a warp's sum and its reader.
#[test]
fn a_missing_barrier_is_found() {
    if let Err(reason) = compiler() {
        return println!("{reason}");
    }
    let long = |s: &Sample| s.op.name() == "rms_norm" && s.inputs[0].0.columns() == 4096;
    let place = "    if (lane() == 0) room[warp()] = x;\n    __syncthreads();\n    x = room[0];\n#pragma unroll\n    for (u32 w = 1; w < WARPS; ++w) x += room[w];";
    let instead = place.replace("    __syncthreads();\n", "");
    let found = found_without(long, (place, &instead), 20);
    assert!(found >= 18, "only {found} of 20 schedules show it");
}

/// Products and attention on tensor cores, without one barrier or one wait for the copies into their tiles.
#[test]
fn a_missing_barrier_or_wait_for_a_tile_of_tensor_cores_is_found() {
    if let Err(reason) = compiler() {
        return println!("{reason}");
    }
    let half = |s: &Sample, name: &str| s.op.name() == name && s.inputs[0].0.dtype == DType::Bf16;
    let product = |s: &Sample| half(s, "linear") && s.inputs[0].0.columns() == 64;
    let forward = |s: &Sample| half(s, "flash_attention");
    let backward = |s: &Sample| half(s, "flash_attention_backward");
    let steps = "wait_copies<STAGES - 2>();\n            __syncthreads();";
    let keys = "wait_copies<0>();\n        __syncthreads(); // keys are there";
    let values = "wait_copies<0>();\n        __syncthreads(); // values are there";
    let turns = "wait_copies<0>();\n        __syncthreads(); // this turn's tiles";
    let found = |chosen: &dyn Fn(&Sample) -> bool, place: &str| {
        for line in ["__syncthreads();", place.split('\n').next().unwrap()] {
            let found = found_without(chosen, (place, &place.replace(line, "")), 5);
            assert!(
                found >= 4,
                "{place} without {line}: only {found} of 5 schedules show it"
            );
        }
    };
    found(&product, steps);
    found(&forward, keys);
    found(&forward, values);
    found(&backward, turns);
}
