//! From a plan to its steps: forward, derivative, updates, gaps, in that order.

mod order;
mod transfer;

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Choice, Plan};
use crate::error::Result;
use crate::graph::backward::{
    Gradients, differentiate, gradient_name, gradient_type, name_gradient,
};
use crate::graph::build::{self, Forward, Options, SCALE};
use crate::graph::op::optimizer::{ClipScale, SquareSum};

use crate::graph::reach;
use crate::graph::tensor::{DType, Role, Storage, TensorId};
use crate::graph::{Node, Phase, Spot, Step, StepSet, When};
use crate::spec::job::{Place, Precision};
use crate::technique::{
    Ahead, Args, Derivative, Draft, Emitted, Given, Pattern, Policy, Renewal, Trained, Update,
};
use order::{append, insert_behind, insert_early};
use transfer::transfer;

/// Name of the guard outside: what gradients are multiplied by, whether they are finite, their norm.
pub const GUARD: &str = "output/guard";

impl Plan {
    /// The steps of training: first, middle and last micro-batch where there are several, and evaluation; gaps applied.
    ///
    /// # Errors
    /// Where a choice cannot be applied to this model.
    pub fn steps(&self) -> Result<StepSet> {
        if let Some(args) = self.resolved()? {
            return self.rechosen(args).steps();
        }
        let draft = self.draft()?;
        let mut steps = self.training(&draft)?;
        steps.push((When::Evaluate, self.forward(&draft, false)?.step));
        self.with_gaps(steps)
    }

    /// The steps of training alone.
    ///
    /// # Errors
    /// As [`Plan::steps`].
    pub fn training_steps(&self) -> Result<StepSet> {
        if let Some(args) = self.resolved()? {
            return self.rechosen(args).training_steps();
        }
        self.with_gaps(self.training(&self.draft()?)?)
    }

    /// `steps` with what becomes of storages between their uses.
    fn with_gaps(&self, steps: Vec<(When, Step)>) -> Result<StepSet> {
        let mut set = StepSet {
            steps,
            ..StepSet::default()
        };
        for (choice, sites) in self.joined(&set)? {
            choice.behind()?.gap(&mut set, &sites, &choice.args)?;
        }
        agree_on_places(&mut set);
        let paces = std::mem::take(&mut set.paces);
        for (_, step) in &mut set.steps {
            reach::bring(step, &paces)?;
            reach::settle(step, &paces);
            reach::stagger(step);
        }
        Ok(set)
    }

    /// Its choices with their sites, those that say the same of several sites joined: what is dropped at one of them may be computed
    /// from what is dropped at another. One whose sites are nowhere in `set` stands alone, to be refused.
    fn joined(&self, set: &StepSet) -> Result<Vec<(&Choice, Pattern)>> {
        let mut joined: Vec<(&Choice, Pattern)> = Vec::new();
        for choice in &self.choices {
            let sites = choice.sites()?;
            let mut nodes = set.steps.iter().flat_map(|(_, step)| &step.nodes);
            let met = nodes.any(|node| sites.matches_node(node));
            let same = |(c, _): &&mut (&Choice, Pattern)| {
                c.technique == choice.technique && c.args == choice.args
            };
            match joined.iter_mut().find(same).filter(|_| met) {
                Some((_, all)) => all.join(sites),
                None => joined.push((choice, sites)),
            }
        }
        Ok(joined)
    }

    /// What decides between its steps, where anything does.
    ///
    /// # Errors
    /// Where a choice cannot be applied.
    pub fn policy(&self, seed: u64) -> Result<Option<Box<dyn Policy>>> {
        let rule = self.rule();
        rule.behind()?.policy(&|| self.trained(), seed, &rule.args)
    }

    /// Arguments of its update rule that depend on the model, where there are any.
    fn resolved(&self) -> Result<Option<Args>> {
        let rule = self.rule();
        rule.behind()?.resolve(&|| self.trained(), &rule.args)
    }

    /// The parameters that would be trained without its update rule.
    fn trained(&self) -> Result<Vec<Trained>> {
        let rule = self.rule();
        let others = |c: &Choice| c.technique != rule.technique;
        Ok(Trained::of(&self.built(&self.draft()?, true, others)?))
    }

    /// The same plan with other arguments of its update rule.
    pub fn rechosen(&self, args: Args) -> Plan {
        let mut plan = self.clone();
        for choice in plan.choices.iter_mut().filter(|c| c.is_rule()) {
            choice.args = args.clone();
        }
        plan
    }

    /// Its update rule.
    fn rule(&self) -> &Choice {
        let rule = self.choices.iter().find(|c| c.is_rule());
        rule.unwrap_or_else(|| panic!("a plan has an update rule: `Plan::new` sees to it"))
    }

