//! What all zeroth-order methods share: arguments, passes of a step, and slopes.

use std::sync::Arc;

use super::estimator::{Estimator, Move, refuse};
use super::{Args, Argument, Card, Derivative, Draft};
use crate::error::{Error, Result};
use crate::graph::Step;
use crate::graph::build::Forward;
use crate::graph::op::Op;
use crate::graph::op::direction::{Descend, Direction, MOST, Rule};
use crate::graph::tensor::TensorId;

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
        key: "decay",
        default: "0",
        meaning: "weight decay, added to the gradient",
    },
    Argument {
        key: "master",
        default: "no",
        meaning: "yes: keep an f32 copy of 16-bit parameters for the update",
    },
];

/// Number of shared arguments.
const SHARED: usize = 8;

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
            decay: args.number(card, "decay", (0.0, 1e6))?,
        })
    }
}

/// The draft of a zeroth-order method: no backward pass, no loss scale, and no master copy unless it is asked for.
pub(super) fn draft(card: &Card, draft: &mut Draft, args: &Args) -> Result<()> {
    refuse(card.name, draft)?;
    Settings::read(card, args)?;
    draft.derivative = Derivative::Differences;
    draft.loss_scale = false;
    draft.master &= args.word(card, "master", &["yes", "no"])? == "yes";
    Ok(())
}

/// The step of a zeroth-order method that updates by `rule`, keeping `states` for each parameter.
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
    let blocks = passes.estimator.blocks();
    let groups = match settings.blockwise {
        true => blocks,
        false => vec![blocks.concat()],
    };
    let op: Arc<dyn Op> = Arc::new(Descend {
        slopes: settings.q as usize,
        rule,
        decay: settings.decay,
        direction: settings.direction,
        master: draft.master,
    });
    for group in &groups {
        let mut scalars = passes.slopes(group)?;
        if rule == Rule::Conservative {
            scalars.extend(passes.candidates(group, &scalars)?);
        }
        passes
            .estimator
            .update(group, &op, &scalars, (draft.master, states))?;
    }
    Ok(passes.estimator.step)
}

/// The passes of one step.
struct Passes {
    estimator: Estimator,
    settings: Settings,
}

impl Passes {
    /// A slope for each draw.
    fn slopes(&mut self, group: &[TensorId]) -> Result<Vec<TensorId>> {
        let Settings { eps, q, sides, .. } = self.settings;
        let middle = match sides {
            1 => Some(self.estimator.pass(group, None)?),
            _ => None,
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
