//! What ops take: real training steps, every launch timed.

use std::collections::BTreeMap;
use std::path::Path;

use crate::error::Result;
use crate::graph::op::Work;
use crate::graph::tensor::DType;
use crate::graph::{Stream, When};
use crate::machine::cpu::Settings;
use crate::machine::measure::{self, Pace};
use crate::machine::micro::{self, Size};
use crate::machine::probe::{Ratio, median};
use crate::machine::sim::{curve_key, node_launches, node_work};
use crate::machine::timeline::{Mark, Timeline};
use crate::plan::{Choice, Plan};
use crate::program::{Instr, Program};
use crate::spec::catalog;
use crate::spec::device::Device;
use crate::spec::job::{Backend, Host, Job, Optimizer, Precision, Target};
use crate::spec::model::ModelSpec;

/// One launch: what it had to do, and the seconds it took.
#[derive(Debug, Clone, Copy)]
pub(super) struct Launch {
    pub(super) work: Work,
    pub(super) dtype: DType,
    /// How many launches of kernels it is on a GPU.
    pub(super) kernels: u64,
    /// At the machine's pace when the probe of its calibration was read.
    pub(super) seconds: f64,
    /// As they passed.
    pub(super) raw: f64,
}

/// Seconds of one launch in every step, and how much slower than at calibration the machine was.
type Taken = Vec<(Ratio, f64)>;

/// Times of ops, by curve key.
#[derive(Debug, Default)]
pub(super) struct Samples {
    pub(super) launches: BTreeMap<String, Vec<Launch>>,
    /// Seconds of a walk that are none of its launches', for each of them.
    pub(super) gaps: Vec<f64>,
    /// Seconds of a program before its first launch and after its last.
    pub(super) starts: Vec<f64>,
}

/// One training run whose launches are timed.
pub(super) struct Sample {
    pub(super) model: ModelSpec,
    batch: u64,
    seq: u64,
    choices: &'static [&'static str],
    steps: u64,
}

/// Choices under which the ops of most training are met.
const VARIANTS: [&[&str]; 4] = [
    &["clip", "accumulate:micro=1"],
    &["flash_attention", "chunked_loss:rows=64"],
    &["sgd", "clip", "offload:what=optimizer,update=host"],
    &["lsp_offload:schedule=after,rest=host"],
];

/// Choices under which the other ops of the techniques are met, and the families they are met with.
const RARE: [&[&str]; 14] = [
    &["adamw8bit"],
    &["lion"],
    &["adafactor"],
    &["microadam"],
    &["galore:rank=8,gap=2"],
    &["blockllm:rule=paper,sparsity=0.8,adapt=no"],
    &["zo_sgd"],
    &["zo_adam:q=2"],
    &["forward_gradient"],
    &["nf4_weights", "lora:rank=4"],
    &["int8_weights", "adapter:width=8"],
    &["prefix_tuning:tokens=5"],
    &["compress_activations", "sgd"],
    &["compress_offload", "flash_attention"],
];
const RARELY: [&str; 2] = ["llama", "gpt2"];

/// Micro models whose ops together are those of all families, in two sizes.
const MICRO: [&str; 5] = ["llama", "gpt2", "bert", "mixtral", "gemma2"];
const SIZES: [(Size, u64, u64); 2] = [
    (
        Size {
            hidden: 64,
            layers: 2,
            vocab: 256,
        },
        2,
        32,
    ),
    (
        Size {
            hidden: 128,
            layers: 2,
            vocab: 512,
        },
        4,
        96,
    ),
];

