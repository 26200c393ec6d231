//! `memfit tui`: the explorer's loop over events, the workers that answer it, and what it does to files and the clipboard.

mod pace;
mod screen;
mod worker;

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use memfit::error::{Error, Result};
use memfit::show::tui::keys::{self, Effect};
use memfit::show::tui::settings::{self, Settings};
use memfit::show::tui::state::State;
use memfit::show::tui::view::{self, Look};
use ratatui::crossterm::event::{Event as Input, KeyEventKind};
use serde_json::json;

pub use self::pace::paces;
use self::screen::Screen;
use self::worker::{Desk, Said};
use super::job::JobArgs;
use super::plan::Engine;
use super::{Answer, DONE, files};

/// Arguments of `tui`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    job: JobArgs,
    /// Who trains: memfit's own executor, or PyTorch's eager mode with Hugging Face code
    #[arg(long, value_enum, default_value = "memfit")]
    engine: Engine,
    /// With --engine torch: options of the step that are decided already, such as attn=eager,lora=16; may be repeated
    #[arg(long, value_name = "KEY=VALUE,…")]
    torch: Vec<String>,
}

/// The job that is shown where none is named.
const FIRST: (&str, &str) = ("llama-2-7b", "24GB");

/// Something that happened.
enum Event {
    /// At the terminal.
    Input(Input),
    /// A worker answered.
    Said(Box<Said>),
    /// A report was made, or why not.
    Report(std::result::Result<PathBuf, String>),
    /// The operating system asks to stop.
    Signal(i32),
}

/// Opens the explorer, and answers with the command line it was left at.
///
/// # Errors
/// Where the job is wrong, or the output is no terminal.
pub fn tui(args: &Args) -> Result<Answer> {
    let settings = begin(args)?;
    if !std::io::stdout().is_terminal() {
        let next = "run it in a terminal; `memfit plan` answers without one";
        return Err(Error::file("standard output", "it is no terminal", next));
    }
    let refused = |e| Error::io("the terminal", "open", e);
    let mut screen = Screen::open().map_err(refused)?;
    let left = explore(&mut screen, State::new(settings));
    screen.close();
    let (state, signal) = left.map_err(refused)?;
    let command = state.settings.command();
    Ok(Answer {
        text: format!("{command}\n"),
        json: json!({"command": command}),
        status: signal.map_or(DONE, |signal| 128 + signal as u8),
    })
}

/// What the arguments choose.
fn begin(args: &Args) -> Result<Settings> {
    let mut job = args.job.clone();
    job.model.get_or_insert_with(|| FIRST.0.to_string());
    job.gpu.get_or_insert_with(|| FIRST.1.to_string());
    let mut settings = Settings::new(job.text(None)?, job.machine());
    settings.allow = job.class()?;
    for choice in job.fixed()? {
        settings.fix(choice);
    }
    if args.engine == Engine::Torch {
        settings.engine = settings::Engine::Torch;
    }
    let pairs = args.torch.iter().flat_map(|text| text.split(','));
    for pair in pairs.filter(|pair| !pair.trim().is_empty()) {
        let next = "write --torch key=value";
        let split = pair.split_once('=');
        let (key, value) =
            split.ok_or_else(|| Error::value("--torch", pair, "no `=` in it", next))?;
        let own = (key.trim().to_string(), value.trim().to_string());
        settings.torch.extend([own]);
    }
    settings.check()?;
    Ok(settings)
}

