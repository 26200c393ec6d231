//! A plan as one page of HTML that needs nothing else: what it takes, when, why, and how that is known.

mod markup;
mod memory;
mod sections;
mod tables;

use serde_json::Value;

use super::alternatives::chosen;
use super::course::Course;
use super::figure::svg::escape;
use super::figure::{Figure, STYLE, WIDTHS};
use super::job::Asked;
use super::measured::Measured;
use crate::plan::{Plan, Request};
use crate::search::{Answer, Candidate, Outcome};

/// A page under way: everything it is made from.
#[derive(Debug)]
pub struct Report<'a> {
    /// What the plan is called.
    pub name: &'a str,
    /// The plan as an answer, with what was considered beside it.
    pub answer: &'a Answer,
    /// The question.
    pub request: &'a Request,
    /// The question in words.
    pub asked: &'a Asked,
    /// The step as it is simulated.
    pub course: &'a Course<'a>,
    /// What runs outside of a step and alone reaches a peak.
    pub outside: &'a Course<'a>,
    /// Where the plan's saved claim no longer holds; `None` where there is none.
    pub claim: Option<&'a [String]>,
    /// A run of the plan.
    pub measured: Option<&'a Measured>,
    /// The line about PyTorch.
    pub pytorch: &'a str,
    /// The answer for programs, which the page carries.
    pub json: &'a Value,
}

impl Report<'_> {
    fn best(&self) -> &Candidate {
        chosen(self.answer)
    }

    fn plan(&self) -> &Plan {
        &self.best().plan
    }

    fn fits(&self) -> bool {
        matches!(self.answer.outcome, Outcome::Fits(_))
    }

    /// A figure at both widths; empty where there is nothing to draw.
    fn figure(&self, figure: Figure, caption: &str) -> String {
        let draw = |width| figure.draw(self.answer, self.course, width);
        markup::figure(WIDTHS.map(draw), figure.label(), caption)
    }

    /// The page.
    pub fn html(&self) -> String {
        let title = format!("{} on {}", self.asked.text.model, self.asked.text.gpu);
        let sections = [
            sections::verdict(self),
            sections::facts(self),
            sections::claim(self),
            sections::misfit(self),
            memory::budget(self),
            memory::over_the_step(self),
            sections::time(self),
            tables::choices(self),
            tables::front(self),
            tables::alternatives(self),
            sections::assumptions(self),
            sections::measured(self),
            sections::colophon(self),
        ];
        let title = escape(&title);
        format!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <link rel=\"icon\" href=\"data:,\">\n<title>memfit: {title}</title>\n\
             <style>{STYLE}{}</style>\n</head>\n<body>\n<h1>{title}</h1>\n{}{}{}\
             <script>{}</script>\n</body>\n</html>\n",
            include_str!("style.css"),
            sections.concat(),
            markup::embedded("plan", self.json),
            self.measured
                .map_or(String::new(), |m| markup::embedded("measured", &m.json)),
            include_str!("hover.js"),
        )
    }
}
