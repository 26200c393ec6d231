//! `memfit trial`: short real runs of several methods on one model and text, side by side.

use std::path::{Path, PathBuf};

use memfit::error::{Error, Result};
use memfit::machine::rows;
use memfit::machine::trial::{Outcome, Row, chosen};
use memfit::plan::Choice;
use memfit::search::goal::Goal;
use memfit::show::{money, trial};
use memfit::spec::cost::{Cost, Tariff};
use memfit::spec::device;
use serde_json::Value;

use super::cost::CostArgs;
use super::run::{self, Begun};
use super::{Answer, DONE, MISFIT, complain, files};

/// Saves of a candidate's run, so that an interrupted one loses little.
const SAVES: u64 = 10;

/// Arguments of `trial`.
#[derive(Debug, clap::Args)]
#[group(skip)]
#[command(mut_arg("goal", |arg| arg.help("Candidates that are run: full (those that train all parameters), lora (those that train low-rank adapters) or any [default: any]")))]
pub struct Args {
    #[command(flatten)]
    run: run::Args,
    #[command(flatten)]
    cost: CostArgs,
    /// Methods to try: names of techniques and recipes as --fix takes them, joined by +, each with lr=RATE where it wants its own
    #[arg(
        long,
        value_name = "A,B+C,…",
        default_value = "adamw,adamw8bit,lora,zo_sgd"
    )]
    candidates: String,
    /// How far above the least held-out loss a candidate may end
    #[arg(long, value_name = "SHARE", default_value = "2%")]
    max_loss: String,
}

/// One method.
#[derive(Debug, Clone, PartialEq)]
struct Candidate {
    name: String,
    fix: Vec<String>,
    rate: Option<f64>,
}

/// Runs every candidate that has no row yet, and answers with the cheapest that learns as well.
///
/// # Errors
/// Where a candidate's text is wrong, or a run fails; after an interruption, naming the last save.
pub fn trial(args: &Args, json: bool) -> Result<Answer> {
    let tolerance = share(&args.max_loss)?;
    let (goal, tariff) = (args.cost.goal()?.unwrap_or(Goal::Any), args.cost.tariff()?);
    let candidates = candidates(&args.candidates)?;
    let folder = args
        .run
        .save
        .clone()
        .unwrap_or_else(|| PathBuf::from("memfit-trial"));
    std::fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, "create", e))?;
    let file = folder.join("trial.jsonl");
    let mut done: Vec<Row> = Vec::new();
    for (number, candidate) in candidates.iter().enumerate() {
        let settings = settings(&args.run, candidate, goal);
        let known = rows::read(&file)?
            .into_iter()
            .find(|row: &Row| row.settings == settings);
        if !json {
            complain(&format!(
                "candidate {} of {}: {}\n",
                number + 1,
                candidates.len(),
                candidate.name
            ));
        }
        let row = match known {
            Some(row) => row,
            None => {
                let row = one((&args.run, goal), candidate, &folder, settings, json)?;
                rows::append(&file, &row.candidate, &row)?;
                row
            }
        };
        done.push(row);
    }
    let chosen = chosen(&done, tolerance);
    let (money, costs) = costs(&args.run, &done, &tariff)?;
    let mut json = trial::json(&done, chosen, tolerance);
    for (at, cost) in costs.into_iter().enumerate() {
        json["candidates"][at]["cost"] = cost;
    }
    Ok(Answer {
        text: trial::text(&done, chosen, tolerance) + &money,
        json,
        status: if chosen.is_some() { DONE } else { MISFIT },
    })
}

/// A candidate's run, from its last save where there is one.
fn one(
    (base, goal): (&run::Args, Goal),
    candidate: &Candidate,
    folder: &Path,
    settings: String,
    quiet: bool,
) -> Result<Row> {
    let mut args = base.clone();
    args.job.fix.extend(candidate.fix.iter().cloned());
    args.lr = candidate.rate.unwrap_or(base.lr);
    args.eval = Some(base.eval.clone().unwrap_or_else(|| "10%".to_string()));
    args.save_every = Some(base.save_every.unwrap_or((base.steps / SAVES).max(1)));
    let save = folder.join(
        candidate
            .name
            .replace(|c: char| !c.is_ascii_alphanumeric(), "_"),
    );
    args.resume = save.join("memfit.json").exists().then(|| save.clone());
    args.save = Some(save);
    let row = |outcome| Row {
        candidate: candidate.name.clone(),
        rate: args.lr,
        settings: settings.clone(),
        outcome,
    };
    let mut begun = match run::begin(&args) {
        Ok(Begun::Session(begun)) => begun,
        Ok(Begun::Misfit(answer)) => {
            return Ok(row(Outcome::Misfit {
                why: first_lines(&answer.text),
            }));
        }
        Err(error @ (Error::Conflict { .. } | Error::Value { .. })) => {
            return Ok(row(Outcome::Refused {
                why: error.to_string(),
            }));
        }
        Err(error) => return Err(error),
    };
    if !goal.meets(&begun.planned) {
        let why = format!("it does not train what --goal {} asks for", goal.name());
        return Ok(row(Outcome::Refused { why }));
    }
    if begun.session.done() == 0 {
        begun.session.evaluate()?;
    }
    run::train(&args, &mut begun.session, quiet)?;
    Ok(row(Outcome::of(&begun.session, &begun.planned)?))
}

