//! Bottleneck adapters.

use super::frozen::{adapt, beside, freeze};
use super::{Args, Argument, Card, Draft, Pattern, Site, Technique};
use crate::error::{Error, Result};
use crate::graph::Node;
use crate::graph::build::Forward;
use crate::graph::edit::{Edit, rewrite};
use crate::graph::op::activation::Act;
use crate::graph::op::elementwise::Add;
use crate::graph::op::matmul::Linear;
use crate::graph::tensor::{First, TensorId, Type};
use crate::spec::job::Exactness;
use crate::spec::model::Activation;

/// Two narrow layers before each residual sum.
pub struct Adapter;

/// Standard deviation of its first weights: nearly the identity (Houlsby et al. 2019, section 2.1).
const SPREAD: f32 = 1e-2;

/// Its arguments, read.
struct Settings {
    width: u64,
    kind: Activation,
    residual: bool,
    both: bool,
}

impl Adapter {
    fn settings(&self, args: &Args) -> Result<Settings> {
        let card = self.card();
        let kind = args.word(&card, "activation", &["gelu", "relu", "silu"])?;
        Ok(Settings {
            width: args.number(&card, "width", (1, 1 << 16))?,
            kind: match kind {
                "relu" => Activation::Relu,
                "silu" => Activation::Silu,
                _ => Activation::Gelu,
            },
            residual: args.word(&card, "residual", &["yes", "no"])? == "yes",
            both: args.word(&card, "after", &["both", "mlp"])? == "both",
        })
    }
}

impl Technique for Adapter {
    fn card(&self) -> Card {
        Card {
            name: "adapter",
            aliases: &["bottleneck"],
            summary: "freezes the model and trains two narrow layers with an activation between them before each residual sum",
            source: "Houlsby et al. 2019, arXiv:1902.00751; after the MLP alone: Pfeiffer et al. 2020, arXiv:2005.00247",
            exactness: Exactness::Lossy,
            site: Site::Forward,
            arguments: &[
                Argument {
                    key: "width",
                    default: "64",
                    meaning: "columns between the two layers",
                },
                Argument {
                    key: "activation",
                    default: "gelu",
                    meaning: "gelu | relu | silu",
                },
                Argument {
                    key: "residual",
                    default: "yes",
                    meaning: "no: leave out the sum with the adapter's input",
                },
                Argument {
                    key: "after",
                    default: "both",
                    meaning: "both: attention and MLP | mlp",
                },
            ],
        }
    }

    fn draft(&self, draft: &mut Draft, args: &Args) -> Result<()> {
        self.settings(args)?;
        adapt(draft, "adapter")
    }

    fn forward(
        &self,
        forward: &mut Forward,
        sites: &Pattern,
        _: &Draft,
        args: &Args,
    ) -> Result<()> {
        let settings = self.settings(args)?;
        freeze(forward);
        let mut parameters = Vec::new();
        rewrite(&mut forward.step, |edit, mut node| {
            let branch = node.origin.strip_suffix("/residual");
            let branch = branch.filter(|b| settings.both || b.ends_with("mlp"));
            if let Some(branch) = branch.filter(|b| sites.matches(b)) {
                let branch = branch.to_string();
                node.inputs[1] = settings.insert(edit, &node, &branch, &mut parameters)?;
            }
            edit.keep(node)
        })?;
        forward.parameters = parameters;
        match forward.parameters.is_empty() {
            false => Ok(()),
            true => Err(Error::value(
                "site of `adapter`",
                sites,
                "no branch of a layer matches it",
                "name layers, such as layers.* or layers.0-11/mlp",
            )),
        }
    }
}

impl Settings {
    /// The adapted value of what the residual sum adds.
    fn insert(
        &self,
        edit: &mut Edit,
        node: &Node,
        branch: &str,
        parameters: &mut Vec<TensorId>,
    ) -> Result<TensorId> {
        let y = node.inputs[1];
        let (hidden, dtype) = (edit.type_of(y).columns(), edit.type_of(y).dtype);
        let mut parameter = |edit: &mut Edit, leaf: &str, shape: &[u64], first: First| {
            let name = format!("{branch}/adapter.{leaf}");
            parameters.push(edit.parameter(&name, Type::new(shape, dtype), first));
            parameters[parameters.len() - 1]
        };
        let spread = First::Normal(SPREAD);
        let down = parameter(edit, "down.weight", &[self.width, hidden], spread.clone());
        let down_bias = parameter(edit, "down.bias", &[self.width], First::Zero);
        let up = parameter(edit, "up.weight", &[hidden, self.width], spread);
        let up_bias = parameter(edit, "up.bias", &[hidden], First::Zero);
        let spot = |leaf: &str| beside(node, format!("{branch}/adapter.{leaf}"));
        let linear = Linear { bias: true };
        let inner = edit.emit(linear.clone(), &[y, down, down_bias], spot("down"))?;
        let inner = edit.emit(Act { kind: self.kind }, &[inner], spot("act"))?;
        let made = edit.emit(linear, &[inner, up, up_bias], spot("up"))?;
        match self.residual {
            true => edit.emit(Add, &[y, made], spot("residual")),
            false => Ok(made),
        }
    }
}
