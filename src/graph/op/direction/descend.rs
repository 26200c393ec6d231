//! The update of a parameter along its random directions.

use super::draws::{Draws, MOST};
use super::{BLOCK, CHUNK, DRAW, Direction, axpy, launch, slopes};
use crate::error::Result;
use crate::graph::op::kernel::{Argument, Call, Kernel, Launch, input};
use crate::graph::op::{Element, Io, Op, Output, Scalars, Work, expect, simd, traffic};
use crate::graph::random::Key;
use crate::graph::tensor::{DType, Type};
use crate::with_float;

/// What becomes of the estimated gradient `g = 1 / q · Σ_k slope_k z_k` (plus `decay · θ`).
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rule {
    /// `θ -= rate · g` (Malladi et al. 2023, arXiv:2305.17333).
    Sgd,
    /// As [`Rule::Sgd`] with the sign of each slope (Liu et al. 2019).
    Sign,
    /// Whichever of `θ`, `θ - rate · g`, `θ + rate · g` had the least loss.
    Conservative,
    /// `b = keep · b + g`, `θ -= rate · b`.
    Momentum {
        /// What remains of the buffer each step.
        keep: f64,
    },
    /// Adam on g (Chen et al. 2019).
    Adam {
        /// Decay of the mean.
        beta1: f64,
        /// Decay of the mean of squares.
        beta2: f64,
        /// Added to the root of the latter.
        eps: f64,
    },
}

impl Rule {
    /// How many states it keeps.
    pub fn states(self) -> usize {
        match self {
            Rule::Sgd | Rule::Sign | Rule::Conservative => 0,
            Rule::Momentum { .. } => 1,
            Rule::Adam { .. } => 2,
        }
    }

    /// Whether it asks more than a gradient says.
    pub(super) fn needs_slopes(self) -> bool {
        matches!(self, Rule::Sign | Rule::Conservative)
    }

    /// Losses it reads besides slopes: at θ, one step down, one step up.
    pub fn losses(self) -> usize {
        if self == Rule::Conservative { 3 } else { 0 }
    }
}

/// One update along directions drawn again from the key.
///
/// Inputs: slopes (1) (F32), for [`Rule::Conservative`] three losses (1) (F32), θ, master (F32, with `master`), states of θ's type.
/// Outputs: θ, master and states, overwritten.
#[derive(Debug, Clone)]
pub struct Descend {
    /// Number of slopes, one for each draw.
    pub slopes: usize,
    /// The rule.
    pub rule: Rule,
    /// Weight decay added to g.
    pub decay: f64,
    /// What is drawn.
    pub direction: Direction,
    /// Whether θ has a copy in f32 that is updated in its stead.
    pub master: bool,
}

impl Descend {
    /// Scalars before θ.
    fn scalars(&self) -> usize {
        self.slopes + self.rule.losses()
    }
}

