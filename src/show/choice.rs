//! Choices in words.

use serde_json::{Value, json};

use super::table::{Column, Table};
use crate::plan::{Choice, Plan};
use crate::spec::job::{Exactness, Precision};

/// The name of a class on the command line and in files.
pub fn class_name(class: Exactness) -> &'static str {
    match class {
        Exactness::Bitwise => "bitwise",
        Exactness::Rounding => "rounding",
        Exactness::Lossy => "lossy",
    }
}

/// A choice as a sentence without a subject.
pub fn sentence(choice: &Choice) -> String {
    let what = choice
        .behind()
        .map_or_else(|_| String::new(), |t| t.describe(&choice.args));
    match choice.site.as_str() {
        "*" => what,
        site => format!("{what}; in {site}"),
    }
}

/// The class of one choice.
fn class(choice: &Choice) -> Exactness {
    choice
        .behind()
        .map_or(Exactness::Lossy, |t| t.card().exactness)
}

/// Whether the job itself asks for it: its update rule and its precision.
fn is_of_job(choice: &Choice, plan: &Plan) -> bool {
    let name = choice.technique.as_str();
    let asked = Choice::parse(&plan.job.optimizer.0).is_ok_and(|asked| asked.technique == name);
    asked || (name == "mixed_precision" && plan.job.precision != Precision::F32)
}

/// How a plan's results relate to those of its job with nothing else chosen.
pub fn plan_class(plan: &Plan) -> Exactness {
    let added = plan.choices.iter().filter(|c| !is_of_job(c, plan));
    added.map(class).max().unwrap_or(Exactness::Bitwise)
}

/// What the class of a plan means.
pub fn class_sentence(plan: &Plan) -> &'static str {
    match plan_class(plan) {
        Exactness::Bitwise => {
            "bitwise: the same results, bit for bit, as the job with nothing chosen"
        }
        Exactness::Rounding => {
            "rounding: results differ from the job with nothing chosen only by the order of sums"
        }
        Exactness::Lossy => "lossy: results differ by design from the job with nothing chosen",
    }
}

/// How a choice of a plan may change results, or that the job itself asks for it.
pub fn standing(choice: &Choice, plan: &Plan) -> &'static str {
    match is_of_job(choice, plan) {
        true => "of the job",
        false => class_name(class(choice)),
    }
}

/// The choices of a plan, one row each.
pub fn table(plan: &Plan) -> String {
    let mut table = Table::new(&[Column::Left, Column::Wrapped, Column::Left]).indent(2);
    for choice in &plan.choices {
        table.row(vec![
            choice.technique.clone(),
            sentence(choice),
            standing(choice, plan).to_string(),
        ]);
    }
    table.render()
}

/// The choices of a plan, each with technique, site, arguments, sentence and class.
pub fn json(plan: &Plan) -> Value {
    let one = |choice: &Choice| {
        json!({
            "technique": choice.technique,
            "site": choice.site,
            "args": choice.args,
            "text": choice.to_string(),
            "sentence": sentence(choice),
            "exactness": class_name(class(choice)),
        })
    };
    plan.choices.iter().map(one).collect()
}
