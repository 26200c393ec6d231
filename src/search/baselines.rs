//! The plans everybody knows, to stand beside whatever is found.

use super::{Named, may_choose};
use crate::plan::{Choice, Request};

/// Keep all, recompute all, offload all, Megatron's selective recomputation.
pub fn all(request: &Request) -> Vec<Named> {
    let recompute = |args: &[(&str, &str)]| Choice::new("recompute", "layers.*", args);
    let offload = |what: &str, update: &str| {
        let site = if what == "activations" {
            "layers.*"
        } else {
            "*"
        };
        let args = [("what", what), ("update", update)];
        Choice::new(
            "offload",
            site,
            if update.is_empty() { &args[..1] } else { &args },
        )
    };
    let mut proposals = vec![("keep all".to_string(), vec![])];
    if may_choose(request, "recompute") {
        proposals.push(("recompute all".into(), vec![recompute(&[])]));
        proposals.push((
            "selective recompute".into(),
            vec![recompute(&[("what", "attention")])],
        ));
    }
    if may_choose(request, "offload") {
        let everything = vec![
            offload("activations", ""),
            offload("parameters", ""),
            offload("gradients", ""),
            offload("optimizer", "host"),
        ];
        proposals.push(("offload all".into(), everything));
    }
    proposals
}