/// Draws, waits, and does what is asked, until it is left; with the signal where that was why.
fn explore(screen: &mut Screen, mut state: State) -> std::io::Result<(State, Option<i32>)> {
    let look = Look::new(std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()));
    let (sender, events) = channel();
    let desk = Desk::open(&sender);
    watch(&sender)?;
    let mut asked = 0;
    loop {
        if state.serial != asked {
            asked = state.serial;
            if state.waits() {
                desk.ask(&state);
            }
        }
        screen
            .terminal
            .draw(|frame| view::draw(frame, &state, &look))?;
        for event in waited(&events) {
            match event {
                Event::Signal(signal) => return Ok((state, Some(signal))),
                Event::Said(said) => said.tell(&mut state),
                Event::Report(made) => state.message = Some(told(made)),
                Event::Input(Input::Key(key)) if key.kind != KeyEventKind::Release => {
                    match keys::key(&mut state, key) {
                        Some(Effect::Quit) => return Ok((state, None)),
                        Some(effect) => act(effect, &mut state, &sender)?,
                        None => {}
                    }
                }
                Event::Input(_) => {}
            }
        }
    }
}

/// The next event, and all that have come with it; none where nobody is left to send one.
fn waited(events: &Receiver<Event>) -> Vec<Event> {
    let mut all: Vec<Event> = events.recv().into_iter().collect();
    all.extend(events.try_iter());
    all
}

/// Sends what is typed and the signals that ask to stop.
fn watch(sender: &Sender<Event>) -> std::io::Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let mut signals = signal_hook::iterator::Signals::new([SIGHUP, SIGINT, SIGTERM])?;
    let to = sender.clone();
    thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            signals
                .forever()
                .all(|signal| to.send(Event::Signal(signal)).is_ok())
        })?;
    let to = sender.clone();
    thread::Builder::new().name("keys".into()).spawn(move || {
        loop {
            // A terminal that is gone ends the program as a signal would.
            let event = match ratatui::crossterm::event::read() {
                Ok(event) => Event::Input(event),
                Err(_) => Event::Signal(SIGHUP),
            };
            let gone = matches!(event, Event::Signal(_));
            if to.send(event).is_err() || gone {
                return;
            }
        }
    })?;
    Ok(())
}

/// Does what a key asks for outside of the state.
fn act(effect: Effect, state: &mut State, sender: &Sender<Event>) -> std::io::Result<()> {
    match effect {
        Effect::Quit => {}
        Effect::Save(path, text) => {
            state.message = Some(match files::write(&path, &text) {
                Ok(()) => format!("saved {}", path.display()),
                Err(error) => settings::line(&error),
            });
        }
        Effect::Copy(text) => {
            // OSC 52: terminals that know it put the text on the clipboard, others ignore it.
            let mut out = std::io::stdout().lock();
            write!(out, "\x1b]52;c;{}\x07", STANDARD.encode(text))?;
            out.flush()?;
        }
        Effect::Report(arguments, plan) => {
            let to = sender.clone();
            thread::Builder::new()
                .name("report".into())
                .spawn(move || {
                    let _ = to.send(Event::Report(report(&arguments, plan.as_deref())));
                })?;
        }
    }
    Ok(())
}

fn told(made: std::result::Result<PathBuf, String>) -> String {
    match made {
        Ok(path) => format!("the report is {}", path.display()),
        Err(why) => why,
    }
}

/// Makes the report of a job, or of a plan, by the command that makes reports.
fn report(arguments: &[String], plan: Option<&str>) -> std::result::Result<PathBuf, String> {
    let own = std::env::current_exe().map_err(|e| format!("this program is not found: {e}"))?;
    let file = |end: &str| {
        let name = format!("memfit-{}.{end}", std::process::id());
        std::env::temp_dir().join(name)
    };
    let (page, saved) = (file("html"), file("toml"));
    let mut command = Command::new(own);
    command.arg("report");
    match plan {
        None => command.args(arguments),
        Some(text) => {
            files::write(&saved, text).map_err(|e| settings::line(&e))?;
            command.arg(&saved)
        }
    };
    let made = command.arg("-o").arg(&page).output();
    let made = made.map_err(|e| format!("no report: {e}"))?;
    match made.status.success() || made.status.code() == Some(1) {
        true if Path::new(&page).exists() => Ok(page),
        _ => {
            let said = String::from_utf8_lossy(&made.stderr);
            Err(format!(
                "no report: {}",
                said.lines().next().unwrap_or("it ended early")
            ))
        }
    }
}
