//! What the runs must show, beside what they showed.

use serde::Serialize;

use super::{Cell, Row};

/// How far above AdamW's held-out loss a method may end, as a share: by part and the beginning of its text.
const WITHIN: [(&str, &str, f64); 9] = [
    ("scratch", "adamw8bit", 0.02),
    ("scratch", "microadam", 0.02),
    ("scratch", "galore", 0.03),
    ("small", "adamw8bit", 0.02),
    ("small", "galore", 0.03),
    ("adapted", "adamw8bit", 0.02),
    ("adapted", "microadam", 0.02),
    ("adapted", "blockllm", 0.05),
    ("adapted", "lsp_offload", 0.05),
];

/// Standard errors by which an estimator must lower held-out loss.
const ERRORS: f64 = 3.0;

/// One demand and what the rows say of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Verdict {
    /// Part and method.
    pub name: String,
    /// What is compared, in words.
    pub demand: String,
    /// What was found, in the same unit as the bound.
    pub found: f64,
    /// The bound.
    pub bound: f64,
    /// Whether it holds.
    pub holds: bool,
}

/// The demands that the rows there are can be held against.
pub fn held(rows: &[Row]) -> Vec<Verdict> {
    let mut all = Vec::new();
    for (part, method, bound) in WITHIN {
        let (Some(own), Some(base)) = (mean(rows, part, method), mean(rows, part, "adamw")) else {
            continue;
        };
        let found = own / base - 1.0;
        all.push(Verdict {
            name: format!("{part}/{method}"),
            demand: "held-out loss above AdamW's, as a share".to_string(),
            found,
            bound,
            holds: found <= bound,
        });
    }
    for row in rows
        .iter()
        .filter(|r| Cell::parts(&r.name).0 == "estimated")
    {
        let found = (row.before - row.after) / row.error.max(f64::MIN_POSITIVE);
        all.push(Verdict {
            name: row.name.clone(),
            demand: "standard errors by which held-out loss fell".to_string(),
            found,
            bound: ERRORS,
            holds: found > ERRORS,
        });
    }
    all
}

/// The mean held-out loss over the seeds of the method whose name is `technique`.
fn mean(rows: &[Row], part: &str, technique: &str) -> Option<f64> {
    let is = |row: &&Row| {
        let (own, method) = Cell::parts(&row.name);
        own == part && method.split([':', '+']).next() == Some(technique)
    };
    let losses: Vec<f64> = rows.iter().filter(is).map(|r| r.after).collect();
    let sum: f64 = losses.iter().sum();
    (!losses.is_empty()).then(|| sum / losses.len() as f64)
}
