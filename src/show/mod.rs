//! Answers for people and for programs: text, JSON, pages and traces, built here and printed elsewhere.

pub mod alternatives;
pub mod capacity;
pub mod choice;
pub mod comparison;
pub mod course;
pub mod curve;
pub mod executed;
pub mod explain;
pub mod facts;
pub mod figure;
pub mod grid;
pub mod job;
pub mod json;
pub mod learning;
pub mod lists;
pub mod market;
pub mod measured;
pub mod memory;
pub mod money;
pub mod plot;
pub mod pytorch;
pub mod report;
pub mod run;
pub mod selftest;
pub mod speeds;
pub mod table;
pub mod text;
pub mod torch_plan;
pub mod trace;
pub mod trial;
pub mod tui;
pub mod validation;

use std::sync::atomic::{AtomicUsize, Ordering};

/// Columns of the widest line, where nobody says that there are fewer.
pub const WIDTH: usize = 100;

/// Fewest columns that pages are set in.
const NARROWEST: usize = 40;

/// Columns of pages in this process.
static PAGE: AtomicUsize = AtomicUsize::new(WIDTH);

/// Sets pages in so many columns, as far as that is fewer than the usual.
pub fn fit_page(columns: usize) {
    PAGE.store(columns.clamp(NARROWEST, WIDTH), Ordering::Relaxed);
}

/// Columns of pages.
pub fn page() -> usize {
    PAGE.load(Ordering::Relaxed)
}
