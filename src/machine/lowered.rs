//! Programs of plans, lowered once for all devices they are asked about: a program depends on the plan and the backend, and neither on
//! a device's rates nor on its memory.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::Result;
use crate::plan::Plan;
use crate::program::Program;

/// Instructions of all programs that are kept at most; the oldest go first.
const MOST: usize = 1 << 18;

/// Programs of one plan.
#[derive(Debug, Clone)]
pub struct Lowered(Arc<Vec<Program>>);

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
    programs: BTreeMap<String, Lowered>,
    order: VecDeque<String>,
    instructions: usize,
}

static STORE: Mutex<Store> = Mutex::new(Store {
    keepers: 0,
    programs: BTreeMap::new(),
    order: VecDeque::new(),
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
            store.order.clear();
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
        return Ok(Lowered(Arc::new(lower()?)));
    }
    let key = key(plan);
    if let Some(found) = store().programs.get(&key) {
        return Ok(found.clone());
    }
    // Nothing is locked meanwhile: lowering may wait for threads that look something up.
    let lowered = Lowered(Arc::new(lower()?));
    store().insert(key, lowered.clone());
    Ok(lowered)
}

impl Store {
    fn insert(&mut self, key: String, lowered: Lowered) {
        let size = |all: &Lowered| all.iter().map(|p| p.code.len()).sum::<usize>();
        if self.keepers == 0 || self.programs.contains_key(&key) {
            return;
        }
        self.instructions += size(&lowered);
        self.order.push_back(key.clone());
        self.programs.insert(key, lowered);
        while self.instructions > MOST {
            let oldest = self.order.pop_front();
            let Some(gone) = oldest.and_then(|key| self.programs.remove(&key)) else {
                break;
            };
            self.instructions -= size(&gone);
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
