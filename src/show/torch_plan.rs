//! The answer to `plan --engine torch`, for people and for programs.

use serde_json::{Map, Value, json};

use super::choice::class_name;
use super::pytorch::step;
use super::table::{Column, Table, labelled};
use crate::error::Result;
use crate::machine::pytorch::settle_targets;
use crate::plan::file::JobText;
use crate::search::torch::{Chosen, TorchAnswer, TorchCandidate, TorchOutcome, TorchRequest};
use crate::spec::job::{Exactness, Precision};
use crate::spec::model::Head;
use crate::spec::torch::{Checkpointing, Task, TorchDtype, TorchOptions};
use crate::spec::trainer::{self, Written};
use crate::spec::units::Seconds;
use crate::spec::{catalog, device};

/// Columns of a label.
const LABEL: usize = 11;
/// Most rows of the table of alternatives.
const ROWS: usize = 12;

/// What was asked and decided.
#[derive(Debug)]
pub struct Page<'a> {
    /// The question.
    pub request: &'a TorchRequest,
    /// Its words.
    pub asked: &'a JobText,
    /// The answer.
    pub answer: &'a TorchAnswer,
    /// The options it is about.
    pub chosen: &'a Chosen,
    /// The same for a trainer.
    pub written: &'a Written,
}

/// The question that a job in words asks of PyTorch, with the options of `given` decided already.
///
/// # Errors
/// Where a name is unknown, or an option cannot be.
pub fn request(
    asked: &JobText,
    given: Map<String, Value>,
    allow: Exactness,
) -> Result<TorchRequest> {
    let model = catalog::open(&asked.model)?;
    let mut fixed: Vec<String> = given.keys().cloned().collect();
    let masked = model.head == Head::MaskedLm;
    let mut options = reference(&asked.optimizer, asked.precision, masked);
    options.insert("batch".into(), asked.batch.into());
    options.insert("seq".into(), asked.seq.into());
    if given.contains_key("optimizer") {
        options.remove("optimizer_impl");
    }
    options.extend(given);
    // A batch that is decided is one of the job, not a split of it.
    fixed.retain(|key| key != "seq");
    let mut reference = TorchOptions::from_json(&Value::Object(options))?;
    settle_targets(&model, &mut reference, true)?;
    Ok(TorchRequest {
        model,
        device: device::find(&asked.gpu)?,
        reference,
        fixed,
        allow,
    })
}

/// The job with nothing chosen: the Trainer's own defaults in the job's precision, with its optimizer.
fn reference(optimizer: &str, precision: Precision, masked: bool) -> Map<String, Value> {
    let autocast = match precision {
        Precision::F32 => Value::Null,
        Precision::Bf16 => TorchDtype::Bf16.name().into(),
        Precision::Fp16 => TorchDtype::Fp16.name().into(),
    };
    let task = if masked {
        Task::MaskedLm
    } else {
        Task::CausalLm
    };
    let all = [
        ("task", task.name().into()),
        ("autocast", autocast),
        ("optimizer", optimizer.into()),
    ];
    all.map(|(key, value)| (key.to_string(), value))
        .into_iter()
        .collect()
}

/// The page.
pub fn text(page: &Page) -> String {
    let mut text = header(page);
    text += &format!("\n{}", verdict(page));
    text += &format!("\n{}", taken(page));
    text += &format!("\n{}", alternatives(page));
    text + &format!("\n{}", flags(page))
}

fn header(page: &Page) -> String {
    let (asked, device) = (page.asked, &page.request.device);
    let job = format!(
        "{}, PyTorch with Hugging Face code; {} x {} tokens a step, {}, {}",
        page.request.model.name,
        asked.batch,
        asked.seq,
        asked.precision.name(),
        asked.optimizer
    );
    let memory = format!("{}, {} in all", device.name, device.memory);
    labelled("model", &job, LABEL) + &labelled("device", &memory, LABEL)
}

fn verdict(page: &Page) -> String {
    let chosen = page.chosen;
    let name = match chosen.expandable {
        true => format!("{}, expandable segments", chosen.candidate.name),
        false => chosen.candidate.name.clone(),
    };
    let mut text = match &page.answer.outcome {
        TorchOutcome::Fits(_) => labelled("fits", &name, LABEL),
        TorchOutcome::Misfit { over, change, .. } => {
            let band = &chosen.answer.band;
            let most = format!(
                "{name} comes closest and takes up to {}, {over} too much",
                band.most
            );
            labelled("MISFIT", &most, LABEL) + &labelled("change", change, LABEL)
        }
    };
    let class = meaning(chosen.candidate.exactness);
    text += &labelled("results", class, LABEL);
    if let Some(speed) = &chosen.answer.speed {
        text += &labelled("step", &step(speed), LABEL);
    }
    text
}

