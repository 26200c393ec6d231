//! Attention masks as `transformers.masking_utils` makes them.

use crate::program::eager::family::Call;
use crate::program::eager::tensor::{DType, Tensor};
use crate::program::eager::torch::{Halt, Torch};
use crate::spec::torch::{Attn, Checkpointing};

/// The causal mask of a model in the type of its embeddings, or none where the kernel is told to be causal; `window` is the sliding window.
/// Without a padding mask positions are searched for packed sequences, and a mask is always made.
///
/// # Errors
/// Where an operation halts.
pub fn causal(
    torch: &Torch,
    call: &Call,
    dtype: DType,
    window: Option<u64>,
) -> Result<Option<Tensor>, Halt> {
    let (batch, seq) = (call.options.batch, call.options.seq);
    let padding = call
        .mask
        .as_ref()
        .map(|mask| torch.to(mask, DType::Bool))
        .transpose()?;
    // Where keys and values are cached, positions are not searched.
    let caches = call.options.use_cache && call.options.checkpointing == Checkpointing::None;
    let packed = match padding {
        None if !caches => Some(packed_sequences(torch, batch, seq)),
        _ => None,
    };
    let sdpa = call.options.attn == Attn::Sdpa;
    if sdpa && packed.is_none() && window.is_none_or(|window| seq < window) {
        if padding.is_some() {
            drop(torch.plain("all", &[], DType::Bool));
        }
        return Ok(None);
    }
    let allowed = allowed(
        torch,
        (batch, seq),
        [packed.is_some(), padding.is_some(), window.is_some()],
    );
    if sdpa {
        return Ok(Some(allowed));
    }
    let zeros = ["_to_copy", "scalar_tensor"].map(|name| torch.plain(name, &[], dtype));
    let mask = torch.plain("where", &[batch, 1, seq, seq], dtype);
    drop((zeros, allowed, padding));
    Ok(Some(mask))
}

/// Which keys each query sees, as booleans (B, 1, T, T): the conditions are joined one by one.
fn allowed(t: &Torch, (batch, seq): (u64, u64), [packed, padded, windowed]: [bool; 3]) -> Tensor {
    let _ranges = [seq, batch, 1].map(|length| t.plain("arange", &[length], DType::I64));
    let square = |name| t.plain(name, &[seq, seq], DType::Bool);
    let ones = t.plain("new_ones", &[seq], DType::Bool);
    let before = match windowed {
        false => square("le"),
        true => {
            let inner = t.plain("new_ones", &[seq], DType::Bool);
            let first = t.plain("sub", &[seq], DType::I64);
            let near = square("gt");
            let joined = square("bitwise_and");
            drop((first, near));
            let past = square("le");
            drop(inner);
            let both = square("bitwise_and");
            drop((past, joined));
            both
        }
    };
    let joined = square("bitwise_and");
    drop((before, ones));
    let shape = [batch, 1, seq, seq];
    if padded {
        let padding = t.plain("index", &[batch, seq], DType::Bool);
        let made = t.plain("bitwise_and", &shape, DType::Bool);
        drop(padding);
        return made;
    }
    if !packed {
        return joined;
    }
    let sequences = [(); 2].map(|()| t.plain("index", &[batch, seq], DType::I64));
    let same = t.plain("eq", &shape, DType::Bool);
    drop(sequences);
    let made = t.plain("bitwise_and", &shape, DType::Bool);
    drop((same, joined));
    made
}

/// `find_packed_sequence_indices`: where positions do not rise by one, a sequence begins.
fn packed_sequences(t: &Torch, batch: u64, seq: u64) -> Tensor {
    let before = t.plain("sub", &[batch, 1], DType::I64);
    let joined = t.plain("cat", &[batch, seq + 1], DType::I64);
    let steps = t.plain("sub", &[batch, seq], DType::I64);
    let begins = t.plain("ne", &[batch, seq], DType::Bool);
    drop(joined);
    let made = t.plain("cumsum", &[batch, seq], DType::I64);
    drop((before, steps, begins));
    made
}
