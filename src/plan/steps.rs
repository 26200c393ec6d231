//! From a plan to its steps: forward, derivative, updates, gaps, in that order.

mod transfer;

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{OPTIMIZERS, Plan};
use crate::error::Result;
use crate::graph::backward::{Gradients, differentiate};
use crate::graph::build::{self, Forward, Options, SCALE};
use crate::graph::op::optimizer::{ClipScale, SquareSum};

use crate::graph::reach;
use crate::graph::tensor::{DType, Role, Storage, StorageId, TensorId, Type};
use crate::graph::{Node, Phase, Spot, Step, StepSet, Stream, When};
use crate::spec::job::{Place, Precision};
use crate::technique::{Draft, Rule};
use transfer::transfer;

/// Name of the guard outside: what gradients are multiplied by, whether they are finite, their norm.
pub const GUARD: &str = "output/guard";

impl Plan {
    /// The steps of training: first, middle and last micro-batch where there are several, and evaluation; gaps applied.
    ///
    /// # Errors
    /// Where a choice cannot be applied to this model.
    pub fn steps(&self) -> Result<StepSet> {
        let draft = self.draft()?;
        let training = self.forward(&draft, true)?;
        let mut set = StepSet {
            steps: Vec::new(),
            lead: 0,
            lag: 0,
        };
        let rule = self.rule(&draft)?;
        let middle = u32::try_from(draft.micro_batches.saturating_sub(2)).unwrap_or(u32::MAX);
        if draft.micro_batches > 1 {
            set.steps.push((
                When::First,
                micro_batch(training.clone(), &draft, false, None)?,
            ));
        }
        if middle > 0 {
            set.steps.push((
                When::Micro { times: middle },
                micro_batch(training.clone(), &draft, true, None)?,
            ));
        }
        let last = micro_batch(training, &draft, draft.micro_batches > 1, Some(&rule))?;
        set.steps.push((When::Steady, last));
        set.steps
            .push((When::Evaluate, self.forward(&draft, false)?.step));
        for choice in &self.choices {
            choice
                .behind()?
                .gap(&mut set, &choice.sites()?, &choice.args)?;
        }
        agree_on_places(&mut set);
        for (_, step) in &mut set.steps {
            reach::bring(step, set.lead)?;
            reach::settle(step, set.lag);
        }
        Ok(set)
    }

    /// The steps around training: filling persistent storages before it, and copying them out.
    ///
    /// # Errors
    /// Where a move cannot be typed.
    pub fn transfers(shared: &[Storage]) -> Result<Vec<(When, Step)>> {
        Ok(vec![
            (When::Start, transfer(shared, true)?),
            (When::Save, transfer(shared, false)?),
        ])
    }

    fn forward(&self, draft: &Draft, training: bool) -> Result<Forward> {
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
        for choice in &self.choices {
            choice
                .behind()?
                .forward(&mut forward.step, &choice.sites()?, draft, &choice.args)?;
        }
        Ok(forward)
    }

