//! What all zeroth-order methods share: arguments, passes of a step, and slopes.

use std::sync::Arc;

use super::estimator::{Estimator, Move, refuse};
use super::{Args, Argument, Card, Derivative, Draft};
use crate::error::{Error, Result};
use crate::graph::Step;
use crate::graph::build::Forward;
use crate::graph::op::Op;
use crate::graph::op::direction::{Descend, Direction, FirstOrder, MOST, Rule};
use crate::graph::tensor::TensorId;
use crate::spec::job::Precision;

/// Arguments of every zeroth-order method.
pub(super) const ARGUMENTS: &[Argument; SHARED] = &[
    Argument {
        key: "eps",
        default: "1e-3",
        meaning: "how far parameters are moved along the direction",
    },
    Argument {
        key: "q",
        default: "1",
        meaning: "directions of a step, whose slopes are averaged",
    },
    Argument {
        key: "sides",
        default: "2",
        meaning: "2: losses on both sides | 1: the loss at one side and in the middle",
    },
    Argument {
        key: "blockwise",
        default: "no",
        meaning: "yes: embedding, each layer and head are moved and updated one after the other",
    },
    Argument {
        key: "sparse",
        default: "0",
        meaning: "share of a direction's elements that are zero, drawn anew in each step",
    },
    Argument {
        key: "in_place",
        default: "no",
        meaning: "yes: move the parameters themselves, as the papers do; they come back up to rounding",
    },
    Argument {
        key: "hybrid",
        default: "0",
        meaning: "last layers that are trained, with the head, by a backward pass that stops there",
    },
    Argument {
        key: "first_rate",
        default: "1",
        meaning: "with hybrid: what the rate of these is multiplied by",
    },
    DECAY,
    MASTER,
];

/// Number of shared arguments.
const SHARED: usize = 10;

/// Weight decay of an estimated gradient.
pub(super) const DECAY: Argument = Argument {
    key: "decay",
    default: "0",
    meaning: "weight decay, added to the gradient",
};

/// A master copy where there is no backward pass.
pub(super) const MASTER: Argument = Argument {
    key: "master",
    default: "no",
    meaning: "yes: keep an f32 copy of 16-bit parameters for the update",
};

/// The shared arguments and `own` ones.
pub(super) const fn with<const OWN: usize, const ALL: usize>(
    own: [Argument; OWN],
) -> [Argument; ALL] {
    assert!(ALL == SHARED + OWN);
    let mut all = [ARGUMENTS[0]; ALL];
    let mut i = 0;
    while i < ALL {
        all[i] = if i < SHARED {
            ARGUMENTS[i]
        } else {
            own[i - SHARED]
        };
        i += 1;
    }
    all
}

/// The shared arguments, read.
#[derive(Debug, Clone, Copy)]
struct Settings {
    eps: f64,
    q: u32,
    sides: u32,
    blockwise: bool,
    direction: Direction,
    in_place: bool,
    hybrid: usize,
    first_rate: f64,
    decay: f64,
}

impl Settings {
    fn read(card: &Card, args: &Args) -> Result<Settings> {
        let yes = |key| Ok::<bool, Error>(args.word(card, key, &["yes", "no"])? == "yes");
        Ok(Settings {
            eps: args.number(card, "eps", (1e-12, 1e6))?,
            q: args.number(card, "q", (1, MOST as u32))?,
            sides: args.number(card, "sides", (1, 2))?,
            blockwise: yes("blockwise")?,
            direction: Direction {
                zeroed: args.number(card, "sparse", (0.0, 0.999_999))?,
            },
            in_place: yes("in_place")?,
            hybrid: args.number(card, "hybrid", (0, 1 << 20))?,
            first_rate: args.number(card, "first_rate", (0.0, 1e6))?,
            decay: args.number(card, "decay", (0.0, 1e6))?,
        })
    }
}

/// The draft of a zeroth-order method: no loss scale, and no master copy unless it is asked for.
pub(super) fn draft(card: &Card, draft: &mut Draft, args: &Args) -> Result<()> {
    refuse(card.name, draft)?;
    let settings = Settings::read(card, args)?;
    if settings.hybrid > 0 {
        refuse_hybrid(card, &settings, draft)?;
    }
    draft.derivative = Derivative::Differences;
    draft.loss_scale = false;
    draft.master &= args.word(card, "master", &["yes", "no"])? == "yes";
    Ok(())
}

/// Refuses what a backward pass beside the estimate cannot have.
fn refuse_hybrid(card: &Card, settings: &Settings, draft: &Draft) -> Result<()> {
    let (other, why) = if settings.blockwise {
        (
            "blockwise",
            "blocks are updated one after the other, and one backward pass is of all its layers at one point",
        )
    } else if draft.precision == Precision::Fp16 {
        (
            "fp16",
            "gradients of a backward pass need a loss scale there, and an estimate has none",
        )
    } else {
        return Ok(());
    };
    Err(Error::Conflict {
        one: format!("hybrid of {}", card.name),
        other: other.to_string(),
        why: why.to_string(),
        next: "leave one of them out".to_string(),
    })
}

