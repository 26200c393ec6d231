//! The answer to `plan`, for people.

use super::job::{Asked, header};
use super::table::labelled;
use super::{alternatives, choice, memory};
use crate::machine::estimate::Estimate;
use crate::plan::{Plan, Request};
use crate::search::{Answer, Misfit, Outcome};
use crate::spec::job::Budget;

/// Columns of the label of a verdict.
const LABEL: usize = 8;

/// The whole answer.
pub fn plan(answer: &Answer, request: &Request, asked: &Asked) -> String {
    match &answer.outcome {
        Outcome::Fits(best) => {
            let verdict = labelled("fits", &best.name, LABEL);
            let body = body(&best.plan, &best.estimate, &answer.budget);
            join(&best.plan, asked, &verdict, &body, answer, request)
        }
        Outcome::Misfit(misfit) => {
            let closest = &misfit.closest;
            let body = body(&closest.plan, &closest.estimate, &answer.budget);
            join(
                &closest.plan,
                asked,
                &verdict(misfit),
                &body,
                answer,
                request,
            )
        }
    }
}

fn join(
    plan: &Plan,
    asked: &Asked,
    verdict: &str,
    body: &str,
    answer: &Answer,
    request: &Request,
) -> String {
    let header = header(plan, asked);
    let table = alternatives::table(answer, request);
    format!("{header}\n{verdict}\n{body}\nalternatives\n{table}")
}

/// What does not fit, who is to blame, and what would help.
fn verdict(misfit: &Misfit) -> String {
    let estimate = &misfit.closest.estimate;
    let held = memory::holders(estimate, &[misfit.place]);
    let largest = held.iter().max_by_key(|(_, bytes)| **bytes);
    let blame = largest.map_or(String::new(), |(role, bytes)| {
        format!(
            "; at the peak most of it is {}, {bytes}",
            memory::role_name(*role)
        )
    });
    let line = format!(
        "needs {} of {}, has {}{blame}",
        misfit.need,
        memory::row_name(&[misfit.place]),
        misfit.have
    );
    let mut text = labelled("MISFIT", &line, LABEL);
    text += &labelled("", &misfit.change, LABEL);
    text + &labelled("", &format!("closest plan: {}", misfit.closest.name), LABEL)
}

/// A plan with what it takes: choices, memory, time.
pub fn body(plan: &Plan, estimate: &Estimate, budget: &Budget) -> String {
    format!(
        "choices\n{}  {}\n\npeak memory\n{}\n{}{}",
        choice::table(plan),
        choice::class_sentence(plan),
        memory::section(estimate, budget),
        memory::time(estimate),
        memory::programs(estimate),
    )
}
