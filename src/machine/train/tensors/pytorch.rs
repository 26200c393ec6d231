//! PyTorch's `.bin`: the pickle says what lies where in the zip, and the bytes are then read in place.

use std::collections::BTreeMap;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use candle_core::DType as Foreign;
use candle_core::pickle::{TensorInfo, read_pth_tensor_info};

use super::{Entry, zip};
use crate::error::{Error, Result};
use crate::graph::tensor::DType;

/// What to do about a file that cannot be used.
const NEXT: &str = "download it again, or convert it to safetensors";

/// The tensors of a file.
pub(super) fn entries(path: &Path, file: &File) -> Result<BTreeMap<String, Entry>> {
    let members = zip::members(path, file)?;
    // The pickle reader indexes what the file says is there, which a damaged file may not have.
    let infos = catch_unwind(AssertUnwindSafe(|| read_pth_tensor_info(path, false, None)))
        .map_err(|_| Error::file(path, "its pickle is damaged", NEXT))?
        .map_err(|e| Error::file(path, format!("its pickle is not readable: {e}"), NEXT))?;
    let mut entries = BTreeMap::new();
    for info in infos {
        let member = members.get(&info.path).ok_or_else(|| {
            let why = format!("{} lies in {}, which is missing", info.name, info.path);
            Error::file(path, why, NEXT)
        })?;
        entries.insert(info.name.clone(), entry(path, &info, member)?);
    }
    Ok(entries)
}

/// One tensor, in the member of the zip that holds its storage.
fn entry(path: &Path, info: &TensorInfo, member: &zip::Member) -> Result<Entry> {
    let shape: Vec<u64> = info.layout.dims().iter().map(|n| *n as u64).collect();
    let elements = shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d));
    let bytes = elements.and_then(|n| n.checked_mul(info.dtype.size_in_bytes() as u64));
    let offset = info.layout.start_offset() as u64;
    let end = bytes.and_then(|bytes| bytes.checked_add(offset));
    let (Some(bytes), true) = (bytes, end.is_some_and(|end| end <= member.bytes)) else {
        let why = format!(
            "{} is truncated: its storage {} has {} bytes",
            info.name, info.path, member.bytes
        );
        return Err(Error::file(path, why, NEXT));
    };
    Ok(Entry {
        shape,
        dtype: match info.dtype {
            Foreign::F32 => Some(DType::F32),
            Foreign::BF16 => Some(DType::Bf16),
            Foreign::F16 => Some(DType::F16),
            _ => None,
        },
        format: format!("{:?}", info.dtype),
        start: member.start + offset,
        bytes,
        flaw: flaw(info, member),
    })
}

/// What keeps the bytes from being read in place.
fn flaw(info: &TensorInfo, member: &zip::Member) -> Option<String> {
    if member.compressed {
        return Some("it is compressed".to_string());
    }
    let strided = !info.layout.is_contiguous();
    strided.then(|| "its elements are not contiguous".to_string())
}
