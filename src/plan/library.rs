//! Worked plans known by name, embedded in the binary; `plans/README.md` says how each was made.

use super::file::PlanFile;
use crate::error::{Error, Result};

/// A plan whose file is `plans/<name>.toml`.
macro_rules! entry {
    ($name:literal) => {
        ($name, include_str!(concat!("../../plans/", $name, ".toml")))
    };
}

/// All plans, from the smallest device up.
const ENTRIES: [(&str, &str); 17] = [
    entry!("tiny-cpu"),
    entry!("small-cpu"),
    entry!("llama-3.2-1b-8gb"),
    entry!("7b-24gb"),
    entry!("8b-80gb"),
    entry!("7b-8gb"),
    entry!("13b-12gb"),
    entry!("70b-24gb"),
    entry!("zero-offload-1.3b-4gb"),
    entry!("zero-offload-6.7b-24gb"),
    entry!("lsp-1.3b-4gb"),
    entry!("lsp-6.7b-24gb"),
    entry!("galore-7b-24gb"),
    entry!("blockllm-7b-24gb"),
    entry!("microadam-7b-40gb"),
    entry!("adamw8bit-7b-48gb"),
    entry!("mezo-opt-30b-80gb"),
];

/// The names of all plans, in the order they are listed.
pub fn names() -> impl Iterator<Item = &'static str> {
    ENTRIES.iter().map(|(name, _)| *name)
}

/// The plan of a name.
///
/// ```
/// let plan = memfit::plan::library::find("7b-24gb")?;
/// assert_eq!(plan.job.model, "7b");
/// # Ok::<(), memfit::error::Error>(())
/// ```
///
/// # Errors
/// Where no plan has that name.
pub fn find(name: &str) -> Result<PlanFile> {
    match ENTRIES.iter().find(|(known, _)| *known == name) {
        Some((name, text)) => PlanFile::parse(name, text),
        None => {
            let all: Vec<&str> = names().collect();
            let next = format!("give a file, or one of: {}", all.join(", "));
            Err(Error::unknown("plan", name, names(), next))
        }
    }
}
