//! Modules of `torch.nn` and of the adapter libraries, holding parameters.

use std::borrow::Borrow;

use super::tape::Class;
use super::tensor::{DType, Tensor};
use super::torch::{Made, Torch};
use crate::spec::torch::{Lora, Quant};

/// How parameters are made: their type, and which of them are trained, adapted or quantised.
#[derive(Debug)]
pub struct Builder<'t> {
    /// The interpreter.
    pub torch: &'t Torch,
    /// Type of the weights.
    pub dtype: DType,
    /// Adapters, where weights are frozen.
    pub lora: Option<&'t Lora>,
    /// Quantisation of linear layers.
    pub quant: Option<&'t Quant>,
    /// Trained parameters so far, in the order of their modules.
    pub trained: std::cell::RefCell<Vec<Tensor>>,
}

/// `nn.Linear` (or with `turned` GPT-2's `Conv1D`), perhaps in four bits, perhaps with a low-rank adapter.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
    turned: bool,
    quantised: Option<Quantised>,
    adapter: Option<Adapter>,
}

/// A weight in four bits: packed values, their scales, and what double quantisation adds.
#[derive(Debug, Clone)]
struct Quantised {
    state: Vec<Tensor>,
    outputs: u64,
    inputs: u64,
}

/// LoRA (Hu et al. 2021) as PEFT computes it: `y + B(A(dropout(x))) * scaling`.
#[derive(Debug, Clone)]
struct Adapter {
    a: Tensor,
    b: Tensor,
    dropout: f64,
}

impl Builder<'_> {
    /// A parameter that is trained unless weights are frozen.
    pub fn parameter(&self, shape: &[u64]) -> Tensor {
        self.made(shape, self.weight_type(), self.lora.is_none())
    }

    /// The type of what is not quantised: f32 after `prepare_model_for_kbit_training`.
    fn weight_type(&self) -> DType {
        match self.quant {
            Some(quant) if quant.prepare_kbit => DType::F32,
            _ => self.dtype,
        }
    }

    fn made(&self, shape: &[u64], dtype: DType, trained: bool) -> Tensor {
        let made = self.torch.parameter(shape, dtype, trained);
        if trained {
            self.trained.borrow_mut().push(made.clone());
        }
        made
    }

    /// A linear layer known to adapters as `name`; `head` is never quantised.
    pub fn linear(&self, name: &str, inputs: u64, outputs: u64, bias: bool) -> Linear {
        self.projection(name, inputs, outputs, bias, false)
    }

    /// GPT-2's `Conv1D`: a linear layer whose weight is (inputs, outputs).
    pub fn conv1d(&self, name: &str, inputs: u64, outputs: u64) -> Linear {
        self.projection(name, inputs, outputs, true, true)
    }

    fn projection(
        &self,
        name: &str,
        inputs: u64,
        outputs: u64,
        bias: bool,
        turned: bool,
    ) -> Linear {
        let quantised = self
            .quant
            .filter(|_| name != "lm_head" && !turned)
            .map(|quant| self.quantised(quant, inputs, outputs));
        let weight = match (&quantised, turned) {
            (Some(quantised), _) => quantised.state[0].clone(),
            (None, false) => self.parameter(&[outputs, inputs]),
            (None, true) => self.parameter(&[inputs, outputs]),
        };
        let bias = bias.then(|| self.parameter(&[outputs]));
        let targeted = self
            .lora
            .filter(|lora| lora.targets.iter().any(|t| t == name));
        let adapter = targeted.map(|lora| {
            let dtype = match lora.adapter_dtype {
                crate::spec::torch::AdapterDtype::Fp32 => DType::F32,
                crate::spec::torch::AdapterDtype::Base => self.dtype,
            };
            Adapter {
                a: self.made(&[lora.r, inputs], dtype, true),
                b: self.made(&[outputs, lora.r], dtype, true),
                dropout: lora.dropout,
            }
        });
        Linear {
            weight,
            bias,
            turned,
            quantised,
            adapter,
        }
    }

    /// bitsandbytes' storage of a weight: two values a byte, a scale for each block of 64; with double quantisation the scales are a byte
    /// each, with a scale for each 256 of them, their code and their mean.
    fn quantised(&self, quant: &Quant, inputs: u64, outputs: u64) -> Quantised {
        let torch = self.torch;
        let values = inputs * outputs;
        let blocks = values.div_ceil(64);
        let buffer = |shape: &[u64], dtype| torch.buffer(shape, dtype, Class::Buffers);
        let mut state = vec![
            buffer(&[values.div_ceil(2), 1], DType::U8),
            buffer(&[16], DType::F32),
        ];
        match quant.double {
            false => state.push(buffer(&[blocks], DType::F32)),
            true => state.extend([
                buffer(&[blocks], DType::U8),
                buffer(&[blocks.div_ceil(256)], DType::F32),
                buffer(&[256], DType::F32),
                buffer(&[], DType::F32),
            ]),
        }
        Quantised {
            state,
            outputs,
            inputs,
        }
    }
}

