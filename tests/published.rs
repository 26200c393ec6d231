//! The families as their papers and model cards state them, on candle's autograd in f64: shares no code with the graph.

use std::collections::BTreeMap;

use candle_core::{D, DType, Device, Result, Tensor};
use serde_json::Value;

/// A batch: tokens, targets (`u32::MAX` does not count), and the length of a sequence.
#[derive(Clone)]
pub struct Batch {
    pub tokens: Vec<u32>,
    pub targets: Vec<u32>,
    pub seq: usize,
}

/// A model as its config states it, with its parameters by name.
pub struct Published<'a> {
    pub config: Value,
    pub parameters: &'a BTreeMap<String, Tensor>,
    pub batch: Batch,
}

impl Published<'_> {
    /// The mean loss over targets that count.
    pub fn loss(&self) -> Result<Tensor> {
        let tokens = Tensor::new(self.batch.tokens.as_slice(), &Device::Cpu)?;
        let mut x = self
            .parameter("embedding/token.weight")
            .index_select(&tokens, 0)?;
        if self.is(&["gemma2"]) {
            x = (x * (self.size("hidden") as f64).sqrt())?;
        }
        if self.has_learned_positions() {
            x = x.add(&self.learned_positions()?)?;
        }
        if self.is(&["bert"]) {
            let segment = self.parameter("embedding/type.weight").narrow(0, 0, 1)?;
            x = self.norm("embedding/norm", &x.broadcast_add(&segment)?)?;
        }
        for layer in 0..self.size("layers") {
            x = self.block(&format!("layers.{layer}"), layer, x)?;
        }
        self.cross_entropy(&self.logits(x)?)
    }

    fn is(&self, families: &[&str]) -> bool {
        families.contains(&self.config["model_type"].as_str().unwrap())
    }

    fn has_learned_positions(&self) -> bool {
        self.is(&["gpt2", "opt", "bert"])
    }

    /// A dimension, under whichever name the family gives it.
    fn size(&self, what: &str) -> usize {
        let names: &[&str] = match what {
            "hidden" => &["n_embd", "hidden_size"],
            "layers" => &["n_layer", "num_hidden_layers"],
            "heads" => &["n_head", "num_attention_heads"],
            "kv_heads" => &[
                "num_key_value_heads",
                "n_head",
                "num_attention_heads",
                "heads",
            ],
            other => panic!("no dimension {other}"),
        };
        let found = names.iter().find_map(|n| self.config[*n].as_u64());
        found.unwrap() as usize
    }

    fn number(&self, key: &str) -> Option<f64> {
        self.config[key].as_f64()
    }

    fn head_width(&self) -> usize {
        let stated = self.config["head_dim"].as_u64().map(|d| d as usize);
        stated.unwrap_or(self.size("hidden") / self.size("heads"))
    }

    fn parameter(&self, name: &str) -> &Tensor {
        let found = self.parameters.get(name);
        found.unwrap_or_else(|| panic!("the model was built without `{name}`"))
    }

    /// Sequences of the batch.
    fn sequences(&self) -> usize {
        self.batch.tokens.len() / self.batch.seq
    }

    fn learned_positions(&self) -> Result<Tensor> {
        let first = if self.is(&["opt"]) { 2 } else { 0 };
        let table = self.parameter("embedding/position.weight");
        table
            .narrow(0, first, self.batch.seq)?
            .repeat((self.sequences(), 1))
    }

    fn linear(&self, name: &str, x: &Tensor, bias: bool) -> Result<Tensor> {
        let y = x.matmul(&self.parameter(&format!("{name}.weight")).t()?)?;
        match bias {
            true => y.broadcast_add(self.parameter(&format!("{name}.bias"))),
            false => Ok(y),
        }
    }

    /// LayerNorm for the families before Llama, RMSNorm since.
    fn norm(&self, name: &str, x: &Tensor) -> Result<Tensor> {
        let weight = self.parameter(&format!("{name}.weight"));
        if !self.has_learned_positions() {
            return self.rms_norm(weight, x);
        }
        let eps = self
            .number("layer_norm_epsilon")
            .or(self.number("layer_norm_eps"));
        let x = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let variance = (x.sqr()?.mean_keepdim(D::Minus1)? + eps.unwrap_or(1e-5))?;
        let y = x.broadcast_div(&variance.sqrt()?)?.broadcast_mul(weight)?;
        y.broadcast_add(self.parameter(&format!("{name}.bias")))
    }

    fn rms_norm(&self, weight: &Tensor, x: &Tensor) -> Result<Tensor> {
        let square = x.sqr()?.mean_keepdim(D::Minus1)?;
        let root = (square + self.number("rms_norm_eps").unwrap())?.sqrt()?;
        let weight = match self.is(&["gemma2"]) {
            true => (weight + 1.0)?,
            false => weight.clone(),
        };
        x.broadcast_div(&root)?.broadcast_mul(&weight)
    }

    fn block(&self, at: &str, layer: usize, x: Tensor) -> Result<Tensor> {
        let branch = |part: &str, x: &Tensor| match part {
            "attention" => self.attention(at, layer, x),
            _ if self.is(&["mixtral"]) => self.experts(at, x),
            _ => self.mlp(at, x),
        };
        let mut x = x;
        for part in ["attention", "mlp"] {
            let norm = format!("{at}/{part}/norm");
            if self.is(&["bert"]) {
                x = self.norm(&norm, &(branch(part, &x)? + &x)?)?;
                continue;
            }
            let mut y = branch(part, &self.norm(&norm, &x)?)?;
            if self.is(&["gemma2"]) {
                y = self.norm(&format!("{at}/{part}/post_norm"), &y)?;
            }
            x = (x + y)?;
        }
        Ok(x)
    }

    /// (N, heads D) to (B, heads, T, D).
    fn split(&self, x: &Tensor, heads: usize) -> Result<Tensor> {
        let shape = (self.sequences(), self.batch.seq, heads, self.head_width());
        x.reshape(shape)?.transpose(1, 2)?.contiguous()
    }

    fn attention(&self, at: &str, layer: usize, x: &Tensor) -> Result<Tensor> {
        let (heads, kv_heads) = (self.size("heads"), self.size("kv_heads"));
        let biased = self.has_learned_positions();
        let project = |name: &str, heads: usize| {
            let bias = biased || self.is(&["qwen2"]);
            let y = self.linear(&format!("{at}/attention/{name}"), x, bias)?;
            self.split(&y, heads)
        };
        let turned = |name: &str, heads: usize| {
            let mut y = project(name, heads)?;
            if self.is(&["qwen3"]) {
                let weight = self.parameter(&format!("{at}/attention/{name}_norm.weight"));
                y = self.rms_norm(weight, &y)?;
            }
            match self.has_learned_positions() {
                true => Ok(y),
                false => self.rotate(&y),
            }
        };
        let (q, k, v) = (
            turned("q", heads)?,
            turned("k", kv_heads)?,
            project("v", kv_heads)?,
        );
        // Query head h reads key head h / group.
        let group: Vec<u32> = (0..heads)
            .map(|h| (h / (heads / kv_heads)) as u32)
            .collect();
        let group = Tensor::new(group, &Device::Cpu)?;
        let (k, v) = (k.index_select(&group, 1)?, v.index_select(&group, 1)?);
        let mut scores = (q.matmul(&k.t()?.contiguous()?)? * self.scale())?;
        if let Some(cap) = self.number("attn_logit_softcapping") {
            scores = capped(&scores, cap)?;
        }
        let scores = scores.broadcast_add(&self.mask(layer)?)?;
        let top = scores.max_keepdim(D::Minus1)?.detach();
        let weights = scores.broadcast_sub(&top)?.exp()?;
        let weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
        let y = weights.matmul(&v)?.transpose(1, 2)?.contiguous()?;
        let y = y.reshape((self.batch.tokens.len(), heads * self.head_width()))?;
        self.linear(&format!("{at}/attention/o"), &y, biased)
    }

    fn scale(&self) -> f64 {
        let width = self.number("query_pre_attn_scalar");
        1.0 / width.unwrap_or(self.head_width() as f64).sqrt()
    }

    /// 0 where a query sees a key, very low elsewhere: (T, T).
    fn mask(&self, layer: usize) -> Result<Tensor> {
        let seq = self.batch.seq;
        let slides = !self.is(&["gemma2"]) || layer.is_multiple_of(2);
        let window = self.config["sliding_window"]
            .as_u64()
            .filter(|_| slides)
            .map_or(seq, |w| w as usize);
        let sees = |q: usize, k: usize| self.is(&["bert"]) || (k <= q && q - k < window);
        let value = |i: usize| if sees(i / seq, i % seq) { 0.0 } else { -1e30 };
        let values: Vec<f64> = (0..seq * seq).map(value).collect();
        Tensor::from_vec(values, (seq, seq), &Device::Cpu)
    }

    /// Rotary embedding of x (B, heads, T, D): pairs (i, i + dims / 2) turn by position times frequency i.
    fn rotate(&self, x: &Tensor) -> Result<Tensor> {
        let width = self.head_width();
        let share = self.number("partial_rotary_factor").unwrap_or(1.0);
        let dims = (width as f64 * share) as usize;
        let half = dims / 2;
        let mut angles = Vec::new();
        for position in 0..self.batch.seq {
            angles.extend((0..half).map(|i| position as f64 * self.frequency(i, dims)));
        }
        let angles = Tensor::from_vec(angles, (self.batch.seq, half), &Device::Cpu)?;
        let (cos, sin) = (angles.cos()?, angles.sin()?);
        let (a, b) = (x.narrow(3, 0, half)?, x.narrow(3, half, half)?);
        let left = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
        let right = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
        match dims < width {
            true => Tensor::cat(&[left, right, x.narrow(3, dims, width - dims)?], 3),
            false => Tensor::cat(&[left, right], 3),
        }
    }

    /// θ^(-2i / dims), stretched as Llama 3.1's model card states where the config asks for it.
    fn frequency(&self, i: usize, dims: usize) -> f64 {
        let theta = self.number("rope_theta").unwrap_or(10_000.0);
        let plain = theta.powf(-2.0 * i as f64 / dims as f64);
        let scaling = &self.config["rope_scaling"];
        if scaling["rope_type"] != "llama3" {
            return plain;
        }
        let of = |key: &str| scaling[key].as_f64().unwrap();
        let turns = of("original_max_position_embeddings") * plain / std::f64::consts::TAU;
        let (low, high) = (of("low_freq_factor"), of("high_freq_factor"));
        let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
        (1.0 - kept) * plain / of("factor") + kept * plain
    }

    fn mlp(&self, at: &str, x: &Tensor) -> Result<Tensor> {
        let biased = self.has_learned_positions();
        let part = |name: &str| format!("{at}/mlp/{name}");
        let inner = match biased {
            true => self.activation(&self.linear(&part("up"), x, true)?)?,
            false => {
                let gate = self.activation(&self.linear(&part("gate"), x, false)?)?;
                (gate * self.linear(&part("up"), x, false)?)?
            }
        };
        self.linear(&part("down"), &inner, biased)
    }

    fn activation(&self, x: &Tensor) -> Result<Tensor> {
        match self.config["model_type"].as_str().unwrap() {
            "opt" => x.relu(),
            "bert" => x.gelu_erf(),
            "gpt2" | "gemma2" => {
                let inner = ((x * 0.044715)?.mul(&x.sqr()?)? + x)?;
                let tanh = (inner * (2.0 / std::f64::consts::PI).sqrt())?.tanh()?;
                (x * 0.5)?.mul(&(tanh + 1.0)?)
            }
            _ => x.div(&(x.neg()?.exp()? + 1.0)?),
        }
    }

    /// Every expert on every token, weighed by the softmax over the chosen: no sorting, no gathering.
    fn experts(&self, at: &str, x: &Tensor) -> Result<Tensor> {
        let count = self.config["num_local_experts"].as_u64().unwrap() as usize;
        let top_k = self.config["num_experts_per_tok"].as_u64().unwrap() as usize;
        let logits = self.linear(&format!("{at}/mlp/router"), x, false)?;
        let mut chosen = Vec::new();
        for row in logits.to_vec2::<f64>()? {
            let above = |l: f64| row.iter().filter(|&&other| other > l).count();
            chosen.extend(row.iter().map(|&l| f64::from(u8::from(above(l) < top_k))));
        }
        let chosen = Tensor::from_vec(chosen, logits.shape(), &Device::Cpu)?;
        let weights = (logits.exp()? * chosen)?;
        let weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
        let mut sum = x.zeros_like()?;
        for expert in 0..count {
            let matrix = |leaf: &str| {
                let all = self.parameter(&format!("{at}/mlp/experts.{leaf}.weight"));
                all.get(expert)?.t()
            };
            let gate = self.activation(&x.matmul(&matrix("gate")?)?)?;
            let inner = (gate * x.matmul(&matrix("up")?)?)?;
            let y = inner.matmul(&matrix("down")?)?;
            sum = (sum + y.broadcast_mul(&weights.narrow(1, expert, 1)?)?)?;
        }
        Ok(sum)
    }

    fn logits(&self, x: Tensor) -> Result<Tensor> {
        let mut x = x;
        if self.is(&["bert"]) {
            x = self.activation(&self.linear("head/dense", &x, true)?)?;
            x = self.norm("head/transform_norm", &x)?;
        } else {
            x = self.norm("head/norm", &x)?;
        }
        let untied = self.config["tie_word_embeddings"] == false;
        let matrix = match untied {
            true => self.parameter("head/output.weight"),
            false => self.parameter("embedding/token.weight"),
        };
        let logits = x.matmul(&matrix.t()?)?;
        let logits = match self.is(&["bert"]) {
            true => logits.broadcast_add(self.parameter("head/output.bias"))?,
            false => logits,
        };
        match self.number("final_logit_softcapping") {
            Some(cap) => capped(&logits, cap),
            None => Ok(logits),
        }
    }

    fn cross_entropy(&self, logits: &Tensor) -> Result<Tensor> {
        let counts = |t: &u32| *t != u32::MAX;
        let of = |t: &u32| if counts(t) { *t } else { 0 };
        let ids: Vec<u32> = self.batch.targets.iter().map(of).collect();
        let one = |t: &u32| f64::from(u8::from(counts(t)));
        let mask: Vec<f64> = self.batch.targets.iter().map(one).collect();
        let total: f64 = mask.iter().sum();
        let rows = ids.len();
        let ids = Tensor::from_vec(ids, (rows, 1), &Device::Cpu)?;
        let mask = Tensor::from_vec(mask, (rows, 1), &Device::Cpu)?;
        let top = logits.max_keepdim(1)?.detach();
        let sum = logits.broadcast_sub(&top)?.exp()?.sum_keepdim(1)?;
        let losses = ((sum.log()? + top)? - logits.gather(&ids, 1)?)?;
        (losses * mask)?.sum_all()? / total
    }
}

fn capped(x: &Tensor, cap: f64) -> Result<Tensor> {
    (x / cap)?.tanh()? * cap
}

/// `values` of `shape` in f64.
pub fn tensor(values: &[f32], shape: &[u64]) -> Tensor {
    let shape: Vec<usize> = shape.iter().map(|&s| s as usize).collect();
    let narrow = Tensor::from_slice(values, shape, &Device::Cpu).unwrap();
    narrow.to_dtype(DType::F64).unwrap()
}
