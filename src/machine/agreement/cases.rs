//! The combinations that are held against what really happens.

use super::array;
use crate::error::Result;
use crate::machine::cpu::Settings;
use crate::machine::estimate::threads_for;
use crate::machine::micro::{self, FAMILIES, Size};
use crate::plan::{Choice, Plan};
use crate::spec::catalog;
use crate::spec::device::Device;
use crate::spec::job::{Backend, Exactness, Host, Job, Optimizer, Precision, Target};

/// Cores the programs are for, so that they are the same programs on every machine.
pub const CORES: u32 = 2;

/// The rate disks are held to: slow enough that the page cache does not decide.
const DISK: f64 = 200e6;

/// The micro models' size and batch.
const MICRO: (Size, u64, u64) = (
    Size {
        hidden: 64,
        layers: 3,
        vocab: 256,
    },
    4,
    48,
);

/// A combination.
#[derive(Debug, Clone, PartialEq)]
pub struct Case {
    /// Its name.
    pub name: String,
    /// A family, for its micro model, or the name of a model.
    pub model: String,
    /// Layers, where fewer than the model has.
    pub layers: Option<u64>,
    /// Number format.
    pub precision: Precision,
    /// Sequences and their length.
    pub batch: u64,
    /// Positions of a sequence.
    pub seq: u64,
    /// The choices, as `--fix` takes them.
    pub choices: Vec<String>,
    /// Rate of the link, where it is throttled.
    pub link: Option<f64>,
    /// Whether it is one of those over 1 GiB, which run in a process of their own.
    pub big: bool,
}

/// One factor's values; the first of most is "nothing".
const FACTORS: [&[&str]; 14] = [
    &FAMILIES,
    &["f32", "bf16", "fp16"],
    &["adamw", "sgd", "sgd:momentum=0"],
    &["", "clip:norm=0.5"],
    &["", "accumulate:micro=1", "accumulate:micro=2"],
    &["", "flash_attention"],
    &["", "chunked_loss:rows=16", "chunked_loss:rows=64"],
    &["", "fused_update"],
    &[
        "",
        "recompute",
        "recompute:what=cheap",
        "recompute:what=attention",
        "recompute:segment=2",
        "recompute:site=layers.0",
    ],
    &[
        "",
        "offload:what=activations",
        "offload:what=activations,to=disk",
        "offload:what=activations,lead=2,lag=2",
        "offload:what=activations,site=layers.1",
    ],
    &[
        "",
        "offload:what=parameters",
        "offload:what=parameters,to=disk",
    ],
    &[
        "",
        "offload:what=optimizer",
        "offload:what=optimizer,update=host",
        "offload:what=optimizer,to=disk",
        "offload:what=optimizer,to=disk,update=host",
    ],
    &[
        "",
        "offload:what=gradients",
        "offload:what=gradients,to=disk",
    ],
    &["", "200e6", "1e9"],
];

/// Beginnings of texts that exclude each other; one that ends in `$` is a whole text.
const EXCLUDED: [(&str, &str); 7] = [
    ("bert", "chunked_loss"),
    ("clip", "fused_update"),
    ("fp16", "fused_update"),
    ("accumulate", "offload:what=gradients"),
    ("sgd:momentum=0", "offload:what=optimizer"),
    ("recompute$", "offload:what=activations"),
    ("recompute:segment", "offload:what=activations"),
];

fn allowed(a: (usize, usize), b: (usize, usize)) -> bool {
    let (a, b) = (FACTORS[a.0][a.1], FACTORS[b.0][b.1]);
    let hits = |text: &str, start: &str| match start.strip_suffix('$') {
        Some(whole) => text == whole,
        None => text.starts_with(start),
    };
    let excluded =
        |&(x, y): &(&str, &str)| (hits(a, x) && hits(b, y)) || (hits(b, x) && hits(a, y));
    !EXCLUDED.iter().any(excluded)
}

/// All combinations: a pairwise covering array over micro models of all families, and those over 1 GiB.
pub fn cases() -> Vec<Case> {
    let sizes = FACTORS.map(<[&str]>::len);
    let rows = array::rows(&sizes, allowed);
    let small = rows.iter().enumerate().map(|(i, row)| small(i, row));
    let rules = RULES.iter().map(|(rule, rest)| single(rule, rest));
    small.chain(rules).chain(big()).collect()
}

