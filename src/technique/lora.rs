//! Low-rank adaptation.

use std::collections::BTreeMap;

use super::frozen::{adapt, beside, freeze, op_of, trains};
use super::{Args, Argument, Card, Draft, Pattern, Site, Technique};
use crate::error::{Error, Result};
use crate::graph::Node;
use crate::graph::build::Forward;
use crate::graph::edit::{Edit, rewrite};
use crate::graph::op::dropout::Dropout;
use crate::graph::op::elementwise::{Add, Scale};
use crate::graph::op::linear_add::LinearAdd;
use crate::graph::op::matmul::Linear;
use crate::graph::op::moe::GroupedLinear;
use crate::graph::tensor::{First, Name, TensorId, Type};
use crate::spec::job::Exactness;
use crate::spec::modules::{Module, targeted};

/// Low-rank updates beside frozen weights.
pub struct Lora;

/// Its arguments, read.
struct Settings {
    modules: Vec<Module>,
    rank: u64,
    scale: f64,
    dropout: f64,
}

impl Lora {
    fn settings(&self, draft: &Draft, args: &Args) -> Result<Settings> {
        let card = self.card();
        let rank: u64 = args.number(&card, "rank", (1, 1 << 16))?;
        let alpha: f64 = args.number(&card, "alpha", (0.0, 1e6))?;
        let dropout: f64 = args.number(&card, "dropout", (0.0, 0.99))?;
        Ok(Settings {
            modules: targeted(draft.family, args.text(&card, "targets"))?,
            rank,
            scale: alpha / rank as f64,
            dropout,
        })
    }
}

impl Technique for Lora {
    fn card(&self) -> Card {
        Card {
            name: "lora",
            aliases: &["low_rank_adaptation"],
            summary: "freezes the model and trains a product of two narrow matrices beside each targeted linear layer",
            source: "Hu et al. 2021, arXiv:2106.09685; modules and defaults as in PEFT 0.21",
            exactness: Exactness::Lossy,
            site: Site::Forward,
            arguments: &[
                Argument {
                    key: "targets",
                    default: "usual",
                    meaning: "modules joined by +, such as q_proj+v_proj | all-linear | usual: PEFT's for the family",
                },
                Argument {
                    key: "rank",
                    default: "8",
                    meaning: "columns of the narrow matrices",
                },
                Argument {
                    key: "alpha",
                    default: "8",
                    meaning: "the product is multiplied by alpha / rank",
                },
                Argument {
                    key: "dropout",
                    default: "0",
                    meaning: "rate at which elements of its input are dropped",
                },
            ],
        }
    }

    fn draft(&self, draft: &mut Draft, args: &Args) -> Result<()> {
        self.settings(draft, args)?;
        adapt(draft, "lora")
    }

    fn forward(
        &self,
        forward: &mut Forward,
        sites: &Pattern,
        draft: &Draft,
        args: &Args,
    ) -> Result<()> {
        let mut settings = self.settings(draft, args)?;
        if !trains(&forward.step) {
            settings.dropout = 0.0;
        }
        freeze(forward);
        let mut adapters = Adapters {
            settings,
            narrow: BTreeMap::new(),
            parameters: Vec::new(),
        };
        rewrite(&mut forward.step, |edit, node| {
            match adapters
                .module(&node)
                .filter(|_| sites.matches(&node.origin))
            {
                Some(index) => adapters.adapt(edit, node, index),
                None => edit.keep(node),
            }
        })?;
        forward.parameters = adapters.parameters;
        match forward.parameters.is_empty() {
            false => Ok(()),
            true => Err(Error::value(
                "site of `lora`",
                sites,
                "no targeted module matches it",
                "name layers, such as layers.* or layers.0-11",
            )),
        }
    }
}

/// The low-rank updates of a forward pass so far.
struct Adapters {
    settings: Settings,
    /// What the first matrix of each module made, for modules that are several of our layers.
    narrow: BTreeMap<(Name, usize), TensorId>,
    parameters: Vec<TensorId>,
}

