//! Reads a model's parameters from Hugging Face files, a range at a time, in the format of the run.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::names::{self, Mapping, Piece, Strip};
use super::tensors::{Entry, TensorFile, elements};
use crate::error::{Error, Result};
use crate::graph::op::Element;
use crate::graph::tensor::DType;
use crate::spec::model::ModelSpec;
use crate::with_float;

/// What to do where the files are not of the model.
const NEXT: &str = "give the folder of this model's weights, with its own config.json";

/// The weights of one model in files. Nothing is read before it is asked for, and at most 1 MiB at a time.
#[derive(Debug)]
pub struct WeightFiles {
    files: Vec<TensorFile>,
    parameters: BTreeMap<String, Parameter>,
}

/// A parameter, its pieces found.
#[derive(Debug)]
struct Parameter {
    mapping: Mapping,
    /// File and tensor of each piece.
    found: Vec<(usize, Entry)>,
}

/// A `*.index.json`: which file holds which tensor.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl WeightFiles {
    /// Opens a folder of weights, or one file, and finds every parameter of `model` in it.
    ///
    /// # Errors
    /// Where files or tensors are missing, damaged, or of another shape or format than the model's.
    pub fn open(path: &Path, model: &ModelSpec) -> Result<WeightFiles> {
        let files = files(path)?
            .iter()
            .map(|file| TensorFile::open(file))
            .collect::<Result<Vec<_>>>()?;
        let mapped = |name: String| Ok((name.clone(), names::sources(model, &name)?));
        let wanted = names::parameters(model).into_iter().map(mapped);
        WeightFiles::of(path, files, wanted.collect::<Result<_>>()?)
    }

    /// The parameters `wanted`, each mapped to tensors of `files`, which are of `path`.
    ///
    /// # Errors
    /// As [`WeightFiles::open`].
    pub fn of(
        path: &Path,
        files: Vec<TensorFile>,
        wanted: Vec<(String, Mapping)>,
    ) -> Result<WeightFiles> {
        let mut parameters = BTreeMap::new();
        for (name, mapping) in wanted {
            let found = mapping.pieces.iter().map(|piece| {
                let place = find(&files, &piece.tensor);
                let place = place.ok_or_else(|| missing(path, &name, &piece.tensor))?;
                usable(&files[place.0], piece, &place.1)?;
                Ok(place)
            });
            let found = found.collect::<Result<Vec<_>>>()?;
            parameters.insert(name, Parameter { mapping, found });
        }
        Ok(WeightFiles { files, parameters })
    }

    /// How many elements a parameter has.
    pub fn elements(&self, parameter: &str) -> Option<u64> {
        Some(self.parameters.get(parameter)?.mapping.elements())
    }

    /// The parameters, by name.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.parameters.keys().map(String::as_str)
    }

    /// The format a parameter has in the files.
    pub fn dtype(&self, parameter: &str) -> Option<DType> {
        let (_, entry) = self.parameters.get(parameter)?.found.first()?;
        entry.dtype
    }

    /// Fills `into` with bytes `offset..` of a parameter as it is in `dtype`.
    ///
    /// # Errors
    /// Where there is no such parameter, the bytes are not whole elements of it, or a file cannot be read.
    pub fn read(&self, parameter: &str, offset: u64, dtype: DType, into: &mut [u8]) -> Result<()> {
        let known = || self.parameters.keys().map(String::as_str);
        let wanted = self.parameters.get(parameter).ok_or_else(|| {
            Error::unknown(
                "parameter",
                parameter,
                known(),
                "ask for one of the model's",
            )
        })?;
        let count = wanted.mapping.elements();
        let range = elements(parameter, offset, into.len(), dtype, count)?;
        let mut buffer = Vec::new();
        wanted.mapping.strips(range, &mut |strip| {
            let (file, entry) = &wanted.found[strip.piece];
            let source = entry.dtype.unwrap_or(DType::F32);
            buffer.resize((strip.count * source.bytes()) as usize, 0);
            let at = strip.from * source.bytes();
            self.files[*file].read(entry, at, &mut buffer)?;
            spread(&buffer, source, into, dtype, strip)
        })
    }
}

/// The files of a folder, in the order in which Hugging Face looks for them.
fn files(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_path_buf()]);
    }
    for (single, index) in [
        ("model.safetensors", "model.safetensors.index.json"),
        ("pytorch_model.bin", "pytorch_model.bin.index.json"),
    ] {
        if path.join(single).is_file() {
            return Ok(vec![path.join(single)]);
        }
        if path.join(index).is_file() {
            return shards(path, &path.join(index));
        }
    }
    any(path)
}

