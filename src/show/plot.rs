//! The memory of a program from its first instruction to its last, as a picture of characters.

use super::curve::Curve;
use super::page;
use super::table::labelled;
use crate::graph::Phase;
use crate::spec::units::Bytes;

/// Columns of the picture, where the page has as many.
pub const COLUMNS: usize = 80;
/// Rows of the picture.
pub const ROWS: usize = 16;
/// Columns of the numbers at its left.
const MARGIN: usize = 12;
/// Parts of a character, from the bottom.
const PARTS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// The letter that stands for a phase.
fn letter(phase: Option<Phase>) -> char {
    match phase {
        Some(Phase::Load) => 'L',
        Some(Phase::Forward) => 'F',
        Some(Phase::Recompute) => 'R',
        Some(Phase::Backward) => 'B',
        Some(Phase::Update) => 'U',
        Some(Phase::Save) => 'S',
        None => ' ',
    }
}

/// The picture: load over instructions, phases under the axis.
pub fn plot(curve: &Curve) -> String {
    let wide = COLUMNS.min(page().saturating_sub(MARGIN + 2));
    let columns = curve.columns(wide);
    let top = curve.peak();
    let mut text = String::new();
    for row in (0..ROWS).rev() {
        let label = match row {
            r if r == ROWS - 1 => top.to_string(),
            r if r + 1 == ROWS / 2 => Bytes(top.0 / 2).to_string(),
            _ => String::new(),
        };
        let cells: String = columns.iter().map(|(b, _)| cell(*b, top, row)).collect();
        text += &format!("{label:>MARGIN$} │{}\n", cells.trim_end());
    }
    let letters: String = columns.iter().map(|(_, phase)| letter(*phase)).collect();
    text += &format!("{:>MARGIN$} └{}\n", 0, "─".repeat(wide));
    text += &format!("{:>MARGIN$}  {}\n", "", letters.trim_end());
    text + &labelled("", &legend(&columns), MARGIN + 2)
}

/// The letters in use, with what they stand for.
fn legend(columns: &[(Bytes, Option<Phase>)]) -> String {
    let mut phases: Vec<Phase> = columns.iter().filter_map(|(_, p)| *p).collect();
    phases.sort();
    phases.dedup();
    let each = phases.into_iter();
    let each = each.map(|p| format!("{} {}", letter(Some(p)), super::memory::phase_name(p)));
    let names: Vec<String> = each.collect();
    format!(
        "{}; from the first instruction to the last",
        names.join(", ")
    )
}

/// The part of row `row` that `load` fills.
fn cell(load: Bytes, top: Bytes, row: usize) -> char {
    let eighths = match top.0 {
        0 => 0,
        top => (u128::from(load.0) * (ROWS * 8) as u128 / u128::from(top)) as usize,
    };
    PARTS[eighths.saturating_sub(row * 8).min(8)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_of_nothing_has_its_size() {
        let text = plot(&Curve { points: Vec::new() });
        assert_eq!(text.lines().count(), ROWS + 3);
    }
}
