//! The combinations that are held against what really happens.

mod adapted;
mod held;
mod partial;

use super::array;
use super::lsp::TABLE as LSP;
use super::rules::TABLE as RULES;
use crate::error::Result;
use crate::machine::cpu::Settings;
use crate::machine::estimate::threads_for;
use crate::machine::micro::{self, FAMILIES, Size};
use crate::plan::{Choice, Plan};
use crate::spec::catalog;
use crate::spec::device::Device;
use crate::spec::job::{Backend, Exactness, Host, Job, Optimizer, Precision, Target};
use adapted::ADAPTED;
use held::HELD;
use partial::PARTIAL;

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

/// Combinations that are covered pairwise: the values of each factor, the first of most of them "nothing", and beginnings of texts
/// that exclude each other; one that ends in `$` is a whole text. The first two factors are family and precision.
pub(super) struct Table {
    /// What its cases' names begin with.
    pub(super) prefix: &'static str,
    pub(super) factors: &'static [&'static [&'static str]],
    pub(super) excluded: &'static [(&'static str, &'static str)],
}

/// Techniques of full training, and where its bytes go.
const FULL: Table = Table {
    prefix: "",
    factors: &[
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
            "offload:what=activations,lead=1,lag=1",
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
    ],
    excluded: &[
        ("bert", "chunked_loss"),
        ("clip", "fused_update"),
        ("fp16", "fused_update"),
        ("accumulate", "offload:what=gradients"),
        ("sgd:momentum=0", "offload:what=optimizer"),
        ("recompute$", "offload:what=activations"),
        ("recompute:segment", "offload:what=activations"),
    ],
};

/// Estimated gradients.
const ESTIMATED: Table = Table {
    prefix: "z",
    factors: &[
        &FAMILIES,
        &["f32", "bf16", "fp16"],
        &[
            "zo_sgd",
            "zo_sgd:in_place=yes,q=2,decay=0.1",
            "zo_sgd:blockwise=yes,sparse=0.5",
            "zo_sign:sides=1",
            "zo_momentum",
            "zo_conservative",
            "zo_adam:q=2",
            "zo_adam:master=yes",
            "forward_gradient",
            "blockllm:sparsity=0.8,adapt=no",
        ],
        &["", "flash_attention"],
        &["", "chunked_loss:rows=16"],
        &[
            "",
            "offload:what=parameters",
            "offload:what=parameters,to=disk",
        ],
    ],
    excluded: &[("bert", "chunked_loss")],
};

/// All tables, in order.
const TABLES: [&Table; 7] = [&FULL, &ESTIMATED, &HELD, &RULES, &ADAPTED, &PARTIAL, &LSP];

impl Table {
    fn allowed(&self, a: (usize, usize), b: (usize, usize)) -> bool {
        let (a, b) = (self.factors[a.0][a.1], self.factors[b.0][b.1]);
        let hits = |text: &str, start: &str| match start.strip_suffix('$') {
            Some(whole) => text == whole,
            None => text.starts_with(start),
        };
        let excluded =
            |&(x, y): &(&str, &str)| (hits(a, x) && hits(b, y)) || (hits(b, x) && hits(a, y));
        !self.excluded.iter().any(excluded)
    }

    /// Its cases on micro models.
    fn cases(&self) -> impl Iterator<Item = Case> {
        let sizes: Vec<usize> = self.factors.iter().map(|values| values.len()).collect();
        let rows = array::rows(&sizes, |a, b| self.allowed(a, b));
        rows.into_iter()
            .enumerate()
            .map(|(i, row)| self.case(i, &row))
    }

    fn case(&self, number: usize, row: &[usize]) -> Case {
        let texts: Vec<&str> = self
            .factors
            .iter()
            .zip(row)
            .map(|(f, &value)| f[value])
            .collect();
        let is_rate = |text: &&&str| text.parse::<f64>().is_ok();
        let choices = texts[2..].iter().filter(|t| !t.is_empty() && !is_rate(t));
        let (_, batch, seq) = MICRO;
        Case {
            name: format!("{}{:02}-{}-{}", self.prefix, number + 1, texts[0], texts[1]),
            model: texts[0].to_string(),
            layers: None,
            precision: texts[1].parse().unwrap_or(Precision::F32),
            batch,
            seq,
            choices: choices.map(|t| t.to_string()).collect(),
            link: texts.iter().find(is_rate).and_then(|t| t.parse().ok()),
            big: false,
        }
    }
}

/// All combinations: pairwise covering arrays over micro models of all families, and those over 1 GiB.
pub fn cases() -> Vec<Case> {
    TABLES.iter().flat_map(|t| t.cases()).chain(big()).collect()
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
    "offload:what=parameters,lead=1,lag=1",
    "offload:what=optimizer,to=disk,update=host,lead=1,lag=1",
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
        // What is computed again is not held in fewer bits: beside compression it changes results.
        let own = &self.choices;
        let compressed = own.iter().any(|c| c.starts_with("compress_activations"));
        // Projectors are fitted to the first micro-batch: micro-batches decide them.
        let fitted = own.iter().any(|c| c.starts_with("lsp_offload"));
        for text in &self.choices {
            let choice = Choice::parse(text)?;
            match choice.behind()?.card().exactness {
                Exactness::Lossy => kept.push(choice),
                _ if compressed && choice.technique == "recompute" => kept.push(choice),
                _ if fitted && choice.technique == "accumulate" => kept.push(choice),
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
