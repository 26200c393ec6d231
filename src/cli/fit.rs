//! `memfit fit`: the largest model, batch and sequence that a device can train.

use memfit::error::{Error, Result};
use memfit::plan::Request;
use memfit::search::capacity::{self, Capacity, Class};
use memfit::search::goal::Goal;
use memfit::show::capacity::{Page, json, text};
use memfit::show::job::parameters;
use memfit::spec::model::ModelSpec;
use memfit::spec::{catalog, device};
use rayon::prelude::*;

use super::cost::CostArgs;
use super::job::JobArgs;
use super::{Answer, DONE, MISFIT, width};

/// The answer for programs.
const SHAPE: &str = "With --json: device {id, name, budget}; models (tried among); classes [{class: full_exact, full_lossy or lora; goal; outcome: \
fits or misfit; model, batch and seq, or null}]. Each of these three is a plan of one job: {seq, batch, precision, plan {name, choices, exactness, peak}, \
step_seconds, tokens_per_second}; model also has name, parameters and cost; batch and seq have count and ended_by: memory, where one more does not \
fit, or limit.";

/// Arguments of `fit`.
#[derive(Debug, clap::Args)]
#[command(mut_arg("model", |arg| arg.help("Only this model: a name, or the path of a config.json, its folder, or a .gguf file [default: the largest of the catalogue that fits]")))]
#[command(mut_arg("goal", |arg| arg.help("What is to be trained: full (all parameters, exactly, and by lossy methods), lora (LoRA or QLoRA) or any (each of these) [default: any]")))]
#[command(after_help = SHAPE)]
pub struct Args {
    #[command(flatten)]
    job: JobArgs,
    #[command(flatten)]
    cost: CostArgs,
}

/// Finds what the device can train at most, by class.
///
/// # Errors
/// Where the device or the job is wrong.
pub fn fit(args: &Args, quiet: bool) -> Result<Answer> {
    let goal = args.cost.goal()?.unwrap_or(Goal::Any);
    let tariff = args.cost.tariff()?;
    let gpu = args.job.gpu.as_deref().ok_or_else(|| {
        let (why, next) = (
            "it is what has to be filled",
            "give it, such as --gpu rtx-4090",
        );
        Error::value("missing argument", "--gpu", why, next)
    })?;
    let device = device::find(gpu)?;
    let models = models(args)?;
    let at = |model: &ModelSpec| request(args, model);
    let bar = super::steps(quiet);
    let classes: Vec<Class> = Class::ALL
        .into_iter()
        .filter(|class| class.suits(goal))
        .collect();
    let of = |class: &Class| {
        capacity::of(&models, *class, &at, &|what| {
            bar.set_message(what.to_string())
        })
    };
    let found: Vec<Result<Capacity>> = classes.par_iter().map(of).collect();
    bar.finish_and_clear();
    let capacities = found.into_iter().collect::<Result<Vec<Capacity>>>()?;
    let page = Page {
        device: &device,
        model: args.job.model.as_deref(),
        models: models.len(),
        tariff: &tariff,
        capacities: &capacities,
    };
    let any = capacities.iter().any(|capacity| capacity.model.is_some());
    Ok(Answer {
        text: text(&page, width()),
        json: json(&page),
        status: if any { DONE } else { MISFIT },
    })
}

/// The models that are tried, the smallest first.
fn models(args: &Args) -> Result<Vec<ModelSpec>> {
    if let Some(name) = &args.job.model {
        return Ok(vec![catalog::open(name)?]);
    }
    let all = catalog::names().map(catalog::find);
    let mut all = all.collect::<Result<Vec<ModelSpec>>>()?;
    all.sort_by_cached_key(|model| (parameters(model), model.name.clone()));
    Ok(all)
}

/// The job with a model; of the catalogue's, its sequence no longer than the model takes.
fn request(args: &Args, model: &ModelSpec) -> Result<Request> {
    let mut job = args.job.clone();
    if job.model.is_none() {
        job.model = Some(model.name.clone());
        job.seq = job.seq.map(|seq| seq.min(model.max_positions));
    }
    Ok(job.request()?.0)
}
