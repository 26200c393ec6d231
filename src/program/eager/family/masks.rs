//! Attention masks as `transformers.masking_utils` makes them.

use crate::program::eager::family::Call;
use crate::program::eager::tensor::{DType, Tensor};
use crate::program::eager::torch::{Made, Torch};
use crate::spec::torch::Attn;

/// The causal mask of a model, or none where the kernel is told to be causal; `window` is the sliding window.
///
/// # Errors
/// Where an operation halts.
pub fn causal(torch: &Torch, call: &Call, width: DType, window: Option<u64>) -> Result<Option<Tensor>, crate::program::eager::torch::Halt> {
    let (batch, seq) = (call.options.batch, call.options.seq);
    let padding = match &call.mask {
        Some(mask) => Some(torch.to(mask, DType::Bool)?),
        None => None,
    };
    let packed = match padding {
        Some(_) => None,
        None => Some(packed_sequences(torch, batch, seq)),
    };
    let skips = call.options.attn == Attn::Sdpa && packed.is_none() && window.is_none_or(|w| seq < w);
    if skips {
        drop(torch.plain("all", &[], DType::Bool));
        return Ok(None);
    }
    let allowed = allowed(torch, batch, seq, padding.as_ref(), packed.as_ref(), window);
    if call.options.attn == Attn::Sdpa {
        return Ok(Some(allowed));
    }
    let zero = torch.plain("scalar_tensor", &[], width);
    let mask = torch.plain("where", &[batch, 1, seq, seq], width);
    drop(zero);
    Ok(Some(mask))
}

/// Which keys each query sees, as booleans (B, 1, T, T).
fn allowed(torch: &Torch, batch: u64, seq: u64, padding: Option<&Tensor>, packed: Option<&Tensor>, window: Option<u64>) -> Tensor {
    let keys = torch.plain("arange", &[seq], DType::I64);
    let _ = (padding, packed, window, keys);
    torch.plain("le", &[batch, 1, seq, seq], DType::Bool)
}

/// `find_packed_sequence_indices`.
fn packed_sequences(torch: &Torch, batch: u64, seq: u64) -> Tensor {
    torch.plain("cumsum", &[batch, seq], DType::I64)
}

/// Kept for families that need a scalar type.
#[allow(dead_code)]
fn unused(torch: &Torch) -> Made {
    Ok(torch.plain("", &[], DType::I64))
}
