//! Improvements over the baselines: combinations of what saves most for least, from a list fixed by the job.

use super::{Named, may_choose};
use crate::plan::{Choice, Request};

/// Shares of the layers that a partial choice covers, in quarters.
const SHARES: [u64; 4] = [1, 2, 3, 4];

/// Every combination of a base (how the state is kept) with an activation policy.
pub fn more(request: &Request) -> Vec<Named> {
    let mut proposals = Vec::new();
    for (base, kept) in bases(request) {
        for (policy, choices) in policies(request) {
            let all: Vec<Choice> = kept.iter().chain(&choices).cloned().collect();
            let names: Vec<&str> = [base.as_str(), policy.as_str()]
                .into_iter()
                .filter(|n| !n.is_empty())
                .collect();
            if !all.is_empty() {
                proposals.push((names.join(" + "), all));
            }
        }
    }
    proposals
}

/// How parameters, gradients and optimizer state are kept, from the fastest to the smallest.
fn bases(request: &Request) -> Vec<Named> {
    let clips = request.fixed.iter().any(|c| c.technique == "clip");
    let scaled = request.job.precision == crate::spec::job::Precision::Fp16;
    let fused = (!clips && !scaled && may_choose(request, "fused_update"))
        .then(|| Choice::new("fused_update", "*", &[]));
    let offload = |args: &[(&str, &str)]| Choice::new("offload", "*", args);
    let host = offload(&[("what", "optimizer"), ("update", "host")]);
    let device = offload(&[("what", "optimizer")]);
    let disk = offload(&[("what", "optimizer"), ("to", "disk"), ("update", "host")]);
    let parameters = offload(&[("what", "parameters")]);
    let parameters_on_disk = offload(&[("what", "parameters"), ("to", "disk")]);
    let gradients = offload(&[("what", "gradients")]);
    let mut bases: Vec<Named> = vec![(String::new(), vec![])];
    if let Some(fused) = &fused {
        bases.push(("fused".into(), vec![fused.clone()]));
    }
    if !may_choose(request, "offload") {
        return bases;
    }
    // With a fused update a gradient is gone before the next one comes; without, it is sent to where its update is.
    // Gradients that micro-batches add to stay on the device.
    let accumulates = request.fixed.iter().any(|c| c.technique == "accumulate");
    let follow = fused.or((!accumulates).then_some(gradients));
    let with = |more: Vec<Choice>| follow.iter().cloned().chain(more).collect::<Vec<Choice>>();
    bases.push((
        "state on host, updated on device".into(),
        with(vec![device]),
    ));
    bases.push(("state on host".into(), with(vec![host.clone()])));
    bases.push((
        "state and weights on host".into(),
        with(vec![host, parameters.clone()]),
    ));
    bases.push((
        "state on disk, weights on host".into(),
        with(vec![disk.clone(), parameters]),
    ));
    bases.push((
        "state and weights on disk".into(),
        with(vec![disk, parameters_on_disk]),
    ));
    bases
}

/// What becomes of activations, from the fastest to the smallest.
fn policies(request: &Request) -> Vec<Named> {
    let layers = request.job.model.layers;
    let mut policies: Vec<Named> = vec![(String::new(), vec![])];
    let head = may_choose(request, "chunked_loss").then(|| Choice::new("chunked_loss", "*", &[]));
    let flash =
        may_choose(request, "flash_attention").then(|| Choice::new("flash_attention", "*", &[]));
    let streamed: Vec<Choice> = head.into_iter().chain(flash).collect();
    if !streamed.is_empty() && request.job.model.head == crate::spec::model::Head::Causal {
        policies.push(("streamed attention and loss".into(), streamed.clone()));
    }
    let streamed = if request.job.model.head == crate::spec::model::Head::Causal {
        streamed
    } else {
        vec![]
    };
    if may_choose(request, "recompute") {
        let cheap = Choice::new("recompute", "layers.*", &[("what", "cheap")]);
        policies.push((
            "recompute cheap".into(),
            streamed.iter().cloned().chain([cheap]).collect(),
        ));
        for share in SHARES {
            let last = (layers * share).div_ceil(4).max(1) - 1;
            let site = format!("layers.0-{last}");
            let some = Choice::new("recompute", &site, &[]);
            let name = format!("recompute {} of {layers} layers", last + 1);
            policies.push((name, streamed.iter().cloned().chain([some]).collect()));
        }
    }
    if may_choose(request, "recompute") && may_choose(request, "offload") {
        let all = [
            Choice::new("recompute", "layers.*", &[]),
            Choice::new("offload", "layers.*", &[]),
        ];
        policies.push((
            "recompute and offload layer inputs".into(),
            streamed.iter().cloned().chain(all).collect(),
        ));
    }
    policies
}
