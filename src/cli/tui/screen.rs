//! The terminal while the explorer has it: raw, on its alternate screen, and put back however the program ends.

use std::io::{Stdout, stdout};
use std::panic;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::Show;
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{
    EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};

/// Whether the terminal has to be put back.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// The terminal.
pub struct Screen {
    /// What frames are drawn on.
    pub terminal: Terminal<CrosstermBackend<Stdout>>,
}

impl Screen {
    /// Takes the terminal.
    ///
    /// # Errors
    /// Where it cannot be taken.
    pub fn open() -> std::io::Result<Screen> {
        let main = thread::current().id();
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            // A worker that panics is an answer that failed; the screen stays.
            if thread::current().id() == main || !TAKEN.load(Ordering::SeqCst) {
                restore();
                usual(info);
            }
        }));
        enable_raw_mode()?;
        TAKEN.store(true, Ordering::SeqCst);
        let opened = execute!(stdout(), EnterAlternateScreen)
            .and_then(|()| Terminal::new(CrosstermBackend::new(stdout())));
        match opened {
            Ok(terminal) => Ok(Screen { terminal }),
            Err(refusal) => {
                restore();
                Err(refusal)
            }
        }
    }

    /// Puts the terminal back.
    pub fn close(&mut self) {
        restore();
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        restore();
    }
}

/// Puts the terminal back once; where it is gone there is nothing to put back.
fn restore() {
    if TAKEN.swap(false, Ordering::SeqCst) {
        let _ = disable_raw_mode();
        let _ = execute!(stdout(), LeaveAlternateScreen, Show);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // in a test a panic is the report
mod tests {
    use super::Screen;

    #[test]
    #[ignore = "takes the terminal: .ci/tui looks whether it comes back"]
    fn panics_on_the_screen() {
        let _screen = Screen::open().unwrap();
        panic!("on the screen");
    }
}