/// The runs of a calibration; a `quick` one leaves out the larger models and the rarer ops.
fn runs(quick: bool) -> Result<Vec<Sample>> {
    let mut runs = Vec::new();
    let mut add = |model: ModelSpec, all: &[&'static [&'static str]], (batch, seq, steps)| {
        for choices in all {
            let model = model.clone();
            runs.push(Sample {
                model,
                batch,
                seq,
                choices,
                steps,
            });
        }
    };
    for (size, batch, seq) in &SIZES[..if quick { 1 } else { 2 }] {
        for family in MICRO {
            add(micro::model(family, *size)?, &VARIANTS, (*batch, *seq, 6));
        }
        for family in RARELY.iter().filter(|_| !quick) {
            add(micro::model(family, *size)?, &RARE, (*batch, *seq, 5));
        }
    }
    add(catalog::open("tiny")?, &VARIANTS, (2, 64, 6));
    if !quick {
        add(catalog::open("tiny")?, &VARIANTS, (8, 128, 5));
        add(catalog::open("small")?, &VARIANTS, (2, 128, 4));
    }
    Ok(runs)
}

/// Runs everything on all cores and on one fewer, in every format, and collects what each launch took.
pub(super) fn sample(
    device: &Device,
    folder: &Path,
    quick: bool,
    progress: &mut dyn FnMut(&str, f64),
) -> Result<Samples> {
    let runs = runs(quick)?;
    let cores = device.threads.unwrap_or(1);
    let mut samples = Samples::default();
    let total = runs.len() * Precision::ALL.len();
    for (done, (run, precision)) in runs
        .iter()
        .flat_map(|run| Precision::ALL.map(|precision| (run, precision)))
        .enumerate()
    {
        progress(
            &format!("training {}", run.model.name),
            done as f64 / total as f64,
        );
        let mut counts = vec![cores, cores.saturating_sub(1).max(1)];
        counts.dedup();
        for threads in counts {
            take(run, precision, threads, device, folder, &mut samples)?;
        }
    }
    Ok(samples)
}

/// Sizes of a run for a GPU: of kernels that fill it, with heads of 128 columns, and of a quick look.
const WIDE: (Size, u64, u64) = (
    Size {
        hidden: 512,
        layers: 2,
        vocab: 8192,
    },
    16,
    512,
);
const NARROW: (Size, u64, u64) = (
    Size {
        hidden: 32,
        layers: 2,
        vocab: 256,
    },
    2,
    64,
);

/// The runs of a GPU's calibration; a `quick` one meets the ops of one family under one variant.
pub(super) fn runs_of_gpu(quick: bool) -> Result<Vec<Sample>> {
    let ((size, batch, seq), families, variants, steps) = match quick {
        true => (NARROW, &MICRO[..1], &VARIANTS[..1], 3),
        false => (WIDE, &MICRO[..], &VARIANTS[..], 6),
    };
    let mut runs = Vec::new();
    for family in families {
        for choices in variants {
            runs.push(Sample {
                model: micro::model(family, size)?,
                batch,
                seq,
                choices,
                steps,
            });
        }
    }
    Ok(runs)
}

/// The plan of one run.
fn plan(run: &Sample, precision: Precision, backend: Backend, device: &Device) -> Result<Plan> {
    let mut target = Target::new(device.clone(), Host::default());
    target.backend = backend;
    let job = Job {
        model: run.model.clone(),
        seq: run.seq,
        batch: run.batch,
        precision,
        optimizer: Optimizer("adamw".into()),
        target,
    };
    // A head with a bias cannot be chunked: that model's other ops are met without.
    let chunked = |c: &&&str| !(c.starts_with("chunked") && run.model.name == "bert");
    let choices = run.choices.iter().filter(chunked).map(|c| Choice::parse(c));
    Plan::new(job, choices.collect::<Result<_>>()?)
}

fn take(
    run: &Sample,
    precision: Precision,
    threads: u32,
    device: &Device,
    folder: &Path,
    samples: &mut Samples,
) -> Result<()> {
    // Beside the host's updates compute has one thread fewer, always.
    let concurrent = run.choices.iter().any(|c| c.contains("host"));
    let cores = device.threads.unwrap_or(1);
    if concurrent && threads == cores && cores > 1 {
        return Ok(());
    }
    let backend = Backend::Cpu { threads };
    for (stream, key, launch) in launches(run, precision, backend, device, folder, samples)? {
        let threads = if stream == Stream::Compute {
            threads
        } else {
            1
        };
        let key = curve_key(&key, threads);
        samples.launches.entry(key).or_default().push(launch);
    }
    Ok(())
}

