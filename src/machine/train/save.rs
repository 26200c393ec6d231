//! Saves of a training run: weights as Hugging Face has them, optimizer states beside, swapped in whole.

mod folder;
mod progress;
mod saved;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use super::adapter;
use super::names::{self, Mapping, Strip};
use super::tensors::{Entry, TensorFile, elements};
use crate::error::{Error, Result};
use crate::graph::tensor::{DType, Type};
use crate::spec::model::ModelSpec;
use folder::Folder;

pub use folder::recover;
pub use progress::Progress;
pub use saved::Saved;

/// The files of a save.
const WEIGHTS: &str = "model.safetensors";
const STATE: &str = "state.safetensors";
const CONFIG: &str = "config.json";
const PROGRESS: &str = "memfit.json";
/// All of them, and those of adapters.
const FILES: [&str; 6] = [
    WEIGHTS,
    STATE,
    CONFIG,
    PROGRESS,
    adapter::WEIGHTS,
    adapter::CONFIG,
];

/// A save being written. Until [`Save::finish`] returns, the folder holds what it held before; a save that is
/// dropped leaves no trace.
#[derive(Debug)]
pub struct Save {
    folder: Folder,
    weights: TensorFile,
    state: TensorFile,
    storages: BTreeMap<String, Storage>,
    /// The config of the adapter, where the model is frozen.
    adapter: Option<String>,
}

/// What a storage becomes in the files.
#[derive(Debug)]
struct Storage {
    at: Type,
    /// Its pieces in the weights, or `None` for one of the state's own tensors.
    mapping: Option<Mapping>,
    /// Bytes taken so far.
    written: AtomicU64,
}

impl Save {
    /// Begins a save that will become the folder `dir`: of `storages`, among them every parameter of `model`.
    ///
    /// # Errors
    /// Where the folder holds something else than a save or cannot be written, or a parameter is not among `storages`.
    pub fn begin(dir: &Path, model: &ModelSpec, storages: &[(String, Type)]) -> Result<Save> {
        Save::with(dir, places(model, storages)?, None)
    }

    /// Begins a save of an adapter of `model`, whose `adapter_config.json` is `config`: of `storages`, the frozen ones left out.
    ///
    /// # Errors
    /// Where the folder holds something else than a save or cannot be written.
    pub fn begin_adapter(
        dir: &Path,
        model: &ModelSpec,
        storages: &[(String, Type)],
        config: String,
    ) -> Result<Save> {
        let place = |(name, at): &(String, Type)| {
            let storage = Storage {
                at: at.clone(),
                mapping: names::place(model, name, &at.shape),
                written: AtomicU64::new(0),
            };
            (name.clone(), storage)
        };
        Save::with(dir, storages.iter().map(place).collect(), Some(config))
    }

    fn with(
        dir: &Path,
        storages: BTreeMap<String, Storage>,
        adapter: Option<String>,
    ) -> Result<Save> {
        let (weights, state) = contents(&storages)?;
        let folder = Folder::begin(dir)?;
        let file = adapter.as_ref().map_or(WEIGHTS, |_| adapter::WEIGHTS);
        Ok(Save {
            weights: TensorFile::create(&folder.partial(file), &weights)?,
            state: TensorFile::create(&folder.partial(STATE), &state)?,
            folder,
            storages,
            adapter,
        })
    }

    /// Takes bytes `offset..` of a storage.
    ///
    /// # Errors
    /// Where it is not of this save, the bytes are not whole elements of it, or the disk refuses.
    pub fn write(&self, name: &str, offset: u64, bytes: &[u8]) -> Result<()> {
        let storage = self.storage(name)?;
        let (dtype, count) = (storage.at.dtype, storage.at.elements());
        let range = elements(name, offset, bytes.len(), dtype, count)?;
        match &storage.mapping {
            None => {
                let entry = entry(&self.state, name)?;
                self.state.write(entry, offset, bytes)?;
            }
            Some(mapping) => {
                let mut buffer = Vec::new();
                mapping.strips(range, &mut |strip| {
                    let entry = entry(&self.weights, &mapping.pieces[strip.piece].tensor)?;
                    let piece = gather(bytes, dtype, strip, &mut buffer);
                    self.weights.write(entry, strip.from * dtype.bytes(), piece)
                })?;
            }
        }
        let length = bytes.len() as u64;
        storage.written.fetch_add(length, Ordering::Relaxed);
        Ok(())
    }

