//! LSP-Offload: gradients between sparse projectors, Adam on the host, steps back between the same projectors.

use super::adamw::{Adam, BETA1, BETA2, DECAY, EPS};
use super::frozen::{beside, op_of, trains};
use super::galore::is_projected;
use super::{Args, Argument, Card, Draft, Pattern, Renewal, Site, Technique, Update};
use crate::error::{Error, Result};
use crate::graph::build::Forward;
use crate::graph::edit::{Edit, rewrite};
use crate::graph::op::matmul::Linear;
use crate::graph::op::optimizer::lsp::{AdamStep, ApplyProjected, Renew, TakeStep};
use crate::graph::op::sparse::{ProjectedLinear, SparseProject, sparse_types};
use crate::graph::tensor::{DType, TensorId, Type};
use crate::graph::{Node, Stream};
use crate::spec::job::{Exactness, Place};

/// Gradients of attention and MLP matrices W (m, n) as `Pᵀ ∇W Q` (d, d), P and Q with `nonzeros` entries in each row.
///
/// A layer keeps `x Q` in place of its input x, and no gradient of W's size is made. The projected gradient goes to the host, where the
/// moments lie and Adam's step takes its place; the device adds `P step Qᵀ` to W. Layer by layer all this runs beside the backward
/// pass: steps are taken `delay` blocks after their gradients. What then still runs ends before the step does; the authors let late
/// layers go on into the next step's forward pass, which programs that end with nothing in flight do not have.
///
/// Every `check` steps a program of its own makes whole gradients, one at a time, and fits projectors that leave too much of them out.
/// In the authors' runtime the first projectors are random; here they are fitted before the first step as all later ones are. Adam is
/// in PyTorch's form, where their host kernel has eps inside the root.
pub struct LspOffload;

impl Technique for LspOffload {
    fn card(&self) -> Card {
        Card {
            name: "lsp_offload",
            aliases: &["lsp"],
            summary: "sends gradients of attention and MLP matrices to the host between fitted sparse projectors, steps there and brings steps back, layer by layer beside the backward pass",
            source: "Chen et al. 2024, arXiv:2406.10181; github.com/gulang2019/LSP-Offload @ d9dc92a",
            exactness: Exactness::Lossy,
            site: Site::Update,
            arguments: &ARGUMENTS,
        }
    }

    fn draft(&self, draft: &mut Draft, args: &Args) -> Result<()> {
        let choice = Choice::read(args, &self.card())?;
        let refused = |other: &str, why: &str, next: &str| Error::Conflict {
            one: "lsp_offload".to_string(),
            other: other.to_string(),
            why: why.to_string(),
            next: next.to_string(),
        };
        if let Some(adapter) = draft.adapter {
            let why = "it projects gradients of the model's own matrices, which an adapter freezes";
            return Err(refused(adapter, why, "keep one of them"));
        }
        if !choice.layerwise {
            let why = "schedule=after updates behind the whole backward pass";
            return match draft.fused_update {
                true => Err(refused("fused_update", why, "use schedule=layerwise")),
                false => Ok(()),
            };
        }
        let other = match (draft.max_norm, draft.loss_scale) {
            (Some(_), _) => "clip",
            (None, true) => "fp16 loss scaling",
            (None, false) => {
                draft.fused_update = true;
                return Ok(());
            }
        };
        let why = "layer by layer, steps are made before all gradients are known";
        Err(refused(other, why, "use lsp_offload:schedule=after"))
    }

    fn forward(&self, forward: &mut Forward, _: &Pattern, _: &Draft, args: &Args) -> Result<()> {
        let choice = Choice::read(args, &self.card())?;
        if !trains(&forward.step) {
            return Ok(());
        }
        rewrite(&mut forward.step, |edit, node| {
            let linear = op_of::<Linear>(&node).cloned();
            match linear.filter(|_| reads_projected(edit, &node)) {
                Some(linear) => choice.project(edit, node, &linear),
                None => edit.keep(node),
            }
        })
    }

    fn update(&self, at: &mut Update, args: &Args) -> Result<()> {
        let choice = Choice::read(args, &self.card())?;
        match (is_projected(&at.name(), &at.at()), choice.rest_on_host) {
            (true, _) => choice.update(at),
            (false, true) => choice.update_on_host(at),
            (false, false) => choice.adam.update(at),
        }
    }