impl Adapter {
    /// `B(A(dropout(x))) * scaling`. The caller's name for `x` lives on.
    fn change(&self, torch: &Torch, x: Tensor) -> Made {
        let low = torch.dropout(&x, self.dropout)?;
        let low = torch.linear(low, &self.a, None, false)?;
        torch.scaled(torch.linear(low, &self.b, None, false)?)
    }
}

impl Linear {
    /// The layer on `x`.
    ///
    /// # Errors
    /// Where an operation halts.
    pub fn call(&self, torch: &Torch, x: impl Borrow<Tensor>) -> Made {
        let x = x.borrow();
        match &self.quantised {
            None => {
                let result = torch.linear(x, &self.weight, self.bias.as_ref(), self.turned)?;
                self.adapted(torch, x, result)
            }
            Some(quantised) => {
                let result = self.in_four_bits(torch, x, quantised)?;
                self.adapted_in_four_bits(torch, x, result)
            }
        }
    }

    /// PEFT's `lora.Linear`: the input in the adapter's type, the sum in the result's.
    fn adapted(&self, torch: &Torch, x: &Tensor, result: Tensor) -> Made {
        let Some(adapter) = &self.adapter else {
            return Ok(result);
        };
        let before = result.dtype;
        let change = adapter.change(torch, torch.to(x, adapter.a.dtype)?)?;
        torch.to(torch.add(result, change)?, before)
    }

    /// PEFT's `lora.Linear4bit`: the result is copied first, and casts are left to autocast where that is on.
    fn adapted_in_four_bits(&self, torch: &Torch, x: &Tensor, result: Tensor) -> Made {
        let Some(adapter) = &self.adapter else {
            return Ok(result);
        };
        let result = torch.clone_of(&result)?;
        if torch.autocast().is_some() {
            let change = adapter.change(torch, x.clone())?;
            return torch.add(&result, change);
        }
        let change = adapter.change(torch, torch.to(x, adapter.a.dtype)?)?;
        let change = torch.to(change, result.dtype)?;
        torch.add(&result, change)
    }

    /// `bnb.matmul_4bit`: the weight is unpacked for the product only; nothing but the packed weight is saved.
    fn in_four_bits(&self, torch: &Torch, x: &Tensor, quantised: &Quantised) -> Made {
        let before = x.dtype;
        let x = torch.to(x, DType::Bf16)?;
        let made = torch.packed_linear(&x, &self.weight, quantised.inputs, quantised.outputs)?;
        let made = match &self.bias {
            Some(bias) => torch.add(made, bias)?,
            None => made,
        };
        torch.to(made, before)
    }

    /// The layer with another bias.
    pub fn with_bias(self, bias: Tensor) -> Linear {
        Linear {
            bias: Some(bias),
            ..self
        }
    }

    /// The weight, for a tied head.
    pub fn tied_to(table: &Tensor) -> Linear {
        Linear {
            weight: table.clone(),
            bias: None,
            turned: false,
            quantised: None,
            adapter: None,
        }
    }
}

/// RMSNorm as Hugging Face writes it: in f32, cast back, times the weight.
#[derive(Debug, Clone)]
pub struct RmsNorm {
    weight: Tensor,
}

impl RmsNorm {
    /// A norm over `width` elements.
    pub fn new(builder: &Builder, width: u64) -> RmsNorm {
        RmsNorm {
            weight: builder.parameter(&[width]),
        }
    }

    /// `weight * (x * rsqrt(mean(x²) + eps))`.
    ///
    /// # Errors
    /// Where an operation halts.
    pub fn call(&self, torch: &Torch, x: &Tensor) -> Made {
        let before = x.dtype;
        let x = torch.to(x, DType::F32)?;
        let variance = torch.mean_last(torch.pow(&x)?)?;
        let factor = torch.rsqrt(torch.shifted(&variance)?)?;
        let x = torch.mul(x, factor)?;
        torch.mul(&self.weight, torch.to(x, before)?)
    }
}

/// `nn.LayerNorm`.
#[derive(Debug, Clone)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
}

impl LayerNorm {
    /// A norm over `width` elements.
    pub fn new(builder: &Builder, width: u64) -> LayerNorm {
        LayerNorm {
            weight: builder.parameter(&[width]),
            bias: builder.parameter(&[width]),
        }
    }

    /// The norm of `x`.
    ///
    /// # Errors
    /// Where an operation halts.
    pub fn call(&self, torch: &Torch, x: impl Borrow<Tensor>) -> Made {
        torch.layer_norm(x, &self.weight, &self.bias)
    }
}
