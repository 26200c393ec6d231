//! Which options of PyTorch: what its eager mode and a trainer can choose, priced by the interpreter, and the fastest that fits.

use std::time::Instant;

use rayon::prelude::*;

use super::torch_menu::{Proposal, proposals};
use crate::error::{Error, Result};
use crate::machine::pytorch::{self, Answer, Outcome};
use crate::program::caching_allocator::AllocatorConfig;
use crate::spec::device::Device;
use crate::spec::job::Exactness;
use crate::spec::model::ModelSpec;
use crate::spec::torch::TorchOptions;
use crate::spec::units::{Bytes, Seconds};

/// Micro-batches that are run for a price: the first makes the gradients, the second adds to them, further ones are like the second.
const PRICED: u64 = 2;

/// What is asked.
#[derive(Debug, Clone)]
pub struct TorchRequest {
    /// The model.
    pub model: ModelSpec,
    /// The device.
    pub device: Device,
    /// The job with nothing chosen: its whole batch at once.
    pub reference: TorchOptions,
    /// Keys of the options that are decided already.
    pub fixed: Vec<String>,
    /// How far choices may change results.
    pub allow: Exactness,
}

/// Options with their price.
#[derive(Debug, Clone)]
pub struct TorchCandidate {
    /// What they are called in tables.
    pub name: String,
    /// The options.
    pub options: TorchOptions,
    /// How results relate to those of the reference.
    pub exactness: Exactness,
    /// Most bytes of the process, as far as live tensors decide.
    pub least: Bytes,
    /// Seconds of a step; of many micro-batches continued from two.
    pub step: Seconds,
}

/// The options that were chosen, with everything that is predicted of them.
#[derive(Debug, Clone)]
pub struct Chosen {
    /// The options.
    pub candidate: TorchCandidate,
    /// Whether the allocator's segments have to be expandable.
    pub expandable: bool,
    /// The prediction.
    pub answer: Answer,
}

/// What came of it.
#[derive(Debug, Clone)]
pub enum TorchOutcome {
    /// The fastest that fits.
    Fits(Box<Chosen>),
    /// Nothing fits: what comes closest, by how much it passes the device, and what to change.
    Misfit {
        /// The options that take least.
        closest: Box<Chosen>,
        /// Bytes above the device's memory.
        over: Bytes,
        /// The smallest change, in words.
        change: String,
    },
}

/// The answer to a request.
#[derive(Debug, Clone)]
pub struct TorchAnswer {
    /// What was decided.
    pub outcome: TorchOutcome,
    /// Everything that was priced, the fastest first.
    pub considered: Vec<TorchCandidate>,
    /// How long it took.
    pub seconds: Seconds,
}

/// Allocator settings with expandable segments, or the usual ones.
pub fn allocator(expandable: bool) -> AllocatorConfig {
    AllocatorConfig {
        expandable_segments: expandable,
        ..AllocatorConfig::default()
    }
}

/// Finds the fastest options whose verdict is `fits`.
///
/// # Errors
/// Where the reference itself cannot be.
pub fn search(request: &TorchRequest) -> Result<TorchAnswer> {
    let begin = Instant::now();
    let considered = priced(request)?;
    let outcome = match first_that_fits(request, &considered)? {
        Some(chosen) => TorchOutcome::Fits(Box::new(chosen)),
        None => misfit(request, &considered)?,
    };
    Ok(TorchAnswer {
        outcome,
        considered,
        seconds: Seconds(begin.elapsed().as_secs_f64()),
    })
}

