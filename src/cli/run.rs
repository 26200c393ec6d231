//! `memfit run`: training by a plan.

mod adapted;
mod link;
mod steps;

use std::path::{Path, PathBuf};

use memfit::error::{Error, Result};
use memfit::machine::cpu::Settings;
use memfit::machine::cuda::driver::Gpu;
use memfit::machine::train::save::Saved;
use memfit::machine::train::session::{self, Options, Session};
use memfit::machine::train::text::{Coding, Corpus, HeldOut, Source};
use memfit::machine::{calibrate, estimate};
use memfit::plan::file::PlanFile;
use memfit::plan::{Choice, Plan};
use memfit::search::{self, Outcome};
use memfit::show::run::Report;
use memfit::show::{json, text};
use memfit::spec::catalog;

pub(super) use steps::train;

use super::job::JobArgs;
use super::{Answer, DONE, MISFIT, files};

/// Held-out sequences an evaluation reads at most.
const EVALUATION_ROWS: u64 = 64;

/// Arguments of `run`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// A plan file, or the name of a worked plan; without, one is searched for
    pub plan: Option<String>,
    #[command(flatten)]
    pub job: JobArgs,
    /// Text to train on: a file, or moby-dick or rust, which are built in [default: moby-dick]
    #[arg(long, value_name = "FILE")]
    pub data: Option<PathBuf>,
    /// Tokenizer of the text (tokenizer.json)
    #[arg(long, value_name = "FILE")]
    pub tokenizer: Option<PathBuf>,
    /// Steps to train
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub steps: u64,
    /// Learning rate
    #[arg(long, value_name = "RATE", default_value_t = 3e-4)]
    pub lr: f64,
    /// How the learning rate changes after the warm-up
    #[arg(long, value_enum, default_value_t = Schedule::Constant)]
    pub schedule: Schedule,
    /// Steps over which the learning rate rises from zero
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub warmup: u64,
    /// Weight decay of the update rule [default: the rule's own]
    #[arg(long, value_name = "DECAY")]
    pub weight_decay: Option<f64>,
    /// Seed of first values, order of the data, and dropout
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Held-out text: a file, or a share of the data such as 10%
    #[arg(long, value_name = "FILE|SHARE")]
    pub eval: Option<String>,
    /// Steps between two evaluations [default: only at the end]
    #[arg(long, value_name = "N")]
    pub eval_every: Option<u64>,
    /// Folder to save to
    #[arg(long, value_name = "DIR")]
    pub save: Option<PathBuf>,
    /// Steps between two saves [default: only at the end]
    #[arg(long, value_name = "N")]
    pub save_every: Option<u64>,
    /// Folder of a save to continue from
    #[arg(long, value_name = "DIR")]
    pub resume: Option<PathBuf>,
    /// Folder of weights to start from [default: random first values]
    #[arg(long, value_name = "DIR")]
    pub weights: Option<PathBuf>,
    /// Folder of an adapter to start from, as PEFT saves it [default: random first values]
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// What trains: this machine's cores, or its first NVIDIA GPU
    #[arg(long, value_enum, default_value_t = Runs::Cpu)]
    pub device: Runs,
    /// Threads [default: as many as the machine has]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Folder of what lies on disk between uses [default: the system's temporary folder]
    #[arg(long, value_name = "DIR")]
    pub offload_dir: Option<PathBuf>,
}

/// What programs run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Runs {
    /// This machine's cores.
    Cpu,
    /// The first NVIDIA GPU.
    Cuda,
}

/// How the learning rate changes after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Schedule {
    /// It stays.
    Constant,
    /// It falls to a tenth along half a cosine.
    Cosine,
    /// It falls to zero along a line.
    Linear,
}

