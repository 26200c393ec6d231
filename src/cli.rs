//! Commands and their arguments; the one place that prints.

mod bench;
mod calibrate;
mod compare;
mod cost;
mod estimate;
mod examples;
mod explain;
mod files;
mod fit;
mod gpus;
mod job;
mod list;
mod manual;
mod place;
mod plan;
mod plan_torch;
mod report;
mod run;
mod selftest;
mod subject;
mod trace;
mod trial;
mod tui;
mod validate;
mod words;

use std::io::{ErrorKind, IsTerminal, Write};
use std::process::ExitCode;

use clap::{FromArgMatches, Parser, Subcommand};
use memfit::error::{Error, Result};
use serde_json::{Value, json};

/// Exit status where a job fits or a command is done.
pub const DONE: u8 = 0;
/// Exit status where a job does not fit, or a claim does not hold.
pub const MISFIT: u8 = 1;
/// Exit status of errors.
const ERROR: u8 = 2;

/// Will this model train on this GPU, with which plan, how fast, and how do we know?
#[derive(Debug, Parser)]
#[command(
    name = "memfit",
    version,
    after_help = "Examples:\n  memfit plan --gpu 24GB --model 7b\n  memfit gpus --model 7b --tokens 1B\n\nExit status: 0 fits or done, 1 does not fit or a claim does not hold, 2 error."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Answer as JSON: integers are bytes, durations seconds
    #[arg(long, global = true)]
    json: bool,
    /// Say nothing of how long work goes on
    #[arg(short, long, global = true)]
    quiet: bool,
    /// Take arguments from this file: lines such as model = "7b"; what is given as well wins. `plan` without a model reads memfit.toml
    #[arg(long, global = true, value_name = "FILE")]
    job: Option<std::path::PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Find the fastest plan that fits
    Plan(Box<plan::Args>),
    /// Compare all devices known by name for a job: whether it fits, how fast, at what cost
    Gpus(Box<gpus::Args>),
    /// Find the largest model, batch and sequence that a device can train
    Fit(Box<fit::Args>),
    /// Explore trade-offs in the terminal
    Tui(Box<tui::Args>),
    /// Train by a plan
    Run(Box<run::Args>),
    /// Try several methods on your model and text, and take the cheapest that learns as well
    Trial(Box<trial::Args>),
    /// Predict exactly this job with PyTorch
    Estimate(estimate::Args),
    /// Run a plan's programs and compare with what was predicted
    Validate(Box<validate::Args>),
    /// Show who holds the memory of a plan, and check its claim
    Explain(explain::Args),
    /// Write a page that shows what a plan takes, when and why: one HTML file
    Report(Box<report::Args>),
    /// Write the step of a plan as a trace for Perfetto or Chrome
    Trace(Box<trace::Args>),
    /// List the models known by name
    Models,
    /// List the devices known by name
    Devices,
    /// List the techniques a plan may use
    Techniques,
    /// Measure this machine and write a device file
    Calibrate(calibrate::Args),
    /// Hold a GPU against this machine's cores: memory, losses, and what it reaches
    Selftest(selftest::Args),
    /// Find offsets for buffers of known lives, from a CSV file: as low a top as can be
    Place(place::Args),
    /// Compare what is predicted for PyTorch with measured runs
    Compare(compare::Args),
    /// Run a benchmark of the predictions
    Bench(bench::Args),
    /// Print a script that completes commands in your shell
    Completions(manual::CompletionsArgs),
    /// Print the manual page, or write all pages into a folder
    Man(manual::ManArgs),
}

/// What a command answers.
#[derive(Debug)]
pub struct Answer {
    /// For people.
    pub text: String,
    /// For programs.
    pub json: Value,
    /// The exit status.
    pub status: u8,
}

/// Reads the arguments, runs the command, prints its answer.
pub fn main() -> ExitCode {
    let words = match words::all() {
        Ok(words) => words,
        Err(error) => return failed(&error, std::env::args_os().any(|a| a == "--json")),
    };
    let matches = examples::command().try_get_matches_from(words);
    let cli = match matches.and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    memfit::show::fit_page(width());
    match run(&cli) {
        Ok(answer) => {
            print(&match cli.json {
                true => pretty(&answer.json),
                false => answer.text,
            });
            ExitCode::from(answer.status)
        }
        Err(error) => failed(&error, cli.json),
    }
}

