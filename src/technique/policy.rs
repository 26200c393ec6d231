//! What decides between steps: the only control that depends on what was computed.

use std::collections::BTreeMap;

use serde_json::Value;

use super::Args;
use crate::error::Result;

/// What names of scalar outputs begin with.
pub const SCALARS: &str = "output/scalar/";

/// What a step has shown.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// The step, from 1.
    pub step: u64,
    /// Its loss.
    pub loss: f32,
    /// Its scalar outputs by name.
    pub scalars: &'a BTreeMap<String, f32>,
}

/// What follows a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// The next step as before.
    Continue,
    /// Other arguments: programs are lowered again, within the same memory.
    Rechoose {
        /// Whether optimizer states start again.
        fresh: bool,
    },
}

/// A rule between steps. It allocates nothing on a device, and its state is part of a save.
pub trait Policy: Send {
    /// The arguments of its technique that hold now.
    fn args(&self) -> Args;

    /// Decides after a step.
    fn after(&mut self, seen: &Seen) -> Next;

    /// Takes less, where the arguments that hold now do not fit the memory planned; false where nothing is left to give up.
    fn shrink(&mut self) -> bool;

    /// Its state.
    fn save(&self) -> Value;

    /// Goes on from a state.
    ///
    /// # Errors
    /// Where it is not one of this policy's.
    fn load(&mut self, from: &Value) -> Result<()>;
}