    /// The steps around training: filling persistent storages before it, copying them out, and, where something decides between steps,
    /// putting optimizer states back to their first values.
    ///
    /// # Errors
    /// Where a move cannot be typed.
    pub fn transfers(&self, shared: &[Storage]) -> Result<Vec<(When, Step)>> {
        let (start, save) = rayon::join(|| transfer(shared, true), || transfer(shared, false));
        let mut steps = vec![(When::Start, start?), (When::Save, save?)];
        if self.policy(0)?.is_some() {
            let states = shared.iter().filter(|s| s.role == Role::OptimizerState);
            let states: Vec<Storage> = states.cloned().collect();
            steps.push((When::Restart, transfer(&states, true)?));
        }
        Ok(steps)
    }

    /// The steps that train: by a backward pass for each micro-batch, or as an estimator has it.
    fn training(&self, draft: &Draft) -> Result<Vec<(When, Step)>> {
        let trains = draft.derivative != Derivative::Differences;
        let (rule, forward) = (self.rule(), self.forward(draft, trains)?);
        if draft.derivative != Derivative::Reverse {
            let step = rule.behind()?.step(forward, draft, &rule.args)?;
            return Ok(vec![(When::Steady, step)]);
        }
        let mut steps = Vec::new();
        let middle = u32::try_from(draft.micro_batches.saturating_sub(2)).unwrap_or(u32::MAX);
        if draft.micro_batches > 1 {
            let first = micro_batch(forward.clone(), draft, false, None)?;
            steps.push((When::First, first));
        }
        if middle > 0 {
            let micro = micro_batch(forward.clone(), draft, true, None)?;
            steps.push((When::Micro { times: middle }, micro));
        }
        if let Some(renews) = rule.behind()?.renewal(&rule.args)? {
            let plain = self.built(draft, true, |c| c.technique != rule.technique)?;
            let when = When::Renew(renews.period);
            steps.push((when, renewal(plain, draft, rule, renews)?));
        }
        let adds = draft.micro_batches > 1;
        if let Some(period) = rule.behind()?.period(&rule.args)? {
            let renews = Rule {
                choice: rule,
                refreshes: true,
            };
            let step = micro_batch(forward.clone(), draft, adds, Some(&renews))?;
            steps.push((When::Every(period), step));
        }
        let rule = Rule {
            choice: rule,
            refreshes: false,
        };
        steps.push((
            When::Steady,
            micro_batch(forward, draft, adds, Some(&rule))?,
        ));
        Ok(steps)
    }

    fn forward(&self, draft: &Draft, training: bool) -> Result<Forward> {
        self.built(draft, training, |_| true)
    }

    /// The forward pass with those choices applied for which `applies`.
    fn built(
        &self,
        draft: &Draft,
        training: bool,
        applies: impl Fn(&Choice) -> bool,
    ) -> Result<Forward> {
        let dtype = match draft.precision {
            Precision::F32 => DType::F32,
            Precision::Bf16 => DType::Bf16,
            Precision::Fp16 => DType::F16,
        };
        let batch = draft.batch / draft.micro_batches;
        let options = Options {
            dtype,
            batch,
            seq: self.job.seq,
            training,
        };
        let mut forward = build::forward(&self.job.model, options)?;
        for choice in self.choices.iter().filter(|c| applies(c)) {
            choice
                .behind()?
                .forward(&mut forward, &choice.sites()?, draft, &choice.args)?;
        }
        Ok(forward)
    }
}

/// How a program updates.
struct Rule<'a> {
    choice: &'a Choice,
    /// Whether it renews what updates project with.
    refreshes: bool,
}

/// One micro-batch with its backward pass: `adds` to gradients of earlier ones, and updates by `rule` if it is the last.
fn micro_batch(forward: Forward, draft: &Draft, adds: bool, rule: Option<&Rule>) -> Result<Step> {
    let Forward {
        mut step,
        parameters,
    } = forward;
    let keeps = draft.micro_batches > 1;
    let mut gradients = Gradients::new(&step, &parameters, draft.gradient_format);
    if adds {
        for &parameter in &parameters {
            let at = gradient_type(&step, parameter, draft.gradient_format);
            let name = gradient_name(&step, parameter);
            gradients.seed(
                parameter,
                step.persistent(&name, at, Place::Gpu, Role::Gradient),
            );
        }
    }
    let gradients = differentiate(&mut step, gradients)?;
    let mut pairs = Vec::new();
    for &parameter in &parameters {
        if let Some(gradient) = gradients.of(parameter) {
            name_gradient(&mut step, parameter, gradient, keeps);
            pairs.push((parameter, gradient));
        }
    }
    if let Some(rule) = rule {
        update(&mut step, &pairs, draft, rule)?;
    }
    Ok(step)
}

