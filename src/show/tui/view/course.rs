//! The step from its begin to its end: what the device holds, and what each queue does.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, Wrap};

use super::memory::{joined, short};
use super::{Look, title};
use crate::show::tui::found::{Found, Part};
use crate::show::tui::spans::{Lane, Moment};
use crate::show::tui::state::State;
use crate::spec::units::{Bytes, Seconds};

/// Columns of the numbers at the left.
const MARGIN: usize = 9;
/// Parts of a character, from the bottom.
const PARTS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// How far above the peak a budget may lie and still be drawn.
const NEAR: u64 = 2;

/// The range of `count` things that column `at` of `columns` shows: at least one.
fn range(at: usize, columns: usize, count: usize) -> std::ops::Range<usize> {
    let from = at * count / columns;
    from..((at + 1) * count / columns).max(from + 1).min(count)
}

/// Draws what the device holds, the span that is looked at, and who is alive there.
pub fn memory(frame: &mut Frame, area: Rect, state: &State, found: &Found, look: &Look) {
    if found.moments.is_empty() || area.height < 4 {
        return;
    }
    let span = state.span(&found.moments);
    let at = &found.moments[span];
    let what = match state.instant {
        None => "device peak",
        Some(_) => "device",
    };
    let said = match at.parts.is_empty() {
        false => format!("{what} {} at {}, {}", at.total, Seconds(at.time), at.phase),
        // Within a phase nothing is told of when.
        true => format!("{what} {} in {}", at.total, at.phase),
    };
    let inside = title(frame, area, &said, look);
    let named = (inside.height / 4).clamp(1, 4);
    let rows = inside.height.saturating_sub(named + 1);
    let columns = usize::from(inside.width).saturating_sub(MARGIN + 1);
    let curve = Curve::new(found, columns, usize::from(rows), span);
    for row in 0..rows {
        let place = Rect {
            y: inside.y + row,
            height: 1,
            ..inside
        };
        frame.render_widget(curve.row(usize::from(rows - 1 - row), look), place);
    }
    let axis = Rect {
        y: inside.y + rows,
        height: 1,
        ..inside
    };
    frame.render_widget(curve.phases(look), axis);
    let place = Rect {
        y: inside.y + rows + 1,
        height: named,
        ..inside
    };
    let text = Paragraph::new(Line::styled(alive(at), look.plain()));
    frame.render_widget(text.wrap(Wrap { trim: true }), place);
}

fn alive(at: &Moment) -> String {
    if at.alive.is_empty() {
        return "who is alive is told at the peak".to_string();
    }
    let each = at
        .alive
        .iter()
        .map(|(name, bytes)| format!("{name} {}", short(*bytes)));
    format!("alive: {}", each.collect::<Vec<_>>().join(", "))
}

/// The columns of a picture of memory.
struct Curve<'a> {
    columns: Vec<&'a Moment>,
    rows: usize,
    top: u64,
    budget: Option<u64>,
    pointed: usize,
}

impl<'a> Curve<'a> {
    fn new(found: &'a Found, columns: usize, rows: usize, span: usize) -> Curve<'a> {
        let moments = &found.moments;
        let largest = |at| {
            let part = moments[range(at, columns, moments.len())].iter();
            part.rev().max_by_key(|m| m.total)
        };
        let peak = moments.iter().map(|m| m.total.0).max().unwrap_or(0).max(1);
        let most = found.bars.first().map_or(0, |bar| bar.most.0);
        let budget = Some(most).filter(|&most| most <= peak * NEAR && most > 0);
        let pointed = (0..columns).find(|&at| range(at, columns, moments.len()).contains(&span));
        Curve {
            columns: (0..columns).filter_map(largest).collect(),
            rows,
            top: peak.max(budget.unwrap_or(0)),
            budget,
            pointed: pointed.unwrap_or(0),
        }
    }

    /// Whether more is held than there is.
    fn is_over(&self, moment: &Moment) -> bool {
        self.budget.is_some_and(|most| moment.total.0 > most)
    }

    /// Eighths of rows that some bytes fill.
    fn eighths(&self, bytes: u64) -> usize {
        (u128::from(bytes) * (self.rows * 8) as u128 / u128::from(self.top)) as usize
    }

    /// The part that holds the middle of a row, as far up as there is any.
    fn part(&self, moment: &Moment, row: usize, look: &Look) -> (char, Style) {
        let middle = (self.top as f64 * (row as f64 + 0.5) / self.rows as f64) as u64;
        let mut below = 0;
        let reaches = |(_, bytes): &&(Part, Bytes)| {
            below += bytes.0;
            below > middle
        };
        let found = moment.parts.iter().find(reaches).or(moment.parts.last());
        found.map_or(('█', look.phase(moment.phase).1), |(part, _)| {
            look.part(*part)
        })
    }

    fn row(&self, row: usize, look: &Look) -> Line<'static> {
        let limit = self.budget.map(|b| self.eighths(b).saturating_sub(1) / 8);
        let label = match row {
            r if Some(r) == limit => "budget".to_string(),
            r if r + 1 == self.rows => short(Bytes(self.top)),
            0 => "0".to_string(),
            _ => String::new(),
        };
        let cell = |(at, moment): (usize, &&Moment)| -> (char, Style) {
            let filled = self.eighths(moment.total.0).saturating_sub(row * 8).min(8);
            let (mark, style) = self.part(moment, row, look);
            match (filled, at == self.pointed) {
                (0, true) => ('│', look.strong()),
                (0, false) if Some(row) == limit => ('╌', look.dim()),
                (8, _) if Some(row) == limit && self.is_over(moment) => ('╌', look.bad()),
                (8, _) => (mark, style),
                (_, _) => (PARTS[filled], style),
            }
        };
        let cells: Vec<(char, Style)> = self.columns.iter().enumerate().map(cell).collect();
        let mut spans = vec![Span::styled(format!("{label:>MARGIN$} "), look.dim())];
        spans.extend(joined(&cells).spans);
        Line::from(spans)
    }