/// A program's walk, on a machine that was slower by a ratio than at its calibration.
struct Walk {
    when: When,
    ratio: Ratio,
    timeline: Timeline,
}

/// Every launch of a run: its stream, the key of its efficiency, and the middle of its times. What lies between launches goes to `samples`.
pub(super) fn launches(
    run: &Sample,
    precision: Precision,
    backend: Backend,
    device: &Device,
    folder: &Path,
    samples: &mut Samples,
) -> Result<Vec<(Stream, String, Launch)>> {
    let plan = plan(run, precision, backend, device)?;
    let mut session = measure::open(plan, folder, Settings::default())?;
    session.step()?;
    let mut pace = Pace::of(&session)?;
    pace.since();
    let mut walks = Vec::new();
    for _ in 1..run.steps {
        session.step()?;
        let ratio = pace.since();
        let walk = |(when, timeline): &(When, Timeline)| Walk {
            when: *when,
            ratio,
            timeline: timeline.clone(),
        };
        walks.extend(session.timelines().iter().map(walk));
    }
    let mut found = Vec::new();
    for program in session.programs() {
        let own: Vec<&Walk> = walks.iter().filter(|w| w.when == program.when).collect();
        let launches = of_program(program, &own);
        around(&own, &launches, samples);
        found.extend(launches.into_values());
    }
    Ok(found)
}

/// The launches of a program in its `walks`, by where they stand.
fn of_program(program: &Program, walks: &[&Walk]) -> BTreeMap<usize, (Stream, String, Launch)> {
    let mut times: BTreeMap<usize, (Stream, Taken)> = BTreeMap::new();
    for walk in walks {
        for mark in &walk.timeline.marks {
            let (_, taken) = times.entry(mark.at).or_insert((mark.stream, Vec::new()));
            taken.push((walk.ratio, mark.end - mark.start));
        }
    }
    let launch = |(at, (stream, taken)): (usize, (Stream, Taken))| {
        let Instr::Launch { node, .. } = program.code[at] else {
            return None;
        };
        let (key, work, dtype) = node_work(&program.step, node);
        let launch = Launch {
            work,
            dtype,
            kernels: node_launches(&program.step, node),
            seconds: median(taken.iter().map(|(r, s)| s / r.of(work)).collect()),
            raw: median(taken.iter().map(|t| t.1).collect()),
        };
        Some((at, (stream, key, launch)))
    };
    times.into_iter().filter_map(launch).collect()
}

/// What walks spend around their `launches`: before the first and after the last of them, and for each of them what a middle walk takes beside
/// the middle of each launch. That is more than what lies between two of them, since some launch of every walk takes longer than it mostly does.
fn around(
    walks: &[&Walk],
    launches: &BTreeMap<usize, (Stream, String, Launch)>,
    samples: &mut Samples,
) {
    let (mut totals, mut starts) = (Vec::new(), Vec::new());
    for Walk {
        ratio, timeline, ..
    } in walks
    {
        let marks = &timeline.marks;
        // Where streams run beside each other a walk is no sum.
        if marks.iter().any(|mark| mark.stream != Stream::Compute) {
            return;
        }
        let (Some(first), Some(last)) = (marks.first(), marks.last()) else {
            return;
        };
        let slower = |mark: &Mark| launches.get(&mark.at).map_or(1.0, |l| ratio.of(l.2.work));
        let (raw, own) = marks.iter().fold((0.0, 0.0), |(raw, own), mark| {
            let seconds = mark.end - mark.start;
            (raw + seconds, own + seconds / slower(mark))
        });
        totals.push(own + (timeline.total.0 - raw) / ratio.rest);
        starts.push((first.start + timeline.total.0 - last.end) / ratio.rest);
    }
    if launches.is_empty() || totals.is_empty() {
        return;
    }
    let start = median(starts);
    let taken: f64 = launches.values().map(|l| l.2.seconds).sum();
    let each = (median(totals) - start - taken) / launches.len() as f64;
    samples.gaps.push(each.max(0.0));
    samples.starts.push(start);
}
