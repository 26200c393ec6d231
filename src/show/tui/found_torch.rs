//! What is known of options of PyTorch, as the screen shows it.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use super::found::{Bar, Found, Part, Spot};
use super::settings::Settings;
use super::spans::{Moment, SPANS, lane};
use crate::error::Result;
use crate::graph::tensor::Role;
use crate::machine::pytorch::Answer;
use crate::program::eager::{Class, EagerPhase};
use crate::search::torch::{self, Chosen, TorchAnswer, TorchOutcome, TorchRequest};
use crate::show::comparison::{class_name, phase_name};
use crate::show::torch_plan::pairs;
use crate::spec::trainer;
use crate::spec::units::{Bytes, Seconds};

/// Searches for the fastest options that fit.
///
/// # Errors
/// Where the job or an option is wrong.
pub fn solve(settings: &Settings, request: &TorchRequest) -> Result<Found> {
    let answer = torch::search(request)?;
    let (chosen, fits) = match &answer.outcome {
        TorchOutcome::Fits(chosen) => (chosen, true),
        TorchOutcome::Misfit { closest, .. } => (closest, false),
    };
    let options = pairs(&chosen.candidate.options);
    let file = match fits {
        true => {
            let written = trainer::write(&settings.job.model, &chosen.candidate.options)?;
            Some(format!("{:#}\n", json!(written.arguments)))
        }
        false => None,
    };
    let speed = chosen.answer.speed.as_ref();
    let step = speed.map_or(Seconds(0.0), |s| s.step_seconds);
    let phases = speed.map(|s| s.phases.clone()).unwrap_or_default();
    let used: BTreeSet<String> = options.split(',').map(str::to_string).collect();
    Ok(Found {
        name: name(chosen),
        fits,
        sentence: sentence(&answer, chosen, request.device.memory),
        bars: vec![bar(&chosen.answer, request.device.memory)],
        step,
        tokens_per_second: speed.map_or(0.0, |s| s.tokens_per_second),
        moments: moments(&chosen.answer, &phases, step),
        lanes: vec![lane("device", step, marks(&phases).into_iter(), step.0)],
        front: front(&answer, settings),
        choices: Vec::new(),
        used,
        file,
    })
}

fn name(chosen: &Chosen) -> String {
    match chosen.expandable {
        true => format!("{}, expandable segments", chosen.candidate.name),
        false => chosen.candidate.name.clone(),
    }
}

fn sentence(answer: &TorchAnswer, chosen: &Chosen, memory: Bytes) -> String {
    let most = chosen.answer.band.most;
    let pace = chosen.answer.speed.as_ref().map_or(String::new(), |s| {
        format!(
            "{} a step, {:.0} tokens/s",
            s.step_seconds, s.tokens_per_second
        )
    });
    match &answer.outcome {
        TorchOutcome::Fits(_) => {
            format!("fits: the process takes at most {most} of {memory}, {pace}")
        }
        TorchOutcome::Misfit { over, change, .. } => format!(
            "does not fit: the process takes up to {most} of {memory}, {over} too much; {change}"
        ),
    }
}

/// The process: its tensors by role, and what it takes beside them at most.
fn bar(answer: &Answer, memory: Bytes) -> Bar {
    let mut held: BTreeMap<Part, Bytes> = BTreeMap::new();
    for (class, bytes) in &answer.prediction.breakdown {
        *held.entry(Part::Held(role(*class))).or_default() += *bytes;
    }
    let tensors: Bytes = held.values().copied().sum();
    held.insert(Part::Beside, answer.band.most.saturating_sub(tensors));
    let mut parts: Vec<(Part, Bytes)> = held.into_iter().filter(|(_, b)| b.0 > 0).collect();
    parts.sort_by_key(|(part, bytes)| (std::cmp::Reverse(*bytes), *part));
    Bar {
        label: "the process",
        used: answer.band.most,
        most: memory,
        parts,
    }
}

/// The role that comes nearest to a class of PyTorch's tensors.
fn role(class: Class) -> Role {
    match class {
        Class::Params | Class::Buffers | Class::AutocastWeightCopies => Role::Parameter,
        Class::Grads => Role::Gradient,
        Class::OptimizerState => Role::OptimizerState,
        Class::Inputs => Role::Input,
        Class::SavedActivations | Class::LogitsAndLoss | Class::RecomputedActivations => {
            Role::Activation
        }
        Class::BackwardTemp | Class::ForwardTemp | Class::OptimizerTemp | Class::Other => {
            Role::Temporary
        }
    }
}

/// When each phase runs.
fn marks(phases: &BTreeMap<EagerPhase, Seconds>) -> Vec<(f64, f64, &'static str)> {
    let mut now = 0.0;
    let each = phases.iter().map(|(phase, seconds)| {
        let start = now;
        now += seconds.0;
        (start, now, phase_name(*phase))
    });
    each.collect()
}

/// The highest sum of live tensors in each phase; within a phase it is not told when.
fn moments(answer: &Answer, phases: &BTreeMap<EagerPhase, Seconds>, step: Seconds) -> Vec<Moment> {
    let prediction = &answer.prediction;
    let mut alive: Vec<(String, Bytes)> = (prediction.breakdown.iter())
        .map(|(class, bytes)| (class_name(*class).to_string(), *bytes))
        .collect();
    alive.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    alive.retain(|(_, bytes)| bytes.0 >= prediction.peak.0 >> 10);
    let spans = marks(phases);
    let moment = |at: usize| {
        let time = step.0 * at as f64 / SPANS as f64;
        let phase = spans
            .iter()
            .find(|(start, stop, _)| (*start..*stop).contains(&time));
        let phase = phase.map_or("", |(.., name)| name);
        let of = |p: &EagerPhase| phase_name(*p) == phase;
        let total = prediction.phase_peak.iter().find(|(p, _)| of(p));
        Moment {
            time,
            total: total.map_or(prediction.step_start, |(_, bytes)| *bytes),
            phase,
            parts: Vec::new(),
            alive: match of(&prediction.phase) {
                true => alive.clone(),
                false => Vec::new(),
            },
        }
    };
    (0..SPANS).map(moment).collect()
}

/// Options that no others beat in both time and memory.
fn front(answer: &TorchAnswer, settings: &Settings) -> Vec<Spot> {
    let mut front: Vec<Spot> = Vec::new();
    for candidate in &answer.considered {
        if front.iter().any(|f| f.memory <= candidate.least) {
            continue;
        }
        let own = pairs(&candidate.options);
        let chosen = own.split(',').filter(|pair| is_choice(pair, settings));
        front.push(Spot {
            memory: candidate.least,
            step: candidate.step,
            name: candidate.name.clone(),
            options: Some(chosen.collect::<Vec<_>>().join(",")),
        });
    }
    front.reverse();
    front
}

/// Whether an option is chosen rather than said by the job.
fn is_choice(pair: &str, settings: &Settings) -> bool {
    let key = pair.split('=').next().unwrap_or(pair);
    let splits = pair == format!("batch={}", settings.job.batch);
    key != "seq" && !splits
}