impl Op for Descend {
    fn name(&self) -> &'static str {
        "descend"
    }
    fn outputs(&self, inputs: &[Type]) -> Result<Vec<Output>> {
        let scalar = Type::new(&[1], DType::F32);
        let (from, kept) = (
            self.scalars(),
            usize::from(self.master) + self.rule.states(),
        );
        let counted = inputs.len() == from + 1 + kept && (1..=MOST).contains(&self.slopes);
        let typed = || {
            let at = &inputs[from];
            let master = !self.master || inputs[from + 1] == at.with(DType::F32);
            let states = inputs[from + 1 + usize::from(self.master)..].iter();
            inputs[..from].iter().all(|t| *t == scalar) && master && { states }.all(|t| t == at)
        };
        expect(self.name(), counted && typed(), || {
            format!("takes {from} scalars, a parameter, and what is kept for it; got {inputs:?}")
        })?;
        Ok((from..=from + kept)
            .map(|of| Output::Overwrite { of })
            .collect())
    }
    fn work(&self, inputs: &[Type], outputs: &[Type]) -> Work {
        let rule = 2 + 6 * self.rule.states() as u64;
        Work {
            matmul: 0,
            vector: ((DRAW + 2) * self.slopes as u64 + rule) * outputs[0].elements(),
            bytes: traffic(inputs, outputs),
        }
    }
    fn cpu(&self, io: &mut Io) -> Result<()> {
        let walk = Walk::new(self, io);
        let Some((parameter, kept)) = io.outputs.split_first_mut() else {
            return Ok(());
        };
        let (master, states) = kept.split_at_mut(usize::from(self.master));
        let master = master
            .first_mut()
            .map(|m| m.of::<f32>())
            .unwrap_or_default();
        with_float!("descend", parameter.at.dtype, T => {
            let mut states = states.iter_mut().map(|s| s.of::<T>());
            let states = [states.next(), states.next()].map(Option::unwrap_or_default);
            let cells = Cells { first: 0, gradient: &[], parameter: parameter.of::<T>(), master, states };
            cells.update(&walk);
            Ok(())
        })
    }
    fn cuda(&self, call: &Call) -> Kernel {
        let (from, losses) = (self.scalars(), self.rule.losses());
        let Some(slopes) = slopes(0, self.slopes) else {
            return Kernel::Missing;
        };
        let rest = &call.inputs[self.slopes..];
        let walk = Walk::constants(
            self.rule,
            decay(self.decay, rest[losses..].iter()),
            &call.scalars,
        );
        let loss = |i: usize| {
            if i < losses {
                input(self.slopes + i)
            } else {
                Argument::Null
            }
        };
        let launch = launch("descend", call.format(from), call.inputs[from].elements())
            .given([Argument::Null])
            .given(slopes)
            .given([0, 1, 2].map(loss));
        let rate = f64::from(call.scalars.rate);
        let drawn = [call.key.0.into(), self.direction.zeroed.into(), rate.into()];
        walk.launch(launch, call, (from, self.master), drawn)
    }
}

/// The constants of one update.
pub(super) struct Walk {
    rule: Rule,
    /// What the gradient is drawn from, where it is not given.
    drawn: Option<(Key, Direction, Draws)>,
    rate: f32,
    decay: f32,
    /// Bias corrections of Adam.
    corrections: [f32; 2],
}

impl Rule {
    /// Bias corrections of Adam in step `step`.
    fn corrections(self, step: u64) -> [f32; 2] {
        let steps = i32::try_from(step).unwrap_or(i32::MAX);
        let correction = |beta: f64| (1.0 - beta.powi(steps)) as f32;
        match self {
            Rule::Adam { beta1, beta2, .. } => [correction(beta1), correction(beta2)],
            _ => [1.0; 2],
        }
    }
}

impl Walk {
    fn new(op: &Descend, io: &Io) -> Walk {
        let (slopes, rest) = io.inputs.split_at(op.slopes);
        let rate = f64::from(io.scalars.rate);
        let draws = match op.rule {
            Rule::Sgd => Draws::mean(slopes, |slope| -rate * slope),
            Rule::Sign => Draws::mean(slopes, |slope| {
                if slope == 0.0 {
                    0.0
                } else {
                    -rate * slope.signum()
                }
            }),
            Rule::Conservative => {
                let loss = |index: usize| rest[index].of::<f32>()[0];
                let way = best([loss(0), loss(1), loss(2)]);
                Draws::mean(slopes, |slope| way * rate * slope)
            }
            Rule::Momentum { .. } | Rule::Adam { .. } => Draws::mean(slopes, |slope| slope),
        };
        let types = rest[op.rule.losses()..].iter().map(|view| view.at);
        Walk {
            rule: op.rule,
            drawn: Some((io.key, op.direction, draws)),
            rate: rate as f32,
            decay: decay(op.decay, types),
            corrections: op.rule.corrections(io.scalars.step),
        }
    }

    /// A rule's constants, where it does not matter what is drawn.
    fn constants(rule: Rule, decay: f32, scalars: &Scalars) -> Walk {
        Walk {
            rule,
            drawn: None,
            rate: scalars.rate,
            decay,
            corrections: rule.corrections(scalars.step),
        }
    }

