//! The parameters of a model by this package's names, and where Hugging Face files keep each of them.

mod adapters;
mod families;
mod mapping;

use crate::error::{Error, Result};
use crate::spec::model::{Head, ModelSpec, NormKind, NormPlacement, Position};

pub use adapters::{Kind, listed, place};
pub use families::spellings;
pub use mapping::{Mapping, Piece, Strip};

/// Names and shapes of parameters, in the model's order.
struct Table<'a> {
    model: &'a ModelSpec,
    rows: Vec<(String, Vec<u64>)>,
}

impl Table<'_> {
    fn of(model: &ModelSpec) -> Table<'_> {
        let rows = Vec::new();
        Table { model, rows }
    }

    fn put(&mut self, name: &str, shape: &[u64]) {
        self.rows.push((name.to_string(), shape.to_vec()));
    }

    /// A projection with weight `[out, in]`.
    fn linear(&mut self, stem: &str, out: u64, inward: u64, bias: bool) {
        self.put(&format!("{stem}.weight"), &[out, inward]);
        if bias {
            self.put(&format!("{stem}.bias"), &[out]);
        }
    }

    /// A norm over the hidden width, of the model's kind.
    fn norm(&mut self, stem: &str) {
        let width = [self.model.hidden];
        self.put(&format!("{stem}.weight"), &width);
        if self.model.norm.kind == NormKind::LayerNorm {
            self.put(&format!("{stem}.bias"), &width);
        }
    }

    fn shape(&self, name: &str) -> Option<&[u64]> {
        let row = self.rows.iter().find(|(known, _)| known == name)?;
        Some(&row.1)
    }
}

/// Names of all parameters, in the order of the forward pass.
pub fn parameters(model: &ModelSpec) -> Vec<String> {
    let name = |(name, _): (String, Vec<u64>)| name;
    let layer = layer(model).rows;
    let layers = (0..model.layers).flat_map(|i| {
        layer
            .iter()
            .map(move |(rest, _)| format!("layers.{i}/{rest}"))
    });
    let first = embedding(model).rows.into_iter().map(name);
    let last = head(model).rows.into_iter().map(name);
    first.chain(layers).chain(last).collect()
}

/// The shape of one parameter.
///
/// # Errors
/// [`Error::Unknown`] where the model has no such parameter.
pub fn shape(model: &ModelSpec, parameter: &str) -> Result<Vec<u64>> {
    let (_, rest) = split(model, parameter)?;
    let table = table(model, parameter);
    let shape = table.shape(rest).ok_or_else(|| unknown(model, parameter))?;
    Ok(shape.to_vec())
}

/// Where Hugging Face files of the model's family keep one parameter: read and written by the same table.
///
/// # Errors
/// [`Error::Unknown`] where the model has no such parameter.
pub fn sources(model: &ModelSpec, parameter: &str) -> Result<Mapping> {
    let (layer, rest) = split(model, parameter)?;
    let table = table(model, parameter);
    let shape = table.shape(rest).ok_or_else(|| unknown(model, parameter))?;
    families::mapping(model.family, layer, rest, shape, &|rest| table.shape(rest))
        .ok_or_else(|| unknown(model, parameter))
}

/// The layer's number, where it is a layer's, and the rest of the name.
fn split<'p>(model: &ModelSpec, parameter: &'p str) -> Result<(Option<u64>, &'p str)> {
    let Some(tail) = parameter.strip_prefix("layers.") else {
        return Ok((None, parameter));
    };
    let layer = tail.split_once('/').and_then(|(number, rest)| {
        let layer: u64 = number.parse().ok().filter(|i| *i < model.layers)?;
        (layer.to_string() == number).then_some((Some(layer), rest))
    });
    layer.ok_or_else(|| unknown(model, parameter))
}

/// The parameters that a name is to be looked up among.
fn table<'a>(model: &'a ModelSpec, parameter: &str) -> Table<'a> {
    if parameter.starts_with("layers.") {
        return layer(model);
    }
    match parameter.starts_with("embedding/") {
        true => embedding(model),
        false => head(model),
    }
}

fn unknown(model: &ModelSpec, parameter: &str) -> Error {
    let known = parameters(model);
    let next = format!(
        "{} has {} parameters by other names",
        model.name,
        known.len()
    );
    Error::unknown(
        "parameter",
        parameter,
        known.iter().map(String::as_str),
        next,
    )
}

fn embedding(model: &ModelSpec) -> Table<'_> {
    let mut table = Table::of(model);
    table.put("embedding/token.weight", &[model.vocab, model.hidden]);
    if let Position::Learned { rows, .. } = model.position {
        table.put("embedding/position.weight", &[rows, model.hidden]);
    }
    if model.token_types > 0 {
        table.put("embedding/type.weight", &[model.token_types, model.hidden]);
    }
    if model.embedding_norm {
        table.norm("embedding/norm");
    }
    table
}

fn layer(model: &ModelSpec) -> Table<'_> {
    let mut table = Table::of(model);
    let sandwich = model.norm_placement == NormPlacement::Sandwich;
    attention(model, &mut table);
    if sandwich {
        table.norm("attention/post_norm");
    }
    table.norm("mlp/norm");
    mlp(model, &mut table);
    if sandwich {
        table.norm("mlp/post_norm");
    }
    table
}

fn attention(model: &ModelSpec, table: &mut Table) {
    let (hidden, wide) = (model.hidden, model.heads * model.head_dim);
    let narrow = model.kv_heads * model.head_dim;
    let at = &model.attention;
    table.norm("attention/norm");
    table.linear("attention/q", wide, hidden, at.qkv_bias);
    table.linear("attention/k", narrow, hidden, at.qkv_bias);
    table.linear("attention/v", narrow, hidden, at.qkv_bias);
    if at.qk_norm {
        table.put("attention/q_norm.weight", &[model.head_dim]);
        table.put("attention/k_norm.weight", &[model.head_dim]);
    }
    table.linear("attention/o", hidden, wide, at.out_bias);
}

fn mlp(model: &ModelSpec, table: &mut Table) {
    let (hidden, inner, bias) = (model.hidden, model.ffn, model.mlp.bias);
    if let Some(experts) = model.experts {
        let count = experts.count;
        table.put("mlp/router.weight", &[count, hidden]);
        table.put("mlp/experts.gate.weight", &[count, inner, hidden]);
        table.put("mlp/experts.up.weight", &[count, inner, hidden]);
        table.put("mlp/experts.down.weight", &[count, hidden, inner]);
        return;
    }
    if model.mlp.gated {
        table.linear("mlp/gate", inner, hidden, bias);
    }
    table.linear("mlp/up", inner, hidden, bias);
    table.linear("mlp/down", hidden, inner, bias);
}

fn head(model: &ModelSpec) -> Table<'_> {
    let mut table = Table::of(model);
    let masked = model.head == Head::MaskedLm;
    if model.final_norm {
        table.norm("head/norm");
    }
    if masked {
        table.linear("head/dense", model.hidden, model.hidden, true);
        table.norm("head/transform_norm");
    }
    if !model.tied {
        table.put("head/output.weight", &[model.vocab, model.hidden]);
    }
    if masked {
        table.put("head/output.bias", &[model.vocab]);
    }
    table
}