fn meaning(class: Exactness) -> &'static str {
    match class {
        Exactness::Bitwise => "bitwise: those of the job with nothing chosen",
        Exactness::Rounding => {
            "rounding: those of the job with nothing chosen, but for the order of sums"
        }
        Exactness::Lossy => {
            "lossy: they differ by design from those of the job with nothing chosen"
        }
    }
}

/// The counters, and what the options decide.
fn taken(page: &Page) -> String {
    let (counters, band) = (&page.chosen.answer.counters, &page.chosen.answer.band);
    let said = format!(
        "{} allocated, {} reserved, {} the process; at most {}",
        counters.allocated, counters.reserved, counters.process, band.most
    );
    let mut text = labelled("memory", &said, LABEL);
    text += &labelled("options", &pairs(&page.chosen.candidate.options), LABEL);
    text
}

/// Options as `--torch` takes them: those that are not the Trainer's defaults.
pub fn pairs(options: &TorchOptions) -> String {
    let all = |of: &TorchOptions| serde_json::to_value(of).unwrap_or_default();
    let (own, plain) = (all(options), all(&TorchOptions::default()));
    let mut pairs = Vec::new();
    for (key, value) in own.as_object().into_iter().flatten() {
        if plain[key] == *value || key == "task" {
            continue;
        }
        match value {
            Value::Object(members) => {
                pairs.extend(
                    members
                        .iter()
                        .map(|(n, v)| format!("{key}.{n}={}", word(v))),
                );
            }
            _ => pairs.push(format!("{key}={}", word(value))),
        }
    }
    pairs.join(",")
}

fn word(value: &Value) -> String {
    match value {
        Value::Null => "none".into(),
        Value::String(text) => text.clone(),
        Value::Array(all) => all.iter().map(word).collect::<Vec<_>>().join("+"),
        other => other.to_string(),
    }
}

/// What fits and is not beaten in both time and memory, the fastest first; the chosen among them.
fn rows<'a>(page: &Page<'a>) -> Vec<&'a TorchCandidate> {
    let memory = page.request.device.memory;
    let chosen = &page.chosen.candidate.name;
    let mut frontier: Vec<&TorchCandidate> = Vec::new();
    for candidate in &page.answer.considered {
        let beaten = frontier.iter().any(|f| f.least <= candidate.least);
        if !beaten || candidate.name == *chosen {
            frontier.push(candidate);
        }
    }
    let first = frontier.iter().position(|c| c.least <= memory).unwrap_or(0);
    let skipped = first.saturating_sub(ROWS / 3);
    let mut rows: Vec<&TorchCandidate> =
        frontier.iter().skip(skipped).take(ROWS).copied().collect();
    if !rows.iter().any(|c| c.name == *chosen) {
        rows.pop();
        rows.extend(frontier.iter().find(|c| c.name == *chosen));
    }
    rows
}

fn alternatives(page: &Page) -> String {
    let heads = [
        "",
        "options",
        "process, at least",
        "step",
        "results",
        "may fit",
    ];
    let columns = [
        Column::Left,
        Column::Wrapped,
        Column::Right,
        Column::Right,
        Column::Left,
        Column::Left,
    ];
    let mut table = Table::new(&columns).heads(&heads);
    for row in rows(page) {
        let is_chosen = row.name == page.chosen.candidate.name;
        table.row(vec![
            if is_chosen { ">" } else { "" }.to_string(),
            row.name.clone(),
            row.least.to_string(),
            row.step.to_string(),
            class_name(row.exactness).to_string(),
            if row.least <= page.request.device.memory {
                "yes"
            } else {
                "no"
            }
            .to_string(),
        ]);
    }
    let note = "the process without what the allocator caches, errors and context at their largest; only > was judged with it\n";
    table.render() + note
}

