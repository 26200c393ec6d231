//! What PyTorch's eager mode with Hugging Face model code takes: an abstract PyTorch that runs the model code's dataflow and keeps memory
//! alive exactly as PyTorch does, by references: Python names, saved tensors, the engine's buffers, `.grad`, autocast's cache, checkpoints.

pub mod aten;
pub mod autograd;
pub mod checkpoint;
pub mod class;
pub mod family;
pub mod fold;
pub mod nn;
pub mod optimizer;
pub mod recording;
pub mod requests;
pub mod step;
pub mod tape;
pub mod tensor;
pub mod torch;
pub mod work;

use std::cell::RefCell;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::spec::model::ModelSpec;
use crate::spec::torch::TorchOptions;
use crate::spec::units::Bytes;
use tape::{Block, Origin};
pub use tape::{Class, EagerPhase};
pub use work::{Products, Unit, Work};

/// What a step takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Prediction {
    /// Highest sum of live device storages.
    pub peak: Bytes,
    /// The part of the step it is in.
    pub phase: EagerPhase,
    /// The operation that made it.
    pub op: String,
    /// The highest sum in each part.
    pub phase_peak: BTreeMap<EagerPhase, Bytes>,
    /// Who holds the peak.
    pub breakdown: BTreeMap<Class, Bytes>,
    /// Alive before the step.
    pub step_start: Bytes,
    /// Alive after it.
    pub step_end: Bytes,
    /// Activations alive when the last forward pass has returned, weight copies left out.
    pub saved: Bytes,
    /// Of them, those the middle layer made.
    pub saved_middle_layer: Bytes,
    /// The middle layer's, tensor by tensor.
    pub saved_items: Vec<SavedItem>,
    /// What each part of the step makes the device do.
    pub work: BTreeMap<EagerPhase, Work>,
    /// The largest at the peak that are no weights, gradients or optimizer state.
    pub largest: Vec<Live>,
}

/// Saved tensors of one kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedItem {
    /// Operation, sizes, type.
    pub what: String,
    /// How many.
    pub count: u64,
    /// Their bytes together.
    pub bytes: Bytes,
}

/// A tensor alive at the peak.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Live {
    /// The operation that made it.
    pub op: String,
    /// Sizes.
    pub shape: Vec<u64>,
    /// Element type.
    pub dtype: String,
    /// Bytes.
    pub bytes: Bytes,
    /// What it holds.
    pub class: Class,
}

/// What is alive when the forward pass has returned.
#[derive(Debug, Default)]
struct Saved {
    all: u64,
    layers: Vec<i64>,
    items: BTreeMap<String, (u64, u64)>,
}

/// Predicts the second step of a job, the one in which all state exists; its layers are folded.
///
/// # Errors
/// Where the job is not one the interpreter knows.
pub fn predict(spec: &ModelSpec, options: &TorchOptions) -> Result<Prediction> {
    let outline = fold::outline(spec, options, |spec| Ok(run(spec, options, false)?.outline))?;
    Ok(prediction(&outline))
}

/// The same with every layer run: [`Prediction::saved_items`] and [`Prediction::largest`] are filled.
///
/// # Errors
/// As [`predict`].
pub fn explain(spec: &ModelSpec, options: &TorchOptions) -> Result<Prediction> {
    let run = run(spec, options, true)?;
    Ok(Prediction {
        saved_items: items(run.saved),
        largest: largest(&run.alive),
        ..prediction(&run.outline)
    })
}

/// The job with its model and optimizer, before its first step.
fn trainer<'t>(
    torch: &'t torch::Torch,
    spec: &'t ModelSpec,
    options: &'t TorchOptions,
) -> step::Trainer<'t> {
    torch.adopt(options.habits);
    torch
        .tape()
        .logits_have(options.batch * options.seq * spec.vocab);
    let builder = nn::Builder {
        torch,
        dtype: step::dtype(options.param_dtype),
        lora: options.lora.as_ref(),
        quant: options.quant.as_ref(),
        trained: RefCell::default(),
    };
    let model = family::build(&builder, spec, options);
    let trained = builder.trained.into_inner();
    step::Trainer::new(torch, spec, options, model, trained)
}

/// A run of two steps, of which the second is told.
struct Run {
    outline: fold::Outline,
    saved: Saved,
    alive: Vec<Block>,
}

/// The first step only leaves state behind, which can be made without it where every parameter has a gradient and no outputs are kept.
fn run(spec: &ModelSpec, options: &TorchOptions, detailed: bool) -> Result<Run> {
    if !detailed
        && !options.keep_outputs
        && let Some(run) = run_from(spec, options, detailed, true)?
    {
        return Ok(run);
    }
    let run = run_from(spec, options, detailed, false)?;
    run.ok_or_else(|| halted(spec, torch::Halt::Lost))
}

