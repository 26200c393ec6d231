//! `memfit plan`: the fastest plan that fits.

use std::path::PathBuf;

use memfit::error::{Error, Result};
use memfit::machine;
use memfit::plan::file::PlanFile;
use memfit::program::caching_allocator::AllocatorConfig;
use memfit::search::goal::{self, Goal};
use memfit::search::{self, Candidate, Outcome};
use memfit::show::job::Asked;
use memfit::show::{json, money, pytorch, text};
use memfit::spec::cost::{Cost, Tariff};
use memfit::spec::job::{Job, Precision};
use memfit::spec::model::Head;
use memfit::spec::torch::{Task, TorchDtype, TorchOptions};
use memfit::spec::units::parse_size;
use serde_json::{Value, json};

use super::cost::CostArgs;
use super::job::JobArgs;
use super::{Answer, DONE, MISFIT, complain, files};

/// Arguments of `plan`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub(super) job: JobArgs,
    #[command(flatten)]
    pub(super) cost: CostArgs,
    /// Who trains: memfit's own executor, or PyTorch's eager mode with Hugging Face code
    #[arg(long, value_enum, default_value = "memfit")]
    pub(super) engine: Engine,
    /// With --engine torch: options of the step that are decided already, such as attn=eager,lora.r=16; may be repeated
    #[arg(long, value_name = "KEY=VALUE,…")]
    pub(super) torch: Vec<String>,
    /// Most of the device's memory that the plan may take, such as 20GiB [default: all that is not reserved]
    #[arg(long, value_name = "SIZE")]
    pub(super) within: Option<String>,
    /// Write the plan to this file, with what it is claimed to take; with --engine torch, the trainer's arguments as JSON
    #[arg(short, long, value_name = "FILE")]
    pub(super) output: Option<PathBuf>,
}

/// Who trains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Engine {
    /// memfit's own executor.
    Memfit,
    /// PyTorch's eager mode with Hugging Face code.
    Torch,
}

/// Searches, saves the plan where asked, and answers.
///
/// # Errors
/// Where the job or a choice is wrong, or the file cannot be written.
pub fn plan(args: &Args) -> Result<Answer> {
    if args.engine == Engine::Torch {
        return super::plan_torch::plan(args);
    }
    if let Some(text) = args.torch.first() {
        let why = "options of PyTorch are nothing to memfit's own engine";
        return Err(Error::value("--torch", text, why, "add --engine torch"));
    }
    let (goal, tariff) = (args.cost.goal()?, args.cost.tariff()?);
    let (mut request, asked) = args.job.request()?;
    if let Some(text) = &args.within {
        let most = parse_size("--within", text)?.bytes;
        let target = &mut request.job.target;
        target.device = target.device.clone().within(most);
    }
    let (request, answer) = goal::search(&request, goal)?;
    let status = match (&answer.outcome, &args.output) {
        (Outcome::Fits(best), Some(path)) => {
            files::write(path, &saved(best, &asked)?)?;
            DONE
        }
        (Outcome::Fits(_), None) => DONE,
        (Outcome::Misfit(_), Some(path)) => {
            let path = path.display();
            complain(&format!("{path} was not written: no plan fits\n"));
            MISFIT
        }
        (Outcome::Misfit(_), None) => MISFIT,
    };
    let (line, other) = with_pytorch(&request.job);
    let mut json = json::plan(&answer, &asked);
    json["pytorch"] = other;
    json["goal"] = json!(goal.map(Goal::name));
    let (money, cost) = cost(&answer, &tariff);
    json["cost"] = cost;
    Ok(Answer {
        text: format!("{}\n{money}{line}", text::plan(&answer, &request, &asked)),
        json,
        status,
    })
}

/// What training by the plan that was found costs, in lines and for programs.
fn cost(answer: &search::Answer, tariff: &Tariff) -> (String, Value) {
    let Outcome::Fits(best) = &answer.outcome else {
        return (String::new(), Value::Null);
    };
    let (device, speed) = (
        &best.plan.job.target.device,
        best.estimate.tokens_per_second,
    );
    let cost = Cost::of(device, speed, tariff);
    match money::section(&cost, device, speed, tariff) {
        none if none.is_empty() => (none, Value::Null),
        said => (format!("{said}\n"), money::json(&cost, device, tariff)),
    }
}

/// What the same model, batch, length and precision would take with the other engine, in a line and for programs.
pub(super) fn with_pytorch(job: &Job) -> (String, Value) {
    let plain = TorchOptions::default();
    let autocast = match job.precision {
        Precision::F32 => None,
        Precision::Bf16 => Some(TorchDtype::Bf16),
        Precision::Fp16 => Some(TorchDtype::Fp16),
    };
    let options = TorchOptions {
        task: match job.model.head {
            Head::MaskedLm => Task::MaskedLm,
            _ => plain.task,
        },
        batch: job.batch,
        seq: job.seq,
        autocast,
        convert_outputs_fp32: autocast.is_some(),
        ..plain
    };
    match machine::pytorch::answer(
        &job.model,
        &options,
        Some(&job.target.device),
        &AllocatorConfig::default(),
    ) {
        Ok(answer) => (pytorch::line(&answer), pytorch::summary(&answer)),
        Err(why) => (format!("with PyTorch: not predicted: {why}\n"), Value::Null),
    }
}

/// The text of the plan's file.
fn saved(best: &Candidate, asked: &Asked) -> Result<String> {
    let claim = best.estimate.claim();
    PlanFile::of(&best.plan, asked.text.clone(), Some(claim)).text()
}
