//! Prefix tuning.

use std::sync::Arc;

use super::frozen::{adapt, beside, freeze, op_of};
use super::{Args, Argument, Card, Draft, Pattern, Site, Technique};
use crate::error::{Error, Result};
use crate::graph::Node;
use crate::graph::build::Forward;
use crate::graph::edit::{Edit, rewrite};
use crate::graph::op::attention::Attention;
use crate::graph::op::embedding::PositionEmbedding;
use crate::graph::op::prepend::Prepend;
use crate::graph::op::rope::Rope;
use crate::graph::tensor::{First, TensorId, Type};
use crate::spec::job::Exactness;

/// Keys and values that every layer sees before its own.
pub struct PrefixTuning;

impl Technique for PrefixTuning {
    fn card(&self) -> Card {
        Card {
            name: "prefix_tuning",
            aliases: &["prefix"],
            summary: "freezes the model and trains keys and values that each layer sees before those of the sequence",
            source: "Li and Liang 2021, arXiv:2101.00190, without reparametrization; as in PEFT 0.21",
            exactness: Exactness::Lossy,
            site: Site::Forward,
            arguments: &[
                Argument {
                    key: "tokens",
                    default: "20",
                    meaning: "keys and values before each sequence",
                },
                Argument {
                    key: "spread",
                    default: "1",
                    meaning: "standard deviation of their first values",
                },
            ],
        }
    }

    fn draft(&self, draft: &mut Draft, _: &Args) -> Result<()> {
        adapt(draft, "prefix_tuning")
    }

    fn forward(
        &self,
        forward: &mut Forward,
        sites: &Pattern,
        _: &Draft,
        args: &Args,
    ) -> Result<()> {
        let card = self.card();
        let mut prefix = Prefix {
            tokens: args.number(&card, "tokens", (1, 1 << 20))?,
            spread: args.number(&card, "spread", (0.0, 1e3))?,
            parameters: Vec::new(),
        };
        let layers = forward
            .step
            .nodes
            .iter()
            .filter(|n| op_of::<Attention>(n).is_some());
        if layers.clone().any(|n| !sites.matches(&n.origin)) {
            let why = "the prefix moves the positions of all layers";
            return Err(Error::value(
                "site of `prefix_tuning`",
                sites,
                why,
                "leave the site out",
            ));
        }
        freeze(forward);
        rewrite(&mut forward.step, |edit, node| prefix.node(edit, node))?;
        forward.parameters = prefix.parameters;
        Ok(())
    }
}

/// The prefixes of a forward pass so far.
struct Prefix {
    tokens: u64,
    spread: f32,
    parameters: Vec<TensorId>,
}

impl Prefix {
    /// A node of the model: positions begin behind the prefix, which attention sees.
    fn node(&mut self, edit: &mut Edit, mut node: Node) -> Result<()> {
        if let Some(rope) = op_of::<Rope>(&node) {
            node.op = Arc::new(Rope {
                first: rope.first + self.tokens,
                ..rope.clone()
            });
        }
        let learned = op_of::<PositionEmbedding>(&node);
        if let Some(learned) = learned.filter(|_| node.origin.ends_with("/position")) {
            let (rows, op) = (edit.type_of(node.inputs[1]).rows(), learned.clone());
            fits(op.offset + op.seq + self.tokens, rows)?;
            node.op = Arc::new(PositionEmbedding {
                offset: op.offset + self.tokens,
                ..op
            });
        }
        if let Some(attention) = op_of::<Attention>(&node) {
            let mut shape = attention.shape.clone();
            node.inputs[1] = self.before(edit, &node, 1, shape.batch)?;
            node.inputs[2] = self.before(edit, &node, 2, shape.batch)?;
            shape.past += self.tokens;
            node.op = Arc::new(Attention { shape });
        }
        edit.keep(node)
    }

    /// Input `index` of attention, keys (1) or values (2), behind its prefix.
    fn before(
        &mut self,
        edit: &mut Edit,
        node: &Node,
        index: usize,
        batch: u64,
    ) -> Result<TensorId> {
        let at = edit.type_of(node.inputs[index]);
        let name = format!("{}/attention/prefix.{}", node.block, ["k", "v"][index - 1]);
        let at = Type::new(&[self.tokens, at.columns()], at.dtype);
        let prefix = edit.parameter(&name, at, First::Normal(self.spread));
        self.parameters.push(prefix);
        let inputs = [prefix, node.inputs[index]];
        edit.emit(Prepend { batch }, &inputs, beside(node, name))
    }
}

/// Fails where a learned table has fewer `rows` than the positions wanted.
pub(super) fn fits(positions: u64, rows: u64) -> Result<()> {
    if positions <= rows {
        return Ok(());
    }
    let why = format!("the model's table of positions has {rows} rows");
    let next = "use a shorter sequence or fewer virtual tokens";
    Err(Error::value("positions", positions, why, next))
}
