//! `memfit bench`: benchmarks of the predictions, resumable, with results that are kept.

use std::path::{Path, PathBuf};

use memfit::error::{Error, Result};
use memfit::machine::cpu::Settings;
use memfit::machine::train::save::recover;
use memfit::machine::train::session::{Options, Schedule, Session};
use memfit::machine::train::text::{Coding, Corpus, HeldOut, Source};
use memfit::machine::{agreement, calibrate, estimate, learning};
use memfit::plan::library;
use memfit::search::{executed, grid};
use memfit::show;
use memfit::show::run::Report;
use memfit::spec::catalog;
use memfit::spec::device::Device;
use serde_json::{Value, json};

use super::{Answer, DONE, MISFIT, complain, files, progress};

/// Arguments of `bench`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Which one
    #[arg(value_enum)]
    pub name: Name,
    /// The smallest case only
    #[arg(long)]
    pub smoke: bool,
    /// Keep the results that are there, and run the rest
    #[arg(long)]
    pub resume: bool,
    /// Of techniques: measure the steps of the results that are there again, without training on
    #[arg(long)]
    pub times: bool,
    /// One combination only; of techniques, those whose names begin so
    #[arg(long, value_name = "NAME")]
    pub case: Option<String>,
    /// Leave out the combinations over 1 GiB
    #[arg(long)]
    pub small: bool,
    /// This machine's device file, as `memfit calibrate -o FILE` wrote it; without it nothing is timed
    #[arg(long, value_name = "FILE")]
    pub here: Option<PathBuf>,
    /// Folder of what lies on disk between uses [default: the system's temporary folder]
    #[arg(long, value_name = "DIR")]
    pub offload_dir: Option<PathBuf>,
    /// Where results are kept [default: memfit-NAME.json or .jsonl here]
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// The benchmarks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Name {
    /// Predicted against measured memory and time.
    Agreement,
    /// Losses of training runs.
    Training,
    /// What every method learns beside AdamW, from scratch and from a checkpoint (under four hours on two cores).
    Techniques,
    /// Updates on the host over a slow link: ZeRO-Offload and LSP-Offload.
    Throttled,
    /// Solved plans beside what others would do, over models, lengths, budgets and links; simulated.
    Policies,
    /// Solved plans, executed on this machine over throttled links: bytes, times, and their order.
    Executed,
    /// How soon the explorer answers keys, for a model of 7 billion parameters; with --smoke for a small one.
    Tui,
}

/// Runs a benchmark.
///
/// # Errors
/// Where a run fails or a result cannot be written.
pub fn bench(args: &Args, json: bool) -> Result<Answer> {
    match args.name {
        Name::Training => training(args, json),
        Name::Agreement => agreement(args, json),
        Name::Techniques => techniques(args, json),
        Name::Throttled => throttled(args, json),
        Name::Policies => policies(args, json),
        Name::Executed => executed(args, json),
        Name::Tui => super::tui::paces(args.smoke),
    }
}

/// Folder of what lies on disk between uses.
fn folder(args: &Args) -> PathBuf {
    args.offload_dir.clone().unwrap_or_else(std::env::temp_dir)
}

/// The file of rows, which begins anew unless a run that makes rows is resumed.
fn rows(args: &Args, default: &str) -> Result<PathBuf> {
    let rows = args.output.clone().unwrap_or_else(|| default.into());
    let kept = args.resume || args.times || args.smoke;
    if !kept && rows.exists() {
        std::fs::remove_file(&rows).map_err(|e| Error::io(&rows, "remove", e))?;
    }
    Ok(rows)
}

/// What every method learns; with `--case`, only the runs whose names begin so; with `--smoke`, one short run.
fn techniques(args: &Args, quiet: bool) -> Result<Answer> {
    let options = learning::Options {
        here: args.here.as_deref().map(Device::from_path).transpose()?,
        rows: rows(args, "memfit-techniques.jsonl")?,
        folder: folder(args),
        only: args.case.clone(),
    };
    let found = match (args.smoke, args.times) {
        (true, _) => vec![learning::run(&learning::smoke()?, &options)?],
        (_, true) => learning::times(&options, &mut progress(quiet))?,
        _ => learning::bench(&options, &mut progress(quiet))?,
    };
    let verdicts = learning::held(&found);
    let status = match verdicts.iter().all(|v| v.holds) {
        true => DONE,
        false => MISFIT,
    };
    Ok(Answer {
        text: show::learning::text(&found, &verdicts),
        json: json!({ "rows": found, "held": verdicts }),
        status,
    })
}

