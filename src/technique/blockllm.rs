//! BlockLLM: full-rank Adam on a few tensors at a time, chosen anew when learning stalls.

mod paper;
mod selection;

use super::{
    Ahead, Args, Argument, Card, Draft, Pattern, Policy, SCALARS, Site, Technique, Trained, Update,
};
use crate::error::{Error, Result};
use crate::graph::build::Forward;
use crate::graph::op::optimizer::{AdamW, Began, DirectionSum, MaskedAdamW, SquareSum, Threshold};
use crate::graph::op::transfer::Report;
use crate::graph::tensor::{DType, TensorId};
use crate::spec::job::Exactness;
use paper::Paper;
use selection::{Selection, Settings, is_eligible, worst};

/// What separates names in an argument.
const AND: char = '|';
/// What stands for names that are not given.
const AUTO: &str = "auto";

/// Arguments, the state of the selection among them.
const ARGUMENTS: &[Argument] = &[
    Argument {
        key: "rule",
        default: "code",
        meaning: "code: select as the authors' code does | paper: as the paper does, by Adam's directions and a full gradient pass",
    },
    Argument {
        key: "mask",
        default: "yes",
        meaning: "with rule=paper: yes: of the selected tensors only the coordinates with the largest directions move | no: all",
    },
    Argument {
        key: "sparsity",
        default: "0.95",
        meaning: "share of the elements that is not updated",
    },
    Argument {
        key: "every",
        default: "1000",
        meaning: "with rule=code: steps between two tests whether to select anew",
    },
    Argument {
        key: "patience",
        default: "100",
        meaning: "losses whose mean must exceed the mean of all since the last selection | with rule=paper: be at most the next loss",
    },
    Argument {
        key: "refresh",
        default: "20",
        meaning: "with rule=code: steps after which other tensors are sampled for the norm of their gradient",
    },
    Argument {
        key: "sampled",
        default: "1",
        meaning: "with rule=code: tensors sampled at a time",
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
        key: "budget",
        default: "auto",
        meaning: "with rule=paper: coordinates that move in a step | auto: as sparsity says",
    },
    Argument {
        key: "since",
        default: "0",
        meaning: "with rule=paper: steps done when the moments last started again",
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
        is_paper(args)?;
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

    fn ahead(&self, at: &mut Ahead, args: &Args) -> Result<Option<TensorId>> {
        if !is_paper(args)? || !masks(args)? {
            return Ok(None);
        }
        let watched = names(args, "watched");
        let mut inputs = Vec::new();
        for &(parameter, gradient) in at.pairs() {
            if !watched.contains(&&*at.name(parameter)) {
                inputs.extend([gradient, at.state(parameter, "m"), at.state(parameter, "v")]);
            }
        }
        if inputs.is_empty() {
            return Ok(None);
        }
        let op = Threshold {
            adam: began(args)?,
            tensors: inputs.len() / 3,
            keep: args.number(&self.card(), "budget", (1, u64::MAX))?,
            guard: at.guard().is_some(),
        };
        inputs.extend(at.guard());
        at.emit(op, &inputs, "threshold").map(Some)
    }

    fn update(&self, at: &mut Update, args: &Args) -> Result<()> {
        if is_paper(args)? {
            return update_by_paper(at, args);
        }
        let card = self.card();
        let square = at.emit(SquareSum, &[at.gradient()], "square")?[0];
        show(at, square)?;
        if names(args, "watched").contains(&&*at.name()) {
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
        let paper = is_paper(args)?;
        let named = ["selected", "watched"].map(|key| !names(args, key).is_empty());
        let counted = !paper || args.text(&self.card(), "budget") != AUTO;
        if (named[0] || (paper && named[1])) && counted {
            return Ok(None);
        }
        let (settings, trained) = (settings(args)?, trained()?);
        let mut args = args.clone();
        if paper && !counted {
            let budget = settings.budget(&trained).max(1).to_string();
            args.0.insert("budget".to_string(), budget);
        }
        if named[0] || (paper && named[1]) {
            return Ok(Some(args));
        }
        let (selected, mut watched) = match paper {
            true => paper::worst(&settings, &trained),
            false => worst(&settings, &trained),
        };
        if selected.is_empty() {
            return Err(nothing());
        }
        if paper && args.word(&self.card(), "adapt", &["yes", "no"])? == "no" {
            watched.clear();
        }
        Ok(Some(with(&args, &selected, &watched)))
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
        let (settings, trained, args) = (settings(args)?, trained()?, args.clone());
        Ok(Some(match is_paper(&args)? {
            true => Box::new(Paper::new(settings, &trained, args)),
            false => Box::new(Selection::new(settings, &trained, seed, args)),
        }))
    }
}

/// Whether tensors are selected as the paper says.
fn is_paper(args: &Args) -> Result<bool> {
    Ok(args.word(&BlockLlm.card(), "rule", &["code", "paper"])? == "paper")
}

/// Whether only some coordinates of a selected tensor move.
fn masks(args: &Args) -> Result<bool> {
    Ok(args.word(&BlockLlm.card(), "mask", &["yes", "no"])? == "yes")
}

/// Adam's numbers by the paper's rule.
fn began(args: &Args) -> Result<Began> {
    let card = BlockLlm.card();
    Ok(Began {
        beta1: args.number(&card, "beta1", (0.0, 1.0))?,
        beta2: args.number(&card, "beta2", (0.0, 1.0))?,
        eps: args.number(&card, "eps", (0.0, 1.0))?,
        since: args.number(&card, "since", (0, u64::MAX))?,
    })
}

/// Reports `square` as what is known of a parameter's gradient.
fn show(at: &mut Update, square: TensorId) -> Result<()> {
    let report = Report {
        name: format!("{SCALARS}{}", at.name()),
        offset: 0,
    };
    at.emit(report, &[square], "norm").map(|_| ())
}

/// The update by the paper's rule; where any tensor is watched, the norms of all directions are shown ahead of it.
fn update_by_paper(at: &mut Update, args: &Args) -> Result<()> {
    let (adam, guard) = (began(args)?, at.guard());
    let watched = names(args, "watched");
    let is_watched = watched.contains(&&*at.name());
    let mut moments = Vec::new();
    if !is_watched {
        let wide = at.at().with(DType::F32);
        moments.extend(["m", "v"].map(|suffix| at.state(suffix, wide.clone())));
    }
    if !watched.is_empty() {
        let op = DirectionSum {
            adam,
            moments: !is_watched,
            guard: guard.is_some(),
        };
        let inputs = [at.gradient()].into_iter().chain(moments.iter().copied());
        let inputs: Vec<TensorId> = inputs.chain(guard).collect();
        let square = at.emit(op, &inputs, "direction")?[0];
        show(at, square)?;
    }
    if is_watched {
        return Ok(());
    }
    let op = MaskedAdamW {
        adam,
        decay: args.number(&BlockLlm.card(), "decay", (0.0, 1e6))?,
        mask: at.ahead().is_some(),
        guard: guard.is_some(),
    };
    let mut inputs = vec![at.gradient(), at.parameter()];
    inputs.extend(moments);
    inputs.extend(at.ahead());
    inputs.extend(guard);
    at.emit(op, &inputs, "").map(|_| ())
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