    /// Completes the save and swaps it in: `config` is the text of the model's `config.json`.
    ///
    /// # Errors
    /// Where a storage was not written in whole, or the disk refuses; what was saved before then remains.
    pub fn finish(self, config: &str, progress: &Progress) -> Result<()> {
        for (name, storage) in &self.storages {
            let (written, bytes) = (
                storage.written.load(Ordering::Relaxed),
                storage.at.bytes().0,
            );
            if written != bytes {
                let why = format!("its save takes {bytes} bytes");
                let next = "write every storage once before finishing the save";
                return Err(Error::value(name, format!("{written} bytes"), why, next));
            }
        }
        self.weights.sync()?;
        self.state.sync()?;
        put(&self.folder.partial(CONFIG), config.as_bytes())?;
        if let Some(config) = &self.adapter {
            put(&self.folder.partial(adapter::CONFIG), config.as_bytes())?;
        }
        let path = self.folder.partial(PROGRESS);
        put(&path, progress.to_json(&path)?.as_bytes())?;
        self.folder.swap()
    }

    fn storage(&self, name: &str) -> Result<&Storage> {
        let known = self.storages.keys().map(String::as_str);
        self.storages.get(name).ok_or_else(|| {
            Error::unknown(
                "storage",
                name,
                known,
                "write the storages the save began with",
            )
        })
    }
}

/// Where each storage goes.
fn places(model: &ModelSpec, storages: &[(String, Type)]) -> Result<BTreeMap<String, Storage>> {
    let mut places: BTreeMap<String, Storage> = BTreeMap::new();
    for (name, at) in storages {
        let storage = Storage {
            at: at.clone(),
            mapping: None,
            written: AtomicU64::new(0),
        };
        places.insert(name.clone(), storage);
    }
    for name in names::parameters(model) {
        let mapping = names::sources(model, &name)?;
        let next = "save all parameters of the model in their own shapes";
        let place = places
            .get_mut(&name)
            .ok_or_else(|| Error::value(&name, "missing", "a save has every parameter", next))?;
        if place.at.elements() != mapping.elements() {
            let why = format!("the model has {} elements of it", mapping.elements());
            return Err(Error::value(&name, &place.at, why, next));
        }
        place.mapping = Some(mapping);
    }
    Ok(places)
}

/// Tensors by name.
type Contents = BTreeMap<String, Type>;

/// The tensors of both files.
fn contents(storages: &BTreeMap<String, Storage>) -> Result<(Contents, Contents)> {
    let (mut weights, mut state) = (Contents::new(), Contents::new());
    for (name, storage) in storages {
        let Some(mapping) = &storage.mapping else {
            state.insert(name.clone(), storage.at.clone());
            continue;
        };
        for piece in &mapping.pieces {
            let at = Type::new(&piece.shape, storage.at.dtype);
            let other = weights.insert(piece.tensor.clone(), at.clone());
            if let Some(other) = other.filter(|other| *other != at) {
                let why = format!("its tensor `{}` is also saved as {other}", piece.tensor);
                let next = "keep the parameters of one tensor in one format";
                return Err(Error::value(name, at, why, next));
            }
        }
    }
    Ok((weights, state))
}

fn entry<'f>(file: &'f TensorFile, tensor: &str) -> Result<&'f Entry> {
    let why = format!("has no room for `{tensor}`");
    let missing = || Error::file(file.path(), why, "begin the save again");
    file.entries().get(tensor).ok_or_else(missing)
}

/// The elements of a strip, one after the other.
fn gather<'b>(bytes: &'b [u8], dtype: DType, strip: Strip, buffer: &'b mut Vec<u8>) -> &'b [u8] {
    let size = dtype.bytes() as usize;
    let (at, count) = (strip.to as usize * size, strip.count as usize);
    if strip.stride == 1 {
        return &bytes[at..at + count * size];
    }
    buffer.clear();
    for i in 0..count {
        let from = at + i * strip.stride as usize * size;
        buffer.extend_from_slice(&bytes[from..from + size]);
    }
    buffer
}

/// Writes a small file and waits until it is on the disk.
fn put(path: &Path, bytes: &[u8]) -> Result<()> {
    let denied = |e| Error::io(path, "write", e);
    let mut file = std::fs::File::create(path).map_err(denied)?;
    file.write_all(bytes).map_err(denied)?;
    file.sync_all().map_err(denied)
}
