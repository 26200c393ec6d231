//! Facts about what is known by name: models, devices, techniques.

use serde::Serialize;

use super::choice::class_name;
use super::job::parameters;
use crate::error::Result;
use crate::machine::composition::{self, Pair};
use crate::plan::Choice;
use crate::spec::device::{self, Device};
use crate::spec::job::Exactness;
use crate::spec::units::Bytes;
use crate::spec::{catalog, model::ModelSpec};
use crate::technique::{Card, RECIPES, Recipe, TECHNIQUES};

/// A model.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(missing_docs)] // the fields are those of `ModelSpec`
pub struct ModelFacts {
    pub name: &'static str,
    pub aliases: Vec<&'static str>,
    pub family: String,
    /// Counted in the graph.
    pub parameters: u64,
    pub layers: u64,
    pub hidden: u64,
    pub heads: u64,
    pub kv_heads: u64,
    pub head_dim: u64,
    pub ffn: u64,
    pub vocab: u64,
    pub max_positions: u64,
    /// Experts of a layer; 1 without.
    pub experts: u64,
    pub tied: bool,
}

/// All models, in the order they are listed.
///
/// # Errors
/// Where an embedded config is broken.
pub fn models() -> Result<Vec<ModelFacts>> {
    catalog::names().map(model).collect()
}

fn model(name: &'static str) -> Result<ModelFacts> {
    let spec: ModelSpec = catalog::find(name)?;
    let others = catalog::aliases().filter(|(alias, of)| *of == name && *alias != name);
    Ok(ModelFacts {
        name,
        aliases: others.map(|(alias, _)| alias).collect(),
        family: format!("{:?}", spec.family).to_lowercase(),
        parameters: parameters(&spec),
        layers: spec.layers,
        hidden: spec.hidden,
        heads: spec.heads,
        kv_heads: spec.kv_heads,
        head_dim: spec.head_dim,
        ffn: spec.ffn,
        vocab: spec.vocab,
        max_positions: spec.max_positions,
        experts: spec.experts.map_or(1, |e| e.count),
        tied: spec.tied,
    })
}

/// A device: its table entry, and what a plan may fill.
#[derive(Debug, Clone, Serialize)]
pub struct DeviceFacts {
    /// Memory less what is reserved.
    pub budget: Bytes,
    /// The entry.
    #[serde(flatten)]
    pub device: &'static Device,
}

/// All devices, in the order they are listed.
pub fn devices() -> Vec<DeviceFacts> {
    let facts = |device: &'static Device| DeviceFacts {
        budget: device.budget(),
        device,
    };
    device::all().map(facts).collect()
}

/// A technique: its card.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(missing_docs)] // the fields are those of `Card`
pub struct TechniqueFacts {
    pub name: &'static str,
    pub aliases: &'static [&'static str],
    pub summary: &'static str,
    pub source: &'static str,
    pub exactness: &'static str,
    pub arguments: Vec<ArgumentFacts>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub composed_of: &'static [&'static str],
}

/// One argument of a technique.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(missing_docs)] // the fields are those of `Argument`
pub struct ArgumentFacts {
    pub key: &'static str,
    pub default: &'static str,
    pub meaning: &'static str,
}

/// All techniques, in the order they are shown and applied, then the recipes.
pub fn techniques() -> Vec<TechniqueFacts> {
    let techniques = TECHNIQUES.iter().map(|t| technique(&t.card()));
    techniques.chain(RECIPES.iter().map(recipe)).collect()
}

/// A recipe: its class is the laxest of its parts.
fn recipe(recipe: &Recipe) -> TechniqueFacts {
    let class = |part: &&str| Choice::parse(part).and_then(|c| Ok(c.behind()?.card().exactness));
    let classes = recipe
        .composed_of
        .iter()
        .filter_map(|part| class(part).ok());
    TechniqueFacts {
        name: recipe.name,
        aliases: recipe.aliases,
        summary: recipe.summary,
        source: recipe.source,
        exactness: class_name(classes.max().unwrap_or(Exactness::Lossy)),
        arguments: Vec::new(),
        composed_of: recipe.composed_of,
    }
}

/// Two techniques that exclude each other.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(missing_docs)] // the fields are those of `Pair`
pub struct RefusedPair {
    pub one: &'static str,
    pub other: &'static str,
    pub why: String,
}

/// The pairs of techniques that do not compose; all others do.
///
/// # Errors
/// Where they cannot be tried.
pub fn refused() -> Result<Vec<RefusedPair>> {
    let refused = |pair: Pair| {
        let Pair {
            one,
            other,
            refusal,
        } = pair;
        refusal.map(|why| RefusedPair { one, other, why })
    };
    Ok(composition::pairs()?
        .into_iter()
        .filter_map(refused)
        .collect())
}

fn technique(card: &Card) -> TechniqueFacts {
    let argument = |a: &crate::technique::Argument| ArgumentFacts {
        key: a.key,
        default: a.default,
        meaning: a.meaning,
    };
    TechniqueFacts {
        name: card.name,
        aliases: card.aliases,
        summary: card.summary,
        source: card.source,
        exactness: class_name(card.exactness),
        arguments: card.arguments.iter().map(argument).collect(),
        composed_of: &[],
    }
}