/// Optimizers of little memory, with what they meet: family, format, optimizer; then the other choices.
const RULES: [(&str, &str); 27] = [
    (
        "llama f32 adamw8bit",
        "clip:norm=0.5 offload:what=optimizer",
    ),
    (
        "gpt2 bf16 adamw8bit",
        "accumulate:micro=1 offload:what=optimizer,update=host",
    ),
    ("opt fp16 adamw8bit", "clip offload:what=optimizer,to=disk"),
    ("mixtral f32 adamw8bit", "fused_update recompute"),
    ("gemma2 bf16 adamw8bit", "offload:what=gradients"),
    ("llama f32 lion", "fused_update"),
    ("qwen2 bf16 lion:momentum=bf16", "clip accumulate:micro=2"),
    ("bert fp16 lion", "offload:what=optimizer,update=host"),
    ("llama f32 adafactor", "fused_update recompute"),
    (
        "mixtral bf16 adafactor:beta1=0.9",
        "clip offload:what=optimizer",
    ),
    ("gpt2 fp16 adafactor:scale=yes", "accumulate:micro=1"),
    (
        "phi3 f32 adafactor",
        "offload:what=gradients offload:what=optimizer,update=host",
    ),
    ("llama f32 galore:rank=8,gap=2", ""),
    ("llama bf16 galore:rank=8,gap=2,bits=8", "fused_update"),
    (
        "mistral f32 galore:rank=8,gap=2,projection=randomized",
        "clip accumulate:micro=1",
    ),
    (
        "gpt2 bf16 galore:rank=16,gap=2",
        "recompute offload:what=optimizer",
    ),
    (
        "opt fp16 galore:rank=8,gap=2",
        "offload:what=optimizer,to=disk",
    ),
    (
        "bert f32 galore:rank=80,gap=2,bits=8",
        "offload:what=optimizer,update=host",
    ),
    (
        "qwen3 bf16 galore:rank=4,gap=2,projection=randomized,bits=8",
        "offload:what=gradients",
    ),
    (
        "mixtral bf16 galore:rank=8,gap=2",
        "fused_update offload:what=activations",
    ),
    ("llama f32 microadam", "fused_update recompute"),
    ("llama bf16 microadam", "clip accumulate:micro=2"),
    (
        "gpt2 fp16 microadam:block=1000,window=3",
        "offload:what=optimizer",
    ),
    (
        "opt f32 microadam:density=0.05,quant=32",
        "offload:what=gradients",
    ),
    (
        "bert bf16 microadam:alpha=0.2",
        "offload:what=optimizer,update=host",
    ),
    ("mixtral f32 microadam", "offload:what=optimizer,to=disk"),
    (
        "gemma2 bf16 microadam",
        "offload:what=parameters offload:what=gradients,to=disk",
    ),
];

fn single(rule: &str, rest: &str) -> Case {
    let mut words = rule.split(' ');
    let mut word = || words.next().unwrap_or_default();
    let (family, precision, rule) = (word(), word(), word());
    let rest = rest.split(' ').filter(|text| !text.is_empty());
    let choices = std::iter::once(rule).chain(rest).map(str::to_string);
    let choices: Vec<String> = choices.collect();
    Case {
        name: format!("{family}-{precision}-{}", choices.join("-")),
        model: family.to_string(),
        layers: None,
        precision: precision.parse().unwrap_or(Precision::F32),
        batch: MICRO.1,
        seq: MICRO.2,
        choices,
        link: None,
        big: false,
    }
}

fn small(number: usize, row: &[usize]) -> Case {
    let text = |factor: usize| FACTORS[factor][row[factor]];
    let choices = (2..13).map(text).filter(|t| !t.is_empty());
    let (_, batch, seq) = MICRO;
    Case {
        name: format!("{:02}-{}-{}", number + 1, text(0), text(1)),
        model: text(0).to_string(),
        layers: None,
        precision: text(1).parse().unwrap_or(Precision::F32),
        batch,
        seq,
        choices: choices.map(str::to_string).collect(),
        link: text(13).parse().ok(),
        big: false,
    }
}

