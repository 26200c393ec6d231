//! What a plan's policy decides between steps, and lowering again within the same memory.

use std::collections::BTreeMap;

use super::{Session, storages};
use crate::error::{Error, Result};
use crate::graph::When;
use crate::graph::tensor::{Name, Role};
use crate::machine::estimate;
use crate::program::check::check;
use crate::program::{Program, height};
use crate::spec::job::Place;
use crate::spec::units::Bytes;
use crate::technique::{Next, Policy, Seen};

/// Where a save keeps the state of the policy.
const STATE: &str = "policy";

impl Session {
    /// Takes the plan's policy up where a save left it, or at its start; its programs are those that will run.
    pub(super) fn begin_policy(&mut self, saved: &serde_json::Value) -> Result<()> {
        self.policy = self.plan.policy(self.progress.seed)?;
        let Some(policy) = &mut self.policy else {
            return Ok(());
        };
        if let Some(state) = saved.get(STATE) {
            policy.load(state)?;
        }
        self.rechoose()
    }

    /// Lets the policy decide after a step.
    pub(super) fn decide(&mut self, step: u64, loss: f32) -> Result<()> {
        let scalars = self.desk.take_scalars();
        let Some(policy) = &mut self.policy else {
            return Ok(());
        };
        let scalars = &scalars;
        match policy.after(&Seen {
            step,
            loss,
            scalars,
        }) {
            Next::Continue => Ok(()),
            Next::Rechoose { fresh } => {
                self.rechoose()?;
                if fresh {
                    self.run(When::Restart, 0)?;
                }
                Ok(())
            }
        }
    }

    /// Puts the policy's state into what a save carries.
    pub(super) fn keep_policy(&mut self) {
        if let (Some(policy), Some(settings)) =
            (&self.policy, self.progress.settings.as_object_mut())
        {
            settings.insert(STATE.to_string(), policy.save());
        }
    }

    /// Lowers the plan as the policy wants it now; where that takes more than was planned, the policy gives something up.
    fn rechoose(&mut self) -> Result<()> {
        let Some(mut policy) = self.policy.take() else {
            return Ok(());
        };
        let programs = self.lowered(policy.as_mut());
        self.policy = Some(policy);
        let programs = programs?;
        self.executor.prepare(&programs)?;
        self.storages = storages(&programs);
        self.desk.know(&self.storages);
        self.programs = programs;
        Ok(())
    }

    fn lowered(&self, policy: &mut dyn Policy) -> Result<Vec<Program>> {
        loop {
            let programs = estimate::all(&self.plan.rechosen(policy.args()))?;
            let (taken, planned) = (height(&programs), self.predicted.peak);
            if Place::ALL.iter().all(|&p| taken[p] <= planned[p]) {
                programs.iter().try_for_each(|p| check(p).map(|_| ()))?;
                assert_eq!(
                    parameters(&programs),
                    parameters(&self.programs),
                    "parameters stay where they are"
                );
                return Ok(programs);
            }
            if !policy.shrink() {
                let why = format!("even the least choice takes {}", taken.gpu);
                let next = "report the plan";
                return Err(Error::value("memory of the policy", planned.gpu, why, next));
            }
        }
    }
}

/// Where the parameters lie.
fn parameters(programs: &[Program]) -> BTreeMap<Name, (Place, Bytes)> {
    let shared = programs.iter().flat_map(|p| &p.buffers);
    let parameters = shared.filter(|b| b.shared && b.role == Role::Parameter);
    parameters
        .map(|b| (b.name.clone(), (b.place, b.offset)))
        .collect()
}
