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