/// The step of a zeroth-order method that updates by `rule`, keeping `states` for each parameter.
///
/// With `hybrid` the last layers and the head are trained by a backward pass (Zhang et al. 2024, arXiv:2402.11592, name the scheme;
/// their released code has no such path). Decided here: its gradients are those of one more pass, at the parameters as they are and
/// without dropout as all passes here; it is the pass in the middle with `sides=1`. Moved passes move the other parameters only. Rules
/// are the same but for the sign and the choice of three, which are of slopes: the backward pass has SGD there.
pub(super) fn step(
    card: &Card,
    forward: Forward,
    draft: &Draft,
    args: &Args,
    (rule, states): (Rule, &[&str]),
) -> Result<Step> {
    let settings = Settings::read(card, args)?;
    let estimator = Estimator::new(forward, settings.direction, settings.in_place);
    let mut passes = Passes {
        estimator,
        settings,
    };
    let kept = (draft.master, states);
    if settings.hybrid > 0 {
        passes.hybrid(rule, kept)?;
        return Ok(passes.estimator.step);
    }
    let blocks = passes
        .estimator
        .blocks()
        .into_iter()
        .map(|(_, group)| group);
    let groups: Vec<Vec<TensorId>> = match settings.blockwise {
        true => blocks.collect(),
        false => vec![blocks.flatten().collect()],
    };
    for group in &groups {
        let scalars = passes.scalars(group, rule, None)?;
        passes.update(group, &scalars, rule, kept)?;
    }
    Ok(passes.estimator.step)
}

/// The passes of one step.
struct Passes {
    estimator: Estimator,
    settings: Settings,
}

impl Passes {
    /// What an update by `rule` reads before its parameter: slopes, and losses where it chooses.
    fn scalars(
        &mut self,
        group: &[TensorId],
        rule: Rule,
        middle: Option<TensorId>,
    ) -> Result<Vec<TensorId>> {
        let mut scalars = self.slopes(group, middle)?;
        if rule == Rule::Conservative {
            scalars.extend(self.candidates(group, &scalars)?);
        }
        Ok(scalars)
    }

    fn update(
        &mut self,
        group: &[TensorId],
        scalars: &[TensorId],
        rule: Rule,
        kept: (bool, &[&str]),
    ) -> Result<()> {
        let op: Arc<dyn Op> = Arc::new(Descend {
            slopes: self.settings.q as usize,
            rule,
            decay: self.settings.decay,
            direction: self.settings.direction,
            master: kept.0,
        });
        self.estimator.update(group, &op, scalars, kept)
    }

    /// Estimates below the last layers, and a backward pass through them.
    fn hybrid(&mut self, rule: Rule, kept: (bool, &[&str])) -> Result<()> {
        let (low, high) = self.estimator.split(self.settings.hybrid)?;
        self.estimator.report_later();
        // Where a slope needs the loss in the middle, this pass is first and its gradients wait; else they never do.
        let (scalars, exact) = match self.settings.sides {
            1 => {
                let exact = self.estimator.differentiated(&high)?;
                (self.scalars(&low, rule, Some(exact.loss))?, exact)
            }
            _ => {
                let scalars = self.scalars(&low, rule, None)?;
                (scalars, self.estimator.differentiated(&high)?)
            }
        };
        self.update(&low, &scalars, rule, kept)?;
        let op: Arc<dyn Op> = Arc::new(FirstOrder {
            rule: match rule {
                Rule::Sign | Rule::Conservative => Rule::Sgd,
                other => other,
            },
            decay: self.settings.decay,
            factor: self.settings.first_rate,
            master: kept.0,
        });
        for pair in exact.pairs {
            self.estimator.update_by_gradient(pair, &op, kept)?;
        }
        Ok(())
    }

    /// A slope for each draw; with one side, against the loss in the `middle`, which is known or taken here.
    fn slopes(&mut self, group: &[TensorId], middle: Option<TensorId>) -> Result<Vec<TensorId>> {
        let Settings { eps, q, sides, .. } = self.settings;
        let middle = match (sides, middle) {
            (1, None) => Some(self.estimator.pass(group, None)?),
            (_, known) => known,
        };
        let mut slopes = Vec::new();
        for draw in 0..q {
            let moved = |by: f64| Move {
                by,
                draw,
                slopes: Vec::new(),
            };
            let plus = self.estimator.pass(group, Some(&moved(eps)))?;
            let (other, back, distance) = match middle {
                Some(middle) => (middle, -eps, eps),
                // In place, the way from one side to the other is twice as far.
                None if self.settings.in_place => (
                    self.estimator.pass(group, Some(&moved(-2.0 * eps)))?,
                    eps,
                    2.0 * eps,
                ),
                None => (
                    self.estimator.pass(group, Some(&moved(-eps)))?,
                    eps,
                    2.0 * eps,
                ),
            };
            if self.settings.in_place {
                self.estimator.sweep(group, &moved(back))?;
            }
            slopes.push(self.estimator.slope([plus, other], distance)?);
        }
        Ok(slopes)
    }

    /// Losses at the parameters as they are, one step down the slopes, and one step up.
    fn candidates(&mut self, group: &[TensorId], slopes: &[TensorId]) -> Result<[TensorId; 3]> {
        let moved = |by: f64| Move {
            by,
            draw: 0,
            slopes: slopes.to_vec(),
        };
        let here = self.estimator.pass(group, None)?;
        let down = self.estimator.pass(group, Some(&moved(-1.0)))?;
        let back = if self.settings.in_place { 2.0 } else { 1.0 };
        let up = self.estimator.pass(group, Some(&moved(back)))?;
        if self.settings.in_place {
            self.estimator.sweep(group, &moved(-1.0))?;
        }
        Ok([here, down, up])
    }
}