/// All proposals with their prices, the fastest first; those that cannot be are left out, unless all are.
fn priced(request: &TorchRequest) -> Result<Vec<TorchCandidate>> {
    let proposals = proposals(request)?;
    let priced: Vec<Result<TorchCandidate>> = proposals
        .into_par_iter()
        .map(|proposal| price(request, proposal))
        .collect();
    let mut candidates = Vec::new();
    let mut refused = None;
    for candidate in priced {
        match candidate {
            Ok(candidate) => candidates.push(candidate),
            Err(error) => refused = refused.or(Some(error)),
        }
    }
    // Equal times go to what takes less, then to the earlier proposal.
    candidates.sort_by_key(|c: &TorchCandidate| (c.step.0.to_bits(), c.least));
    match (candidates.is_empty(), refused) {
        (true, Some(error)) => Err(error),
        _ => Ok(candidates),
    }
}

fn price(request: &TorchRequest, proposal: Proposal) -> Result<TorchCandidate> {
    let (model, device) = (&request.model, &request.device);
    let options = proposal.options;
    options.check()?;
    let few = TorchOptions {
        grad_accum: options.grad_accum.min(PRICED),
        ..options.clone()
    };
    let prediction = pytorch::predicted(model, &few)?;
    let mut step = pytorch::step_time(&few, &prediction, device).step_seconds;
    if options.grad_accum > PRICED {
        let one = TorchOptions {
            grad_accum: 1,
            ..few
        };
        let first = pytorch::predicted(model, &one)?;
        let first = pytorch::step_time(&one, &first, device).step_seconds;
        let more = (options.grad_accum - PRICED) as f64;
        step = Seconds(step.0 + (step.0 - first.0) * more);
    }
    Ok(TorchCandidate {
        name: proposal.name,
        options,
        exactness: proposal.exactness,
        least: pytorch::most_without_cache(&prediction, device),
        step,
    })
}

/// The first candidate whose process fits, with the allocator as it is, else with expandable segments.
fn first_that_fits(
    request: &TorchRequest,
    considered: &[TorchCandidate],
) -> Result<Option<Chosen>> {
    let memory = request.device.memory;
    for candidate in considered.iter().filter(|c| c.least <= memory) {
        for expandable in [false, true] {
            let chosen = judged(request, candidate, expandable)?;
            match chosen.answer.outcome {
                Outcome::Fits => return Ok(Some(chosen)),
                Outcome::Close => {}
                _ => break,
            }
        }
    }
    Ok(None)
}

fn judged(request: &TorchRequest, candidate: &TorchCandidate, expandable: bool) -> Result<Chosen> {
    let config = allocator(expandable);
    let device = Some(&request.device);
    Ok(Chosen {
        answer: pytorch::answer(&request.model, &candidate.options, device, &config)?,
        candidate: candidate.clone(),
        expandable,
    })
}

/// What takes least, and the smallest change with which something fits.
fn misfit(request: &TorchRequest, considered: &[TorchCandidate]) -> Result<TorchOutcome> {
    let closest = considered.iter().min_by_key(|c| c.least).ok_or_else(|| {
        let next = "fix fewer options with --torch";
        Error::value("plan", "--engine torch", "nothing to choose from", next)
    })?;
    let chosen = judged(request, closest, true)?;
    let over = chosen
        .answer
        .band
        .most
        .saturating_sub(request.device.memory);
    let laxer = match request.allow {
        Exactness::Bitwise => Some((Exactness::Rounding, "rounding")),
        Exactness::Rounding => Some((Exactness::Lossy, "lossy")),
        Exactness::Lossy => None,
    };
    let mut changes = vec![format!("{over} more on the device would fit it")];
    if let Some((allow, name)) = laxer {
        let asked = TorchRequest {
            allow,
            ..request.clone()
        };
        if let Some(found) = first_that_fits(&asked, &priced(&asked)?)? {
            let text = format!("--allow {name} would: {}", found.candidate.name);
            changes.insert(0, text);
        }
    }
    if request.reference.seq >= 256 {
        let half = request.reference.seq / 2;
        changes.push(format!("a shorter --seq, such as {half}, needs less"));
    }
    Ok(TorchOutcome::Misfit {
        closest: Box::new(chosen),
        over,
        change: changes.join("; "),
    })
}
