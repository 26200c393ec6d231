//! The ratchet: how far predictions may be from what was measured, on the copies in `tests/evidence/`.

use memfit::machine::compare::{Comparison, compare, read};
use memfit::program::eager;

fn held(name: &str) -> Comparison {
    let text = std::fs::read(format!("tests/evidence/{name}")).unwrap();
    compare(&read(&text), eager::predict, &mut |_, _| {})
}

#[test]
fn pytorch_takes_what_was_predicted_to_the_byte() {
    let found = held("torch_cases.jsonl");
    assert_eq!((found.cases, found.skipped.len()), (103, 0));
    for row in &found.rows {
        assert_eq!(row.predicted, row.measured, "{}", row.id);
        assert_eq!(Some(row.phase), row.measured_phase, "{}", row.id);
    }
    assert!(found.saved_layer_exact_share.unwrap() >= 0.95);
}

/// The absolute errors of the rows of a grade, ascending.
fn errors(found: &Comparison, grade: &str) -> Vec<f64> {
    let text = std::fs::read_to_string("tests/evidence/published_runs.jsonl").unwrap();
    let records = text
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let ids: std::collections::BTreeSet<String> = records
        .filter(|r| r["grade"] == grade)
        .map(|r| r["id"].as_str().unwrap().to_string())
        .collect();
    let of_grade = found.rows.iter().filter(|row| ids.contains(&row.id));
    let mut errors: Vec<f64> = of_grade.map(|row| row.error.abs()).collect();
    errors.sort_by(f64::total_cmp);
    errors
}

#[test]
fn published_runs_are_within_their_bounds() {
    let found = held("published_runs.jsonl");
    assert_eq!(found.cases, 300);
    for skipped in &found.skipped {
        let reasons = ["more than one GPU", "torch.compile", "float8", "no `arch`"];
        assert!(
            reasons.iter().any(|r| skipped.reason.starts_with(r)),
            "{skipped:?}"
        );
    }
    let (a, b) = (errors(&found, "A"), errors(&found, "B"));
    let at = |errors: &[f64], share: f64| errors[(errors.len() as f64 * share) as usize];
    assert!(at(&a, 0.5) <= 0.01 && at(&a, 0.9) <= 0.07, "{a:?}");
    assert!(at(&b, 0.5) <= 0.065, "{b:?}");
    // What has a speed is held against it, what has a speed alone too.
    assert!(found.unmeasured.is_empty(), "{:?}", found.unmeasured);
    assert_eq!(found.speed.cases, 133);
    let median = found.speed.median_abs_error.unwrap();
    assert!(median <= 0.175, "{median}");
    let held = found.speed.held_out.unwrap();
    assert!(held.median <= 0.305, "{held:?}");
}