/// Trains, with losses on the error stream and the comparison at the end.
///
/// # Errors
/// Where plan, text or weights are wrong, or a step fails; after an interruption, naming the last save.
pub fn run(args: &Args, json: bool) -> Result<Answer> {
    let mut begun = match begin(args)? {
        Begun::Session(begun) => begun,
        Begun::Misfit(answer) => return Ok(*answer),
    };
    train(args, &mut begun.session, json)?;
    let report = Report {
        session: &begun.session,
        calibrated: begun.planned.job.target.device.threads.is_some(),
    };
    Ok(Answer {
        text: report.text(),
        json: report.json(),
        status: DONE,
    })
}

/// A session, or the answer that nothing fits.
pub(super) enum Begun {
    /// Ready to train.
    Session(Box<Ready>),
    /// Nothing fits.
    Misfit(Box<Answer>),
}

/// A session before its next step, and its plan as it is for the device.
pub(super) struct Ready {
    pub(super) session: Session,
    pub(super) planned: Plan,
}

/// Plans, and takes the memory of the run.
///
/// # Errors
/// As [`run`].
pub(super) fn begin(args: &Args) -> Result<Begun> {
    args.device.capability()?; // before a search that nothing could run
    let (planned, text) = match plan(args)? {
        Chosen::Plan(plan, text) => (*plan, text),
        Chosen::Misfit(answer) => return Ok(Begun::Misfit(answer)),
    };
    let plan = on_device(args, &planned)?;
    let corpus = corpus(args, &plan)?;
    let options = options(args, &plan, &text)?;
    let session = Session::open(plan, corpus, options)?;
    Ok(Begun::Session(Box::new(Ready { session, planned })))
}

/// The plan, lowered for what trains.
fn on_device(args: &Args, planned: &Plan) -> Result<Plan> {
    if let Some(capability) = args.device.capability()? {
        return Ok(estimate::on_cuda(planned, capability));
    }
    let threads = match args.threads {
        Some(0) => {
            let next = "give 1 or more";
            return Err(Error::value("--threads", 0, "nothing can run", next));
        }
        Some(threads) => threads as u32,
        None => estimate::threads_for(planned, calibrate::cores()),
    };
    Ok(estimate::on_cpu(planned, threads))
}

/// What to run, or the answer that nothing fits.
enum Chosen {
    Plan(Box<Plan>, String),
    Misfit(Box<Answer>),
}

/// The plan: of a file, of the save to be continued, or the best for the job.
fn plan(args: &Args) -> Result<Chosen> {
    let base = match (&args.plan, &args.resume) {
        (Some(text), _) => Some(files::open(text)?),
        (None, Some(dir)) if args.job.model.is_none() => Some(saved_plan(dir)?),
        _ => None,
    };
    let Some(mut file) = base else {
        return searched(args);
    };
    file.job = args.job.text(Some(&file.job))?;
    file.host = args.job.host(file.host)?;
    file.claim = None;
    let mut fixed = args.job.fixed()?;
    adapted::choose(args.adapter.as_deref(), &file.choice, &mut fixed)?;
    file.choice.retain(|c| {
        !fixed
            .iter()
            .any(|f| f.technique == c.technique && f.site == c.site && f.technique != "offload")
    });
    file.choice.extend(fixed);
    decay(args, &mut file.choice);
    let plan = file.plan()?;
    Ok(Chosen::Plan(Box::new(plan), file.text()?))
}

/// The best plan for the job of the arguments.
fn searched(args: &Args) -> Result<Chosen> {
    let (mut request, asked) = args.job.request()?;
    adapted::choose(args.adapter.as_deref(), &[], &mut request.fixed)?;
    let answer = search::search(&request)?;
    match &answer.outcome {
        Outcome::Fits(best) => {
            let mut file = PlanFile::of(&best.plan, asked.text.clone(), None);
            decay(args, &mut file.choice);
            Ok(Chosen::Plan(Box::new(file.plan()?), file.text()?))
        }
        Outcome::Misfit(_) => Ok(Chosen::Misfit(Box::new(Answer {
            text: text::plan(&answer, &request, &asked),
            json: json::plan(&answer, &asked),
            status: MISFIT,
        }))),
    }
}

