//! The strokes of figures: a canvas that becomes SVG, axes, and round numbers beside them.

use std::fmt::Write as _;

use serde::Serialize;

use crate::spec::units::{Bytes, Seconds};

/// A drawing under way.
#[derive(Debug)]
pub struct Canvas {
    /// Its width, in the units of its coordinates.
    pub width: f64,
    /// Its height.
    pub height: f64,
    body: String,
}

/// Where a text stands to its point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Anchor {
    /// It begins there.
    Start,
    /// Its middle is there.
    Middle,
    /// It ends there.
    End,
}

/// A rectangle.
#[derive(Debug, Clone, Copy)]
pub struct Area {
    /// Left.
    pub x: f64,
    /// Top.
    pub y: f64,
    /// Width.
    pub width: f64,
    /// Height.
    pub height: f64,
}

impl Canvas {
    /// An empty one.
    pub fn new(width: f64, height: f64) -> Canvas {
        Canvas {
            width,
            height,
            body: String::new(),
        }
    }

    /// A rectangle; where `title` says something, that is what a pointer on it tells.
    pub fn rect(&mut self, class: &str, area: Area, title: &str) {
        let [x, y] = [area.x, area.y].map(number);
        let [width, height] = [area.width, area.height].map(|side| number(side.max(0.0)));
        let _ = write!(
            self.body,
            "<rect class=\"{class}\" x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\""
        );
        self.body += &match title {
            "" => "/>\n".to_string(),
            title => format!("><title>{}</title></rect>\n", escape(title)),
        };
    }

    /// A straight line.
    pub fn line(&mut self, class: &str, from: (f64, f64), to: (f64, f64)) {
        let [x1, y1, x2, y2] = [from.0, from.1, to.0, to.1].map(number);
        let _ = writeln!(
            self.body,
            "<line class=\"{class}\" x1=\"{x1}\" y1=\"{y1}\" x2=\"{x2}\" y2=\"{y2}\"/>"
        );
    }

    /// A line through points; closed, it is an area.
    pub fn path(&mut self, class: &str, points: &[(f64, f64)], closed: bool) {
        let mut data = String::new();
        for (at, (x, y)) in points.iter().enumerate() {
            let stroke = if at == 0 { 'M' } else { 'L' };
            let _ = write!(data, "{stroke}{} {}", number(*x), number(*y));
        }
        let end = if closed { "Z" } else { "" };
        let _ = writeln!(self.body, "<path class=\"{class}\" d=\"{data}{end}\"/>");
    }

    /// A dot with what a pointer on it tells.
    pub fn dot(&mut self, class: &str, center: (f64, f64), radius: f64, title: &str) {
        let [x, y, radius] = [center.0, center.1, radius].map(number);
        let title = escape(title);
        let _ = writeln!(
            self.body,
            "<circle class=\"{class}\" cx=\"{x}\" cy=\"{y}\" r=\"{radius}\"><title>{title}</title></circle>"
        );
    }

    /// A text on one line.
    pub fn text(&mut self, class: &str, anchor: Anchor, at: (f64, f64), text: &str) {
        let [x, y] = [at.0, at.1].map(number);
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let text = escape(text);
        let _ = writeln!(
            self.body,
            "<text class=\"{class}\" x=\"{x}\" y=\"{y}\" text-anchor=\"{anchor}\">{text}</text>"
        );
    }

    /// Boxes of color with what they stand for, from `at` on, as many lines as they need; where the last of them ends.
    pub fn legend(&mut self, at: (f64, f64), entries: &[(String, String)]) -> f64 {
        let (mut x, mut y) = at;
        for (class, name) in entries {
            let wide = 22.0 + LETTER * name.chars().count() as f64;
            if x > at.0 && x + wide > self.width {
                (x, y) = (at.0, y + 18.0);
            }
            let area = Area {
                x,
                y: y - 9.0,
                width: 10.0,
                height: 10.0,
            };
            self.rect(class, area, "");
            self.text("small", Anchor::Start, (x + 14.0, y), name);
            x += wide;
        }
        y
    }

    /// The drawing as an element of a page; `label` says in words what it shows.
    pub fn element(&self, class: &str, label: &str) -> String {
        self.tag(&format!(" class=\"{class}\""), label, "")
    }

