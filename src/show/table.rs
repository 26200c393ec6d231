//! Tables and bars of plain text, no wider than a page.

use super::page;

/// Spaces between two columns.
const GAP: usize = 2;
/// What a column that gives way keeps at least.
const NARROWEST: usize = 20;

/// How a column is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Column {
    /// Text.
    Left,
    /// Numbers.
    Right,
    /// Text that is wrapped where the table would be too wide.
    Wrapped,
    /// Text that is cut short where the table would be too wide.
    Shortened,
}

/// Rows of cells under heads.
#[derive(Debug, Clone)]
pub struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<String>>,
    heads: bool,
    indent: usize,
    width: usize,
    gives_way: Vec<usize>,
}

impl Table {
    /// A table of these columns.
    pub fn new(columns: &[Column]) -> Table {
        Table {
            columns: columns.to_vec(),
            rows: Vec::new(),
            heads: false,
            indent: 0,
            width: page(),
            gives_way: Vec::new(),
        }
    }

    /// No wider than so many columns.
    pub fn within(mut self, width: usize) -> Table {
        self.width = width;
        self
    }

    /// With columns that are left out where the table would be too wide: by their numbers, the first to go first.
    pub fn gives_way(mut self, columns: &[usize]) -> Table {
        self.gives_way = columns.to_vec();
        self
    }

    /// With a row of heads; given before any other row.
    pub fn heads(mut self, heads: &[&str]) -> Table {
        self.heads = true;
        self.rows
            .push(heads.iter().map(|h| h.to_string()).collect());
        self
    }

    /// Set in by so many columns.
    pub fn indent(mut self, indent: usize) -> Table {
        self.indent = indent;
        self
    }

    /// Adds a row.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// The table as lines.
    pub fn render(&self) -> String {
        let mut table = self.clone();
        for (gone, &column) in self.gives_way.iter().enumerate() {
            if table.taken() <= self.width {
                break;
            }
            let before = self.gives_way[..gone]
                .iter()
                .filter(|&&other| other < column);
            table.remove(column - before.count());
        }
        table.lay_out()
    }

    /// Columns it takes.
    fn taken(&self) -> usize {
        self.widths().iter().sum::<usize>()
            + GAP * self.columns.len().saturating_sub(1)
            + self.indent
    }

    /// Leaves a column out.
    fn remove(&mut self, column: usize) {
        self.columns.remove(column);
        for row in self.rows.iter_mut().filter(|row| row.len() > column) {
            row.remove(column);
        }
    }

    fn lay_out(&self) -> String {
        let widths = self.widths();
        let mut text = String::new();
        for (index, row) in self.rows.iter().enumerate() {
            text.push_str(&self.lines(row, &widths));
            if index == 0 && self.heads {
                let total = widths.iter().sum::<usize>() + GAP * (widths.len().max(1) - 1);
                text.push_str(&format!(
                    "{:indent$}{}\n",
                    "",
                    "─".repeat(total),
                    indent = self.indent
                ));
            }
        }
        text
    }

    /// The widest cell of each column; those that yield share what the others leave.
    fn widths(&self) -> Vec<usize> {
        let cell = |row: &Vec<String>, at: usize| row.get(at).map_or(0, |c| length(c));
        let widest = |at: usize| self.rows.iter().map(|r| cell(r, at)).max().unwrap_or(0);
        let mut widths: Vec<usize> = (0..self.columns.len()).map(widest).collect();
        let yields = |at: &usize| matches!(self.columns[*at], Column::Wrapped | Column::Shortened);
        let (mut yielding, fixed): (Vec<usize>, Vec<usize>) = (0..widths.len()).partition(yields);
        let taken: usize = fixed.iter().map(|&at| widths[at]).sum();
        let gaps = GAP * self.columns.len().saturating_sub(1) + self.indent;
        let mut left = self.width.saturating_sub(taken + gaps);
        // The narrowest first: what it does not need is the others'.
        yielding.sort_by_key(|&at| widths[at]);
        for (done, &at) in yielding.iter().enumerate() {
            let share = left / (yielding.len() - done);
            widths[at] = widths[at].min(share.max(NARROWEST));
            left = left.saturating_sub(widths[at]);
        }
        widths
    }

    /// One row, on as many lines as its longest cell needs.
    fn lines(&self, row: &[String], widths: &[usize]) -> String {
        let cells: Vec<Vec<String>> = self
            .columns
            .iter()
            .zip(widths)
            .enumerate()
            .map(|(at, (column, &width))| {
                let text = row.get(at).map_or("", String::as_str);
                match column {
                    Column::Wrapped => wrap(text, width),
                    Column::Shortened => vec![shortened(text, width)],
                    _ => vec![text.to_string()],
                }
            })
            .collect();
        let height = cells.iter().map(Vec::len).max().unwrap_or(0);
        let line = |at: usize| {
            let parts: Vec<String> = (0..cells.len())
                .map(|c| {
                    let cell = cells[c].get(at).map_or("", String::as_str);
                    pad(cell, widths[c], self.columns[c])
                })
                .collect();
            let line = format!("{:indent$}{}", "", parts.join("  "), indent = self.indent);
            format!("{}\n", line.trim_end())
        };
        (0..height).map(line).collect()
    }
}

