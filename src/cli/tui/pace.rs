//! `memfit bench tui`: how soon the explorer answers keys, with its own workers, drawn on a screen in memory.

use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use memfit::error::{Error, Result};
use memfit::plan::file::JobText;
use memfit::show::tui::keys;
use memfit::show::tui::settings::Settings;
use memfit::show::tui::state::{Freshness, State};
use memfit::show::tui::view::{self, Look};
use memfit::spec::job::{HostText, Precision};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use serde_json::{Value, json};

use super::worker::Desk;
use super::{Answer, DONE, Event, FIRST};
use crate::cli::MISFIT;

/// Rows that are turned, with the keys: each press is a question that was not asked before.
const TURNS: [(&str, &str); 7] = [
    ("length", "------++-"),
    ("batch", "+++++"),
    ("recompute", " "),
    ("offload", " "),
    ("fused_update", " "),
    ("length", "++++++"),
    ("precision", "+"),
];

/// Most milliseconds, at the 95th percentile: until the last plan's choices are priced, until the plan is solved for, for a frame.
const PROMISED: [(&str, f64); 3] = [("provisional", 100.0), ("solved", 500.0), ("frame", 16.0)];

/// The longest that an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// Milliseconds until each answer.
#[derive(Debug, Default)]
struct Paces {
    provisional: Vec<f64>,
    solved: Vec<f64>,
    frame: Vec<f64>,
}

/// Presses keys and measures the answers.
///
/// # Errors
/// Where the job cannot be opened, or an answer does not come.
pub fn paces(smoke: bool) -> Result<Answer> {
    let (model, gpu) = match smoke {
        true => ("tiny", "64MiB"),
        false => FIRST,
    };
    let job = JobText {
        model: model.to_string(),
        gpu: gpu.to_string(),
        seq: if smoke { 128 } else { 2048 },
        batch: 1,
        precision: Precision::Bf16,
        optimizer: "adamw".to_string(),
    };
    let mut state = State::new(Settings::new(job, HostText::default()));
    let (sender, events) = channel();
    let desk = Desk::open(&sender);
    let mut paces = Paces::default();
    let before = spent();
    answered(&mut state, &desk, &events, &mut Paces::default())?;
    for (label, turns) in TURNS {
        point(&mut state, label);
        for key in turns.chars() {
            let asked = state.serial;
            keys::key(
                &mut state,
                KeyEvent::new(KeyCode::Char(key), KeyModifiers::NONE),
            );
            if state.serial != asked && state.waits() {
                answered(&mut state, &desk, &events, &mut paces)?;
            }
        }
    }
    let work = spent().zip(before).map(|(after, before)| after - before);
    Ok(told(&state, paces, work))
}

/// Points at the row of a label.
fn point(state: &mut State, label: &str) {
    let used = state.used();
    let shows = |row: &memfit::show::tui::rows::Row| {
        row.shown(&state.settings, &used).label.trim() == label
    };
    if let Some(at) = state.rows().iter().position(shows) {
        state.cursor = at;
    }
}

/// Asks for what the state has chosen, and draws each answer as it comes until the last.
fn answered(
    state: &mut State,
    desk: &Desk,
    events: &Receiver<Event>,
    paces: &mut Paces,
) -> Result<()> {
    let next = "run it again on a machine with less to do";
    let name = state.settings.job.model.clone();
    let late = || Error::value("the answer for", &name, "it did not come", next);
    let mut terminal = Terminal::new(TestBackend::new(120, 40))
        .map_err(|e| Error::io("a screen in memory", "open", std::io::Error::other(e)))?;
    let look = Look::new(true);
    let begin = Instant::now();
    let since = || 1e3 * begin.elapsed().as_secs_f64();
    desk.ask(state);
    let priced = paces.provisional.len();
    while state.waits() {
        let left = PATIENCE.saturating_sub(begin.elapsed());
        let Ok(Event::Said(said)) = events.recv_timeout(left) else {
            return Err(late());
        };
        said.tell(state);
        let drawing = Instant::now();
        let drawn = terminal.draw(|frame| view::draw(frame, state, &look));
        drawn.map_err(|e| Error::io("a screen in memory", "draw", std::io::Error::other(e)))?;
        paces.frame.push(1e3 * drawing.elapsed().as_secs_f64());
        match state.shown().map(|(_, freshness)| freshness) {
            // The front of what was asked before may come in between.
            Some(Freshness::Provisional) if paces.provisional.len() == priced => {
                paces.provisional.push(since());
            }
            Some(Freshness::Solved) => paces.solved.push(since()),
            _ => {}
        }
    }
    Ok(())
}

/// Seconds that this process has worked, where the system says.
fn spent() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/self/stat").ok()?;
    let fields = text.rsplit_once(')')?.1;
    let mut fields = fields.split_whitespace().skip(11);
    let ticks = fields.next()?.parse::<f64>().ok()? + fields.next()?.parse::<f64>().ok()?;
    // Linux counts in hundredths for programs, whatever it does inside.
    Some(ticks / 100.0)
}

/// The least of `all` that so much of them do not pass.
fn percentile(all: &mut [f64], share: f64) -> f64 {
    all.sort_by(f64::total_cmp);
    let last = all.len().saturating_sub(1);
    all.get((share * last as f64).ceil() as usize)
        .copied()
        .unwrap_or(f64::NAN)
}

/// The answer: percentiles beside what is promised.
fn told(state: &State, mut paces: Paces, work: Option<f64>) -> Answer {
    let lists = [&mut paces.provisional, &mut paces.solved, &mut paces.frame];
    let (mut text, mut rows, mut holds) = (String::new(), Vec::<Value>::new(), true);
    for (list, (name, most)) in lists.into_iter().zip(PROMISED) {
        let [median, high] = [0.5, 0.95].map(|share| percentile(list, share));
        let longest = percentile(list, 1.0);
        holds &= high <= most;
        let verdict = if high <= most { "within" } else { "NOT within" };
        text += &format!(
            "{name:<12} {:>3}x  median {median:6.1} ms  95 % {high:6.1} ms, {verdict} {most:.0} ms  longest {longest:6.1} ms\n",
            list.len()
        );
        rows.push(json!({"what": name, "count": list.len(), "median_ms": median, "p95_ms": high, "most_ms": most, "longest_ms": longest}));
    }
    let each = work.map(|work| work / paces.solved.len().max(1) as f64);
    if let Some(each) = each {
        text += &format!(
            "work         {:.0} ms of the processors for each answer\n",
            1e3 * each
        );
    }
    Answer {
        json: json!({"model": state.settings.job.model, "paces": rows, "work_seconds_each": each, "holds": holds}),
        text,
        status: if holds { DONE } else { MISFIT },
    }
}
