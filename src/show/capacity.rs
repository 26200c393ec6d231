//! The answer to `fit`: what a device can train at most, in a table and for programs.

use serde_json::{Value, json};

use super::job::parameters;
use super::table::Column::{Left, Right, Shortened};
use super::table::{Table, labelled};
use super::{market, money};
use crate::search::Candidate;
use crate::search::capacity::{Capacity, Most};
use crate::spec::cost::{Cost, Tariff};
use crate::spec::device::Device;
use crate::spec::units::show_count;

/// The question and its answer.
#[derive(Debug)]
pub struct Page<'a> {
    /// The device.
    pub device: &'a Device,
    /// The model that was asked for, where one was.
    pub model: Option<&'a str>,
    /// Models that were tried among.
    pub models: usize,
    /// What cost is reckoned with.
    pub tariff: &'a Tariff,
    /// What was found, by class.
    pub capacities: &'a [Capacity],
}

/// The table and what its figures are, within `width` columns.
pub fn text(page: &Page, width: usize) -> String {
    let device = page.device;
    let mut text = labelled(
        "device",
        &format!("{}, {} for the plan", device.name, device.budget()),
        8,
    );
    let heads = [
        "training",
        "largest model",
        "parameters",
        "tokens/s",
        "most sequences",
        "longest sequence",
        "plan",
    ];
    let columns = [Left, Left, Right, Right, Right, Right, Shortened];
    let mut table = Table::new(&columns)
        .within(width)
        .gives_way(&[6, 2, 3, 4])
        .heads(&heads);
    for capacity in page.capacities {
        table.row(cells(capacity));
    }
    text += &format!("\n{}\n", table.render());
    for capacity in page.capacities {
        text += &cost(page, capacity);
    }
    text + &notes(page)
}

fn cells(capacity: &Capacity) -> Vec<String> {
    let title = capacity.class.title().to_string();
    let Some(model) = &capacity.model else {
        let none = ["none fits", "-", "-", "-", "-", ""].map(String::from);
        return [title].into_iter().chain(none).collect();
    };
    let job = &model.plan.job;
    vec![
        title,
        job.model.name.clone(),
        show_count(parameters(&job.model)),
        format!("{:.0}", model.estimate.tokens_per_second),
        capacity
            .batch
            .as_ref()
            .map_or("-".into(), |b| format!("{} of {}", count(b), job.seq)),
        capacity
            .seq
            .as_ref()
            .map_or("-".into(), |s| format!("{} x {}", job.batch, count(s))),
        market::plan_name(model),
    ]
}

/// A count, with what ended it where that is not the memory.
fn count(most: &Most) -> String {
    match most.all {
        true => format!("{} (all)", most.count),
        false => most.count.to_string(),
    }
}

/// What training by a class costs.
fn cost(page: &Page, capacity: &Capacity) -> String {
    let Some(model) = &capacity.model else {
        return String::new();
    };
    let speed = model.estimate.tokens_per_second;
    let cost = Cost::of(page.device, speed, page.tariff);
    match money::section(&cost, page.device, speed, page.tariff) {
        none if none.is_empty() => none,
        said => format!(
            "{} of {}\n{said}\n",
            capacity.class.title(),
            model.plan.job.model.name
        ),
    }
}

fn notes(page: &Page) -> String {
    let among = match page.model {
        Some(_) => "The model was given".to_string(),
        None => format!(
            "The largest by parameters of {} models (`memfit models`), by bisection: the next larger one was planned and does not fit",
            page.models
        ),
    };
    let what = "Batch and length are the largest that a plan was found for; for one more none was. (all): the model takes no longer sequence, or no more were tried.";
    labelled("", &format!("{among}. {what}"), 0)
}

/// The answer for programs.
pub fn json(page: &Page) -> Value {
    json!({
        "device": {"id": page.device.id, "name": page.device.name, "budget": page.device.budget()},
        "models": page.models,
        "classes": page.capacities.iter().map(|c| class(c, page)).collect::<Value>(),
    })
}

fn class(capacity: &Capacity, page: &Page) -> Value {
    let most = |most: &Option<Most>| {
        let most = most.as_ref()?;
        let mut all = planned(&most.plan);
        all["count"] = json!(most.count);
        all["ended_by"] = json!(if most.all { "limit" } else { "memory" });
        Some(all)
    };
    let model = capacity.model.as_ref().map(|model| {
        let mut all = planned(model);
        let speed = model.estimate.tokens_per_second;
        all["name"] = json!(model.plan.job.model.name);
        all["parameters"] = json!(parameters(&model.plan.job.model));
        all["cost"] = money::json(
            &Cost::of(page.device, speed, page.tariff),
            page.device,
            page.tariff,
        );
        all
    });
    json!({
        "class": capacity.class.name(),
        "goal": capacity.class.goal().name(),
        "outcome": if model.is_some() { "fits" } else { "misfit" },
        "model": model,
        "batch": most(&capacity.batch),
        "seq": most(&capacity.seq),
    })
}

/// A plan of the job it is for, so that `plan` can be asked the same.
fn planned(candidate: &Candidate) -> Value {
    let job = &candidate.plan.job;
    json!({
        "seq": job.seq,
        "batch": job.batch,
        "precision": job.precision,
        "plan": market::plan(candidate),
        "step_seconds": candidate.estimate.step,
        "tokens_per_second": candidate.estimate.tokens_per_second,
    })
}
