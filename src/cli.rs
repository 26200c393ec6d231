//! Commands and their arguments; the one place that prints.

mod bench;
mod calibrate;
mod compare;
mod estimate;
mod explain;
mod files;
mod job;
mod list;
mod place;
mod plan;
mod plan_torch;
mod run;
mod trial;
mod tui;
mod validate;

use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use memfit::error::Result;
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
    after_help = "Exit status: 0 fits or done, 1 does not fit, 2 error."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Answer as JSON: integers are bytes, durations seconds
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Find the fastest plan that fits
    Plan(Box<plan::Args>),
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
    /// List the models known by name
    Models,
    /// List the devices known by name
    Devices,
    /// List the techniques a plan may use
    Techniques,
    /// Measure this machine and write a device file
    Calibrate(calibrate::Args),
    /// Find offsets for buffers of known lives, from a CSV file: as low a top as can be
    Place(place::Args),
    /// Compare what is predicted for PyTorch with measured runs
    Compare(compare::Args),
    /// Run a benchmark of the predictions
    Bench(bench::Args),
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
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    match run(&cli) {
        Ok(answer) => {
            print(&match cli.json {
                true => pretty(&answer.json),
                false => answer.text,
            });
            ExitCode::from(answer.status)
        }
        Err(error) => {
            let message = error.to_string();
            if cli.json {
                print(&pretty(&json!({"error": message})));
            }
            complain(&format!("error: {message}\n"));
            ExitCode::from(ERROR)
        }
    }
}

fn run(cli: &Cli) -> Result<Answer> {
    match &cli.command {
        Command::Plan(args) => plan::plan(args),
        Command::Tui(args) => tui::tui(args),
        Command::Run(args) => run::run(args, cli.json),
        Command::Trial(args) => trial::trial(args, cli.json),
        Command::Estimate(args) => estimate::estimate(args),
        Command::Validate(args) => validate::validate(args, cli.json),
        Command::Explain(args) => explain::explain(args),
        Command::Models => list::models(),
        Command::Devices => list::devices(),
        Command::Techniques => list::techniques(),
        Command::Calibrate(args) => calibrate::calibrate(args, cli.json),
        Command::Place(args) => place::place(args),
        Command::Compare(args) => compare::compare(args, cli.json),
        Command::Bench(args) => bench::bench(args, cli.json),
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

/// A bar on the error stream for long work, or nothing where the answer is for programs.
pub fn progress(quiet: bool) -> impl FnMut(&str, f64) {
    let bar = if quiet {
        indicatif::ProgressBar::hidden()
    } else {
        indicatif::ProgressBar::new(1000)
    };
    let style = indicatif::ProgressStyle::with_template("{bar:30} {percent:>3} % {msg}");
    bar.set_style(style.unwrap_or_else(|_| indicatif::ProgressStyle::default_bar()));
    move |what, share| {
        bar.set_message(what.to_string());
        bar.set_position((share.clamp(0.0, 1.0) * 1000.0) as u64);
        if share >= 1.0 {
            bar.finish_and_clear();
        }
    }
}