/// What training by each candidate would cost on the device, in lines and for programs; nothing where nothing was asked about it.
fn costs(run: &run::Args, rows: &[Row], tariff: &Tariff) -> Result<(String, Vec<Value>)> {
    if *tariff == Tariff::default() {
        return Ok((String::new(), Vec::new()));
    }
    let base = run.plan.as_deref().map(files::open).transpose()?;
    let text = run.job.text(base.as_ref().map(|file| &file.job))?;
    let device = device::find(&text.gpu)?;
    let (mut said, mut costs) = (String::new(), Vec::new());
    for row in rows {
        let Some(ran) = row.ran() else {
            costs.push(Value::Null);
            continue;
        };
        let speed = (text.batch * text.seq) as f64 / ran.device_step.0;
        let cost = Cost::of(&device, speed, tariff);
        let section = money::section(&cost, &device, speed, tariff);
        said += &format!("\n{} on {}\n{section}", row.candidate, device.name);
        costs.push(money::json(&cost, &device, tariff));
    }
    Ok((said, costs))
}

/// The verdict of an answer: its lines that say what does not fit.
fn first_lines(text: &str) -> String {
    let lines = text
        .lines()
        .filter(|l| l.starts_with("MISFIT") || l.starts_with("change"));
    lines.collect::<Vec<_>>().join("; ")
}

/// What a row was made with: a row made with the same is not made again.
fn settings(args: &run::Args, candidate: &Candidate, goal: Goal) -> String {
    let run::Args {
        steps,
        seed,
        warmup,
        schedule,
        data,
        tokenizer,
        eval,
        weights,
        weight_decay,
        device,
        ..
    } = args;
    let goal = match goal {
        Goal::Any => String::new(),
        goal => format!(" goal {}", goal.name()),
    };
    let device = match device {
        run::Runs::Cpu => "",
        run::Runs::Cuda => " cuda",
    };
    format!(
        "{:?} {candidate:?} lr {} {steps} {seed} {warmup} {schedule:?} {data:?} {tokenizer:?} {eval:?} {weights:?} {weight_decay:?}{goal}{device}",
        args.job, args.lr
    )
}

/// Reads `2%` or `0.02`.
fn share(text: &str) -> Result<f64> {
    let wrong = || Error::value("--max-loss", text, "not a share", "write it as 2% or 0.02");
    let (number, unit) = match text.strip_suffix('%') {
        Some(number) => (number, 100.0),
        None => (text, 1.0),
    };
    let share: f64 = number.trim().parse().map_err(|_| wrong())?;
    match share.is_finite() && share >= 0.0 {
        true => Ok(share / unit),
        false => Err(wrong()),
    }
}

/// Candidates are separated by commas, as arguments are: a piece that begins with `key=` belongs to the one before it.
fn candidates(text: &str) -> Result<Vec<Candidate>> {
    let mut pieces: Vec<String> = Vec::new();
    for piece in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        let begins = piece.split(['+', ':']).next().unwrap_or(piece);
        match pieces.last_mut().filter(|_| begins.contains('=')) {
            Some(last) => *last += &format!(",{piece}"),
            None => pieces.push(piece.to_string()),
        }
    }
    if pieces.is_empty() {
        let next = "name some, such as adamw,adamw8bit";
        return Err(Error::value(
            "--candidates",
            text,
            "names nothing to try",
            next,
        ));
    }
    pieces.iter().map(|piece| candidate(piece)).collect()
}

fn candidate(text: &str) -> Result<Candidate> {
    let (mut fix, mut rate) = (Vec::new(), None);
    for part in text.split('+') {
        let (name, args) = part.split_once(':').unwrap_or((part, ""));
        let mut kept = Vec::new();
        for pair in args.split(',').filter(|p| !p.is_empty()) {
            match pair.strip_prefix("lr=") {
                None => kept.push(pair),
                Some(value) => {
                    let number = value
                        .parse()
                        .ok()
                        .filter(|r: &f64| r.is_finite() && *r > 0.0);
                    let next = "give a number above 0, such as lr=1e-4";
                    let wrong = || Error::value("lr", value, "not a learning rate", next);
                    rate = Some(number.ok_or_else(wrong)?);
                }
            }
        }
        let choice = match kept.is_empty() {
            true => name.trim().to_string(),
            false => format!("{}:{}", name.trim(), kept.join(",")),
        };
        Choice::parse_all(&choice)?;
        fix.push(choice);
    }
    Ok(Candidate {
        name: text.to_string(),
        fix,
        rate,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // in a test a panic is the report
mod tests {
    use super::*;

    #[test]
    fn candidates_keep_their_arguments_and_rates() {
        let all = candidates("adamw, sgd:momentum=0.5,decay=0.1,lr=1e-2+fused_update,lomo:lr=0.1")
            .unwrap();
        assert_eq!(all.len(), 3);
        assert_eq!(all[1].fix, ["sgd:momentum=0.5,decay=0.1", "fused_update"]);
        assert_eq!(
            (all[0].rate, all[1].rate, all[2].rate),
            (None, Some(1e-2), Some(0.1))
        );
        for wrong in ["", "adamw,nothing", "adamw:lr=fast", "adamw:beta=1"] {
            assert!(candidates(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn shares_are_read_with_and_without_a_sign() {
        assert_eq!(share("2%").unwrap(), 0.02);
        assert_eq!(share("0.1").unwrap(), 0.1);
        assert!(share("-1%").is_err() && share("much").is_err());
    }
}