    /// The plan's update rule.
    fn rule(&self, draft: &Draft) -> Result<Rule> {
        let guard = draft.max_norm.is_some() || draft.loss_scale;
        let chosen = self
            .choices
            .iter()
            .find(|c| OPTIMIZERS.contains(&c.technique.as_str()));
        let rule = chosen
            .map(|c| c.behind()?.rule(draft.master, guard, &c.args))
            .transpose()?
            .flatten();
        Ok(rule.unwrap_or_else(|| panic!("a plan has an optimizer: `Plan::new` sees to it")))
    }
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
            let at = gradient_type(&step, parameter, draft);
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

fn gradient_name(step: &Step, parameter: TensorId) -> String {
    format!("{}.gradient", step.storage_of(parameter).name)
}

fn gradient_type(step: &Step, parameter: TensorId, draft: &Draft) -> Type {
    let at = step.type_of(parameter);
    at.with(draft.gradient_format.unwrap_or(at.dtype))
}

/// Marks the storage of a whole gradient as such; `keeps` where later micro-batches add to it.
fn name_gradient(step: &mut Step, parameter: TensorId, gradient: TensorId, keeps: bool) {
    let name = gradient_name(step, parameter);
    let storage = step.tensor(gradient).storage;
    let storage = &mut step.storages[storage.0 as usize];
    storage.name = name.into();
    storage.role = Role::Gradient;
    storage.shared = keeps;
}

/// Appends the updates of all `pairs` of parameter and gradient.
fn update(
    step: &mut Step,
    pairs: &[(TensorId, TensorId)],
    draft: &Draft,
    rule: &Rule,
) -> Result<()> {
    let guard = guard(step, pairs, draft)?;
    let mut updates = Vec::new();
    for &(parameter, gradient) in pairs {
        updates.push((
            parameter,
            one_update(step, parameter, gradient, guard, draft, rule)?,
        ));
    }
    match draft.fused_update {
        true => insert_early(step, updates),
        false => step.nodes.extend(updates.into_iter().map(|(_, node)| node)),
    }
    Ok(())
}

fn update_spot(step: &Step, parameter: TensorId) -> Spot {
    let name = &step.storage_of(parameter).name;
    let block = name.split('/').next().unwrap_or(name).into();
    Spot {
        origin: name.clone(),
        phase: Phase::Update,
        block,
        stream: Stream::Compute,
    }
}

/// The node that updates one parameter.
fn one_update(
    step: &mut Step,
    parameter: TensorId,
    gradient: TensorId,
    guard: Option<TensorId>,
    draft: &Draft,
    rule: &Rule,
) -> Result<Node> {
    let name = step.storage_of(parameter).name.clone();
    let at = step.type_of(parameter).with(DType::F32);
    let mut inputs = vec![gradient, parameter];
    let master = draft.master.then_some("master");
    for suffix in master.iter().chain(&rule.states) {
        let path = format!("{name}.{suffix}");
        inputs.push(step.persistent(&path, at.clone(), Place::Gpu, Role::OptimizerState));
    }
    inputs.extend(guard);
    let spot = update_spot(step, parameter);
    step.node(
        rule.op.clone(),
        &inputs,
        spot,
        Role::OptimizerState,
        Place::Gpu,
    )
}

/// The guard of the updates where a norm or a loss scale asks for one: partial sums right behind each gradient, then one scale.
fn guard(
    step: &mut Step,
    pairs: &[(TensorId, TensorId)],
    draft: &Draft,
) -> Result<Option<TensorId>> {
    if draft.max_norm.is_none() && !draft.loss_scale {
        return Ok(None);
    }
    let mut sums = Vec::new();
    let mut partials = Vec::new();
    for &(parameter, gradient) in pairs {
        let spot = update_spot(step, parameter);
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

/// Inserts each node behind the one that makes the value beside it.
fn insert_behind(step: &mut Step, nodes: Vec<(TensorId, Node)>) {
    let mut after: BTreeMap<TensorId, Node> = nodes.into_iter().collect();
    for node in std::mem::take(&mut step.nodes) {
        let made = node.outputs.clone();
        step.nodes.push(node);
        step.nodes
            .extend(made.iter().filter_map(|o| after.remove(o)));
    }
    step.nodes.extend(after.into_values());
}

/// Inserts each parameter's update behind the last node that reads the parameter or touches its gradient.
fn insert_early(step: &mut Step, updates: Vec<(TensorId, Node)>) {
    let mut last: BTreeMap<StorageId, usize> = BTreeMap::new();
    for (index, node) in step.nodes.iter().enumerate() {
        for &value in node.inputs.iter().chain(&node.outputs) {
            last.insert(step.tensor(value).storage, index);
        }
    }
    let mut behind: BTreeMap<usize, Vec<Node>> = BTreeMap::new();
    for (_, node) in updates {
        let uses = node
            .inputs
            .iter()
            .filter_map(|&v| last.get(&step.tensor(v).storage));
        let at = uses.copied().max().unwrap_or(0);
        behind.entry(at).or_default().push(node);
    }
    for (index, node) in std::mem::take(&mut step.nodes).into_iter().enumerate() {
        step.nodes.push(node);
        step.nodes.extend(behind.remove(&index).unwrap_or_default());
    }
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
