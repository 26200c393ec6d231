//! Reads a save back: the same bytes, by the same names.

use std::path::Path;

use super::{CONFIG, PROGRESS, Progress, STATE, WEIGHTS, recover};
use crate::error::{Error, Result};
use crate::graph::tensor::DType;
use crate::machine::train::adapter::{self, Adapter};
use crate::machine::train::tensors::TensorFile;
use crate::machine::train::weights::WeightFiles;
use crate::spec::config;
use crate::spec::model::ModelSpec;

/// A complete save.
#[derive(Debug)]
pub struct Saved {
    model: ModelSpec,
    config: String,
    progress: Progress,
    weights: WeightFiles,
    state: TensorFile,
}

impl Saved {
    /// Opens a save; one that a crash left aside is brought back first.
    ///
    /// # Errors
    /// Where a file of it is missing, damaged, or of another model than its config says.
    pub fn open(dir: &Path) -> Result<Saved> {
        recover(dir)?;
        let progress = Progress::read(&dir.join(PROGRESS))?;
        let path = dir.join(CONFIG);
        let config = std::fs::read_to_string(&path).map_err(|e| Error::io(&path, "read", e))?;
        let name = dir
            .file_name()
            .map_or("saved".into(), |n| n.to_string_lossy());
        let model = config::parse(&name, &config)?;
        Ok(Saved {
            weights: match dir.join(adapter::CONFIG).is_file() {
                true => Adapter::open(dir, &model)?.into_weights(),
                false => WeightFiles::open(&dir.join(WEIGHTS), &model)?,
            },
            state: TensorFile::open(&dir.join(STATE))?,
            model,
            config,
            progress,
        })
    }

    /// The model, as its config says.
    pub fn model(&self) -> &ModelSpec {
        &self.model
    }

    /// The text of its `config.json`.
    pub fn config(&self) -> &str {
        &self.config
    }

    /// How far the run had come.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Its weights, to be read in any format: those of the adapter, where the model is frozen.
    pub fn weights(&self) -> &WeightFiles {
        &self.weights
    }

    /// The format a storage was saved in.
    pub fn dtype(&self, storage: &str) -> Option<DType> {
        let state = || self.state.entries().get(storage)?.dtype;
        self.weights.dtype(storage).or_else(state)
    }

    /// Fills `into` with bytes `offset..` of a storage, bit for bit as it was saved.
    ///
    /// # Errors
    /// Where the save has no such storage or fewer bytes of it, or the file cannot be read.
    pub fn read(&self, storage: &str, offset: u64, into: &mut [u8]) -> Result<()> {
        if let Some(dtype) = self.weights.dtype(storage) {
            return self.weights.read(storage, offset, dtype, into);
        }
        let entry = self.state.entries().get(storage).ok_or_else(|| {
            let why = format!("has no `{storage}`: it was saved with other settings");
            let next = "resume with the optimizer and the number formats of the save";
            Error::file(self.state.path(), why, next)
        })?;
        self.state.read(entry, offset, into)
    }
}
