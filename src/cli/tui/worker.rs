//! Threads that answer: one searches, one prices the last plan's choices meanwhile. A newer question takes the place of one that waits.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use memfit::plan::Choice;
use memfit::show::tui::found::{self, Found};
use memfit::show::tui::settings::{Settings, line};
use memfit::show::tui::state::State;
use memfit::spec::units::Seconds;

use super::Event;

/// A question.
#[derive(Debug, Clone)]
struct Asked {
    serial: u64,
    settings: Settings,
    last: Vec<Choice>,
}

/// What a worker says.
pub struct Said {
    asked: Asked,
    what: What,
}

enum What {
    Solved(std::result::Result<Found, String>, Seconds),
    Provisional(Found),
}

impl Said {
    /// Tells it to the state.
    pub fn tell(self, state: &mut State) {
        let serial = self.asked.serial;
        match self.what {
            What::Solved(answer, seconds) => {
                state.take(serial, self.asked.settings, answer, Some(seconds));
            }
            What::Provisional(found) => state.take_provisional(serial, found),
        }
    }
}

/// What a worker makes of a question.
type Work = fn(&Asked) -> Option<What>;

/// Where the last question waits.
#[derive(Default)]
struct Slot {
    waiting: Mutex<Option<Asked>>,
    bell: Condvar,
}

impl Slot {
    fn put(&self, asked: Asked) {
        *self.waiting.lock().unwrap_or_else(PoisonError::into_inner) = Some(asked);
        self.bell.notify_one();
    }

    fn take(&self) -> Asked {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match waiting.take() {
                Some(asked) => return asked,
                None => {
                    let woken = self.bell.wait(waiting);
                    waiting = woken.unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }
}

/// The workers.
pub struct Desk {
    slots: [Arc<Slot>; 2],
}

impl Desk {
    /// Workers whose answers go to `sender`.
    pub fn open(sender: &Sender<Event>) -> Desk {
        let workers: [(&str, Work); 2] = [("search", solve), ("pricing", price)];
        let slots = workers.map(|(name, work)| {
            let slot = Arc::new(Slot::default());
            let (own, to) = (slot.clone(), sender.clone());
            let run = move || {
                loop {
                    let asked = own.take();
                    let said = work(&asked).map(|what| Said { asked, what });
                    let sent = said.map(|said| to.send(Event::Said(Box::new(said))));
                    if sent.is_some_and(|sent| sent.is_err()) {
                        return;
                    }
                }
            };
            // Without a thread there is no answer, and the screen says that it waits.
            let _ = thread::Builder::new().name(name.into()).spawn(run);
            slot
        });
        Desk { slots }
    }

    /// Asks for what the state has chosen.
    pub fn ask(&self, state: &State) {
        for slot in &self.slots {
            slot.put(Asked {
                serial: state.serial,
                settings: state.settings.clone(),
                last: state.last_choices(),
            });
        }
    }
}

fn solve(asked: &Asked) -> Option<What> {
    let begin = Instant::now();
    let search = || {
        let question = asked.settings.question()?;
        found::solve(&asked.settings, &question)
    };
    let answer = match catch_unwind(AssertUnwindSafe(search)) {
        Ok(answer) => answer.map_err(|error| line(&error)),
        Err(_) => Err(
            "planning this broke a rule of the program; undo, and report the command line (y)"
                .to_string(),
        ),
    };
    Some(What::Solved(answer, Seconds(begin.elapsed().as_secs_f64())))
}

fn price(asked: &Asked) -> Option<What> {
    let price = || {
        let question = asked.settings.question().ok()?;
        found::provisional(&question, &asked.last)
    };
    let found = catch_unwind(AssertUnwindSafe(price)).ok().flatten();
    found
        .filter(|_| !asked.last.is_empty())
        .map(What::Provisional)
}