impl Adapters {
    /// The targeted module that a linear node is of.
    fn module(&self, node: &Node) -> Option<usize> {
        let linear = op_of::<Linear>(node).is_some() || op_of::<GroupedLinear>(node).is_some();
        let layered = node.block.starts_with("layers.");
        let leaf = match layered {
            true => node.origin.strip_prefix(&*node.block)?.strip_prefix('/')?,
            false => &node.origin,
        };
        let is = |m: &Module| m.layered == layered && m.ours.contains(&leaf);
        self.settings.modules.iter().position(is).filter(|_| linear)
    }

    /// A new parameter of the node's layer.
    fn parameter(&mut self, edit: &mut Edit, name: String, at: Type, first: First) -> TensorId {
        let id = edit.parameter(&name, at, first);
        self.parameters.push(id);
        id
    }

    /// Keeps `node` and adds its low-rank update to what it makes.
    fn adapt(&mut self, edit: &mut Edit, node: Node, index: usize) -> Result<()> {
        let (weight, y) = (edit.type_of(node.inputs[1]), node.outputs[0]);
        edit.keep(node.clone())?;
        let z = self.narrow(edit, &node, index, &weight)?;
        let mut shape = weight.shape.clone();
        *shape.last_mut().unwrap_or(&mut 0) = self.settings.rank;
        let name = format!("{}.lora_b.weight", node.origin);
        let b = self.parameter(edit, name, Type::new(&shape, weight.dtype), First::Zero);
        let spot = |leaf: &str| beside(&node, format!("{}.{leaf}", node.origin));
        let sum = match op_of::<GroupedLinear>(&node) {
            None => edit.emit(LinearAdd, &[z, b, y], spot("lora_b"))?,
            Some(_) => {
                let part = edit.emit(GroupedLinear, &[z, b, node.inputs[2]], spot("lora_b"))?;
                edit.emit(Add, &[part, y], spot("lora_add"))?
            }
        };
        edit.replace(y, sum);
        Ok(())
    }

    /// The input times the first matrix and the scale, made once for each module.
    fn narrow(
        &mut self,
        edit: &mut Edit,
        node: &Node,
        index: usize,
        weight: &Type,
    ) -> Result<TensorId> {
        let key = (node.block.clone(), index);
        if let Some(&z) = self.narrow.get(&key) {
            return Ok(z);
        }
        let Settings {
            rank,
            scale,
            dropout,
            ..
        } = self.settings;
        let spot = |leaf: &str| beside(node, format!("{}.{leaf}", node.origin));
        let mut x = node.inputs[0];
        if dropout > 0.0 {
            let op = Dropout {
                rate: dropout,
                in_place: false,
            };
            x = edit.emit(op, &[x], spot("lora_dropout"))?;
        }
        let mut shape = weight.shape.clone();
        let columns = weight.columns();
        let rows = shape.len() - 2;
        shape[rows] = rank;
        let name = format!("{}.lora_a.weight", node.origin);
        // PyTorch's own first values of a linear layer, as PEFT leaves them: He et al. 2015 with slope √5.
        let first = First::Uniform((1.0 / columns as f64).sqrt() as f32);
        let a = self.parameter(edit, name, Type::new(&shape, weight.dtype), first);
        let mut z = match op_of::<GroupedLinear>(node) {
            None => edit.emit(Linear { bias: false }, &[x, a], spot("lora_a"))?,
            Some(_) => edit.emit(GroupedLinear, &[x, a, node.inputs[2]], spot("lora_a"))?,
        };
        if scale != 1.0 {
            let op = Scale {
                by: scale,
                in_place: true,
                format: None,
            };
            z = edit.emit(op, &[z], spot("lora_scale"))?;
        }
        self.narrow.insert(key, z);
        Ok(z)
    }
}
