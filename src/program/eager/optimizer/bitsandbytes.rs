//! Optimizers of bitsandbytes: one or two states, in f32 or in blocks of eight-bit values (Dettmers et al. 2022). Their kernels work in place.

use std::cell::RefCell;

use super::{Optimizer, States, size, state};
use crate::program::eager::autograd::Leaf;
use crate::program::eager::tensor::{DType, Tensor};
use crate::program::eager::torch::Torch;

/// `min_8bit_size`: parameters of fewer elements keep their state in f32.
const LEAST_IN_BLOCKS: u64 = 4096;
/// Values that share an `absmax`.
const BLOCK: u64 = 256;
/// Values of a quantization map, one for each byte.
const MAP: u64 = 256;

/// `optim_bits`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bits {
    /// Blocks of bytes with a scale each.
    Eight,
    /// f32.
    ThirtyTwo,
}

/// `Optimizer1State` (Lion, SGD) and `Optimizer2State` (AdamW).
pub struct Blockwise {
    count: usize,
    bits: Bits,
    states: States,
    /// `name2qmap`: a signed map for the first state and an unsigned one for the second, moved to the device with the first state that
    /// is quantized and shared by all parameters of the optimizer.
    maps: RefCell<Vec<Tensor>>,
}

impl Blockwise {
    /// With so many states for each parameter.
    pub fn new(count: usize, bits: Bits) -> Blockwise {
        Blockwise {
            count,
            bits,
            states: States::default(),
            maps: RefCell::default(),
        }
    }

    fn first(&self, torch: &Torch, param: &Leaf) -> Vec<Tensor> {
        let elements = param.shape.elements();
        let wide = || state(torch, param.shape.all(), DType::F32);
        if self.bits == Bits::ThirtyTwo || elements < LEAST_IN_BLOCKS {
            return (0..self.count).map(|_| wide()).collect();
        }
        let mut maps = self.maps.borrow_mut();
        maps.resize_with(self.count, || state(torch, &[MAP], DType::F32));
        let values = (0..self.count).map(|_| state(torch, param.shape.all(), DType::U8));
        let scales = (0..self.count).map(|_| state(torch, &[elements.div_ceil(BLOCK)], DType::F32));
        values.chain(scales).collect()
    }
}

impl Optimizer for Blockwise {
    fn step(&self, torch: &Torch, params: &[&Leaf]) {
        for param in params {
            self.states.lazily(param, || self.first(torch, param));
            // One kernel: the gradient is read, weight and states are read and written.
            let elements = param.shape.elements();
            let width = match self.bits {
                Bits::Eight if elements >= LEAST_IN_BLOCKS => 1,
                _ => DType::F32.bytes(),
            };
            let states = 2 * width * self.count as u64 * elements;
            torch.in_place(3 * size(param) + states);
        }
    }
}
