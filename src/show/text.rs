//! The answer to `plan`, for people.

use super::job::{Asked, header};
use super::table::labelled;
use super::{alternatives, choice, memory};
use crate::machine::estimate::Estimate;
use crate::plan::{Plan, Request};
use crate::search::{Answer, Certificate, Misfit, Outcome};
use crate::spec::job::Budget;

/// Most names of what holds the memory.
const HOLDERS: usize = 5;

/// Columns of the label of a verdict.
const LABEL: usize = 8;

/// The whole answer.
pub fn plan(answer: &Answer, request: &Request, asked: &Asked) -> String {
    match &answer.outcome {
        Outcome::Fits(best) => {
            let proof = answer.certificate.as_ref().map_or(String::new(), proof);
            let verdict = labelled("fits", &best.name, LABEL) + &proof;
            let body = body(&best.plan, &best.estimate, &answer.budget);
            join(&best.plan, asked, &verdict, &body, answer, request)
        }
        Outcome::Misfit(misfit) => {
            let closest = &misfit.closest;
            let body = body(&closest.plan, &closest.estimate, &answer.budget);
            join(
                &closest.plan,
                asked,
                &verdict(misfit, &answer.budget),
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
    let front = alternatives::front(answer);
    format!("{header}\n{verdict}\n{body}\nalternatives\n{table}{front}")
}

/// How much better a plan could be.
fn proof(certificate: &Certificate) -> String {
    labelled("proof", &proof_line(certificate), LABEL)
}

/// The same as a line.
pub(super) fn proof_line(certificate: &Certificate) -> String {
    let (bound, gap) = (certificate.bound, 100.0 * certificate.gap.max(0.0));
    format!("no plan of its class takes less than {bound}: this one is within {gap:.2} % of that")
}

/// What does not fit, who is to blame, and what would help.
fn verdict(misfit: &Misfit, budget: &Budget) -> String {
    let estimate = &misfit.closest.estimate;
    let mut text = String::new();
    for over in memory::passed(estimate, budget) {
        let label = if text.is_empty() { "MISFIT" } else { "" };
        text += &labelled(label, &blame(&over, estimate), LABEL);
    }
    let held = misfit.holders.iter().take(HOLDERS);
    let held: Vec<String> = held
        .map(|(name, bytes)| format!("{name} {bytes}"))
        .collect();
    let more = match misfit.holders.len().saturating_sub(HOLDERS) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let at = format!("{}: {}{more}", misfit.instant, held.join(", "));
    text += &labelled("when", &at, LABEL);
    text += &labelled("change", &misfit.change, LABEL);
    if !misfit.changes.is_empty() {
        let any = format!("or one of: {}", misfit.changes.join("; "));
        text += &labelled("", &any, LABEL);
    }
    text + &labelled("closest", &misfit.closest.name, LABEL)
}

/// One row of the budget that is passed, and who holds most of it.
pub(super) fn blame(over: &memory::Row, estimate: &Estimate) -> String {
    let mut held: Vec<_> = memory::holders(estimate, over.places).into_iter().collect();
    held.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    let each = held.iter().take(3);
    let each = each.map(|(role, bytes)| format!("{} {bytes}", memory::role_name(*role)));
    format!(
        "{}: needs {}, has {}; at the peak {}",
        memory::row_name(over.places),
        over.need,
        over.have,
        each.collect::<Vec<_>>().join(", ")
    )
}

/// A plan with what it takes: choices, memory, time.
pub fn body(plan: &Plan, estimate: &Estimate, budget: &Budget) -> String {
    format!(
        "choices\n{}{}\npeak memory\n{}\n{}{}",
        choice::table(plan),
        labelled("", choice::class_sentence(plan), 2),
        memory::section(estimate, budget),
        memory::time(estimate),
        memory::programs(estimate),
    )
}