/// Columns a text takes.
fn length(text: &str) -> usize {
    text.chars().count()
}

fn pad(text: &str, width: usize, column: Column) -> String {
    let space = " ".repeat(width.saturating_sub(length(text)));
    match column {
        Column::Right => format!("{space}{text}"),
        _ => format!("{text}{space}"),
    }
}

/// A text of at most `width` columns, with an ellipsis where it was longer.
pub fn shortened(text: &str, width: usize) -> String {
    match length(text) > width {
        true => text
            .chars()
            .take(width.saturating_sub(1))
            .chain(['…'])
            .collect(),
        false => text.to_string(),
    }
}

/// A text in lines of at most `width` columns, broken at spaces; a longer word behind a mark in it, or it stays whole.
pub fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if length(line) + 1 + length(word) <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_string()),
        }
        if let Some(long) = lines.pop_if(|line| length(line) > width) {
            lines.extend(broken(&long, width));
        }
    }
    lines
}

/// A long word in lines, broken behind marks.
fn broken(word: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for piece in word.split_inclusive(['+', '|', '/', ',', ';', '-']) {
        match lines.last_mut() {
            Some(line) if length(line) + length(piece) <= width => line.push_str(piece),
            _ => lines.push(piece.to_string()),
        }
    }
    lines
}

/// A text after a label, wrapped to the page and set in under itself.
pub fn labelled(label: &str, text: &str, indent: usize) -> String {
    let mut out = String::new();
    let width = page().saturating_sub(indent).max(NARROWEST);
    for (at, line) in wrap(text, width).iter().enumerate() {
        let head = if at == 0 { label } else { "" };
        out.push_str(&format!("{head:indent$}{line}\n"));
    }
    out
}

/// A bar of `width` columns, filled by a share; what lies beyond is full.
pub fn bar(share: f64, width: usize) -> String {
    let eighths = (share.clamp(0.0, 1.0) * width as f64 * 8.0).round() as usize;
    let part = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"][eighths % 8];
    let bar = format!("{}{part}", "█".repeat(eighths / 8));
    let rest = width - length(&bar);
    format!("{bar}{}", "░".repeat(rest))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // in a test a panic is the report
mod tests {
    use super::*;

    #[test]
    fn a_table_is_no_wider_than_the_page() {
        let mut table =
            Table::new(&[Column::Left, Column::Wrapped, Column::Right]).heads(&["a", "b", "c"]);
        table.row(vec!["name".into(), "word ".repeat(60), "12".into()]);
        let text = table.render();
        assert!(text.lines().count() > 4);
        assert!(text.lines().all(|l| l.chars().count() <= page()));
    }

    #[test]
    fn a_table_leaves_columns_out_until_it_fits_a_terminal() {
        let columns = [
            Column::Left,
            Column::Right,
            Column::Right,
            Column::Shortened,
        ];
        let table = |width: usize| {
            let heads = ["name", "first to go", "second to go", "rest"];
            let mut table = Table::new(&columns)
                .within(width)
                .gives_way(&[1, 2])
                .heads(&heads);
            table.row(vec![
                "a name".into(),
                "1".into(),
                "2".into(),
                "word ".repeat(20),
            ]);
            table.render()
        };
        for width in [40, 50, 60, 80, 200] {
            assert!(
                table(width).lines().all(|l| length(l) <= width),
                "{}",
                table(width)
            );
        }
        assert!(table(200).contains("first") && !table(200).contains('…'));
        assert!(!table(50).contains("first") && table(50).contains("second"));
        assert!(!table(40).contains("second") && table(40).contains('…'));
    }

    #[test]
    fn a_long_word_is_broken_behind_its_marks() {
        let text = "in layers.0-13|15-17/attention/o+layers.0-13|15-17/attention/residual here";
        let lines = wrap(text, 24);
        assert!(lines.iter().all(|l| length(l) <= 24), "{lines:?}");
        let joined = lines.join("").replace(' ', "");
        assert_eq!(joined, text.replace(' ', ""));
    }

    #[test]
    fn columns_that_yield_share_the_page() {
        let columns = [Column::Wrapped, Column::Right, Column::Wrapped];
        let mut table = Table::new(&columns).within(70);
        let row = ["word ".repeat(9), "12".into(), "word ".repeat(30)];
        table.row(row.map(String::from).to_vec());
        let text = table.render();
        assert!(text.lines().all(|l| length(l) <= 70), "{text}");
        assert!(text.lines().count() < 8, "{text}");
    }

    #[test]
    fn a_bar_has_its_width_at_any_share() {
        for share in [f64::NAN, -1.0, 0.0, 0.3, 0.999, 1.0, f64::INFINITY] {
            assert_eq!(length(&bar(share, 10)), 10, "{share}");
        }
    }
}
