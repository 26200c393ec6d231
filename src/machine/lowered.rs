//! Programs of plans, lowered once for all devices they are asked about: a program depends on the plan and the backend, and neither on
//! a device's rates nor on its memory.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::Result;
use crate::plan::Plan;
use crate::program::Program;

/// Instructions of all programs that are kept at most; those that nobody wanted for longest go first.
const MOST: usize = 1 << 20;

/// Programs of one plan.
#[derive(Debug, Clone)]
pub struct Lowered(Arc<Vec<Program>>);

impl From<Vec<Program>> for Lowered {
    fn from(programs: Vec<Program>) -> Lowered {
        Lowered(Arc::new(programs))
    }
}

impl Deref for Lowered {
    type Target = [Program];
    fn deref(&self) -> &[Program] {
        &self.0
    }
}

impl<'a> IntoIterator for &'a Lowered {
    type Item = &'a Program;
    type IntoIter = std::slice::Iter<'a, Program>;
    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

/// Keeps programs as long as any of these lives. Answers are the same with and without.
#[derive(Debug)]
pub struct Keeping(());

/// What is kept.
struct Store {
    /// How many keep it.
    keepers: usize,
    /// Each with when it was wanted last.
    programs: BTreeMap<String, (u64, Lowered)>,
    /// How often something was wanted.
    wanted: u64,
    instructions: usize,
}

static STORE: Mutex<Store> = Mutex::new(Store {
    keepers: 0,
    programs: BTreeMap::new(),
    wanted: 0,
    instructions: 0,
});

/// The store; a thread that panicked with it left nothing half done.
fn store() -> MutexGuard<'static, Store> {
    STORE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Begins to keep programs.
pub fn keep() -> Keeping {
    store().keepers += 1;
    Keeping(())
}

impl Drop for Keeping {
    fn drop(&mut self) {
        let mut store = store();
        store.keepers -= 1;
        if store.keepers == 0 {
            store.programs.clear();
            store.instructions = 0;
        }
    }
}

/// The programs of `plan`, which `lower` makes where they are not kept.
///
/// # Errors
/// As `lower`.
pub fn of(plan: &Plan, lower: impl FnOnce() -> Result<Vec<Program>>) -> Result<Lowered> {
    if store().keepers == 0 {
        return Ok(Lowered::from(lower()?));
    }
    let key = key(plan);
    if let Some(found) = store().find(&key) {
        return Ok(found);
    }
    // Nothing is locked meanwhile: lowering may wait for threads that look something up.
    let lowered = Lowered::from(lower()?);
    store().insert(key, lowered.clone());
    Ok(lowered)
}

impl Store {
    fn find(&mut self, key: &str) -> Option<Lowered> {
        self.wanted += 1;
        let (last, found) = self.programs.get_mut(key)?;
        *last = self.wanted;
        Some(found.clone())
    }

    fn insert(&mut self, key: String, lowered: Lowered) {
        let size = |all: &Lowered| all.iter().map(|p| p.code.len()).sum::<usize>();
        if self.keepers == 0 || self.programs.contains_key(&key) {
            return;
        }
        self.instructions += size(&lowered);
        self.programs.insert(key, (self.wanted, lowered));
        while self.instructions > MOST {
            let oldest = self.programs.iter().min_by_key(|(_, (last, _))| *last);
            let Some(oldest) = oldest.map(|(key, _)| key.clone()) else {
                break;
            };
            let gone = self.programs.remove(&oldest);
            self.instructions -= gone.map_or(0, |(_, gone)| size(&gone));
        }
    }
}

/// All that programs depend on.
fn key(plan: &Plan) -> String {
    let job = &plan.job;
    let backend = job.target.backend;
    format!(
        "{:?} {} {} {:?} {:?} {backend:?} {:?}",
        job.model, job.seq, job.batch, job.precision, job.optimizer, plan.choices
    )
}