    /// The kernel, for a launch that lacks parameter `from`, what is kept for it, their number, `drawn` and the constants.
    pub(super) fn launch(
        &self,
        launch: Launch,
        call: &Call,
        (from, master): (usize, bool),
        drawn: [Argument; 3],
    ) -> Kernel {
        let states = self.rule.states();
        let (name, [keep, beta1, beta2, eps]) = match self.rule {
            Rule::Sgd => ("SGD", [0.0; 4]),
            Rule::Sign => ("SIGN", [0.0; 4]),
            Rule::Conservative => ("CONSERVATIVE", [0.0; 4]),
            Rule::Momentum { keep } => ("MOMENTUM", [keep, 0.0, 0.0, 0.0]),
            Rule::Adam { beta1, beta2, eps } => ("ADAM", [0.0, beta1, beta2, eps]),
        };
        let launch = launch.define("RULE", name);
        let first = from + 1 + usize::from(master);
        let state = |i: usize| {
            if i < states {
                input(first + i)
            } else {
                Argument::Null
            }
        };
        let kept = if master {
            input(from + 1)
        } else {
            Argument::Null
        };
        let launch = launch
            .given([input(from), kept, state(0), state(1)])
            .given([call.inputs[from].elements().into()])
            .given(drawn)
            .given([self.rate, self.decay].map(Argument::F32))
            .given([keep, beta1, beta2, eps].map(|x| Argument::F32(x as f32)));
        Kernel::one(launch.given(self.corrections.map(Argument::F32)))
    }

    /// Along a gradient that is given, at `factor` times the step's rate.
    pub(super) fn given(rule: Rule, decay: f64, factor: f64, scalars: &Scalars) -> Walk {
        Walk {
            rule,
            drawn: None,
            rate: (f64::from(scalars.rate) * factor) as f32,
            decay: decay as f32,
            corrections: rule.corrections(scalars.step),
        }
    }

    /// New weights and states of elements `first..`; `gradient` is given, or drawn here.
    fn block(&self, first: u64, gradient: &mut [f32], weight: &mut [f32], [a, b]: [&mut [f32]; 2]) {
        if !matches!(self.rule, Rule::Momentum { .. } | Rule::Adam { .. }) {
            if self.decay != 0.0 {
                simd::scale(weight, 1.0 - self.rate * self.decay);
            }
            match &self.drawn {
                Some((key, direction, draws)) => direction.add(*key, draws.all(), first, weight),
                None => axpy(-self.rate, gradient, weight),
            }
            return;
        }
        if let Some((key, direction, draws)) = &self.drawn {
            gradient.fill(0.0);
            direction.add(*key, draws.all(), first, gradient);
        }
        for (g, w) in gradient.iter_mut().zip(&*weight) {
            *g += self.decay * w;
        }
        match self.rule {
            Rule::Adam { beta1, beta2, eps } => {
                let betas = [beta1 as f32, beta2 as f32];
                adam(
                    gradient,
                    weight,
                    a,
                    b,
                    betas,
                    eps as f32,
                    self.corrections,
                    self.rate,
                );
            }
            Rule::Momentum { keep } => roll(gradient, weight, a, keep as f32, self.rate),
            _ => {}
        }
    }
}

/// The decay of a parameter of these types, what is kept for it among them: biases and norms do not decay, as in the authors' code.
fn decay<'a>(decay: f64, mut types: impl Iterator<Item = &'a Type>) -> f32 {
    let flat = types.all(|at| at.shape.len() < 2);
    if flat { 0.0 } else { decay as f32 }
}

/// -1 or 1 where a step down or up along the slope lowers the loss most, 0 where neither does.
fn best([here, down, up]: [f32; 3]) -> f64 {
    if down < here && (down <= up || up.is_nan()) {
        return -1.0;
    }
    if up < here { 1.0 } else { 0.0 }
}

