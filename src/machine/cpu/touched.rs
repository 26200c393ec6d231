//! Who holds memory, counted by the machine from what it hands out and gets back, not from what was planned.

use std::collections::{BTreeMap, BTreeSet};

use crate::graph::tensor::{Name, Role};
use crate::program::{BufferId, Program};
use crate::spec::job::PerPlace;
use crate::spec::units::Bytes;

/// Bytes by role.
pub type Roles = BTreeMap<Role, Bytes>;

/// The buffers in use, and the roles when they were most.
#[derive(Debug, Default)]
pub(in crate::machine) struct Touched {
    /// Shared buffers handed out in this or an earlier program, by what they are called in every set of programs.
    shared: BTreeSet<Name>,
    /// The others, in this program.
    live: BTreeSet<u32>,
    now: PerPlace<Roles>,
    most: PerPlace<(Bytes, Roles)>,
}

impl Touched {
    /// A program begins: what earlier ones left is what they share.
    pub(in crate::machine) fn begin(&mut self, program: &Program) {
        self.live.clear();
        self.now = PerPlace::default();
        for (id, buffer) in program.buffers.iter().enumerate() {
            if buffer.shared && self.shared.contains(&buffer.name) {
                self.count(program, BufferId(id as u32));
            }
        }
    }

    /// A buffer is handed to an op or a copy.
    pub(in crate::machine) fn hand_out(&mut self, program: &Program, id: BufferId) {
        let buffer = program.buffer(id);
        let new = match buffer.shared {
            true if self.shared.contains(&buffer.name) => false,
            true => self.shared.insert(buffer.name.clone()),
            false => self.live.insert(id.0),
        };
        if new {
            self.count(program, id);
        }
    }

    fn count(&mut self, program: &Program, id: BufferId) {
        let buffer = program.buffer(id);
        let now = &mut self.now[buffer.place];
        *now.entry(buffer.role).or_default() += buffer.exact;
        let sum: Bytes = now.values().copied().sum();
        if sum > self.most[buffer.place].0 {
            self.most[buffer.place] = (sum, now.clone());
        }
    }

    /// A buffer's bytes may be another's.
    pub(in crate::machine) fn free(&mut self, program: &Program, id: BufferId) {
        let buffer = program.buffer(id);
        if self.live.remove(&id.0) {
            let held = self.now[buffer.place].entry(buffer.role).or_default();
            *held = held.saturating_sub(buffer.exact);
        }
    }

    /// The roles of each place when their sum was largest.
    pub(in crate::machine) fn roles(&self) -> PerPlace<Roles> {
        let filled = |roles: &Roles| {
            let held = roles.iter().filter(|(_, bytes)| **bytes > Bytes::ZERO);
            held.map(|(role, bytes)| (*role, *bytes)).collect()
        };
        PerPlace::new(|place| filled(&self.most[place].1))
    }
}
