//! What PyTorch in eager mode would hold at each moment of a training step.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::spec::model::ModelSpec;
use crate::spec::torch::TorchOptions;
use crate::spec::units::Bytes;

/// A part of the step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EagerPhase {
    /// Before the first forward pass.
    Start,
    /// Forward passes and the loss.
    Forward,
    /// Backward passes.
    Backward,
    /// Clipping and the update.
    Optimizer,
    /// After the update.
    End,
}

/// What a tensor is alive for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// Weights.
    Params,
    /// Buffers; 4-bit weights are among them.
    Buffers,
    /// Gradients of weights.
    Grads,
    /// State of the optimizer.
    OptimizerState,
    /// Token ids, labels, masks.
    Inputs,
    /// Copies of weights in autocast's type.
    AutocastWeightCopies,
    /// Made in the forward pass and kept for the backward pass.
    SavedActivations,
    /// Tensors of tokens times vocabulary.
    LogitsAndLoss,
    /// Made again in the backward pass.
    RecomputedActivations,
    /// Temporaries of the backward pass.
    BackwardTemp,
    /// Temporaries of the forward pass.
    ForwardTemp,
    /// Temporaries of the update.
    OptimizerTemp,
    /// The rest.
    Other,
}

/// Equal tensors that a layer keeps for the backward pass.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedItem {
    /// Op, shape and type.
    pub what: String,
    /// How many.
    pub count: u64,
    /// Bytes of all of them.
    pub bytes: Bytes,
}

/// A tensor alive at the peak.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Live {
    /// The op that made it.
    pub op: String,
    /// Its shape.
    pub shape: Vec<u64>,
    /// Its type.
    pub dtype: String,
    /// Its bytes.
    pub bytes: Bytes,
    /// What it is alive for.
    pub class: Class,
}

/// What a step takes of the device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Prediction {
    /// Most bytes alive at once.
    pub peak: Bytes,
    /// The phase of the peak.
    pub phase: EagerPhase,
    /// The op that made the peak.
    pub op: String,
    /// The peak of each phase.
    pub phase_peak: BTreeMap<EagerPhase, Bytes>,
    /// Bytes alive at the peak by class.
    pub breakdown: BTreeMap<Class, Bytes>,
    /// Bytes alive before the step.
    pub step_start: Bytes,
    /// Bytes alive after it.
    pub step_end: Bytes,
    /// Activations alive at the end of the forward pass.
    pub saved: Bytes,
    /// What the middle layer keeps of them.
    pub saved_middle_layer: Bytes,
    /// The same, tensor by tensor.
    pub saved_items: Vec<SavedItem>,
    /// The largest tensors at the peak that are not weights, gradients or state.
    pub largest: Vec<Live>,
}

/// Predicts the second step of a training run.
///
/// # Errors
/// Always, as yet.
pub fn predict(model: &ModelSpec, options: &TorchOptions) -> Result<Prediction> {
    let what = format!("{} at {} x {}", model.name, options.batch, options.seq);
    let why = "predictions of PyTorch's memory are not built yet";
    Err(Error::value("model", what, why, "use `memfit plan`"))
}
