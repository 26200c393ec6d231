//! Figures of a plan, drawn as SVG for a page or as files of their own.

pub mod budget;
pub mod front;
pub mod memory;
pub mod svg;
pub mod timeline;

use crate::search::Answer;
use crate::show::alternatives::chosen;
use crate::show::course::Course;
use crate::spec::job::Place;
use svg::Canvas;

/// Colors and letters of all figures.
pub const STYLE: &str = include_str!("figure.css");

/// Widths that figures are drawn in: for a page, and for a phone.
pub const WIDTHS: [f64; 2] = [760.0, 358.0];

/// A figure of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Figure {
    /// The device's memory over the step.
    Memory,
    /// What each stream does over the step.
    Timeline,
    /// The fastest step within less and more memory.
    Front,
    /// Each row of the budget, and who holds it.
    Budget,
}

impl Figure {
    /// What it shows, in words.
    pub fn label(self) -> &'static str {
        match self {
            Figure::Memory => "memory of the device over the step, by role, with its peak",
            Figure::Timeline => "what each stream does over the step, by phase",
            Figure::Front => "the fastest step within less and more memory of the device",
            Figure::Budget => "each row of the budget, and who holds it at its peak",
        }
    }

    /// The figure of an answer, `width` wide; `None` where there is nothing to draw.
    pub fn draw(self, answer: &Answer, course: &Course, width: f64) -> Option<Canvas> {
        let estimate = &chosen(answer).estimate;
        match self {
            Figure::Memory => memory::draw(course, Place::Gpu, &answer.budget, width),
            Figure::Timeline => timeline::draw(course, width),
            Figure::Front => front::draw(answer, width),
            Figure::Budget => Some(budget::draw(estimate, &answer.budget, width)),
        }
    }
}
