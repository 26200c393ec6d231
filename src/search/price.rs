//! What candidates cost: whole where the model is shallow, else continued from two shallow models of the same layers.

use rayon::prelude::*;

use super::{Candidate, Proposal, baselines};
use crate::error::Result;
use crate::machine::estimate::{self, Estimate};
use crate::plan::{Choice, Plan, Request};
use crate::spec::job::PerPlace;
use crate::spec::units::{Bytes, Seconds};

/// Depths that prices are continued from: multiples of the shares candidates come in, and of the period of all families.
const SHALLOW: (u64, u64) = (4, 8);

/// Prices all candidates of `request`, in order; those that a fixed choice excludes are left out, unless none is left.
///
/// # Errors
/// Where every candidate is refused: the first refusal.
pub fn all(request: &Request) -> Result<Vec<Candidate>> {
    let layers = request.job.model.layers;
    let deep = layers > SHALLOW.1 && !names_layers(request);
    let proposals = distinct(request, proposals(request));
    let (near, far) = (depth(request, SHALLOW.0), depth(request, SHALLOW.1));
    let lists = (
        distinct(&near, self::proposals(&near)),
        distinct(&far, self::proposals(&far)),
    );
    let one = |index: usize| -> Result<Candidate> {
        let name = proposals[index].name.clone();
        let plan = plan(request, &proposals[index])?;
        if !deep {
            let estimate = estimate::quick(&plan)?;
            return Ok(Candidate::whole(name, plan, estimate));
        }
        let near = estimate::quick(&self::plan(&near, &lists.0[index])?)?;
        let far = estimate::quick(&self::plan(&far, &lists.1[index])?)?;
        let tokens = (request.job.batch * request.job.seq) as f64;
        let estimate = continued(&near, &far, layers, tokens);
        Ok(Candidate {
            exact: false,
            ..Candidate::whole(name, plan, estimate)
        })
    };
    let priced: Vec<Result<Candidate>> = (0..proposals.len()).into_par_iter().map(one).collect();
    let mut candidates = Vec::new();
    let mut refused = None;
    for candidate in priced {
        match candidate {
            Ok(candidate) => candidates.push(candidate),
            Err(error) => refused = refused.or(Some(error)),
        }
    }
    match (candidates.is_empty(), refused) {
        (true, Some(error)) => Err(error),
        _ => Ok(candidates),
    }
}

/// The proposals without those that add nothing to an earlier one, once what is fixed is left out.
fn distinct(request: &Request, proposals: Vec<Proposal>) -> Vec<Proposal> {
    let mut seen = Vec::new();
    let mut is_new = |proposal: &Proposal| {
        let left: Vec<Choice> = proposal
            .choices
            .iter()
            .filter(|c| !decides(request, c))
            .cloned()
            .collect();
        let new = !seen.contains(&left);
        seen.push(left);
        new
    };
    proposals.into_iter().filter(|p| is_new(p)).collect()
}

fn proposals(request: &Request) -> Vec<Proposal> {
    baselines::all(request)
        .into_iter()
        .map(Proposal::from)
        .collect()
}

/// The plan of a proposal: what is fixed, and what the proposal adds about anything else.
pub(super) fn plan(request: &Request, proposal: &Proposal) -> Result<Plan> {
    let mut all = request.fixed.clone();
    let own = proposal.choices.iter();
    all.extend(own.filter(|c| !decides(request, c)).cloned());
    Plan::new(request.job.clone(), all)
}

/// Whether a fixed choice decides already what `choice` is about.
pub(super) fn decides(request: &Request, choice: &Choice) -> bool {
    // Offloads of different things stand beside each other; what is not said is activations.
    let subject = |c: &Choice| match c.technique.as_str() {
        "offload" => c
            .args
            .0
            .get("what")
            .cloned()
            .or(Some("activations".to_string())),
        _ => None,
    };
    request
        .fixed
        .iter()
        .any(|f| f.technique == choice.technique && subject(f) == subject(choice))
}

/// Whether a fixed choice names layers by number, so that fewer layers would mean something else.
pub(super) fn names_layers(request: &Request) -> bool {
    let numbered = |site: &str| {
        site.split("layers.")
            .skip(1)
            .any(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    };
    request.fixed.iter().any(|c| numbered(&c.site))
}

/// The request for a model of `layers` layers.
pub(super) fn depth(request: &Request, layers: u64) -> Request {
    let mut request = request.clone();
    request.job.model.layers = layers;
    request
}

/// The line through two estimates, at `layers`: layers of one kind add the same bytes and seconds each.
fn continued(near: &Estimate, far: &Estimate, layers: u64, tokens: f64) -> Estimate {
    let steps = (layers - SHALLOW.1) as f64 / (SHALLOW.1 - SHALLOW.0) as f64;
    let line = |a: f64, b: f64| (b + (b - a) * steps).max(0.0);
    let bytes = |a: Bytes, b: Bytes| Bytes(line(a.0 as f64, b.0 as f64) as u64);
    let roles = |a: &std::collections::BTreeMap<_, Bytes>,
                 b: &std::collections::BTreeMap<_, Bytes>| {
        b.iter()
            .map(|(role, &b)| (*role, bytes(a.get(role).copied().unwrap_or(b), b)))
            .collect()
    };
    let step = line(near.step.0, far.step.0);
    Estimate {
        peak: PerPlace::new(|p| bytes(near.peak[p], far.peak[p])),
        peak_by_role: roles(&near.peak_by_role, &far.peak_by_role),
        roles: PerPlace::new(|p| roles(&near.roles[p], &far.roles[p])),
        programs: near
            .programs
            .iter()
            .zip(&far.programs)
            .map(|(a, b)| (b.0, bytes(a.1, b.1)))
            .collect(),
        step: Seconds(step),
        tokens_per_second: tokens / step,
        busy: far
            .busy
            .iter()
            .map(|(s, &b)| (*s, line(near.busy.get(s).copied().unwrap_or(b), b)))
            .collect(),
        phases: far
            .phases
            .iter()
            .map(|(p, &b)| (*p, line(near.phases.get(p).copied().unwrap_or(b), b)))
            .collect(),
        exposed: Seconds(line(near.exposed.0, far.exposed.0)),
    }
}