    fn renewal(&self, args: &Args) -> Result<Option<Renewal>> {
        Ok(Some(Renewal {
            period: args.number(&self.card(), "check", (1, 1 << 30))?,
            of: is_projected,
        }))
    }

    fn renew(&self, at: &mut Update, args: &Args) -> Result<()> {
        Choice::read(args, &self.card())?.renew(at)
    }
}

/// Its arguments.
const ARGUMENTS: [Argument; 13] = [
    Argument {
        key: "d",
        default: "half",
        meaning: "columns of the projectors: half of a matrix's smaller side, or a number up to that side",
    },
    Argument {
        key: "nonzeros",
        default: "4",
        meaning: "non-zeros in a row of a projector (r)",
    },
    Argument {
        key: "schedule",
        default: "layerwise",
        meaning: "layerwise: beside the backward pass | after: behind it, as clip and loss scales need it",
    },
    Argument {
        key: "delay",
        default: "2",
        meaning: "with layerwise: blocks of the backward pass from a gradient to its step",
    },
    Argument {
        key: "rest",
        default: "host",
        meaning: "where moments of all other parameters lie and their steps are made: host | device",
    },
    Argument {
        key: "check",
        default: "1000",
        meaning: "steps from one look at the projectors to the next",
    },
    Argument {
        key: "threshold",
        default: "0.2",
        meaning: "share of a gradient that projectors may leave out (alpha)",
    },
    Argument {
        key: "beta",
        default: "1e-6",
        meaning: "weight of the projectors' squares while they are fitted",
    },
    Argument {
        key: "fit",
        default: "100",
        meaning: "steps of a fit at most",
    },
    BETA1,
    BETA2,
    EPS,
    Argument {
        default: "0",
        ..DECAY
    },
];

/// Whether the weight that a linear node reads is one whose gradient is projected.
fn reads_projected(edit: &Edit, node: &Node) -> bool {
    let weight = node.inputs[1];
    is_projected(&edit.step().storage_of(weight).name, &edit.type_of(weight))
}

/// What a choice says.
struct Choice {
    adam: Adam,
    /// Columns of the projectors; `None` for half of the smaller side.
    width: Option<u64>,
    nonzeros: u64,
    layerwise: bool,
    delay: usize,
    rest_on_host: bool,
    threshold: f64,
    beta: f64,
    fit: u32,
}

/// The projectors of one matrix: values and columns of P and Q.
struct Projectors {
    width: u64,
    all: [TensorId; 4],
}

/// The states that a matrix's projectors are.
const STATES: [&str; 4] = ["lsp_p", "lsp_p_index", "lsp_q", "lsp_q_index"];

impl Choice {
    fn read(args: &Args, card: &Card) -> Result<Choice> {
        let width = match args.text(card, "d") {
            "half" => None,
            _ => Some(args.number(card, "d", (1, 1 << 16))?),
        };
        Ok(Choice {
            adam: Adam::read(args, card)?,
            width,
            nonzeros: args.number(card, "nonzeros", (1, 256))?,
            layerwise: args.word(card, "schedule", &["layerwise", "after"])? == "layerwise",
            delay: args.number(card, "delay", (0, 1 << 20))?,
            rest_on_host: args.word(card, "rest", &["host", "device"])? == "host",
            threshold: args.number(card, "threshold", (0.0, 1e6))?,
            beta: args.number(card, "beta", (0.0, 1e6))?,
            fit: args.number(card, "fit", (0, 1 << 20))?,
        })
    }

    /// Columns of the projectors of a matrix, and types of their values and columns.
    fn types(&self, weight: &Type) -> (u64, [Type; 4]) {
        let side = weight.rows().min(weight.columns());
        let width = self
            .width
            .unwrap_or(side / 2)
            .clamp(1, side.clamp(1, 1 << 16));
        let per_row = self.nonzeros.min(width);
        let of = |rows| sparse_types(rows, per_row, weight.dtype);
        let ([p, p_at], [q, q_at]) = (of(weight.rows()), of(weight.columns()));
        (width, [p, p_at, q, q_at])
    }

