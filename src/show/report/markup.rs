//! The small pieces of a page: figures with their captions, tables, and numbers that say where they come from.

use serde_json::Value;

use crate::show::figure::svg::{Canvas, escape};
use crate::spec::units::{Bytes, Seconds};

/// A size that stands at the pointer `at` of the page's JSON.
pub fn bytes(bytes: Bytes, at: &str) -> String {
    number(bytes.0, &bytes.to_string(), at)
}

/// A time that stands at the pointer `at` of the page's JSON.
pub fn seconds(seconds: Seconds, at: &str) -> String {
    number(seconds.0, &seconds.to_string(), at)
}

/// Any number, with how it is shown.
pub fn number(value: impl std::fmt::Display, shown: &str, at: &str) -> String {
    let at = escape(at);
    format!("<data value=\"{value}\" data-at=\"{at}\">{shown}</data>")
}

/// A size of something of which there may be none.
pub fn some_bytes(size: Bytes, at: &str) -> String {
    match size.0 {
        0 => "-".to_string(),
        _ => bytes(size, at),
    }
}

/// A section with a heading.
pub fn section(heading: &str, body: &str) -> String {
    format!("<section>\n<h2>{heading}</h2>\n{body}</section>\n")
}

/// A paragraph of plain text; what stands between backticks is set as code.
pub fn paragraph(class: &str, text: &str) -> String {
    let parts: Vec<&str> = text.split('`').collect();
    // An odd number of backticks is text like any other.
    let text = match parts.len() % 2 {
        0 => escape(text),
        _ => (parts.iter().enumerate())
            .map(|(at, part)| match at % 2 {
                0 => escape(part),
                _ => format!("<code>{}</code>", escape(part)),
            })
            .collect(),
    };
    format!("<p class=\"{class}\">{text}</p>\n")
}

/// The same drawing for wide and narrow pages; empty where there is none.
pub fn figure(drawn: [Option<Canvas>; 2], label: &str, caption: &str) -> String {
    let [Some(wide), Some(narrow)] = drawn else {
        return String::new();
    };
    let caption = match caption {
        "" => String::new(),
        caption => format!("<figcaption>{}</figcaption>\n", escape(caption)),
    };
    let (wide, narrow) = (wide.element("wide", label), narrow.element("narrow", label));
    format!("<figure>\n{wide}{narrow}{caption}</figure>\n")
}

/// How a column is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Set {
    /// Text, which is wrapped.
    Text,
    /// A word or two, which stay on their line.
    Word,
    /// Numbers, at the right.
    Number,
}

/// A row: its class, and its cells as markup.
pub type Row = (&'static str, Vec<String>);

/// A table; heads are text, cells are markup.
pub fn table(heads: &[(&str, Set)], rows: &[Row]) -> String {
    let class = |at: usize| match heads.get(at) {
        Some((_, Set::Number)) => " class=\"n\"",
        Some((_, Set::Word)) => " class=\"w\"",
        _ => "",
    };
    let head = heads.iter().enumerate();
    let head: String = head
        .map(|(at, (name, _))| format!("<th scope=\"col\"{}>{}</th>", class(at), escape(name)))
        .collect();
    let cell = |(at, cell): (usize, &String)| format!("<td{}>{cell}</td>", class(at));
    let row = |(kind, cells): &Row| {
        let kind = match *kind {
            "" => String::new(),
            kind => format!(" class=\"{kind}\""),
        };
        let cells: String = cells.iter().enumerate().map(cell).collect();
        format!("<tr{kind}>{cells}</tr>\n")
    };
    let rows: String = rows.iter().map(row).collect();
    format!(
        "<div class=\"scroll\"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table></div>\n"
    )
}

/// A value that programs read from the page; `<` is spelled so that no text can end it.
pub fn embedded(id: &str, value: &Value) -> String {
    let text = format!("{value:#}").replace('<', "\\u003c");
    format!("<script type=\"application/json\" id=\"{id}\">\n{text}\n</script>\n")
}