fn halted(spec: &ModelSpec, halt: torch::Halt) -> Error {
    let why = format!("the interpreter halted: {halt:?}");
    Error::value("job", &spec.name, why, "report it")
}

/// The run from a first step, or `primed`; none where that took too much for granted.
fn run_from(
    spec: &ModelSpec,
    options: &TorchOptions,
    detailed: bool,
    primed: bool,
) -> Result<Option<Run>> {
    let torch = torch::Torch::default();
    let tape = torch.tape();
    let trainer = trainer(&torch, spec, options);
    let halted = |halt| halted(spec, halt);
    match primed {
        true => trainer.prime(),
        false => trainer.step(|| ()).map_err(halted)?,
    }
    let start = tape.restart(detailed, false);
    let mut saved = Saved::default();
    trainer
        .step(|| saved = at_end_of_forward(tape, spec.layers, detailed))
        .map_err(halted)?;
    if primed && !trainer.is_all_reached() {
        return Ok(None);
    }
    let outline = fold::Outline {
        record: tape::Record {
            start,
            segments: tape.take_segments(),
        },
        saved: saved.all as i64,
        saved_layers: saved.layers.clone(),
    };
    Ok(Some(Run {
        outline,
        saved,
        alive: tape.at_peak(),
    }))
}

fn prediction(outline: &fold::Outline) -> Prediction {
    let (top, parts) = outline.record.highest();
    let bytes = |count: i64| Bytes(count.max(0) as u64);
    let classes = Class::ALL
        .into_iter()
        .zip(top.by_class)
        .filter(|(_, b)| *b > 0);
    Prediction {
        peak: bytes(top.bytes),
        phase: top.phase,
        op: top.op.to_string(),
        phase_peak: parts
            .into_iter()
            .map(|(part, b)| (part, bytes(b)))
            .collect(),
        breakdown: classes.map(|(class, b)| (class, bytes(b))).collect(),
        step_start: bytes(outline.record.start.iter().sum()),
        step_end: bytes(outline.record.end()),
        saved: bytes(outline.saved),
        saved_middle_layer: bytes(
            outline
                .saved_layers
                .get(outline.saved_layers.len() / 2)
                .copied()
                .unwrap_or(0),
        ),
        saved_items: Vec::new(),
        work: outline.record.work(),
        largest: Vec::new(),
    }
}

fn at_end_of_forward(tape: &tape::Tape, layers: u64, detailed: bool) -> Saved {
    let mut saved = Saved {
        layers: vec![0; layers as usize],
        ..Saved::default()
    };
    tape.each_block(|block| {
        let activation = !matches!(
            block.class,
            Class::Inputs | Class::AutocastWeightCopies | Class::Grads
        );
        if block.phase != EagerPhase::Forward || !activation {
            return;
        }
        saved.all += block.bytes;
        if let Origin::Layer(layer) = block.origin
            && let Some(sum) = saved.layers.get_mut(layer as usize)
        {
            *sum += block.bytes as i64;
            if !detailed || u64::from(layer) != layers / 2 {
                return;
            }
            let what = format!(
                "{} {:?} {}",
                block.op,
                block.shape.all(),
                block.dtype.name()
            );
            let (count, bytes) = saved.items.entry(what).or_default();
            *count += 1;
            *bytes += block.bytes;
        }
    });
    saved
}

fn items(saved: Saved) -> Vec<SavedItem> {
    let item = |(what, (count, bytes))| SavedItem {
        what,
        count,
        bytes: Bytes(bytes),
    };
    let mut items: Vec<SavedItem> = saved.items.into_iter().map(item).collect();
    items.sort_by_key(|i| std::cmp::Reverse(i.bytes));
    items
}

fn largest(alive: &[Block]) -> Vec<Live> {
    let lasting = [
        Class::Params,
        Class::Buffers,
        Class::Grads,
        Class::OptimizerState,
    ];
    let mut blocks: Vec<&Block> = alive
        .iter()
        .filter(|b| !lasting.contains(&b.class))
        .collect();
    blocks.sort_by_key(|b| std::cmp::Reverse(b.bytes));
    let live = |b: &&Block| Live {
        op: b.op.to_string(),
        shape: b.shape.all().to_vec(),
        dtype: b.dtype.name().to_string(),
        bytes: Bytes(b.bytes),
        class: b.class,
    };
    blocks.iter().take(12).map(live).collect()
}
