//! The header of a safetensors file: eight bytes of length, then JSON.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

use super::Entry;
use crate::error::{Error, Result};
use crate::graph::tensor::{DType, Type};

/// Bytes of the length that comes first.
const LENGTH: u64 = 8;
/// The longest header the format allows.
const HEADER_LIMIT: u64 = 100_000_000;
/// What to do about a damaged file.
const NEXT: &str = "download or copy the file again";

/// The tensors of a file, checked against each other and against the file's length.
pub(super) fn entries(path: &Path, file: &File) -> Result<BTreeMap<String, Entry>> {
    let denied = |e| Error::io(path, "read", e);
    let bytes = file.metadata().map_err(denied)?.len();
    let damaged = |why: String| Error::file(path, why, NEXT);
    if bytes < LENGTH {
        return Err(damaged(format!(
            "only {bytes} bytes, no safetensors header"
        )));
    }
    let mut length = [0u8; LENGTH as usize];
    file.read_exact_at(&mut length, 0).map_err(denied)?;
    let length = u64::from_le_bytes(length);
    if length > HEADER_LIMIT || length > bytes - LENGTH {
        let why = format!("the header claims {length} bytes, the file has {bytes}");
        return Err(damaged(why));
    }
    let mut header = vec![0u8; length as usize];
    file.read_exact_at(&mut header, LENGTH).map_err(denied)?;
    let header: Metadata = serde_json::from_slice(&header)
        .map_err(|e| damaged(format!("damaged safetensors header: {e}")))?;
    let (data, needed) = (bytes - LENGTH - length, header.data_len() as u64);
    if data != needed {
        let state = if data < needed {
            "truncated"
        } else {
            "too long"
        };
        let why = format!("{state}: its tensors take {needed} bytes, it has {data}");
        return Err(damaged(why));
    }
    let start = LENGTH + length;
    Ok(header
        .tensors()
        .into_iter()
        .map(|(name, info)| (name, entry(info, start)))
        .collect())
}

/// One tensor of a file whose data begin at `start`.
fn entry(info: &TensorInfo, start: u64) -> Entry {
    let (from, to) = info.data_offsets;
    Entry {
        shape: info.shape.iter().map(|n| *n as u64).collect(),
        dtype: match info.dtype {
            Dtype::F32 => Some(DType::F32),
            Dtype::BF16 => Some(DType::Bf16),
            Dtype::F16 => Some(DType::F16),
            Dtype::U32 => Some(DType::U32),
            Dtype::U16 => Some(DType::U16),
            Dtype::U8 => Some(DType::U8),
            _ => None,
        },
        format: format!("{:?}", info.dtype),
        start: start + from as u64,
        bytes: (to - from) as u64,
        flaw: None,
    }
}

/// The first bytes of a file of `tensors`, their places, and the file's length.
pub(super) fn layout(
    path: &Path,
    tensors: &BTreeMap<String, Type>,
) -> Result<(Vec<u8>, BTreeMap<String, Entry>, u64)> {
    let mut end = 0;
    let mut infos = Vec::with_capacity(tensors.len());
    for (name, at) in tensors {
        let from = end;
        end += at.bytes().0 as usize;
        infos.push((name.clone(), info(at, (from, end))));
    }
    let format = HashMap::from([("format".to_string(), "pt".to_string())]);
    let failed =
        |why: String| Error::file(path, why, "report this with the command that led to it");
    let metadata = Metadata::new(Some(format), infos).map_err(|e| failed(e.to_string()))?;
    let mut json = serde_json::to_vec(&metadata).map_err(|e| failed(e.to_string()))?;
    json.resize(json.len().next_multiple_of(LENGTH as usize), b' ');
    let start = LENGTH + json.len() as u64;
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.extend(json);
    let entries = metadata
        .tensors()
        .into_iter()
        .map(|(name, info)| (name, entry(info, start)))
        .collect();
    Ok((header, entries, start + end as u64))
}

fn info(at: &Type, data_offsets: (usize, usize)) -> TensorInfo {
    TensorInfo {
        dtype: match at.dtype {
            DType::F32 => Dtype::F32,
            DType::Bf16 => Dtype::BF16,
            DType::F16 => Dtype::F16,
            DType::U32 => Dtype::U32,
            DType::U16 => Dtype::U16,
            DType::U8 => Dtype::U8,
        },
        shape: at.shape.iter().map(|n| *n as usize).collect(),
        data_offsets,
    }
}
