//! What the families' attention shares: rotary embedding, repeated key heads, and the two implementations.

use crate::program::eager::aten::attention::Sdpa;
use crate::program::eager::tensor::{DType, Tensor};
use crate::program::eager::torch::{Halt, Made, Torch};
use crate::spec::torch::Attn;

/// What an attention is asked for.
#[derive(Debug, Clone)]
pub struct Asked {
    /// The mask, where there is one.
    pub mask: Option<Tensor>,
    /// Query heads of a key head.
    pub group: u64,
    /// Dropout of the probabilities.
    pub dropout: f64,
    /// Causal where there is no mask.
    pub causal: bool,
    /// Whether eager attention caps its scores (Gemma 2).
    pub softcap: bool,
}

/// `LlamaRotaryEmbedding`: cosines and sines (B = 1, T, D) in the type of the hidden states.
///
/// # Errors
/// Where an operation halts.
pub fn tables(
    t: &Torch,
    frequencies: &Tensor,
    hidden: &Tensor,
    positions: &Tensor,
) -> Result<[Tensor; 2], Halt> {
    let before = t.set_grad(false);
    let autocast = t.pause_autocast();
    let made = cosines(t, frequencies, hidden, positions);
    t.resume_autocast(autocast);
    t.set_grad(before);
    made
}

fn cosines(
    t: &Torch,
    frequencies: &Tensor,
    hidden: &Tensor,
    positions: &Tensor,
) -> Result<[Tensor; 2], Halt> {
    let (half, seq) = (frequencies.shape.last(), positions.shape.last());
    let positions = t.plain("_to_copy", &[1, 1, seq], DType::F32);
    let angles = t.plain("bmm", &[1, half, seq], DType::F32);
    let both = t.plain("cat", &[1, seq, 2 * half], DType::F32);
    let one = |name| {
        let plain = t.plain(name, &[1, seq, 2 * half], DType::F32);
        t.plain_from("mul", plain)
    };
    let (cos, sin) = (one("cos"), one("sin"));
    let made = [t.to(&cos, hidden.dtype)?, t.to(&sin, hidden.dtype)?];
    drop((positions, angles, both));
    Ok(made)
}

/// `apply_rotary_pos_emb`.
///
/// # Errors
/// Where an operation halts.
pub fn rotated(
    t: &Torch,
    q: &Tensor,
    k: &Tensor,
    rotary: &[Tensor; 2],
) -> Result<(Tensor, Tensor), Halt> {
    let (cos, sin) = (t.unsqueeze(&rotary[0], 1)?, t.unsqueeze(&rotary[1], 1)?);
    let one = |x: &Tensor| {
        let straight = t.mul(x, &cos)?;
        let turned = t.mul(half_turned(t, x)?, &sin)?;
        t.add(straight, turned)
    };
    Ok((one(q)?, one(k)?))
}

/// `rotate_half`.
fn half_turned(t: &Torch, x: &Tensor) -> Made {
    let (at, width) = (x.shape.all().len() - 1, x.shape.last());
    let first = t.slice(x, at, 0, width / 2)?;
    let second = t.slice(x, at, width / 2, width)?;
    let negative = t.neg(second)?;
    t.cat(&[&negative, &first], at)
}

/// `repeat_kv`: a copy where key heads are fewer.
fn repeated(t: &Torch, x: &Tensor, group: u64) -> Made {
    if group == 1 {
        return Ok(x.clone());
    }
    let [b, h, s, d] = [0, 1, 2, 3].map(|i| x.shape.all()[i]);
    let wide = t.expand(t.unsqueeze(x, 2)?, &[b, h, group, s, d])?;
    t.reshape(wide, &[b, h * group, s, d])
}

/// Attention of q, k and v as the model's implementation does it: the output (B, T, heads, D), and the probabilities where they are made.
///
/// # Errors
/// Where an operation halts.
pub fn attend(
    t: &Torch,
    how: Attn,
    [q, k, v]: [&Tensor; 3],
    asked: &Asked,
) -> Result<(Tensor, Option<Tensor>), Halt> {
    match how {
        Attn::Sdpa => Ok((sdpa(t, [q, k, v], asked)?, None)),
        Attn::Eager => {
            let (made, probabilities) = eager(t, [q, k, v], asked)?;
            Ok((made, Some(probabilities)))
        }
    }
}

/// `sdpa_attention_forward`: with a mask key heads are repeated first.
fn sdpa(t: &Torch, [q, k, v]: [&Tensor; 3], asked: &Asked) -> Made {
    let sdpa = Sdpa {
        mask: asked.mask.clone(),
        causal: asked.causal && asked.mask.is_none(),
        dropout: asked.dropout,
    };
    let repeats = asked.mask.is_some() || t.habits().repeated_heads;
    let group = if repeats { asked.group } else { 1 };
    let (k, v) = (repeated(t, k, group)?, repeated(t, v, group)?);
    let made = t.attention(q, &k, &v, &sdpa)?;
    t.contiguous(t.transpose(made, 1, 2)?)
}

/// `eager_attention_forward`.
fn eager(t: &Torch, [q, k, v]: [&Tensor; 3], asked: &Asked) -> Result<(Tensor, Tensor), Halt> {
    let (k, v) = (repeated(t, k, asked.group)?, repeated(t, v, asked.group)?);
    let mut scores = t.scaled(t.matmul(q, t.transpose(&k, 2, 3)?)?)?;
    if asked.softcap {
        scores = t.scaled(&scores)?;
        scores = t.tanh(&scores)?;
        scores = t.scaled(&scores)?;
    }
    if let Some(mask) = &asked.mask {
        scores = t.add(&scores, mask)?;
    }
    scores = t.to(t.softmax(&scores, Some(DType::F32))?, q.dtype)?;
    scores = t.dropout(&scores, asked.dropout)?;
    let made = t.matmul(&scores, &v)?;
    let made = t.contiguous(t.transpose(made, 1, 2)?)?;
    Ok((made, scores))
}
