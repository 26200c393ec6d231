//! The training runs: from scratch on prose, and from there on code.

use std::collections::BTreeMap;

use crate::error::Result;
use crate::machine::agreement::{self, Case};
use crate::machine::train::session::Schedule;
use crate::machine::train::text::BuiltIn;
use crate::plan::Plan;
use crate::spec::job::Precision;

/// Where a run starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// From random values.
    Scratch,
    /// From what [`Cell::is_checkpoint`] left.
    Checkpoint,
}

/// One training run.
#[derive(Debug, Clone, PartialEq)]
pub struct Cell {
    /// Its name: part/method/seed.
    pub name: String,
    /// Model, batch and choices.
    pub job: Case,
    /// Where it starts.
    pub start: Start,
    /// What it reads.
    pub text: BuiltIn,
    /// Steps.
    pub steps: u64,
    /// Peak learning rate.
    pub rate: f64,
    /// How it moves after a twentieth of the steps in which it grows.
    pub schedule: Schedule,
    /// Seed of first values, batches and directions.
    pub seed: u64,
}

/// A method with its learning rate: the best of a few that were tried on the same text (on code for the whole run, from scratch and for estimators for fewer steps).
type Method = (&'static str, f64);

/// First-order optimizers on `tiny`, from scratch.
const FIRST_ORDER: [Method; 9] = [
    ("adamw", 3e-3),
    ("adamw8bit", 3e-3),
    ("microadam:density=0.5", 1e-3),
    ("galore:rank=32,scale=1", 3e-3),
    ("lion", 3e-4),
    ("adafactor", 1e-2),
    ("sgd", 0.1),
    ("blockllm:sparsity=0.2,every=100", 3e-3),
    ("lsp_offload:check=500", 3e-3),
];

/// On `small`, from scratch.
const SMALL: [Method; 3] = [
    ("adamw", 6e-4),
    ("adamw8bit", 6e-4),
    ("galore:rank=128,scale=1", 6e-4),
];

/// From the checkpoint of `tiny` onto another text, all parameters.
const ADAPTED: [Method; 6] = [
    ("adamw", 6e-3),
    ("adamw8bit", 6e-3),
    ("microadam:density=0.5", 1e-3),
    ("blockllm:sparsity=0.2,every=100", 6e-3),
    ("blockllm:rule=paper,sparsity=0.2", 6e-3),
    ("lsp_offload:check=250", 6e-3),
];

/// The same with adapters.
const ADAPTERS: [Method; 5] = [
    ("lora:targets=all-linear,rank=16,alpha=16", 1e-2),
    ("nf4_weights+lora:targets=all-linear,rank=16,alpha=16", 1e-2),
    ("adapter", 3e-3),
    ("prefix_tuning", 3e-2),
    ("prompt_tuning", 3e-2),
];

/// From the checkpoint, by estimated gradients.
const ESTIMATED: [Method; 10] = [
    ("zo_sgd", 1e-3),
    ("zo_sgd:q=4", 1e-3),
    ("zo_sgd:blockwise=yes", 1e-3),
    ("zo_sgd:sparse=0.5", 1e-3),
    ("zo_sgd:hybrid=1", 1e-3),
    ("zo_sign", 1e-3),
    ("zo_momentum", 1e-4),
    ("zo_conservative", 1e-3),
    ("zo_adam", 1e-3),
    ("forward_gradient", 1e-3),
];

/// Seeds of the runs of all parameters by first-order optimizers.
const SEEDS: [u64; 3] = [1, 2, 3];

/// Sequences of a step and their length.
const BATCH: (u64, u64) = (8, 64);

/// The same for `small`.
const SMALL_BATCH: (u64, u64) = (4, 128);

/// All runs, in the order in which they are made; the first is the checkpoint.
pub fn cells() -> Vec<Cell> {
    let mut all = Vec::new();
    for seed in SEEDS {
        let scratch = |m: &Method| Cell::new("scratch", ("tiny", BATCH), *m, 2_000, seed);
        all.extend(FIRST_ORDER.iter().map(scratch));
    }
    let adapted = |part, steps, seed| {
        move |m: &Method| Cell {
            start: Start::Checkpoint,
            text: BuiltIn::Rust,
            ..Cell::new(part, ("tiny", BATCH), *m, steps, seed)
        }
    };
    for seed in SEEDS {
        all.extend(ADAPTED.iter().map(adapted("adapted", 1_000, seed)));
    }
    all.extend(ADAPTERS.iter().map(adapted("adapted", 1_000, 1)));
    all.extend(ESTIMATED.iter().map(adapted("estimated", 5_000, 1)));
    let small = |m: &Method| Cell::new("small", ("small", SMALL_BATCH), *m, 500, 1);
    all.extend(SMALL.iter().map(small));
    all
}

impl Cell {
    /// A run from scratch on prose.
    fn new(
        part: &str,
        (model, (batch, seq)): (&str, (u64, u64)),
        (method, rate): Method,
        steps: u64,
        seed: u64,
    ) -> Cell {
        let choices = method.split('+').chain(["flash_attention"]);
        let name = format!("{part}/{method}/{seed}");
        let job = Case {
            name: name.clone(),
            model: model.to_string(),
            layers: None,
            precision: Precision::F32,
            batch,
            seq,
            choices: choices.map(String::from).collect(),
            link: None,
            big: false,
        };
        Cell {
            name,
            job,
            start: Start::Scratch,
            text: BuiltIn::MobyDick,
            steps,
            rate,
            schedule: Schedule::Cosine,
            seed,
        }
    }

    /// Whether the others start from what it leaves: AdamW on prose.
    pub fn is_checkpoint(&self) -> bool {
        self.name == "scratch/adamw/1"
    }

    /// The part it belongs to, and its method.
    pub fn parts(name: &str) -> (&str, &str) {
        let (part, rest) = name.split_once('/').unwrap_or((name, ""));
        (
            part,
            rest.rsplit_once('/').map_or(rest, |(method, _)| method),
        )
    }

    /// Its plan, for a machine of two cores.
    ///
    /// # Errors
    /// Where its choices are refused.
    pub fn plan(&self) -> Result<Plan> {
        self.job.plan(&agreement::nominal()?)
    }

    /// Its programs as they are lowered now, by hash.
    ///
    /// # Errors
    /// As [`Cell::plan`].
    pub fn lowered(&self) -> Result<BTreeMap<String, String>> {
        agreement::lowered(&self.job)
    }
}
