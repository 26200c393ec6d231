//! The answer to `plan`, for programs. Integers are bytes, durations seconds.

use serde_json::{Map, Value, json};

use super::choice::class_name;
use super::job::{self, Asked};
use super::{alternatives, choice, memory};
use crate::machine::estimate::Estimate;
use crate::plan::Plan;
use crate::search::front::Point;
use crate::search::{Answer, Candidate, Certificate, Misfit, Outcome};
use crate::spec::job::{Budget, Place};
use crate::spec::units::Bytes;

/// The whole answer.
pub fn plan(answer: &Answer, asked: &Asked) -> Value {
    let (outcome, candidate, misfit) = match &answer.outcome {
        Outcome::Fits(best) => ("fits", best.as_ref(), None),
        Outcome::Misfit(misfit) => ("misfit", &misfit.closest, Some(misfit.as_ref())),
    };
    let mut all = body(&candidate.plan, &candidate.estimate, &answer.budget, asked);
    all.insert("outcome".into(), json!(outcome));
    all.insert("name".into(), json!(candidate.name));
    all.insert("alternatives".into(), alternatives::json(answer));
    all.insert("search".into(), search(answer));
    all.insert("front".into(), front(answer));
    // What only a command that asks for it knows.
    all.extend(["goal", "cost"].map(|key| (key.to_string(), Value::Null)));
    let proof = answer.certificate.as_ref().map(certificate);
    all.insert("certificate".into(), json!(proof));
    if let Some(misfit) = misfit {
        all.insert("misfit".into(), blame(misfit, &answer.budget));
    }
    Value::Object(all)
}

/// A plan with what it takes, as fields of an object.
pub fn body(
    plan: &Plan,
    estimate: &Estimate,
    budget: &Budget,
    asked: &Asked,
) -> Map<String, Value> {
    let mut decided = job::json(plan, asked);
    decided["choices"] = choice::json(plan);
    decided["exactness"] = json!(choice::class_name(choice::plan_class(plan)));
    let fields = [
        ("plan", decided),
        ("budget", memory::budget_json(budget)),
        ("estimate", memory::json(estimate)),
        ("assumptions", job::assumptions_json(plan, asked)),
    ];
    fields
        .map(|(key, value)| (key.to_string(), value))
        .into_iter()
        .collect()
}

fn search(answer: &Answer) -> Value {
    json!({"seconds": answer.seconds, "considered": answer.considered.len()})
}

/// What the bound says of the chosen plan.
fn certificate(certificate: &Certificate) -> Value {
    json!({
        "bound_seconds": certificate.bound,
        "gap": certificate.gap,
        "class": certificate.class,
        "proposed_seconds": certificate.proposed,
        "simulated_seconds": certificate.simulated,
    })
}

/// The fastest step within less and more of the device's memory.
fn front(answer: &Answer) -> Value {
    let point = |point: &Point| {
        json!({
            "device_bytes": point.device,
            "step_seconds": point.step,
            "exactness": class_name(point.class),
            "name": point.name,
        })
    };
    answer.front.iter().map(point).collect()
}

fn holder((name, bytes): &(String, Bytes)) -> Value {
    json!({"name": name, "bytes": bytes})
}

fn blame(misfit: &Misfit, budget: &Budget) -> Value {
    let Candidate { estimate, name, .. } = &misfit.closest;
    let row = |over: &memory::Row| {
        json!({
            "places": over.places,
            "need": over.need,
            "have": over.have,
            "blame": memory::holders(estimate, over.places),
        })
    };
    let passed = memory::passed(estimate, budget);
    let places = passed.first().map_or([Place::Gpu].as_slice(), |p| p.places);
    json!({
        "place": misfit.place,
        "need": misfit.need,
        "have": misfit.have,
        "blame": memory::holders(estimate, places),
        "change": misfit.change,
        "changes": misfit.changes,
        "instant": misfit.instant,
        "holders": misfit.holders.iter().map(holder).collect::<Value>(),
        "closest": name,
        "passed": passed.iter().map(row).collect::<Value>(),
    })
}
