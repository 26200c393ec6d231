//! Good programs whose order is broken in each known way: waits, events, nodes and copies.

use memfit::graph::Stream;
use memfit::graph::op::transfer::SETTLE;
use memfit::program::{Instr, Program, Span};
use memfit::spec::job::Precision;
use memfit::spec::units::Bytes;

use crate::before::{conflicts, race};
use crate::damage::{broken, each, good, refusal, take, tiled};
use crate::programs::{MICRO, job, lower, plan};

#[test]
fn good_programs_pass_by_the_checker_and_by_pairs() {
    for program in good() {
        assert!(refusal(&program).is_none());
        assert_eq!(race(&program, &conflicts(&program), None), None);
    }
}

/// The checker's clocks agree with the pairs on every wait; those that are redundant are counted.
#[test]
fn every_wait_taken_out_is_noticed_or_is_redundant() {
    let (mut noticed, mut redundant) = (0, 0);
    for program in good() {
        let pairs = conflicts(&program);
        for (at, instr) in program.code.iter().enumerate() {
            if !matches!(instr, Instr::Wait(..)) {
                continue;
            }
            let mut damaged = program.clone();
            damaged.code.remove(at);
            let (said, races) = (refusal(&damaged), race(&program, &pairs, Some(at)));
            assert_eq!(
                said.is_some(),
                races.is_some(),
                "wait {at} of {:?}",
                program.when
            );
            match said {
                Some(no) => {
                    no.is(&["missing wait", "early free", "seam"]);
                    noticed += 1;
                }
                None => redundant += 1,
            }
        }
    }
    println!("{noticed} waits noticed, {redundant} redundant");
    assert!(noticed > 200, "{noticed} waits are too few for a test");
}

#[test]
fn every_other_instruction_is_needed() {
    each(|program, at, instr| {
        if !matches!(instr, Instr::Wait(..)) {
            broken(program, |p| take(p, at));
        }
    });
}

#[test]
fn a_wait_for_what_nobody_signalled_is_refused() {
    each(|program, at, instr| {
        if let Instr::Signal(_, event) = instr {
            let no = broken(program, |p| take(p, at));
            let wait = program
                .code
                .iter()
                .position(|i| matches!(i, Instr::Wait(_, e) if *e == event));
            no.is(&["event"]);
            assert_eq!(no.at, wait.unwrap() - 1);
            broken(program, |p| p.code.insert(at, instr)).is(&["event"]);
        }
    });
}

#[test]
fn copies_beyond_their_values_are_refused() {
    each(|program, at, instr| {
        let Instr::Copy { from, to, .. } = instr else {
            return;
        };
        let changes: [fn(&mut Span, &mut Span); 4] = [
            |from, _| from.offset += Bytes(64),
            |_, to| to.offset += Bytes(64),
            |from, to| (from.bytes, to.bytes) = (from.bytes + Bytes(4), to.bytes + Bytes(4)),
            |from, to| (from.offset, to.bytes) = (Bytes(u64::MAX), from.bytes),
        ];
        for change in changes {
            let no = broken(program, |p| match &mut p.code[at] {
                Instr::Copy { from, to, .. } => change(from, to),
                _ => unreachable!(),
            });
            no.is(&["span", "stale value"]);
            assert!(no.at >= at);
            let named = |id| no.why.contains(&*program.buffer(id).name);
            assert!(named(from.buffer) || named(to.buffer));
        }
    });
}

#[test]
fn nodes_out_of_order_are_refused() {
    let mut stale = 0;
    each(|program, at, instr| {
        let Instr::Launch { node, .. } = instr else {
            return;
        };
        let node = &program.step.nodes[node as usize];
        let makes = |i: &Instr| match *i {
            Instr::Launch { node: other, .. } => {
                let other = &program.step.nodes[other as usize];
                other.op.name() != SETTLE && other.outputs.iter().any(|o| node.inputs.contains(o))
            }
            _ => false,
        };
        let Some(maker) = program.code[..at].iter().rposition(makes) else {
            return;
        };
        let no = broken(program, |p| p.code.swap(maker, at));
        stale += usize::from(no.rule == "stale value");
    });
    assert!(stale > 100, "only {stale} swaps read a stale value");
    for program in [tiled()] {
        let copies: Vec<usize> = (0..program.code.len())
            .filter(|&i| matches!(program.code[i], Instr::Copy { .. }))
            .collect();
        for (n, &one) in copies.iter().enumerate() {
            for &other in &copies[n + 1..] {
                // In different queues the order of two copies that know nothing of each other means nothing.
                if stream(&program, one) == stream(&program, other) {
                    broken(&program, |p| p.code.swap(one, other));
                }
            }
        }
    }
}

#[test]
fn nodes_run_once() {
    each(|program, at, instr| {
        if matches!(instr, Instr::Launch { .. } | Instr::Copy { .. }) {
            let no = broken(program, |p| p.code.insert(at, instr));
            no.is(&["node", "stale value", "span"]);
        }
    });
}
/// The best of five walks, in nanoseconds for each instruction.
fn pace(layers: u32) -> f64 {
    let layers = format!("\"num_hidden_layers\":{layers}");
    let config = MICRO.replace("\"num_hidden_layers\":2", &layers);
    let choices = [
        "offload:what=activations",
        "offload:what=optimizer,update=host",
    ];
    let programs = lower(&plan(job(&config, 4, 16, Precision::F32, 2), &choices));
    let walk = |_| {
        let start = std::time::Instant::now();
        assert!(refusal(&programs[0]).is_none());
        start.elapsed().as_nanos() as f64 / programs[0].code.len() as f64
    };
    println!("{} instructions", programs[0].code.len());
    (0..5).map(walk).fold(f64::INFINITY, f64::min)
}

/// 200 ns for each instruction make 20 ms of 10^5; the band is ten times that, which a walk in quadratic time would leave far behind.
#[test]
fn checking_takes_time_in_proportion_to_the_text() {
    let (short, long) = (pace(20), pace(200));
    println!("{short:.0} and {long:.0} ns for each instruction");
    assert!(short.max(long) < 2000.0, "{short:.0} and {long:.0} ns");
}

/// The queue of a copy.
fn stream(program: &Program, at: usize) -> Option<Stream> {
    match program.code[at] {
        Instr::Copy { stream, .. } => Some(stream),
        _ => None,
    }
}