/// The only file with an ending of weights.
fn any(folder: &Path) -> Result<Vec<PathBuf>> {
    let denied = |e| Error::io(folder, "read", e);
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(denied)? {
        let file = entry.map_err(denied)?.path();
        let ending = file.extension().and_then(|e| e.to_str()).unwrap_or("");
        if ["safetensors", "bin"].contains(&ending) {
            all.push(file);
        }
    }
    match all.len() {
        1 => Ok(all),
        0 => {
            let why = "holds no model.safetensors and no pytorch_model.bin";
            Err(Error::file(folder, why, NEXT))
        }
        n => {
            let why = format!("holds {n} files of weights and no index of them");
            Err(Error::file(folder, why, "name one file, or add the index"))
        }
    }
}

/// The files an index names; each must be a plain name in the same folder.
fn shards(folder: &Path, index: &Path) -> Result<Vec<PathBuf>> {
    let text = std::fs::read_to_string(index).map_err(|e| Error::io(index, "read", e))?;
    let next = "download the index again";
    let read: Index = serde_json::from_str(&text)
        .map_err(|e| Error::file(index, format!("not an index of weights: {e}"), next))?;
    let names: BTreeSet<String> = read.weight_map.into_values().collect();
    let plain = |name: &str| Path::new(name).file_name().is_some_and(|file| file == name);
    if let Some(name) = names.iter().find(|name| !plain(name)) {
        let why = format!("names `{name}`, which is not a file of this folder");
        return Err(Error::file(index, why, next));
    }
    Ok(names.iter().map(|name| folder.join(name)).collect())
}

/// A tensor by any of its spellings.
fn find(files: &[TensorFile], tensor: &str) -> Option<(usize, Entry)> {
    names::spellings(tensor).iter().find_map(|name| {
        let at = files.iter().position(|f| f.entries().contains_key(name))?;
        Some((at, files[at].entries().get(name)?.clone()))
    })
}

fn missing(path: &Path, parameter: &str, tensor: &str) -> Error {
    let why = format!("has no tensor `{tensor}` for the parameter {parameter}");
    Error::file(path, why, NEXT)
}

/// Refuses a tensor of another shape or in a format that is not read.
fn usable(file: &TensorFile, piece: &Piece, entry: &Entry) -> Result<()> {
    let tensor = &piece.tensor;
    let refuse = |why: String, next: &str| Err(Error::file(file.path(), why, next));
    if entry.shape != piece.shape {
        let why = format!(
            "`{tensor}` has shape {:?}, the model's config says {:?}",
            entry.shape, piece.shape
        );
        return refuse(why, NEXT);
    }
    if let Some(flaw) = &entry.flaw {
        return refuse(format!("`{tensor}`: {flaw}"), "convert it to safetensors");
    }
    match entry.dtype {
        Some(DType::F32 | DType::Bf16 | DType::F16) => Ok(()),
        _ => {
            let why = format!("`{tensor}` is in {}", entry.format);
            refuse(why, "convert it to F32, BF16 or F16")
        }
    }
}

/// Puts a strip's elements where they belong in `into`, in its format.
fn spread(from: &[u8], source: DType, into: &mut [u8], dtype: DType, strip: Strip) -> Result<()> {
    if source == dtype {
        place(from, into, source.bytes() as usize, strip);
        return Ok(());
    }
    with_float!("weights", source, S => {
        with_float!("weights", dtype, D => { convert::<S, D>(from, into, strip); Ok(()) })
    })
}

/// The same bits.
fn place(from: &[u8], into: &mut [u8], size: usize, strip: Strip) {
    let at = strip.to as usize * size;
    if strip.stride == 1 {
        into[at..at + from.len()].copy_from_slice(from);
        return;
    }
    let step = strip.stride as usize * size;
    for (i, element) in from.chunks_exact(size).enumerate() {
        into[at + i * step..][..size].copy_from_slice(element);
    }
}

/// Widened to 32 bits, then rounded.
fn convert<S: Element, D: Element>(from: &[u8], into: &mut [u8], strip: Strip) {
    let (size, step) = (size_of::<D>(), strip.stride as usize * size_of::<D>());
    let at = strip.to as usize * size;
    for (i, element) in from.chunks_exact(size_of::<S>()).enumerate() {
        let value = D::narrow(bytemuck::pod_read_unaligned::<S>(element).wide());
        into[at + i * step..][..size].copy_from_slice(bytemuck::bytes_of(&value));
    }
}