/// The plan a save was made with.
fn saved_plan(dir: &Path) -> Result<PlanFile> {
    let saved = Saved::open(dir)?;
    let next = "give the plan or the job it was made with";
    let text = saved
        .progress()
        .settings
        .get("plan")
        .and_then(|v| v.as_str());
    let text = text.ok_or_else(|| Error::file(dir, "the save names no plan", next))?;
    PlanFile::parse(&dir.display().to_string(), text)
}

/// Puts the weight decay of the arguments into the update rule.
fn decay(args: &Args, choices: &mut [Choice]) {
    let Some(decay) = args.weight_decay else {
        return;
    };
    let decays = |c: &&mut Choice| {
        let card = c.behind().map(|t| t.card());
        card.is_ok_and(|c| c.is_rule() && c.arguments.iter().any(|a| a.key == "decay"))
    };
    for choice in choices.iter_mut().filter(decays) {
        choice.args.0.insert("decay".to_string(), decay.to_string());
    }
}

fn corpus(args: &Args, plan: &Plan) -> Result<Corpus> {
    let source = args
        .data
        .as_deref()
        .map_or_else(Source::default, Source::from_path);
    let coding = args
        .tokenizer
        .clone()
        .map_or(Coding::Bytes, Coding::Tokenizer);
    let held_out = args
        .eval
        .as_deref()
        .map(str::parse)
        .transpose()?
        .unwrap_or(HeldOut::None);
    Corpus::open(
        &source,
        &coding,
        &held_out,
        plan.job.model.vocab,
        plan.job.model.head,
    )
}

fn options(args: &Args, plan: &Plan, text: &str) -> Result<Options> {
    if !(args.lr.is_finite() && args.lr > 0.0) {
        return Err(Error::value(
            "--lr",
            args.lr,
            "not a learning rate",
            "give a number above 0, such as 3e-4",
        ));
    }
    let folder = args.offload_dir.clone().unwrap_or_else(std::env::temp_dir);
    let machine = match (args.device, &args.job.link) {
        (Runs::Cpu, Some(_)) => link::throttled(plan)?,
        _ => Settings::default(),
    };
    Ok(Options {
        steps: args.steps,
        rate: args.lr,
        schedule: args.schedule.into(),
        warmup: args.warmup,
        seed: args.seed,
        machine,
        folder,
        weights: args.weights.clone(),
        adapter: args.adapter.clone(),
        resume: args.resume.clone(),
        config: config(args, plan)?,
        evaluation_rows: EVALUATION_ROWS,
        settings: serde_json::json!({ "plan": text }),
    })
}

/// The model's config, which a save carries: as published, or as read.
fn config(args: &Args, plan: &Plan) -> Result<String> {
    if let Some(dir) = &args.resume {
        return Ok(Saved::open(dir)?.config().to_string());
    }
    let name = args
        .job
        .model
        .clone()
        .unwrap_or_else(|| plan.job.model.name.clone());
    if let Ok(text) =
        catalog::config_text(&name).or_else(|_| catalog::config_text(&plan.job.model.name))
    {
        return Ok(text.to_string());
    }
    let path = Path::new(&name);
    let path = if path.is_dir() {
        path.join("config.json")
    } else {
        path.to_path_buf()
    };
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(text),
        Err(_) if args.save.is_none() => Ok(String::new()),
        Err(error) => Err(Error::io(path, "read the config of the model from", error)),
    }
}

impl Runs {
    /// Compute capability of the GPU, where it is one.
    ///
    /// # Errors
    /// Where it is to be one and there is none.
    pub fn capability(self) -> Result<Option<u32>> {
        match self {
            Runs::Cpu => Ok(None),
            Runs::Cuda => Ok(Some(Gpu::open()?.capability)),
        }
    }
}

impl From<Schedule> for session::Schedule {
    fn from(schedule: Schedule) -> session::Schedule {
        match schedule {
            Schedule::Constant => session::Schedule::Constant,
            Schedule::Cosine => session::Schedule::Cosine,
            Schedule::Linear => session::Schedule::Linear,
        }
    }
}