/// A combination over 1 GiB.
fn large(
    model: &str,
    layers: Option<u64>,
    precision: Precision,
    rows: (u64, u64),
    choices: &[&str],
) -> Case {
    Case {
        name: format!("big-{model}-{precision}"),
        model: model.to_string(),
        layers,
        precision,
        batch: rows.0,
        seq: rows.1,
        choices: choices.iter().map(|c| c.to_string()).collect(),
        link: None,
        big: true,
    }
}

/// The first trains 1.2 B parameters within 2 GiB of device and 8 GiB of host memory, the rest on disk.
fn big() -> Vec<Case> {
    let (f32, bf16) = (Precision::F32, Precision::Bf16);
    vec![
        large("llama-3.2-1b", None, bf16, (1, 64), &BILLION),
        large("gpt2", None, f32, (2, 64), &["adamw"]),
        large(
            "opt-125m",
            None,
            f32,
            (2, 64),
            &["adamw", "recompute", "offload:what=optimizer"],
        ),
        large(
            "bert-base",
            None,
            f32,
            (2, 64),
            &[
                "adamw",
                "accumulate:micro=1",
                "offload:what=optimizer,to=disk",
            ],
        ),
        large(
            "llama-3.2-1b",
            Some(2),
            f32,
            (2, 64),
            &[
                "sgd:momentum=0",
                "recompute",
                "flash_attention",
                "fused_update",
            ],
        ),
        large(
            "qwen2.5-0.5b",
            None,
            bf16,
            (1, 64),
            &[
                "sgd:momentum=0",
                "recompute",
                "chunked_loss:rows=32",
                "fused_update",
                "offload:what=optimizer,update=host",
            ],
        ),
    ]
}

/// The choices of the largest.
const BILLION: [&str; 6] = [
    "adamw",
    "recompute",
    "chunked_loss:rows=32",
    "fused_update",
    "offload:what=parameters",
    "offload:what=optimizer,to=disk,update=host",
];

impl Case {
    /// The plan on `device`.
    ///
    /// # Errors
    /// Where the combination is refused.
    pub fn plan(&self, device: &Device) -> Result<Plan> {
        self.plan_of(
            device,
            self.choices
                .iter()
                .map(|c| Choice::parse(c))
                .collect::<Result<_>>()?,
        )
    }

    /// The plan without any choice that claims to leave results as they are, and the laxest class of those left out.
    ///
    /// # Errors
    /// Where the combination is refused.
    pub fn base(&self, device: &Device) -> Result<(Plan, Exactness)> {
        let mut kept = Vec::new();
        let mut class = Exactness::Bitwise;
        for text in &self.choices {
            let choice = Choice::parse(text)?;
            match choice.behind()?.card().exactness {
                Exactness::Lossy => kept.push(choice),
                other => class = class.max(other),
            }
        }
        Ok((self.plan_of(device, kept)?, class))
    }

    fn plan_of(&self, device: &Device, choices: Vec<Choice>) -> Result<Plan> {
        let mut model = match FAMILIES.contains(&self.model.as_str()) && !self.big {
            true => micro::model(&self.model, MICRO.0)?,
            false => catalog::open(&self.model)?,
        };
        model.layers = self.layers.unwrap_or(model.layers);
        let host = Host {
            link: self.link,
            disk_rate: DISK,
            ..Host::default()
        };
        let mut target = Target::new(device.clone(), host);
        target.backend = Backend::Cpu { threads: CORES };
        let job = Job {
            model,
            seq: self.seq,
            batch: self.batch,
            precision: self.precision,
            optimizer: Optimizer("adamw".into()),
            target,
        };
        let mut plan = Plan::new(job, choices)?;
        let threads = threads_for(&plan, CORES);
        plan.job.target.backend = Backend::Cpu { threads };
        Ok(plan)
    }

    /// How this machine runs it: throttled as the case says.
    pub fn settings(&self, poison: bool) -> Settings {
        Settings {
            link: self.link,
            disk: Some(DISK),
            poison,
            ..Settings::default()
        }
    }
}
