//! BlockLLM: full-rank Adam on a few tensors at a time, chosen anew when learning stalls.

mod selection;

use super::{
    Args, Argument, Card, Draft, Pattern, Policy, SCALARS, Site, Technique, Trained, Update,
};
use crate::error::{Error, Result};
use crate::graph::build::Forward;
use crate::graph::op::optimizer::{AdamW, SquareSum};
use crate::graph::op::transfer::Report;
use crate::graph::tensor::DType;
use crate::spec::job::Exactness;
use selection::{Selection, Settings, is_eligible, worst};

/// What separates names in an argument.
const AND: char = '|';
/// What stands for names that are not given.
const AUTO: &str = "auto";

/// Arguments, the state of the selection among them.
const ARGUMENTS: &[Argument] = &[
    Argument {
        key: "sparsity",
        default: "0.95",
        meaning: "share of the elements that is not updated",
    },
    Argument {
        key: "every",
        default: "1000",
        meaning: "steps between two tests whether to select anew",
    },
    Argument {
        key: "patience",
        default: "100",
        meaning: "losses whose mean must exceed the mean of all since the last selection",
    },
    Argument {
        key: "refresh",
        default: "20",
        meaning: "steps after which other tensors are sampled for the norm of their gradient",
    },
    Argument {
        key: "sampled",
        default: "1",
        meaning: "tensors sampled at a time",
    },
    Argument {
        key: "adapt",
        default: "yes",
        meaning: "no: keep the first selection",
    },
    Argument {
        key: "selected",
        default: "auto",
        meaning: "names of the tensors updated now, separated by | | auto: for planning, those that take most memory",
    },
    Argument {
        key: "watched",
        default: "auto",
        meaning: "names of the tensors sampled now, or auto",
    },
    Argument {
        key: "beta1",
        default: "0.9",
        meaning: "decay of the mean of gradients",
    },
    Argument {
        key: "beta2",
        default: "0.999",
        meaning: "decay of the mean of their squares",
    },
    Argument {
        key: "eps",
        default: "1e-8",
        meaning: "added to the root of the latter",
    },
    Argument {
        key: "decay",
        default: "0",
        meaning: "decoupled weight decay",
    },
];

/// Adam on selected tensors.
pub struct BlockLlm;

impl Technique for BlockLlm {
    fn card(&self) -> Card {
        Card {
            name: "blockllm",
            aliases: &["block_llm", "badam"],
            summary: "updates only the tensors with the largest gradients by Adam, and selects anew when the loss stalls; gradients and moments of the others do not exist",
            source: "Ramesh et al. 2024, arXiv:2406.17296; the selection of the authors' code (RAmruthaVignesh/blockllm)",
            exactness: Exactness::Lossy,
            site: Site::Update,
            arguments: ARGUMENTS,
        }
    }

    fn describe(&self, args: &Args) -> String {
        match args.0.get("selected").map(|names| names.split(AND).count()) {
            Some(count) => format!("updates {count} tensors by Adam"),
            None => self.card().summary.to_string(),
        }
    }

    fn draft(&self, draft: &mut Draft, args: &Args) -> Result<()> {
        settings(args)?;
        draft.master = false;
        Ok(())
    }

    fn forward(&self, forward: &mut Forward, _: &Pattern, _: &Draft, args: &Args) -> Result<()> {
        let trained = Trained::of(forward);
        let (selected, watched) = chosen(&trained, args)?;
        let step = &forward.step;
        forward.parameters.retain(|&p| {
            let name = &*step.storage_of(p).name;
            selected.iter().chain(&watched).any(|n| n == name)
        });
        match forward.parameters.is_empty() {
            false => Ok(()),
            true => Err(nothing()),
        }
    }

    fn update(&self, at: &mut Update, args: &Args) -> Result<()> {
        let card = self.card();
        let name = at.name();
        let square = at.emit(SquareSum, &[at.gradient()], "square")?[0];
        let report = Report {
            name: format!("{SCALARS}{name}"),
            offset: 0,
        };
        at.emit(report, &[square], "norm")?;
        if names(args, "watched").iter().any(|n| **n == *name) {
            return Ok(());
        }
        let op = AdamW {
            beta1: args.number(&card, "beta1", (0.0, 1.0))?,
            beta2: args.number(&card, "beta2", (0.0, 1.0))?,
            eps: args.number(&card, "eps", (0.0, 1.0))?,
            decay: args.number(&card, "decay", (0.0, 1e6))?,
            master: false,
            guard: at.guard().is_some(),
        };
        let wide = at.at().with(DType::F32);
        at.apply(op, &[("m", wide.clone()), ("v", wide)])
    }

    fn resolve(
        &self,
        trained: &dyn Fn() -> Result<Vec<Trained>>,
        args: &Args,
    ) -> Result<Option<Args>> {
        if !names(args, "selected").is_empty() {
            return Ok(None);
        }
        let (selected, watched) = worst(&settings(args)?, &trained()?);
        if selected.is_empty() {
            return Err(nothing());
        }
        Ok(Some(with(args, &selected, &watched)))
    }

    fn policy(
        &self,
        trained: &dyn Fn() -> Result<Vec<Trained>>,
        seed: u64,
        args: &Args,
    ) -> Result<Option<Box<dyn Policy>>> {
        if args.word(&self.card(), "adapt", &["yes", "no"])? == "no" {
            return Ok(None);
        }
        let settings = settings(args)?;
        let policy = Selection::new(settings, &trained()?, seed, args.clone());
        Ok(Some(Box::new(policy)))
    }
}

fn settings(args: &Args) -> Result<Settings> {
    let card = BlockLlm.card();
    Ok(Settings {
        sparsity: args.number(&card, "sparsity", (0.0, 0.999_999))?,
        every: args.number(&card, "every", (1, u64::MAX))?,
        patience: args.number(&card, "patience", (1, 1 << 20))?,
        refresh: args.number(&card, "refresh", (1, u64::MAX))?,
        sampled: args.number(&card, "sampled", (0, 1 << 20))?,
    })
}

/// The arguments with these tensors selected and watched.
fn with(args: &Args, selected: &[String], watched: &[String]) -> Args {
    let mut args = args.clone();
    let joined = |names: &[String]| match names.is_empty() {
        true => AUTO.to_string(),
        false => names.join(&AND.to_string()),
    };
    args.0.insert("selected".to_string(), joined(selected));
    args.0.insert("watched".to_string(), joined(watched));
    args
}

fn nothing() -> Error {
    let next = "lower sparsity, or train tensors of layers";
    Error::value("blockllm", "nothing", "can be selected", next)
}

/// Names in an argument.
fn names<'a>(args: &'a Args, key: &str) -> Vec<&'a str> {
    let text = args.0.get(key).map_or("", String::as_str);
    text.split(AND)
        .filter(|n| !["", AUTO].contains(n))
        .collect()
}

/// Names of the tensors that are updated, and of those that are only watched.
fn chosen(trained: &[Trained], args: &Args) -> Result<(Vec<String>, Vec<String>)> {
    let selected = names(args, "selected");
    let owned = |names: Vec<&str>| names.into_iter().map(str::to_string).collect();
    let watched = names(args, "watched");
    for name in selected.iter().chain(&watched) {
        if !trained.iter().any(|t| *t.name == **name && is_eligible(t)) {
            let known = trained.iter().filter(|t| is_eligible(t)).map(|t| &*t.name);
            let next =
                "name tensors of layers or norms; embeddings and the output are never updated";
            return Err(Error::unknown("tensor", name, known, next));
        }
    }
    Ok((owned(selected), owned(watched)))
}