fn flags(page: &Page) -> String {
    let mut text = labelled("flags", &trainer::flags(&page.written.arguments), LABEL);
    for (place, what) in &page.written.elsewhere {
        text += &labelled("set in", &format!("{place}: {what}"), LABEL);
    }
    if page.chosen.expandable {
        text += &labelled("set in", &format!("the environment: {EXPANDABLE}"), LABEL);
    }
    if !page.written.torch.is_empty() {
        let said = format!(
            "no flag says {}; estimate takes it as --torch",
            page.written.torch
        );
        text += &labelled("note", &said, LABEL);
        text += &by_flags(page).map_or(String::new(), |said| labelled("", &said, LABEL));
    }
    let seconds: Seconds = page.answer.seconds;
    let count = page.answer.considered.len();
    text + &labelled("search", &format!("{count} considered in {seconds}"), LABEL)
}

/// The fastest of those that flags alone set, of which the process without the allocator's cache is within the device.
fn by_flags(page: &Page) -> Option<String> {
    let plain = |c: &&TorchCandidate| {
        use Checkpointing::{Full, FullReentrant, None};
        matches!(c.options.checkpointing, None | Full | FullReentrant)
    };
    let memory = page.request.device.memory;
    let mut found = page.answer.considered.iter().filter(plain);
    let found = found.find(|c| c.least <= memory)?;
    Some(format!(
        "by flags alone: {}, {} a step",
        found.name, found.step
    ))
}

/// The allocator's setting.
const EXPANDABLE: &str = "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True";

/// The same for programs; integers are bytes, durations seconds.
pub fn json(page: &Page) -> Value {
    let (chosen, answer) = (page.chosen, &page.chosen.answer);
    let outcome = match &page.answer.outcome {
        TorchOutcome::Fits(_) => "fits",
        TorchOutcome::Misfit { .. } => "misfit",
    };
    let mut all = json!({
        "engine": "torch",
        "outcome": outcome,
        "name": chosen.candidate.name,
        "plan": {
            "model": page.request.model.name,
            "device": page.request.device.name,
            "batch": page.asked.batch,
            "seq": page.asked.seq,
            "precision": page.asked.precision,
            "optimizer": page.asked.optimizer,
            "options": chosen.candidate.options,
            "torch": pairs(&chosen.candidate.options),
            "expandable_segments": chosen.expandable,
            "exactness": class_name(chosen.candidate.exactness),
        },
        "budget": {"gpu": page.request.device.memory},
        "estimate": {
            "peak": {"gpu": answer.counters.process},
            "counters": answer.counters,
            "band": answer.band,
            "prediction": {"peak": answer.prediction.peak, "phase": answer.prediction.phase, "breakdown": answer.prediction.breakdown},
            "step_seconds": answer.speed.as_ref().map(|s| s.step_seconds),
            "tokens_per_second": answer.speed.as_ref().map(|s| s.tokens_per_second),
            "speed": answer.speed,
        },
        "alternatives": page.answer.considered.iter().map(|c| one(page, c)).collect::<Value>(),
        "search": {"seconds": page.answer.seconds, "considered": page.answer.considered.len()},
        "trainer": trainer_json(page),
    });
    if let TorchOutcome::Misfit { over, change, .. } = &page.answer.outcome {
        all["misfit"] = json!({
            "need": answer.band.most,
            "have": page.request.device.memory,
            "over": over,
            "change": change,
            "closest": chosen.candidate.name,
        });
    }
    all
}

fn one(page: &Page, c: &TorchCandidate) -> Value {
    let tokens = (page.asked.batch * page.asked.seq) as f64;
    json!({
        "name": c.name,
        "may_fit": c.least <= page.request.device.memory,
        "chosen": c.name == page.chosen.candidate.name,
        "exactness": class_name(c.exactness),
        "peak": {"gpu": c.least},
        "step_seconds": c.step,
        "tokens_per_second": tokens / c.step.0,
        "torch": pairs(&c.options),
    })
}

fn trainer_json(page: &Page) -> Value {
    let environment = match page.chosen.expandable {
        true => json!({"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}),
        false => json!({}),
    };
    let places = page.written.elsewhere.iter();
    let elsewhere: Vec<Value> = places
        .map(|(place, what)| json!({"where": place, "what": what}))
        .collect();
    json!({
        "arguments": page.written.arguments,
        "flags": trainer::flags(&page.written.arguments),
        "elsewhere": elsewhere,
        "environment": environment,
        "torch": page.written.torch,
    })
}
