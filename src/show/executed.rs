//! Solved plans that were executed: what was predicted beside what happened.

use super::table::{Column, Table};
use crate::search::executed::{Row, summary};

/// The table of a page, and what it comes to.
pub fn text(rows: &[Row]) -> String {
    use Column::{Left, Right};
    let heads = [
        "model, MB/s, budget",
        "device, bytes",
        "mark, bytes",
        "proposed",
        "simulated",
        "measured",
        "off",
    ];
    let mut table = Table::new(&[Left, Right, Right, Right, Right, Right, Right]).heads(&heads);
    for row in rows {
        let step = row.time.step;
        table.row(vec![
            row.name.clone(),
            row.predicted.gpu.0.to_string(),
            row.measured.gpu.0.to_string(),
            row.proposed.to_string(),
            step.predicted.to_string(),
            step.corrected.to_string(),
            format!(
                "{:+.1} %",
                100.0 * (step.predicted.0 / step.corrected.0.max(1e-12) - 1.0)
            ),
        ]);
    }
    let all = summary(rows);
    let order = all.order.iter().map(|(m, r)| format!("{m} {r:.2}"));
    format!(
        "{}\n{} of {} marks are the prediction to the byte in every place; steps are {:.1} % off in the middle, {:.1} % at most;\n\
         rank correlation of simulated and measured steps: {:.2} together, {}\n",
        table.render(),
        all.agree,
        all.count,
        100.0 * all.median_error,
        100.0 * all.largest_error,
        all.together,
        order.collect::<Vec<_>>().join(", ")
    )
}