    /// The layer with its gradient projected, behind the projection of its input.
    fn project(&self, edit: &mut Edit, mut node: Node, linear: &Linear) -> Result<()> {
        let weight = node.inputs[1];
        let name = edit.step().storage_of(weight).name.clone();
        let (width, types) = self.types(&edit.type_of(weight));
        let state = |i: usize| edit.state(&format!("{name}.{}", STATES[i]), types[i].clone());
        let all: [TensorId; 4] = [0, 1, 2, 3].map(state);
        let [p, p_at, q, q_at] = all;
        let spot = beside(&node, format!("{}.lsp_input", node.origin));
        let input = [node.inputs[0], q, q_at];
        let xq = edit.emit(SparseProject { width }, &input, spot)?;
        let bias = node.inputs.split_off(2);
        node.inputs.extend([xq, p, p_at].into_iter().chain(bias));
        node.op = std::sync::Arc::new(ProjectedLinear {
            width,
            bias: linear.bias,
        });
        edit.keep(node)
    }

    /// The projectors of the matrix that is updated.
    fn projectors(&self, at: &mut Update) -> Projectors {
        let (width, types) = self.types(&at.at());
        let all = [0, 1, 2, 3].map(|i| at.state(STATES[i], types[i].clone()));
        Projectors { width, all }
    }

    /// The update of a projected matrix.
    fn update(&self, at: &mut Update) -> Result<()> {
        let Projectors { all, .. } = self.projectors(at);
        let step = self.step_on_host(at)?;
        let op = ApplyProjected {
            decay: self.adam.decay,
            master: at.master().is_some(),
            guard: at.guard().is_some(),
        };
        let mut inputs = vec![step];
        inputs.extend(all);
        inputs.push(at.parameter());
        inputs.extend(at.master().into_iter().chain(at.guard()));
        at.emit(op, &inputs, "").map(|_| ())
    }

    /// The update of another parameter, whose gradient goes to the host whole.
    fn update_on_host(&self, at: &mut Update) -> Result<()> {
        let step = self.step_on_host(at)?;
        let op = TakeStep {
            decay: self.adam.decay,
            master: at.master().is_some(),
            guard: at.guard().is_some(),
        };
        let mut inputs = vec![step, at.parameter()];
        inputs.extend(at.master().into_iter().chain(at.guard()));
        at.emit(op, &inputs, "").map(|_| ())
    }

    /// The gradient down, Adam's step in its place on the host, and the step up in the gradient's place on the device; nodes that
    /// follow wait for the delay.
    ///
    /// The bytes it travels through are the parameter's own, as in the authors' code: if parameters shared them, one's copy would wait
    /// until another's is back.
    fn step_on_host(&self, at: &mut Update) -> Result<TensorId> {
        let gradient = at.gradient();
        let of = at.type_of(gradient);
        let wide = of.with(DType::F32);
        let travelling = at.travelling(of);
        let sent = at.send(gradient, travelling, "sent")?;
        let [m, v] = ["m", "v"].map(|s| at.state_in(s, wide.clone(), Place::Host));
        let op = AdamStep {
            beta1: self.adam.beta1,
            beta2: self.adam.beta2,
            eps: self.adam.eps,
            guard: at.guard().is_some(),
        };
        let inputs: Vec<_> = [sent, m, v].into_iter().chain(at.guard()).collect();
        let step = at.emit_in(Stream::HostCompute, op, &inputs, "step")?[0];
        let back = at.send(step, gradient, "back")?;
        at.later(self.delay);
        Ok(back)
    }

    /// The look at one matrix's projectors.
    fn renew(&self, at: &mut Update) -> Result<()> {
        let Projectors { width, all } = self.projectors(at);
        let square = Type::new(&[width, width], DType::F32);
        let moments = ["m", "v"].map(|s| at.state_in(s, square.clone(), Place::Host));
        let op = Renew {
            threshold: self.threshold,
            beta: self.beta,
            fit: self.fit,
        };
        let mut inputs = vec![at.gradient()];
        inputs.extend(all.into_iter().chain(moments));
        at.emit(op, &inputs, "renew").map(|_| ())
    }
}
