//! Which techniques stand beside which: every pair put together on a micro model.

use rayon::prelude::*;

use super::micro::{self, Size};
use crate::error::Result;
use crate::plan::{Choice, Plan};
use crate::spec::device;
use crate::spec::job::{Host, Job, Optimizer, Precision, Target};
use crate::technique::TECHNIQUES;

/// Two techniques together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// One of them, by its name.
    pub one: &'static str,
    /// The other, which comes later in the list of techniques.
    pub other: &'static str,
    /// Why they are refused; `None` where they compose.
    pub refusal: Option<String>,
}

/// The micro model pairs are tried on, and its batch.
const SIZE: Size = Size {
    hidden: 64,
    layers: 2,
    vocab: 256,
};

/// What frozen weights need beside them, so that something is trained.
const ADAPTER: &str = "lora";

/// Techniques that are several by an argument: a pair is refused only where each of them is.
const FORMS: [(&str, &[&str]); 3] = [
    ("lsp_offload", &["lsp_offload:schedule=after"]),
    (
        "offload",
        &["offload:what=parameters", "offload:what=optimizer"],
    ),
    ("compress_offload", &["compress_offload:what=optimizer"]),
];

/// Every pair of techniques with their default arguments, in the order of the list; with an adapter where only that is missing.
///
/// # Errors
/// Where the micro model cannot be built.
pub fn pairs() -> Result<Vec<Pair>> {
    let job = job()?;
    let names: Vec<&'static str> = TECHNIQUES.iter().map(|t| t.card().name).collect();
    let all: Vec<(usize, usize)> = (0..names.len())
        .flat_map(|one| (one + 1..names.len()).map(move |other| (one, other)))
        .collect();
    let tried = |&(one, other): &(usize, usize)| {
        let (one, other) = (names[one], names[other]);
        let adapted = |refused| together(&job, &[one, other, ADAPTER]).map_err(|_| refused);
        let other_form = |refused| {
            let forms = FORMS.iter().filter(|(name, _)| *name == other);
            let mut forms = forms.flat_map(|(_, texts)| texts.iter());
            match forms.any(|form| together(&job, &[one, form]).is_ok()) {
                true => Ok(()),
                false => Err(refused),
            }
        };
        let refusal = together(&job, &[one, other])
            .or_else(adapted)
            .or_else(other_form)
            .err();
        let refusal = refusal.map(|e| e.to_string());
        Pair {
            one,
            other,
            refusal,
        }
    };
    Ok(all.par_iter().map(tried).collect())
}

fn job() -> Result<Job> {
    Ok(Job {
        model: micro::model("llama", SIZE)?,
        seq: 64,
        batch: 4,
        precision: Precision::F32,
        optimizer: Optimizer("adamw".into()),
        target: Target::new(device::find("1GiB")?, Host::default()),
    })
}

/// The techniques in one plan.
fn together(job: &Job, names: &[&str]) -> Result<()> {
    let choices = names.iter().map(|name| Choice::parse(name));
    let choices = choices.collect::<Result<Vec<_>>>()?;
    Plan::new(job.clone(), choices)?.steps().map(|_| ())
}
