//! Prompt tuning.

use std::sync::Arc;

use super::frozen::{adapt, beside, freeze, op_of};
use super::prefix_tuning::fits;
use super::{Args, Argument, Card, Draft, Pattern, Site, Technique};
use crate::error::{Error, Result};
use crate::graph::Node;
use crate::graph::build::Forward;
use crate::graph::edit::{Edit, rewrite};
use crate::graph::op::attention::Attention;
use crate::graph::op::embedding::{Embedding, PositionEmbedding};
use crate::graph::op::prepend::{Prepend, Trim};
use crate::graph::op::rope::Rope;
use crate::graph::tensor::{First, TensorId, Type};
use crate::spec::job::Exactness;

/// Trained rows before the embedding of each sequence.
pub struct PromptTuning;

/// Where the trained rows are.
const PROMPT: &str = "embedding/prompt.weight";

impl Technique for PromptTuning {
    fn card(&self) -> Card {
        Card {
            name: "prompt_tuning",
            aliases: &["soft_prompt"],
            summary: "freezes the model and trains embeddings of virtual tokens before each sequence; they have no targets",
            source: "Lester et al. 2021, arXiv:2104.08691; as in PEFT 0.21",
            exactness: Exactness::Lossy,
            site: Site::Forward,
            arguments: &[
                Argument {
                    key: "tokens",
                    default: "20",
                    meaning: "virtual tokens before each sequence",
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
        adapt(draft, "prompt_tuning")
    }

    fn forward(
        &self,
        forward: &mut Forward,
        sites: &Pattern,
        _: &Draft,
        args: &Args,
    ) -> Result<()> {
        let card = self.card();
        let (tokens, spread) = (
            args.number(&card, "tokens", (1, 1 << 20))?,
            args.number(&card, "spread", (0.0, 1e3))?,
        );
        let shape = forward.step.nodes.iter().find_map(op_of::<Attention>);
        let batch = shape.map_or(1, |attention| attention.shape.batch);
        if !sites.matches("embedding") {
            let why = "virtual tokens enter with the embedding";
            return Err(Error::value(
                "site of `prompt_tuning`",
                sites,
                why,
                "leave the site out",
            ));
        }
        freeze(forward);
        let mut prompt = Prompt {
            tokens,
            spread,
            batch,
            trimmed: false,
            parameters: Vec::new(),
        };
        rewrite(&mut forward.step, |edit, node| prompt.node(edit, node))?;
        forward.parameters = prompt.parameters;
        Ok(())
    }
}

/// What a forward pass is given in virtual tokens.
struct Prompt {
    tokens: u64,
    spread: f32,
    batch: u64,
    /// Whether they have been left out again, which the head never sees.
    trimmed: bool,
    parameters: Vec<TensorId>,
}

impl Prompt {
    fn node(&mut self, edit: &mut Edit, node: Node) -> Result<()> {
        if op_of::<Embedding>(&node).is_some() {
            return self.enter(edit, node);
        }
        if &*node.block == "head" && !self.trimmed && !node.inputs.is_empty() {
            self.trimmed = true;
            return self.leave(edit, node);
        }
        edit.keep(self.lengthened(edit, node)?)
    }

    /// The embedding, behind the virtual tokens. A family that scales its embedding (Gemma) does so inside the embedding's own class in
    /// transformers 5, which PEFT's virtual tokens do not pass through: they stay as they are.
    fn enter(&mut self, edit: &mut Edit, node: Node) -> Result<()> {
        let x = node.outputs[0];
        edit.keep(node.clone())?;
        let at = edit.type_of(x);
        let at = Type::new(&[self.tokens, at.columns()], at.dtype);
        let prompt = edit.parameter(PROMPT, at, First::Normal(self.spread));
        self.parameters.push(prompt);
        let op = Prepend { batch: self.batch };
        let made = edit.emit(op, &[prompt, x], beside(&node, "embedding/prompt".into()))?;
        edit.replace(x, made);
        Ok(())
    }

    /// The first node of the head reads the sequence without the virtual tokens.
    fn leave(&self, edit: &mut Edit, mut node: Node) -> Result<()> {
        let x = node.inputs[0];
        let op = Trim {
            batch: self.batch,
            rows: self.tokens,
        };
        let made = edit.emit(op, &[x], beside(&node, "head/trim".into()))?;
        edit.replace(x, made);
        node.inputs[0] = made;
        edit.keep(node)
    }

    /// A node of longer sequences.
    fn lengthened(&self, edit: &Edit, mut node: Node) -> Result<Node> {
        if let Some(rope) = op_of::<Rope>(&node) {
            node.op = Arc::new(Rope {
                seq: rope.seq + self.tokens,
                ..rope.clone()
            });
        } else if let Some(attention) = op_of::<Attention>(&node) {
            let mut shape = attention.shape.clone();
            shape.seq += self.tokens;
            node.op = Arc::new(Attention { shape });
        } else if let Some(learned) = op_of::<PositionEmbedding>(&node)
            && node.origin.ends_with("/position")
        {
            let (rows, op) = (edit.type_of(node.inputs[1]).rows(), learned.clone());
            fits(op.offset + op.seq + self.tokens, rows)?;
            node.op = Arc::new(PositionEmbedding {
                seq: op.seq + self.tokens,
                ..op
            });
        }
        Ok(node)
    }
}