/// Whether an update overwrites nothing.
fn looks(step: &Step, emitted: &Emitted) -> bool {
    let mut all = emitted.nodes.iter().chain(&emitted.late);
    all.all(|n| step.overwrites(n).iter().all(Option::is_none))
}

/// Appends the updates of all `pairs` of parameter and gradient.
fn update(
    step: &mut Step,
    pairs: &[(TensorId, TensorId)],
    draft: &Draft,
    rule: &Rule,
) -> Result<()> {
    let guard = guard(step, pairs, draft)?;
    let (technique, args) = (rule.choice.behind()?, &rule.choice.args);
    let given = Given {
        guard,
        ahead: technique.ahead(&mut Ahead::new(step, pairs, guard), args)?,
        refreshes: rule.refreshes,
    };
    let (mut early, mut late) = (Vec::new(), Vec::new());
    for &pair in pairs {
        let mut at = Update::new(step, draft, pair, given);
        technique.update(&mut at, args)?;
        let emitted = at.into_emitted();
        // What only looks at a gradient lets it go as soon as it is whole.
        match draft.fused_update || looks(step, &emitted) {
            true => early.push(emitted),
            false => late.push(emitted),
        }
    }
    insert_early(step, early);
    append(step, late);
    Ok(())
}

/// A step that looks at whole gradients and updates nothing: each gradient ends where it was looked at.
fn renewal(mut forward: Forward, draft: &Draft, choice: &Choice, renewal: Renewal) -> Result<Step> {
    let wanted = |step: &Step, id: TensorId| {
        let storage = step.storage_of(id);
        (renewal.of)(&storage.name, step.type_of(id)) && !storage.first.is_frozen()
    };
    let Forward {
        step, parameters, ..
    } = &mut forward;
    parameters.retain(|&id| wanted(step, id));
    let gradients = Gradients::new(step, parameters, draft.gradient_format);
    let gradients = differentiate(step, gradients)?;
    let mut emitted = Vec::new();
    for &parameter in &*parameters {
        let Some(gradient) = gradients.of(parameter) else {
            continue;
        };
        name_gradient(step, parameter, gradient, false);
        let given = Given {
            guard: None,
            ahead: None,
            refreshes: true,
        };
        let mut at = Update::new(step, draft, (parameter, gradient), given);
        choice.behind()?.renew(&mut at, &choice.args)?;
        emitted.push(at.into_emitted());
    }
    insert_early(step, emitted);
    Ok(forward.step)
}

/// The guard of the updates where a norm or a loss scale asks for one: partial sums right behind each gradient, then one scale.
fn guard(
    step: &mut Step,
    pairs: &[(TensorId, TensorId)],
    draft: &Draft,
) -> Result<Option<TensorId>> {
    if !draft.guarded() {
        return Ok(None);
    }
    let mut sums = Vec::new();
    let mut partials = Vec::new();
    for &(parameter, gradient) in pairs {
        let spot = Update::spot(step, parameter);
        let spot = Spot {
            origin: format!("{}.square", spot.origin).into(),
            ..spot
        };
        let node = step.node(
            Arc::new(SquareSum),
            &[gradient],
            spot,
            Role::Temporary,
            Place::Gpu,
        )?;
        partials.push(node.outputs[0]);
        sums.push((gradient, node));
    }
    insert_behind(step, sums);
    if draft.loss_scale {
        let fed = |n: &&Node| {
            n.outputs.first().is_some_and(|&o| {
                step.storage_of(o).role == Role::Input && n.origin.ends_with("/scale")
            })
        };
        let scale = step.nodes.iter().find(fed).map(|n| n.outputs[0]);
        partials.push(scale.unwrap_or_else(|| panic!("every step feeds `{SCALE}`")));
    }
    let op = ClipScale {
        max_norm: draft.max_norm,
        loss_scale: draft.loss_scale,
    };
    let spot = Spot::compute(Phase::Update, "update", "guard");
    Ok(Some(
        step.emit(Arc::new(op), &partials, spot, Role::Temporary)?[0],
    ))
}

/// A shared storage has one place in all steps: where any step's technique put it.
fn agree_on_places(set: &mut StepSet) {
    let mut places = BTreeMap::new();
    for storage in set
        .steps
        .iter()
        .flat_map(|(_, s)| &s.storages)
        .filter(|s| s.shared && s.place != Place::Gpu)
    {
        places.insert(storage.name.clone(), storage.place);
    }
    for storage in set
        .steps
        .iter_mut()
        .flat_map(|(_, s)| &mut s.storages)
        .filter(|s| s.shared)
    {
        storage.place = places.get(&storage.name).copied().unwrap_or(storage.place);
    }
}
