//! Where persistent values come from before the first step: a seed, files of weights or of an adapter, or a save.

use std::path::PathBuf;

use super::adapter::Adapter;
use super::desk::Kept;
use super::save::{Progress, Saved};
use super::session::Options;
use super::weights::WeightFiles;
use crate::error::{Error, Result};
use crate::graph::When;
use crate::graph::tensor::{Role, Tensor};
use crate::plan::Plan;
use crate::program::Program;
use crate::spec::job::Precision;

/// The loss scale fp16 starts with (Micikevicius et al. 2018, PyTorch's GradScaler).
pub(super) const LOSS_SCALE: f32 = 65_536.0;

/// Where persistent values come from before the first step, the later in this list the earlier.
#[derive(Debug)]
pub struct Origin {
    /// What values are drawn from that nothing else has.
    pub seed: u64,
    /// Weights of the model.
    pub weights: Option<WeightFiles>,
    /// Parameters of an adapter.
    pub adapter: Option<WeightFiles>,
    /// Everything that is not frozen.
    pub saved: Option<Box<Saved>>,
}

impl Origin {
    /// Everything from a seed.
    pub fn seed(seed: u64) -> Origin {
        Origin {
            seed,
            weights: None,
            adapter: None,
            saved: None,
        }
    }
}

/// The persistent storages, gradients left out.
pub(super) fn storages(programs: &[Program]) -> Vec<Kept> {
    let steady = programs.iter().find(|p| p.when == When::Steady);
    let step = &steady
        .unwrap_or_else(|| panic!("every plan has a steady program"))
        .step;
    let kept = |t: &&Tensor| {
        let storage = step.storage(t.storage);
        t.version == 0 && t.offset == 0 && storage.shared && storage.role != Role::Gradient
    };
    let known = |t: &Tensor| {
        let storage = step.storage(t.storage);
        Kept {
            name: storage.name.to_string(),
            at: t.at.clone(),
            first: storage.first.clone(),
        }
    };
    step.tensors.iter().filter(kept).map(known).collect()
}

/// Where values come from, and the progress they stand for.
pub(super) fn origin(
    plan: &Plan,
    options: &Options,
    storages: &[Kept],
) -> Result<(Origin, Progress)> {
    let (mut origin, mut progress) = match &options.resume {
        Some(dir) => resumed(plan, dir)?,
        None => {
            let fp16 = plan.draft()?.precision == Precision::Fp16;
            let scale = if fp16 { LOSS_SCALE } else { 1.0 };
            (
                Origin::seed(options.seed),
                Progress::new(options.seed, scale),
            )
        }
    };
    let frozen = storages.iter().any(|kept| kept.first.is_frozen());
    if let Some(path) = options
        .weights
        .as_ref()
        .filter(|_| frozen || options.resume.is_none())
    {
        progress.base = Some(path.clone()).filter(|_| frozen).map(absolute);
        origin.weights = Some(WeightFiles::open(path, &plan.job.model)?);
    } else if let Some(path) = progress.base.as_ref().filter(|_| frozen) {
        origin.weights = Some(WeightFiles::open(path, &plan.job.model)?);
    }
    if let Some(dir) = options
        .adapter
        .as_ref()
        .filter(|_| options.resume.is_none())
    {
        let weights = Adapter::open(dir, &plan.job.model)?.into_weights();
        fits(&weights, storages).map_err(|why| {
            let next = "leave out the adapter's own choice, or choose what the folder says";
            Error::file(dir, why, next)
        })?;
        origin.adapter = Some(weights);
    }
    Ok((origin, progress))
}

/// The path from the root, so that a save names it from anywhere.
fn absolute(path: PathBuf) -> PathBuf {
    std::path::absolute(&path).unwrap_or(path)
}

/// The save to be continued.
fn resumed(plan: &Plan, dir: &std::path::Path) -> Result<(Origin, Progress)> {
    let saved = Saved::open(dir)?;
    let next = "resume with the plan the save was made with";
    if saved.model().layers != plan.job.model.layers
        || saved.model().hidden != plan.job.model.hidden
    {
        return Err(Error::file(dir, "the save is of another model", next));
    }
    let progress = saved.progress().clone();
    let origin = Origin {
        saved: Some(Box::new(saved)),
        ..Origin::seed(progress.seed)
    };
    Ok((origin, progress))
}

/// Says how a folder's adapter differs from that of the plan.
fn fits(weights: &WeightFiles, storages: &[Kept]) -> std::result::Result<(), String> {
    for name in weights.names() {
        let wanted = storages.iter().find(|kept| kept.name == name);
        let elements = wanted.map(|kept| kept.at.elements());
        if elements != weights.elements(name) {
            return Err(match elements {
                Some(elements) => format!("{name} has not the {elements} elements of the plan's"),
                None => format!("the plan has no {name}"),
            });
        }
    }
    Ok(())
}