    /// The phases under the axis, and the span that is looked at.
    fn phases(&self, look: &Look) -> Line<'static> {
        let cell = |(at, moment): (usize, &&Moment)| match at == self.pointed {
            true => ('▲', look.strong()),
            false => look.phase(moment.phase),
        };
        let cells: Vec<(char, Style)> = self.columns.iter().enumerate().map(cell).collect();
        let mut spans = vec![Span::styled(format!("{:>MARGIN$} ", "phase"), look.dim())];
        spans.extend(joined(&cells).spans);
        Line::from(spans)
    }
}

/// Draws what each queue does over the step.
pub fn lanes(frame: &mut Frame, area: Rect, found: &Found, look: &Look) {
    let said = format!("queues of a step, {}", found.step);
    let inside = title(frame, area, &said, look);
    let lines = found
        .lanes
        .iter()
        .map(|lane| line(lane, found.step, inside.width, look));
    let mut lines: Vec<Line> = lines.collect();
    if usize::from(inside.height) > lines.len() {
        lines.push(phases_of(found, inside.width, look));
    }
    frame.render_widget(Paragraph::new(lines), inside);
}

/// A queue: shades for the share of each span in which it works, colors for phases.
fn line(lane: &Lane, step: Seconds, width: u16, look: &Look) -> Line<'static> {
    let columns = usize::from(width).saturating_sub(MARGIN + 7);
    let cell = |at| {
        let part = &lane.spans[range(at, columns.max(1), lane.spans.len())];
        let share = part.iter().map(|(share, _)| share).sum::<f64>() / part.len().max(1) as f64;
        let most = part.iter().max_by(|a, b| a.0.total_cmp(&b.0));
        let (_, style) = look.phase(most.map_or("", |(_, phase)| phase));
        let shade = match share {
            s if s < 0.02 => ' ',
            s if s < 0.35 => '░',
            s if s < 0.65 => '▒',
            s if s < 0.9 => '▓',
            _ => '█',
        };
        (shade, style)
    };
    let cells: Vec<(char, Style)> = (0..columns).map(cell).collect();
    let busy = 100.0 * lane.busy.0 / step.0.max(f64::MIN_POSITIVE);
    let name = super::clipped(lane.name, MARGIN);
    let mut spans = vec![Span::styled(format!("{name:<MARGIN$} "), look.plain())];
    spans.extend(joined(&cells).spans);
    spans.push(Span::styled(
        format!("{:>4.0} %", busy.min(100.0)),
        look.plain(),
    ));
    Line::from(spans)
}

/// The phases of the step, which the letters stand for, as far as there is room.
fn phases_of(found: &Found, width: u16, look: &Look) -> Line<'static> {
    let mut names: Vec<&str> = found.moments.iter().map(|m| m.phase).collect();
    names.sort_unstable();
    names.dedup();
    let (mut spans, mut used) = (Vec::new(), 0);
    for name in names.into_iter().filter(|name| !name.is_empty()) {
        used += name.len() + 3;
        if used > usize::from(width) + 1 {
            break;
        }
        let (letter, style) = look.phase(name);
        spans.push(Span::styled(letter.to_string(), style));
        spans.push(Span::styled(format!(" {name} "), look.dim()));
    }
    Line::from(spans)
}
