//! What PyTorch's eager mode with Hugging Face model code takes: an abstract PyTorch that runs the model code's dataflow and keeps memory
//! alive exactly as PyTorch does, by references: Python names, saved tensors, the engine's buffers, `.grad`, autocast's cache, checkpoints.

pub mod aten;
pub mod autograd;
pub mod checkpoint;
pub mod family;
pub mod nn;
pub mod optimizer;
pub mod step;
pub mod tape;
pub mod tensor;
pub mod torch;

use std::cell::RefCell;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::spec::model::ModelSpec;
use crate::spec::torch::TorchOptions;
use crate::spec::units::Bytes;
pub use tape::{Class, EagerPhase};
use tape::{Block, Origin};

/// What a step takes.
#[derive(Debug, Clone)]
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
    middle: u64,
    items: BTreeMap<String, (u64, u64)>,
}

/// Predicts the second step of a job, the one in which all state exists.
///
/// # Errors
/// Where the job is not one the interpreter knows.
pub fn predict(spec: &ModelSpec, options: &TorchOptions) -> Result<Prediction> {
    let torch = torch::Torch::default();
    let builder = nn::Builder {
        torch: &torch,
        dtype: step::dtype(options.param_dtype),
        lora: options.lora.as_ref(),
        quant: options.quant.as_ref(),
        trained: RefCell::default(),
    };
    let model = family::build(&builder, spec, options);
    let trained = builder.trained.into_inner();
    let trainer = step::Trainer::new(&torch, spec, options, model, trained);
    let halted = |halt| Error::value("job", &spec.name, format!("the interpreter halted: {halt:?}"), "report it");
    trainer.step(|| ()).map_err(halted)?;
    let tape = torch.tape();
    let step_start = tape.live();
    tape.enter(EagerPhase::Start);
    tape.restart(true, false);
    let mut saved = Saved::default();
    let middle = Origin::Layer((spec.layers / 2) as u32);
    trainer.step(|| saved = at_end_of_forward(tape, middle)).map_err(halted)?;
    let peak = tape.peak();
    let mut breakdown = BTreeMap::new();
    for block in &peak.alive {
        breakdown.entry(block.class).or_insert(Bytes(0)).0 += block.bytes;
    }
    Ok(Prediction {
        peak: Bytes(peak.bytes),
        phase: peak.phase,
        op: peak.op.to_string(),
        phase_peak: tape.phase_peaks().into_iter().map(|(p, b)| (p, Bytes(b))).collect(),
        breakdown,
        step_start: Bytes(step_start),
        step_end: Bytes(tape.live()),
        saved: Bytes(saved.all),
        saved_middle_layer: Bytes(saved.middle),
        saved_items: items(saved),
        largest: largest(&peak.alive),
    })
}

fn at_end_of_forward(tape: &tape::Tape, middle: Origin) -> Saved {
    let mut saved = Saved::default();
    tape.each_block(|block| {
        let activation = !matches!(block.class, Class::Inputs | Class::AutocastWeightCopies | Class::Grads);
        if block.phase != EagerPhase::Forward || !activation {
            return;
        }
        saved.all += block.bytes;
        if block.origin == middle {
            saved.middle += block.bytes;
            let what = format!("{} {:?} {}", block.op, block.shape.all(), block.dtype.name());
            let (count, bytes) = saved.items.entry(what).or_default();
            *count += 1;
            *bytes += block.bytes;
        }
    });
    saved
}

fn items(saved: Saved) -> Vec<SavedItem> {
    let item = |(what, (count, bytes))| SavedItem { what, count, bytes: Bytes(bytes) };
    let mut items: Vec<SavedItem> = saved.items.into_iter().map(item).collect();
    items.sort_by_key(|i| std::cmp::Reverse(i.bytes));
    items
}

fn largest(alive: &[Block]) -> Vec<Live> {
    let lasting = [Class::Params, Class::Buffers, Class::Grads, Class::OptimizerState];
    let mut blocks: Vec<&Block> = alive.iter().filter(|b| !lasting.contains(&b.class)).collect();
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
