//! What solved plans gain over what others would do: the tables of a page, made from the rows of the grid.

use super::table::{Column, Table};
use crate::search::grid::Row;

/// The summary of some rows.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Summary {
    /// Cells in which some plan fits.
    pub fitting: usize,
    /// Of those in which another policy fits: in how many the solved plan is strictly faster.
    pub strictly_faster: (usize, usize),
    /// Cells in which the solved plan is slower than the best other, or none was found where another fits.
    pub slower: Vec<String>,
    /// The geometric mean of the best other's step over the solved plan's.
    pub speed_up: f64,
    /// Cells in which only the solved plan fits.
    pub alone: usize,
    /// Median and largest distance of the proposed step from the simulated one.
    pub proposal_error: (f64, f64),
    /// Median and largest gap to the bound.
    pub gap: (f64, f64),
}

/// A step is faster or slower where it differs by more than rounding.
const ALIKE: f64 = 1e-6;

/// The summary of `rows`.
pub fn summary<'a>(rows: impl Iterator<Item = &'a Row> + Clone) -> Summary {
    let fitting = || rows.clone().filter_map(|r| Some((r, r.seconds?)));
    // Keeping all, parameters and states included, fits in none of the cells.
    let contested = || fitting().filter_map(|(r, s)| Some((r, s, r.best_other()?.1)));
    let slower = rows.clone().filter(|r| {
        let other = r.best_other().map(|(_, seconds)| seconds);
        other.is_some_and(|other| r.seconds.is_none_or(|own| own > other * (1.0 + ALIKE)))
    });
    let faster = contested().filter(|(_, own, other)| *own < other * (1.0 - ALIKE));
    let logs: Vec<f64> = contested()
        .map(|(_, own, other)| (other / own).ln())
        .collect();
    let errors = fitting().filter_map(|(r, s)| Some((r.proposed? / s - 1.0).abs()));
    let gaps = fitting().filter_map(|(r, s)| Some(1.0 - r.bound? / s));
    Summary {
        fitting: fitting().count(),
        strictly_faster: (faster.count(), logs.len()),
        slower: slower.map(|r| r.name.clone()).collect(),
        speed_up: (logs.iter().sum::<f64>() / logs.len().max(1) as f64).exp(),
        alone: fitting().filter(|(r, _)| r.others.is_empty()).count(),
        proposal_error: middle_and_most(errors.collect()),
        gap: middle_and_most(gaps.collect()),
    }
}

fn middle_and_most(mut all: Vec<f64>) -> (f64, f64) {
    all.sort_by(f64::total_cmp);
    let middle = all.get(all.len() / 2).copied().unwrap_or(0.0);
    (middle, all.last().copied().unwrap_or(0.0))
}

/// The tables of the page.
pub fn text(rows: &[Row]) -> String {
    use Column::{Left, Right};
    let heads = [
        "model and length",
        "fit",
        "faster",
        "speed-up",
        "alone",
        "proposed",
        "gap",
    ];
    let mut table = Table::new(&[Left, Right, Right, Right, Right, Right, Right]).heads(&heads);
    let mut groups: Vec<String> = rows.iter().map(group).collect();
    groups.dedup();
    for name in groups {
        let own = rows.iter().filter(|r| group(r) == name);
        table.row(cells(&name, &summary(own)));
    }
    let all = summary(rows.iter());
    table.row(cells("all", &all));
    let slower = match all.slower.as_slice() {
        [] => "no cell is slower than another policy\n".to_string(),
        cells => format!("slower than another policy: {}\n", cells.join(", ")),
    };
    table.render() + &slower
}

fn group(row: &Row) -> String {
    let parts: Vec<&str> = row.name.split('/').take(2).collect();
    parts.join(" ")
}

fn cells(name: &str, of: &Summary) -> Vec<String> {
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    vec![
        name.to_string(),
        of.fitting.to_string(),
        format!("{} of {}", of.strictly_faster.0, of.strictly_faster.1),
        format!("{:.3} x", of.speed_up),
        of.alone.to_string(),
        format!(
            "{} / {}",
            percent(of.proposal_error.0),
            percent(of.proposal_error.1)
        ),
        format!("{} / {}", percent(of.gap.0), percent(of.gap.1)),
    ]
}
