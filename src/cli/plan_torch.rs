//! `memfit plan --engine torch`: the fastest options of PyTorch that fit, and the flags that set them.

use memfit::error::{Error, Result};
use memfit::search::torch::{self, Chosen, TorchOutcome};
use memfit::show::money;
use memfit::show::torch_plan::{self, Page};
use memfit::spec::cost::{Cost, Tariff};
use memfit::spec::device::Device;
use memfit::spec::torch::TorchOptions;
use memfit::spec::trainer;
use serde_json::{Value, json};

use super::plan::Args;
use super::{Answer, DONE, MISFIT, complain, files};

/// Searches, saves the trainer's arguments where asked, and answers.
///
/// # Errors
/// Where the job or an option is wrong, or the file cannot be written.
pub fn plan(args: &Args) -> Result<Answer> {
    if let Some(fix) = args.job.fix.first() {
        let why = "techniques are memfit's own engine's";
        let next = "decide options of PyTorch with --torch, such as --torch checkpointing=full";
        return Err(Error::value("--fix", fix, why, next));
    }
    if let Some(within) = &args.within {
        let why = "PyTorch takes what it takes of the device";
        let next = "leave it out, or give a smaller --gpu";
        return Err(Error::value("--within", within, why, next));
    }
    let tariff = cost(args)?;
    let text = args.job.text(None)?;
    let given = TorchOptions::pairs(&args.torch.join(","))?;
    let request = torch_plan::request(&text, given, args.job.class()?)?;
    let answer = torch::search(&request)?;
    let chosen = match &answer.outcome {
        TorchOutcome::Fits(chosen) => chosen,
        TorchOutcome::Misfit { closest, .. } => closest,
    };
    let written = trainer::write(&text.model, &chosen.candidate.options)?;
    let page = Page {
        request: &request,
        asked: &text,
        answer: &answer,
        chosen,
        written: &written,
    };
    let status = save(args, &answer.outcome, &written)?;
    let mut json = torch_plan::json(&page);
    let mut text = torch_plan::text(&page);
    if status == DONE {
        let (lines, cost) = money(chosen, &request.device, &tariff);
        text += &lines;
        json["cost"] = cost;
    }
    Ok(Answer { text, json, status })
}

/// What cost is reckoned with. A goal is refused: options say it.
fn cost(args: &Args) -> Result<Tariff> {
    let why = "with --engine torch options say what is trained";
    let next = "write --allow lossy --torch lora.r=16 for LoRA, or leave it out";
    match args.cost.goal()? {
        Some(goal) => Err(Error::value("--goal", goal.name(), why, next)),
        None => args.cost.tariff(),
    }
}

/// What training by the chosen options costs, in lines and for programs.
fn money(chosen: &Chosen, device: &Device, tariff: &Tariff) -> (String, Value) {
    let Some(step) = &chosen.answer.speed else {
        return (String::new(), Value::Null);
    };
    let speed = step.tokens_per_second;
    let cost = Cost::of(device, speed, tariff);
    match money::section(&cost, device, speed, tariff) {
        none if none.is_empty() => (none, Value::Null),
        said => (format!("\n{said}"), money::json(&cost, device, tariff)),
    }
}

fn save(args: &Args, outcome: &TorchOutcome, written: &trainer::Written) -> Result<u8> {
    match (outcome, &args.output) {
        (TorchOutcome::Fits(_), Some(path)) => {
            files::write(path, &format!("{:#}\n", json!(written.arguments)))?;
            Ok(DONE)
        }
        (TorchOutcome::Fits(_), None) => Ok(DONE),
        (TorchOutcome::Misfit { .. }, path) => {
            if let Some(path) = path {
                let path = path.display();
                complain(&format!("{path} was not written: no options fit\n"));
            }
            Ok(MISFIT)
        }
    }
}