    /// The drawing as a file of its own.
    pub fn file(&self, label: &str) -> String {
        let style = format!("<style>{}</style>\n", super::STYLE);
        let size = format!(
            " xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{}\"",
            number(self.width),
            number(self.height)
        );
        let paper = "<rect class=\"paper\" width=\"100%\" height=\"100%\"/>\n";
        self.tag(&size, label, &(style + paper))
    }

    fn tag(&self, attributes: &str, label: &str, first: &str) -> String {
        let [width, height] = [self.width, self.height].map(number);
        let label = escape(label);
        format!(
            "<svg{attributes} viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{label}\">\n{first}{}</svg>\n",
            self.body
        )
    }
}

/// About the width of a letter of a small text.
pub const LETTER: f64 = 6.2;

/// A coordinate with as many digits as an eye sees.
fn number(value: f64) -> String {
    let value = if value.is_finite() { value } else { 0.0 };
    let text = format!("{value:.1}");
    text.strip_suffix(".0").unwrap_or(&text).to_string()
}

/// A text as it stands in HTML and XML; what XML cannot carry is left out.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\'' => escaped += "&#39;",
            '\n' | '\t' => escaped.push(letter),
            c if c.is_control() => {}
            c => escaped.push(c),
        }
    }
    escaped
}

/// The name of a role, phase, stream or place in JSON, which is also its class.
pub fn key(value: impl Serialize) -> String {
    let value = serde_json::to_value(value).unwrap_or_default();
    value.as_str().unwrap_or_default().to_string()
}

/// From values to coordinates, along a straight line.
#[derive(Debug, Clone, Copy)]
pub struct Axis {
    /// The least and the largest value.
    pub values: (f64, f64),
    /// Where they are.
    pub places: (f64, f64),
}

impl Axis {
    /// Where a value is.
    pub fn at(&self, value: f64) -> f64 {
        let (low, high) = self.values;
        let share = match high - low {
            span if span > 0.0 => (value - low) / span,
            _ => 0.0,
        };
        self.places.0 + share * (self.places.1 - self.places.0)
    }
}

/// Round numbers of bytes from zero to `top`, at most six.
pub fn byte_ticks(top: Bytes) -> Vec<Bytes> {
    let mut step = 1u64;
    while top.0 / step > 5 && step < 1 << 62 {
        step *= 2;
    }
    (0..=top.0 / step).map(|n| Bytes(n * step)).collect()
}

/// Round numbers of seconds from zero to `end`, at most `most` and one.
pub fn second_ticks(end: f64, most: usize) -> Vec<Seconds> {
    if !(end.is_finite() && end > 0.0) {
        return vec![Seconds(0.0)];
    }
    let raw = end / most.max(1) as f64;
    let scale = 10f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|n| n * scale);
    let step = step.into_iter().find(|s| *s >= raw * 0.999);
    let step = step.unwrap_or(10.0 * scale);
    let count = (end / step + 1e-9).floor() as usize;
    (0..=count).map(|n| Seconds(n as f64 * step)).collect()
}

/// A time on an axis, without digits that say nothing.
pub fn tick_text(tick: Seconds, last: Seconds) -> String {
    match tick.0 {
        0.0 => "0".to_string(),
        seconds if last.0 >= 1.0 => format!("{} s", digits(seconds)),
        seconds if last.0 >= 1e-3 => format!("{} ms", digits(seconds * 1e3)),
        seconds => format!("{} µs", digits(seconds * 1e6)),
    }
}

fn digits(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_few_and_reach_the_end() {
        for top in [0, 1, 7, 64 << 20, 25_254_407_700, u64::MAX] {
            let ticks = byte_ticks(Bytes(top));
            assert!(!ticks.is_empty() && ticks.len() <= 6, "{top}: {ticks:?}");
        }
        for end in [0.0, 1e-7, 0.013, 4.159, 1e5, f64::NAN] {
            let ticks = second_ticks(end, 6);
            assert!(!ticks.is_empty() && ticks.len() <= 8, "{end}: {ticks:?}");
            let over = |tick: &Seconds| tick.0 > end * 1.001;
            assert!(!ticks.iter().any(over), "{end}");
        }
    }

    #[test]
    fn nothing_of_a_text_is_markup() {
        assert_eq!(
            escape("<a b='\"&'>\u{1}"),
            "&lt;a b=&#39;&quot;&amp;&#39;&gt;"
        );
    }
}
