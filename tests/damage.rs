//! What tests of the checker share: good programs, and one change that must be refused.

use std::collections::BTreeSet;
use std::sync::Arc;

use memfit::error::Error;
use memfit::graph::op::transfer::Move;
use memfit::graph::tensor::{DType, Role, Type};
use memfit::graph::{Phase, Spot, Step, StepSet, Stream, When};
use memfit::program::check::check;
use memfit::program::{BufferId, Instr, Program, programs};
use memfit::spec::job::{Backend, Place, Precision};

use crate::programs::{MICRO, job, lower, plan};

/// Programs with every stream, place and kind of instruction.
pub fn good() -> Vec<Program> {
    let stacks: [&[&str]; 7] = [
        &[],
        &["recompute", "fused_update"],
        &["offload:what=activations"],
        &["offload:what=activations,to=disk"],
        &["offload:what=optimizer,update=host"],
        &["accumulate:micro=1", "offload:what=optimizer,to=disk"],
        &[
            "offload:what=parameters,to=disk",
            "offload:what=optimizer,to=disk,update=host",
            "offload:what=gradients",
        ],
    ];
    let lowered = stacks
        .iter()
        .flat_map(|choices| lower(&plan(job(MICRO, 4, 16, Precision::F32, 2), choices)));
    let mut seen = BTreeSet::new();
    let fresh = |p: &Program| seen.insert(p.hash());
    lowered.chain([tiled()]).filter(fresh).collect()
}

/// A value of several tiles to the disk and back, through staging slots.
pub fn tiled() -> Program {
    let mut step = Step::default();
    let at = Type::new(&[18 << 18], DType::F32);
    let value = step.persistent("big", at, Place::Gpu, Role::Activation);
    let spot = |leaf, stream| Spot {
        stream,
        ..Spot::compute(Phase::Forward, "big", leaf)
    };
    let away = spot("away", Stream::DiskWrite);
    let away = step
        .node(
            Arc::new(Move { into: false }),
            &[value],
            away,
            Role::Activation,
            Place::Disk,
        )
        .unwrap();
    let sent = away.outputs[0];
    step.nodes.push(away);
    let back = spot("back", Stream::ToDevice);
    let back = step
        .node(
            Arc::new(Move { into: true }),
            &[sent, value],
            back,
            Role::Activation,
            Place::Gpu,
        )
        .unwrap();
    step.nodes.push(back);
    let set = StepSet {
        steps: vec![(When::Steady, step)],
        ..StepSet::default()
    };
    programs(set, Backend::Cpu { threads: 1 })
        .unwrap()
        .remove(0)
}

/// What the checker has against a program.
pub struct No {
    pub rule: &'static str,
    pub at: usize,
    pub why: String,
}

pub fn refusal(program: &Program) -> Option<No> {
    match check(program) {
        Ok(_) => None,
        Err(Error::Rule {
            rule,
            instruction: at,
            why,
        }) => Some(No { rule, at, why }),
        Err(other) => panic!("{other}"),
    }
}

impl No {
    #[track_caller]
    pub fn is(&self, rules: &[&str]) -> &No {
        assert!(
            rules.contains(&self.rule),
            "{} at {}: {}",
            self.rule,
            self.at,
            self.why
        );
        self
    }
    #[track_caller]
    pub fn names(&self, program: &Program, id: BufferId) -> &No {
        let name = format!("`{}`", program.buffer(id).name);
        assert!(
            self.why.contains(&name),
            "{} says nothing of {name}",
            self.why
        );
        self
    }
}

/// `program` after `change`, which must be refused.
#[track_caller]
pub fn broken(program: &Program, change: impl FnOnce(&mut Program)) -> No {
    let mut damaged = program.clone();
    change(&mut damaged);
    refusal(&damaged).expect("the checker must refuse")
}

pub fn take(program: &mut Program, at: usize) {
    program.code.remove(at);
}

/// Positions in the text of each good program.
pub fn each(mut damage: impl FnMut(&Program, usize, Instr)) {
    for program in good() {
        for (at, instr) in program.code.iter().enumerate() {
            damage(&program, at, *instr);
        }
    }
}
