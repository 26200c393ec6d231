//! Solved plans that were executed: the committed rows are about programs as they are lowered now, and say what the documentation says.

use std::path::Path;

use memfit::machine::{agreement, rows};
use memfit::search::executed::{Row, lowered, summary};
use memfit::show;

fn committed() -> Vec<Row> {
    rows::latest(Path::new("docs/executed.jsonl")).unwrap()
}

#[test]
fn executed_plans_are_lowered_as_they_were_and_took_what_was_predicted() {
    let rows = committed();
    assert!(rows.len() >= 20, "{}", rows.len());
    let here = agreement::nominal().unwrap();
    for row in &rows {
        assert_eq!(row.programs, lowered(row, &here).unwrap(), "{}", row.name);
        assert_eq!(row.predicted, row.measured, "{}", row.name);
        assert!(row.predicted.gpu <= row.budget, "{}", row.name);
    }
}

#[test]
fn the_page_of_executed_plans_is_that_of_their_rows() {
    let page = include_str!("../docs/executed.md");
    let text = show::executed::text(&committed());
    assert!(page.contains(&text), "docs/executed.md should hold\n{text}");
}

/// What is simulated to be faster is faster.
#[test]
fn simulated_steps_order_measured_ones() {
    let all = summary(&committed());
    assert!(all.together >= 0.9, "{all:?}");
}