/// The combinations, each predicted and run; with `--case`, one of them in this process.
fn agreement(args: &Args, quiet: bool) -> Result<Answer> {
    let folder = folder(args);
    let here = args.here.as_deref().map(Device::from_path).transpose()?;
    if let Some(name) = &args.case {
        return one(name, here.as_ref(), &folder);
    }
    if args.smoke {
        return one(&agreement::cases()[0].name, here.as_ref(), &folder);
    }
    let rows = rows(args, "memfit-agreement.jsonl")?;
    let options = agreement::Options {
        device: args.here.clone(),
        folder,
        rows,
        big: !args.small,
    };
    let found = agreement::bench(&options, &mut progress(quiet))?;
    let summary = agreement::summary(&found);
    let text = format!(
        "{} combinations agree to the byte: {} with a disk tier, {} stacks of three or more, {} over 1 GiB\n\
         step time: median error {:.1} % corrected, {:.1} % raw, over {} timed ({} on an unsteady machine)\n\
         kept in {}\n",
        summary.count,
        summary.with_disk,
        summary.stacks,
        summary.over_1_gib,
        100.0 * summary.median_error,
        100.0 * summary.median_error_raw,
        summary.timed,
        summary.unsteady,
        options.rows.display(),
    );
    Ok(Answer {
        text,
        json: json!({ "summary": summary, "rows": found }),
        status: DONE,
    })
}

/// One combination; its row is printed as JSON either way, since another process reads it.
fn one(name: &str, here: Option<&Device>, folder: &Path) -> Result<Answer> {
    let cases = agreement::cases();
    let case = cases.iter().find(|c| c.name == name).ok_or_else(|| {
        let known = cases.iter().map(|c| c.name.as_str());
        Error::unknown(
            "case",
            name,
            known,
            "`memfit bench agreement --json` names them",
        )
    })?;
    let row = agreement::run_case(case, here, folder, &mut agreement::Bases::default())?;
    let json = json!(row);
    Ok(Answer {
        text: format!("{json}\n"),
        json,
        status: DONE,
    })
}

/// The grid of solved plans and other policies; with `--case`, cells whose names begin so; with `--smoke`, one job's.
fn policies(args: &Args, quiet: bool) -> Result<Answer> {
    let rows = rows(args, "memfit-policies.jsonl")?;
    let only = match args.smoke {
        true => Some("gpt2-xl/2048/25"),
        false => args.case.as_deref(),
    };
    let found = grid::bench(&rows, only, &mut progress(quiet))?;
    let summary = show::grid::summary(found.iter());
    let status = match summary.slower.is_empty() {
        true => DONE,
        false => MISFIT,
    };
    Ok(Answer {
        text: show::grid::text(&found),
        json: json!({ "summary": summary, "rows": found }),
        status,
    })
}

/// Solved plans, executed; with `--case`, cells whose names begin so; with `--smoke`, one.
fn executed(args: &Args, quiet: bool) -> Result<Answer> {
    let options = executed::Options {
        here: here(args)?,
        folder: folder(args),
        rows: rows(args, "memfit-executed.jsonl")?,
        only: match args.smoke {
            true => Some("tiny/600/55".to_string()),
            false => args.case.clone(),
        },
    };
    let found = executed::bench(&options, &mut progress(quiet))?;
    let summary = executed::summary(&found);
    let status = match summary.agree == summary.count {
        true => DONE,
        false => MISFIT,
    };
    Ok(Answer {
        text: show::executed::text(&found),
        json: json!({ "summary": summary, "rows": found }),
        status,
    })
}

/// The device file of this machine, without which nothing can be timed.
fn here(args: &Args) -> Result<Device> {
    let next = "`memfit calibrate -o here.toml` measures this machine; then give --here here.toml";
    let none = || Error::value("device", "none", "steps are timed", next);
    Device::from_path(args.here.as_ref().ok_or_else(none)?)
}

