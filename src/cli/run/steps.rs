//! The steps of a run, with progress, evaluations and saves.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use indicatif::ProgressBar;
use memfit::error::{Error, Result};
use memfit::machine::train::session::Session;
use signal_hook::consts::{SIGINT, SIGTERM};

use super::Args;
use crate::cli::complain;

/// The steps, with evaluations and saves where asked.
///
/// # Errors
/// Where a step fails; after an interruption, naming the last save.
pub fn train(args: &Args, session: &mut Session, quiet: bool) -> Result<()> {
    let stop = stop_flag();
    let bar = bar(args.steps.saturating_sub(session.done()), quiet);
    let evaluates = args.eval.is_some();
    while session.done() < args.steps {
        let stepped = session.step()?;
        bar.inc(1);
        let skipped = if stepped.skipped {
            ", overflowed: skipped"
        } else {
            ""
        };
        say(
            &bar,
            quiet,
            &format!(
                "step {} loss {:.4} in {}{skipped}",
                stepped.step, stepped.loss, stepped.seconds
            ),
        );
        let last = stepped.step == args.steps;
        let due = |every: Option<u64>| {
            last || every.is_some_and(|n| n > 0 && stepped.step.is_multiple_of(n))
        };
        let stopped = stop.load(Ordering::Relaxed);
        if evaluates && due(args.eval_every) && !stopped {
            let loss = session.evaluate()?.unwrap_or(f32::NAN);
            say(
                &bar,
                quiet,
                &format!("step {} held-out loss {loss:.4}", stepped.step),
            );
        }
        if let Some(dir) = args
            .save
            .as_deref()
            .filter(|_| stopped || due(args.save_every))
        {
            session.save(dir)?;
            say(
                &bar,
                quiet,
                &format!("step {} saved to {}", stepped.step, dir.display()),
            );
        }
        if stopped && !last {
            return Err(Error::Interrupted {
                saved: args.save.clone(),
            });
        }
    }
    bar.finish_and_clear();
    Ok(())
}

fn say(bar: &ProgressBar, quiet: bool, line: &str) {
    if !quiet {
        bar.suspend(|| complain(&format!("{line}\n")));
    }
}

fn bar(steps: u64, quiet: bool) -> ProgressBar {
    if quiet {
        ProgressBar::hidden()
    } else {
        ProgressBar::new(steps)
    }
}

/// Becomes true at the first interrupt or termination; a second one ends the process at once.
fn stop_flag() -> Arc<AtomicBool> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // Without a handler the signal ends the process; the last save stands either way.
        let _ = signal_hook::flag::register_conditional_shutdown(signal, 2, stop.clone());
        let _ = signal_hook::flag::register(signal, stop.clone());
    }
    stop
}
