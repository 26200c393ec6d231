//! AdamW with moments in one byte each.

use super::adamw::Moments;
use super::update::{Layout, Part, Rule, STATES, State};
use crate::error::Result;
use crate::graph::op::dynamic::{Map, SIGNED, UNSIGNED};
use crate::graph::op::kernel::{Call, Kernel};
use crate::graph::op::{Io, Op, Output, Work, traffic};
use crate::graph::tensor::{DType, Type};

/// Elements that share a scale.
const BLOCK: usize = 256;

/// Fewest elements of a tensor whose moments are held in bytes (`min_8bit_size` of bitsandbytes).
pub const LEAST: u64 = 4096;

/// AdamW with block-wise dynamic quantization of its moments (Dettmers et al. 2022, arXiv:2110.02861), as in bitsandbytes:
/// blocks of 256, the step taken before moments are rounded.
///
/// Inputs: gradient, parameter, master (F32, with `master`), the states of [`AdamW8Bit::states`], guard (3) (with
/// `guard`, see [`ClipScale`](super::ClipScale)). Outputs overwrite all between gradient and guard, in this order.
#[derive(Debug, Clone)]
pub struct AdamW8Bit {
    /// Decay of the mean of gradients.
    pub beta1: f64,
    /// Decay of the mean of their squares.
    pub beta2: f64,
    /// Added to the root of the latter.
    pub eps: f64,
    /// Weight decay λ: the weight shrinks by rate · λ.
    pub decay: f64,
    /// Whether the weight is kept in f32 beside a narrower parameter.
    pub master: bool,
    /// Whether the gradient is scaled, and the update skipped, as a guard says.
    pub guard: bool,
}

/// Codes of both moments, then their scales: the largest absolute value of each block.
pub(super) const MOMENTS: [State; 4] = {
    let codes = State {
        dtype: DType::U8,
        per: 1,
    };
    let scales = State {
        dtype: DType::F32,
        per: BLOCK as u64,
    };
    [codes, codes, scales, scales]
};

impl AdamW8Bit {
    /// Suffixes and types of the states of a parameter: codes of m and v, then their scales.
    pub fn states(parameter: &Type) -> [(&'static str, Type); 4] {
        let [m, v, m_scale, v_scale] = MOMENTS.map(|state| state.at(parameter));
        [
            ("m", m),
            ("v", v),
            ("m_scale", m_scale),
            ("v_scale", v_scale),
        ]
    }

    fn layout(&self) -> Layout<'static> {
        Layout {
            parameter: true,
            master: self.master,
            states: &MOMENTS,
            guard: self.guard,
        }
    }
}

impl Op for AdamW8Bit {
    fn name(&self) -> &'static str {
        "adamw8bit"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        self.layout().outputs(self.name(), inputs)
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        Work {
            matmul: 0,
            vector: WORK * outputs[0].elements(),
            bytes: traffic(inputs, outputs),
        }
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        let (betas, decay) = ((self.beta1, self.beta2), self.decay);
        let rule = Bytewise(Moments::of(betas, self.eps, decay, &io.scalars));
        self.layout().run(self.name(), io, &rule)
    }
    fn cuda(&self, call: &Call) -> Kernel {
        let betas = (self.beta1, self.beta2);
        let rule = Moments::of(betas, self.eps, self.decay, &call.scalars);
        self.layout().launch(self.name(), call, 4, rule.constants())
    }
}

/// Operations for each element: Adam's, and two codes found by bisection.
pub(super) const WORK: u64 = 15 + 2 * 12;

/// Adam's rule on moments in bytes.
pub(super) struct Bytewise(pub(super) Moments);

impl Rule for Bytewise {
    fn apply(
        &self,
        at: usize,
        gradient: &[f32],
        weight: &mut [f32],
        [m, v, m_scale, v_scale]: &mut [Part<'_>; STATES],
    ) {
        let (mut mean, mut square) = ([0.0f32; BLOCK], [0.0f32; BLOCK]);
        let codes = m
            .of::<u8>()
            .chunks_mut(BLOCK)
            .zip(v.of::<u8>().chunks_mut(BLOCK));
        let scales = m_scale.of::<f32>().iter_mut().zip(v_scale.of::<f32>());
        let values = gradient.chunks(BLOCK).zip(weight.chunks_mut(BLOCK));
        for (((gradient, weight), (m, v)), (m_scale, v_scale)) in values.zip(codes).zip(scales) {
            let mean = &mut mean[..gradient.len()];
            let square = &mut square[..gradient.len()];
            decode(&SIGNED, m, *m_scale, mean);
            decode(&UNSIGNED, v, *v_scale, square);
            self.0.step(gradient, weight, mean, square);
            *m_scale = encode(&SIGNED, mean, m);
            *v_scale = encode(&UNSIGNED, square, v);
        }
        debug_assert!(at.is_multiple_of(BLOCK), "blocks start at multiples of 256");
    }
}

/// What codes stand for.
fn decode(map: &Map, codes: &[u8], scale: f32, into: &mut [f32]) {
    for (into, code) in into.iter_mut().zip(codes) {
        *into = map.values[usize::from(*code)] * scale;
    }
}

/// Codes of values, and their scale.
fn encode(map: &Map, values: &[f32], codes: &mut [u8]) -> f32 {
    let scale = values.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    for (code, value) in codes.iter_mut().zip(values) {
        *code = map.code(if scale > 0.0 { value / scale } else { 0.0 });
    }
    scale
}