/// What LSP-Offload makes of a link that ZeRO-Offload doubles the step over; a result that is there is kept with `--resume`.
fn throttled(args: &Args, quiet: bool) -> Result<Answer> {
    let output = args
        .output
        .clone()
        .unwrap_or_else(|| "memfit-throttled.json".into());
    let device = here(args)?;
    let kept = args.resume.then(|| std::fs::read_to_string(&output).ok());
    let kept = kept.flatten().and_then(|t| serde_json::from_str(&t).ok());
    let found: agreement::Throttled = match kept {
        Some(found) => found,
        None => {
            let folder = folder(args);
            agreement::throttled(&device, &folder, &mut progress(quiet))?
        }
    };
    files::write(&output, &format!("{:#}\n", json!(found)))?;
    let line = |name: &str, side: &agreement::Side| {
        format!(
            "{name}: {} measured, {:.2} x; {} simulated, {:.2} x\n",
            side.measured, side.ratio, side.predicted, side.ratio_predicted
        )
    };
    let text = format!(
        "`small`, {} tokens, a link of {:.0} MB/s each way\n{}{}{}kept in {}\n",
        found.tokens,
        found.link / 1e6,
        line("without offload", &found.without),
        line("ZeRO-Offload", &found.zero),
        line("LSP-Offload", &found.lsp),
        output.display()
    );
    Ok(Answer {
        text,
        json: json!(found),
        status: DONE,
    })
}

/// The plan, the steps, and the held-out loss that must be passed.
const TRAINING: (&str, u64, f32) = ("small-cpu", 120, 2.3);

/// The same for the smoke run.
const SMOKE: (&str, u64, f32) = ("tiny-cpu", 3, 6.0);

/// Steps between two saves of a benchmark.
const SAVES: u64 = 20;

/// Trains on the text that ships until the held-out loss is known; a stopped benchmark goes on from its last save.
fn training(args: &Args, quiet: bool) -> Result<Answer> {
    let (name, steps, bound) = if args.smoke { SMOKE } else { TRAINING };
    let output = args
        .output
        .clone()
        .unwrap_or_else(|| "memfit-training.json".into());
    let saves = output.with_extension("save");
    let mut session = open(name, steps, &saves, args.resume)?;
    let before = session.evaluate()?;
    while session.done() < steps {
        let stepped = session.step()?;
        let every = stepped.step.is_multiple_of(SAVES) && stepped.step < steps;
        if !quiet {
            complain(&format!(
                "step {} of {steps}: loss {:.4} in {}\n",
                stepped.step, stepped.loss, stepped.seconds
            ));
        }
        if every && !args.smoke {
            session.save(&saves)?;
        }
    }
    let after = session.evaluate()?.unwrap_or(f32::NAN);
    let result = result(name, &session, before, after, bound);
    files::write(&output, &format!("{result:#}\n"))?;
    let passed = after < bound;
    let verdict = if passed { "below" } else { "NOT below" };
    let text = format!(
        "{name}: held-out loss {after:.4} after {steps} steps, {verdict} {bound}; kept in {}\n",
        output.display()
    );
    Ok(Answer {
        text,
        json: result,
        status: if passed { DONE } else { MISFIT },
    })
}

/// The run, new or continued.
fn open(name: &str, steps: u64, saves: &Path, resume: bool) -> Result<Session> {
    let plan = library::find(name)?.plan()?;
    let plan = estimate::on_cpu(&plan, estimate::threads_for(&plan, calibrate::cores()));
    let model = &plan.job.model;
    let corpus = Corpus::open(
        &Source::default(),
        &Coding::Bytes,
        &HeldOut::Fraction(0.1),
        model.vocab,
        model.head,
    )?;
    recover(saves)?;
    let options = Options {
        steps,
        rate: 6e-4,
        schedule: Schedule::Cosine,
        warmup: 20,
        seed: 1,
        machine: Settings::default(),
        folder: std::env::temp_dir(),
        weights: None,
        adapter: None,
        resume: (resume && saves.exists()).then(|| saves.to_path_buf()),
        config: catalog::config_text(&model.name)?.to_string(),
        evaluation_rows: 64,
        settings: Value::Null,
    };
    Session::open(plan, corpus, options)
}

/// What is kept: losses, and the hash of every program that ran.
fn result(name: &str, session: &Session, before: Option<f32>, after: f32, bound: f32) -> Value {
    let hashes: Vec<Value> = session
        .programs()
        .iter()
        .map(|p| json!({"when": p.when, "hash": format!("{:016x}", p.hash())}))
        .collect();
    let report = Report {
        session,
        calibrated: false,
    };
    json!({
        "plan": name,
        "threads": session.plan().job.target.backend,
        "bound": bound,
        "held_out_before": before,
        "held_out_after": after,
        "programs": hashes,
        "run": report.json(),
    })
}
