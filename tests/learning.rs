//! What methods learn: the committed runs are of programs as they are lowered now, and the page says what they showed.

use std::collections::BTreeSet;
use std::path::Path;

use memfit::machine::learning::{Cell, cells, held, read};
use memfit::show::learning::markdown;

/// Demands that are missed, each named with what is known of the reason on the page.
const MISSED: [&str; 3] = [
    "adapted/adamw8bit",
    "adapted/blockllm",
    "adapted/lsp_offload",
];

#[test]
fn the_committed_runs_are_about_programs_as_they_are_lowered_now() {
    let rows = read(Path::new("docs/techniques.jsonl")).unwrap();
    let all = cells();
    assert_eq!(rows.len(), all.len(), "every cell has a row");
    for row in &rows {
        let cell = all.iter().find(|c| c.name == row.name).unwrap();
        assert_eq!(
            cell.lowered().unwrap(),
            row.programs,
            "{} is stale",
            row.name
        );
        assert!(
            row.after.is_finite() && row.measured.gpu <= row.predicted.gpu,
            "{}",
            row.name
        );
        // A selection that changes takes what is largest at times only.
        let changes = row.name.contains("/blockllm");
        assert!(changes || row.measured == row.predicted, "{}", row.name);
    }
    for verdict in held(&rows) {
        let missed = MISSED.contains(&verdict.name.as_str());
        assert_eq!(verdict.holds, !missed, "{verdict:?}");
    }
}

#[test]
fn the_page_says_what_the_runs_showed() {
    let rows = read(Path::new("docs/techniques.jsonl")).unwrap();
    let page = std::fs::read_to_string("docs/techniques.md").unwrap();
    let table = markdown(&rows, &held(&rows));
    assert!(page.ends_with(&table), "renew the page with:\n{table}");
}

#[test]
fn every_update_rule_is_among_the_cells() {
    let names: BTreeSet<String> = cells().iter().map(|c| c.name.clone()).collect();
    assert_eq!(names.len(), cells().len());
    let methods: Vec<&str> = names.iter().map(|n| Cell::parts(n).1).collect();
    for card in memfit::technique::TECHNIQUES.iter().map(|t| t.card()) {
        let used = |m: &&str| m.split('+').any(|c| c.split(':').next() == Some(card.name));
        assert!(!card.is_rule() || methods.iter().any(used), "{}", card.name);
    }
}
