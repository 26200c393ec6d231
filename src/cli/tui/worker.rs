//! Threads that answer: one searches, one solves for the front of what was found, one prices the last plan's choices meanwhile. A newer
//! question takes the place of one that waits.

use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use memfit::machine::lowered::{self, Keeping};
use memfit::plan::Choice;
use memfit::show::tui::found::{self, Found, Open, Spot};
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

/// What a worker says of the settings of a number.
pub struct Said {
    serial: u64,
    what: What,
}

enum What {
    Solved(Box<Settings>, std::result::Result<Found, String>, Seconds),
    Front(Vec<Spot>),
    Provisional(Found),
}

impl Said {
    /// Tells it to the state.
    pub fn tell(self, state: &mut State) {
        let serial = self.serial;
        match self.what {
            What::Solved(settings, answer, seconds) => {
                state.take(serial, *settings, answer, Some(seconds));
            }
            What::Front(spots) => state.take_front(serial, spots),
            What::Provisional(found) => state.take_provisional(serial, found),
        }
    }
}

/// Where the last question waits.
struct Slot<T> {
    waiting: Mutex<Option<T>>,
    bell: Condvar,
}

impl<T> Default for Slot<T> {
    fn default() -> Slot<T> {
        Slot {
            waiting: Mutex::new(None),
            bell: Condvar::new(),
        }
    }
}

impl<T> Slot<T> {
    fn put(&self, asked: T) {
        *self.waiting.lock().unwrap_or_else(PoisonError::into_inner) = Some(asked);
        self.bell.notify_one();
    }

    fn take(&self) -> T {
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

/// Where answers go.
#[derive(Clone)]
struct Out(Sender<Event>);

impl Out {
    fn say(&self, serial: u64, what: What) -> ControlFlow<()> {
        let said = self.0.send(Event::Said(Box::new(Said { serial, what })));
        match said {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    }
}

/// Answers by `work` what comes to the slot that is returned, for as long as somebody listens.
fn worker<T: Send + 'static>(
    name: &str,
    mut work: impl FnMut(T) -> ControlFlow<()> + Send + 'static,
) -> Arc<Slot<T>> {
    let slot = Arc::new(Slot::default());
    let own = slot.clone();
    let run = move || while work(own.take()).is_continue() {};
    // Without a thread there is no answer, and the screen says that it waits.
    let _ = thread::Builder::new().name(name.into()).spawn(run);
    slot
}

/// The workers.
pub struct Desk {
    slots: [Arc<Slot<Asked>>; 2],
    /// What one question lowers the next need not.
    _kept: Keeping,
}

impl Desk {
    /// Workers whose answers go to `sender`.
    pub fn open(sender: &Sender<Event>) -> Desk {
        let out = Out(sender.clone());
        let to = out.clone();
        let fronts = worker("front", move |(serial, open): (u64, Open)| {
            let spots = catch_unwind(AssertUnwindSafe(|| open.spots()));
            spots.map_or(ControlFlow::Continue(()), |spots| {
                to.say(serial, What::Front(spots))
            })
        });
        let to = out.clone();
        let search = worker("search", move |asked: Asked| {
            let (serial, (what, open)) = (asked.serial, solve(asked));
            to.say(serial, what)?;
            if let Some(open) = open {
                fronts.put((serial, open));
            }
            ControlFlow::Continue(())
        });
        // On a thread of its own, so that it does not queue behind the search.
        let alone = rayon::ThreadPoolBuilder::new().num_threads(1).build().ok();
        let pricing = worker("pricing", move |asked: Asked| {
            let found = match &alone {
                Some(pool) => pool.install(|| price(&asked)),
                None => price(&asked),
            };
            match found {
                Some(found) => out.say(asked.serial, What::Provisional(found)),
                None => ControlFlow::Continue(()),
            }
        });
        Desk {
            slots: [search, pricing],
            _kept: lowered::keep(),
        }
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

fn solve(asked: Asked) -> (What, Option<Open>) {
    let begin = Instant::now();
    let search = || {
        let question = asked.settings.question()?;
        found::plan(&asked.settings, &question)
    };
    let (answer, open) = match catch_unwind(AssertUnwindSafe(search)) {
        Ok(Ok((found, open))) => (Ok(found), open),
        Ok(Err(error)) => (Err(line(&error)), None),
        Err(_) => {
            let broke =
                "planning this broke a rule of the program; undo, and report the command line (y)";
            (Err(broke.to_string()), None)
        }
    };
    let took = Seconds(begin.elapsed().as_secs_f64());
    (What::Solved(Box::new(asked.settings), answer, took), open)
}

fn price(asked: &Asked) -> Option<Found> {
    let price = || {
        let question = asked.settings.question().ok()?;
        found::provisional(&question, &asked.last)
    };
    let found = catch_unwind(AssertUnwindSafe(price)).ok().flatten();
    found.filter(|_| !asked.last.is_empty())
}
