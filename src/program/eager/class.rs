//! The words for what holds memory, when, and where in the model.

/// What device memory holds, by the names people use.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// Weights, frozen ones too.
    Params,
    /// Buffers of the model, 4-bit weights among them.
    Buffers,
    /// Gradients of weights.
    Grads,
    /// State of the optimizer.
    OptimizerState,
    /// Token ids, labels and masks.
    Inputs,
    /// Copies of weights in autocast's type.
    AutocastWeightCopies,
    /// Made in the forward pass and kept for the backward pass.
    SavedActivations,
    /// Tensors of tokens by vocabulary.
    LogitsAndLoss,
    /// Made again in the backward pass by checkpointing.
    RecomputedActivations,
    /// Gradients of activations and other temporaries of the backward pass.
    BackwardTemp,
    /// Temporaries of the forward pass.
    ForwardTemp,
    /// Temporaries of the optimizer.
    OptimizerTemp,
    /// Anything else.
    Other,
}

/// Part of a training step.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum EagerPhase {
    /// Before the forward pass.
    Start,
    /// Forward pass and loss.
    Forward,
    /// Backward pass.
    Backward,
    /// Clipping, update, zeroing.
    Optimizer,
    /// After it.
    End,
}

/// Where in the model an op stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    /// Token and position embeddings.
    Embed,
    /// A layer.
    Layer(u32),
    /// The output projection.
    LmHead,
    /// Final norm, rotary tables, masks, loss.
    Other,
}

/// Bytes by class, in the order of [`Class`]; differences may be negative.
pub type ByClass = [i64; CLASSES];

/// Number of classes.
pub const CLASSES: usize = Class::Other as usize + 1;

impl Class {
    /// All classes, in their order.
    pub const ALL: [Class; CLASSES] = [
        Class::Params,
        Class::Buffers,
        Class::Grads,
        Class::OptimizerState,
        Class::Inputs,
        Class::AutocastWeightCopies,
        Class::SavedActivations,
        Class::LogitsAndLoss,
        Class::RecomputedActivations,
        Class::BackwardTemp,
        Class::ForwardTemp,
        Class::OptimizerTemp,
        Class::Other,
    ];
}