simd::vectorized! {
    /// Momentum.
    fn roll(gradient: &[f32], weight: &mut [f32], buffer: &mut [f32], keep: f32, rate: f32) {
        for ((g, w), b) in gradient.iter().zip(weight).zip(buffer) {
            *b = keep * *b + g;
            *w -= rate * *b;
        }
    }

    /// Adam.
    fn adam(
        gradient: &[f32],
        weight: &mut [f32],
        m: &mut [f32],
        v: &mut [f32],
        betas: [f32; 2],
        eps: f32,
        corrections: [f32; 2],
        rate: f32,
    ) {
        for ((g, w), (m, v)) in gradient.iter().zip(weight).zip(m.iter_mut().zip(v)) {
            *m = betas[0] * *m + (1.0 - betas[0]) * g;
            *v = betas[1] * *v + (1.0 - betas[1]) * g * g;
            *w -= rate * (*m / corrections[0]) / ((*v / corrections[1]).sqrt() + eps);
        }
    }
}

/// A range of a parameter's elements with what is kept for them; empty where nothing is.
pub(super) struct Cells<'a, T> {
    pub(super) first: u64,
    /// The gradient, where it is given.
    pub(super) gradient: &'a [T],
    pub(super) parameter: &'a mut [T],
    pub(super) master: &'a mut [f32],
    pub(super) states: [&'a mut [T]; 2],
}

impl<T: Element> Cells<'_, T> {
    /// Every element is on its own, so it does not matter how the range is halved, by whole blocks.
    pub(super) fn update(self, walk: &Walk) {
        if self.parameter.len() <= CHUNK {
            return self.blocks(walk);
        }
        let middle = (self.parameter.len() / 2).next_multiple_of(BLOCK);
        let Cells {
            first,
            gradient,
            parameter,
            master,
            states,
        } = self;
        let gradient = gradient.split_at(middle.min(gradient.len()));
        let parameter = parameter.split_at_mut(middle);
        let master = master.split_at_mut(middle.min(master.len()));
        let [a, b] = states.map(|s| s.split_at_mut(middle.min(s.len())));
        let left = Cells {
            first,
            gradient: gradient.0,
            parameter: parameter.0,
            master: master.0,
            states: [a.0, b.0],
        };
        let first = first + middle as u64;
        let right = Cells {
            first,
            gradient: gradient.1,
            parameter: parameter.1,
            master: master.1,
            states: [a.1, b.1],
        };
        rayon::join(|| left.update(walk), || right.update(walk));
    }

    fn blocks(self, walk: &Walk) {
        let Cells {
            first,
            gradient: given,
            parameter,
            master,
            states: [a, b],
        } = self;
        let mut wide = [[0.0f32; BLOCK]; 4];
        let [gradient, weight, wide_a, wide_b] = &mut wide;
        for from in (0..parameter.len()).step_by(BLOCK) {
            let span = from..parameter.len().min(from + BLOCK);
            let parameter = &mut parameter[span.clone()];
            let weight = &mut weight[..parameter.len()];
            let gradient = &mut gradient[..parameter.len()];
            if let Some(given) = given.get(span.clone()) {
                simd::widen(given, gradient);
            }
            match master.get(span.clone()) {
                Some(master) => weight.copy_from_slice(master),
                None => simd::widen(parameter, weight),
            }
            let [a, b] = [&mut *a, &mut *b].map(|s| s.get_mut(span.clone()).unwrap_or_default());
            let (wide_a, wide_b) = (&mut wide_a[..a.len()], &mut wide_b[..b.len()]);
            simd::widen(a, wide_a);
            simd::widen(b, wide_b);
            walk.block(first + from as u64, gradient, weight, [wide_a, wide_b]);
            simd::narrow(wide_a, a);
            simd::narrow(wide_b, b);
            if let Some(master) = master.get_mut(span) {
                master.copy_from_slice(weight);
            }
            simd::narrow(weight, parameter);
        }
    }
}