/// Says what went wrong.
fn failed(error: &Error, json: bool) -> ExitCode {
    let message = error.to_string();
    if json {
        print(&pretty(&json!({"error": message})));
    }
    complain(&format!("error: {message}\n"));
    ExitCode::from(ERROR)
}

fn run(cli: &Cli) -> Result<Answer> {
    let quiet = cli.json || cli.quiet;
    match &cli.command {
        Command::Plan(args) => plan::plan(args),
        Command::Gpus(args) => gpus::gpus(args, quiet),
        Command::Fit(args) => fit::fit(args, quiet),
        Command::Run(args) => run::run(args, quiet),
        Command::Trial(args) => trial::trial(args, quiet),
        Command::Tui(args) => tui::tui(args),
        Command::Estimate(args) => estimate::estimate(args),
        Command::Validate(args) => validate::validate(args, quiet),
        Command::Explain(args) => explain::explain(args),
        Command::Report(args) => report::report(args, quiet),
        Command::Trace(args) => trace::trace(args, quiet),
        Command::Models => list::models(),
        Command::Devices => list::devices(),
        Command::Techniques => list::techniques(),
        Command::Calibrate(args) => calibrate::calibrate(args, quiet),
        Command::Selftest(args) => selftest::selftest(args, quiet),
        Command::Place(args) => place::place(args),
        Command::Compare(args) => compare::compare(args, quiet),
        Command::Bench(args) => bench::bench(args, quiet),
        Command::Completions(args) => manual::completions(args),
        Command::Man(args) => manual::man(args),
    }
}

/// Help, the version, or arguments that cannot be read.
fn usage(error: &clap::Error) -> ExitCode {
    let text = error.render().to_string();
    if !error.use_stderr() {
        print(&text);
        return ExitCode::from(DONE);
    }
    if std::env::args_os().any(|a| a == "--json") {
        print(&pretty(&json!({"error": text.trim()})));
    }
    complain(&text);
    ExitCode::from(ERROR)
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

/// Prints an answer; a reader that has gone, as in `memfit plan | head`, is no error.
fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    if let Err(error) = written
        && error.kind() != ErrorKind::BrokenPipe
    {
        complain(&format!(
            "error: cannot write the answer: {error}; check where the output goes\n"
        ));
    }
}

/// Prints to the error stream; where that is gone too there is nobody to tell.
pub fn complain(text: &str) {
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// Columns for an answer: what `COLUMNS` says, those of the terminal it goes to, or else of a page.
pub fn width() -> usize {
    let said = std::env::var("COLUMNS").ok();
    if let Some(columns) = said.and_then(|said| said.parse::<usize>().ok()) {
        return columns;
    }
    let out = std::io::stdout();
    let size = out.is_terminal().then(ratatui::crossterm::terminal::size);
    match size {
        Some(Ok((columns, _))) if columns > 0 => usize::from(columns),
        _ => memfit::show::WIDTH,
    }
}

/// What is being done, on the error stream, for work of unknown length; or nothing where the answer is for programs.
pub fn steps(quiet: bool) -> indicatif::ProgressBar {
    let bar = match quiet {
        true => indicatif::ProgressBar::hidden(),
        false => indicatif::ProgressBar::new_spinner(),
    };
    bar.enable_steady_tick(std::time::Duration::from_millis(200));
    bar
}

/// A bar on the error stream for long work, or nothing where the answer is for programs.
pub fn progress(quiet: bool) -> impl FnMut(&str, f64) {
    let bar = if quiet {
        indicatif::ProgressBar::hidden()
    } else {
        indicatif::ProgressBar::new(1000)
    };
    let style =
        indicatif::ProgressStyle::with_template("{bar:30} {percent:>3} % {eta:>4} left  {msg}");
    bar.set_style(style.unwrap_or_else(|_| indicatif::ProgressStyle::default_bar()));
    move |what, share| {
        bar.set_message(what.to_string());
        bar.set_position((share.clamp(0.0, 1.0) * 1000.0) as u64);
        if share >= 1.0 {
            bar.finish_and_clear();
        }
    }
}
