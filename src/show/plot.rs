//! The memory of a program from its first instruction to its last, as a picture of characters.

use crate::graph::Phase;
use crate::program::{Instr, Program};
use crate::spec::job::Place;
use crate::spec::units::Bytes;

/// Columns of the picture.
pub const COLUMNS: usize = 80;
/// Rows of the picture.
pub const ROWS: usize = 16;
/// Columns of the numbers at its left.
const MARGIN: usize = 12;
/// Parts of a character, from the bottom.
const PARTS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Bytes of one place alive after each instruction, and the phase the instruction is part of.
#[derive(Debug, Clone)]
pub struct Curve {
    /// One point for each instruction.
    pub points: Vec<(Bytes, Option<Phase>)>,
}

impl Curve {
    /// The curve of `place` over `program`.
    pub fn new(program: &Program, place: Place) -> Curve {
        let here = |b: &&crate::program::Buffer| b.place == place;
        let shared = program.buffers.iter().filter(|b| b.shared).filter(here);
        let mut now = shared.map(|b| b.bytes.0 as i64).sum::<i64>();
        let mut phase = program.code.iter().find_map(|i| program.phase(i));
        let mut points = Vec::with_capacity(program.code.len());
        for instr in &program.code {
            let change = match instr {
                Instr::Alloc(id) => (*id, 1),
                Instr::Free(id) => (*id, -1),
                other => {
                    phase = program.phase(other).or(phase);
                    points.push((Bytes(now.max(0) as u64), phase));
                    continue;
                }
            };
            let buffer = program.buffer(change.0);
            if buffer.place == place {
                now += change.1 * buffer.bytes.0 as i64;
            }
            points.push((Bytes(now.max(0) as u64), phase));
        }
        Curve { points }
    }

    /// The largest load.
    pub fn peak(&self) -> Bytes {
        let loads = self.points.iter().map(|(bytes, _)| *bytes);
        loads.max().unwrap_or(Bytes::ZERO)
    }

    /// The curve in `columns` parts: the largest load of each, and its phase at that point.
    pub fn columns(&self, columns: usize) -> Vec<(Bytes, Option<Phase>)> {
        let count = self.points.len();
        let of = |column: usize| {
            let from = column * count / columns;
            let to = ((column + 1) * count / columns).max(from + 1).min(count);
            let part = self.points.get(from..to).unwrap_or_default();
            let largest = part
                .iter()
                .enumerate()
                .max_by_key(|(at, (b, _))| (*b, std::cmp::Reverse(*at)));
            largest.map_or((Bytes::ZERO, None), |(_, point)| *point)
        };
        (0..columns).map(of).collect()
    }
}

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
    let columns = curve.columns(COLUMNS);
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
    text += &format!("{:>MARGIN$} └{}\n", 0, "─".repeat(COLUMNS));
    text += &format!("{:>MARGIN$}  {}\n", "", letters.trim_end());
    text + &format!("{:>MARGIN$}  {}\n", "", legend(&columns))
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

    #[test]
    fn every_column_keeps_the_largest_load_of_its_part() {
        let points = (0..1000).map(|n| (Bytes(n % 7), None)).collect();
        let curve = Curve { points };
        assert!(curve.columns(COLUMNS).iter().all(|(b, _)| *b == Bytes(6)));
        let points = vec![(Bytes(3), None), (Bytes(9), None)];
        assert_eq!(Curve { points }.columns(4).len(), 4);
    }
}
