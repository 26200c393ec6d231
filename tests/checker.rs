//! Good programs with buffers broken in each known way: the checker must name the rule, the instruction and the buffers.

use memfit::graph::Stream;
use memfit::program::{BufferId, Instr, Program};
use memfit::spec::job::Place;
use memfit::spec::units::Bytes;

use crate::before::{stream, uses};
use crate::damage::{broken, each, good, take};

#[test]
fn early_frees_are_refused() {
    each(|program, at, instr| {
        let Instr::Free(id) = instr else { return };
        let used =
            |i: &Instr| uses(program, i).iter().any(|u| u.0 == id) && !matches!(i, Instr::Alloc(_));
        let last = program.code[..at].iter().rposition(used);
        let Some(last) = last else { return }; // A slot that is never filled.
        let no = broken(program, |p| {
            p.code.remove(at);
            p.code.insert(last, instr);
        });
        no.is(&["use of a dead buffer", "early free"])
            .names(program, id);
        assert!(no.at == last || no.at == last + 1);
    });
}

#[test]
fn buffers_nobody_handed_out_are_refused() {
    each(|program, at, instr| {
        let Instr::Alloc(id) = instr else { return };
        let no = broken(program, |p| take(p, at));
        no.is(&["use of a dead buffer", "free of a dead buffer"])
            .names(program, id);
        let no = broken(program, |p| p.code.insert(at, instr));
        no.is(&["double allocation"]).names(program, id);
        assert_eq!(no.at, at + 1);
        let no = broken(program, |p| p.code[at] = Instr::Free(id));
        no.is(&["free of a dead buffer"]).names(program, id);
    });
}

#[test]
fn what_stays_alive_is_refused() {
    each(|program, at, instr| {
        let Instr::Free(id) = instr else { return };
        let no = broken(program, |p| take(p, at));
        no.is(&["seam", "overlap"]).names(program, id);
        let shared = program.buffers.iter().position(|b| b.shared);
        let shared = BufferId(shared.unwrap() as u32);
        let no = broken(program, |p| p.code.insert(at, Instr::Free(shared)));
        no.is(&["free of a shared buffer"]).names(program, shared);
    });
}

/// Buffers alive when instruction `at` begins.
fn alive(program: &Program, at: usize) -> Vec<BufferId> {
    let mut alive: Vec<BufferId> = (0..program.buffers.len() as u32).map(BufferId).collect();
    alive.retain(|&b| program.buffer(b).shared);
    for instr in &program.code[..at] {
        match instr {
            Instr::Alloc(id) => alive.push(*id),
            Instr::Free(id) => alive.retain(|other| other != id),
            _ => {}
        }
    }
    alive
}

#[test]
fn overlapping_buffers_are_refused() {
    let mut pairs = 0;
    each(|program, at, instr| {
        let Instr::Alloc(id) = instr else { return };
        let (place, before) = (program.buffer(id).place, alive(program, at));
        let Some(&other) = before.iter().rfind(|&&b| program.buffer(b).place == place) else {
            return;
        };
        let no = broken(program, |p| {
            let (offset, bytes) = (p.buffer(other).offset, p.buffer(other).bytes);
            let moved = &mut p.buffers[id.0 as usize];
            (moved.offset, moved.exact, moved.bytes) = (offset, moved.exact.min(bytes), bytes);
        });
        no.is(&["overlap"]).names(program, id).names(program, other);
        assert_eq!(no.at, at);
        pairs += 1;
    });
    assert!(pairs > 500, "{pairs} pairs are too few for a test");
}

#[test]
fn overlapping_shared_buffers_are_refused() {
    for program in good() {
        let shared = |place| {
            let own = |b: &usize| program.buffers[*b].shared && program.buffers[*b].place == place;
            (0..program.buffers.len()).filter(own).collect::<Vec<_>>()
        };
        for pair in Place::ALL
            .iter()
            .flat_map(|&p| shared(p).windows(2).map(<[_]>::to_vec).collect::<Vec<_>>())
        {
            let no = broken(&program, |p| {
                p.buffers[pair[1]].offset = p.buffers[pair[0]].offset
            });
            no.is(&["overlap"]);
            no.names(&program, BufferId(pair[0] as u32))
                .names(&program, BufferId(pair[1] as u32));
        }
    }
}

/// Bytes that two homes take turns on: each program is fine by liveness alone.
#[test]
fn homes_that_share_addresses_are_refused() {
    let mut turns = 0;
    for program in good() {
        let ids = || {
            (0..program.buffers.len() as u32)
                .map(BufferId)
                .filter(|&b| !program.buffer(b).shared)
        };
        for id in ids() {
            let (one, life) = (program.buffer(id), |b| {
                let at = |i: Instr| program.code.iter().position(|c| *c == i);
                at(Instr::Alloc(b))..at(Instr::Free(b))
            });
            let apart = |b: &BufferId| {
                let other = program.buffer(*b);
                other.place == one.place
                    && other.home != one.home
                    && other.offset + one.bytes <= program.height[one.place]
                    && life(*b).end < life(id).start
            };
            let Some(other) = ids().find(apart) else {
                continue;
            };
            let no = broken(&program, |p| {
                p.buffers[id.0 as usize].offset = p.buffer(other).offset
            });
            no.is(&["homes", "overlap"]).names(&program, id);
            turns += usize::from(no.rule == "homes");
        }
    }
    assert!(turns > 0, "no program has two homes in one place");
}

#[test]
fn misplaced_buffers_are_refused() {
    each(|program, at, instr| {
        let Instr::Alloc(id) = instr else { return };
        let change = |change: fn(&mut memfit::program::Buffer, Bytes)| {
            let height = program.height[program.buffer(id).place];
            let no = broken(program, |p| change(&mut p.buffers[id.0 as usize], height));
            assert_eq!(no.at, at);
            no.names(program, id);
            no.rule
        };
        assert_eq!(change(|b, _| b.offset += Bytes(8)), "alignment");
        assert_eq!(change(|b, _| b.exact = b.bytes + Bytes(1)), "alignment");
        assert_eq!(
            change(|b, height| b.offset = height.round_up(4096)),
            "height"
        );
        assert_eq!(change(|b, _| b.offset = Bytes(!4095)), "height");
    });
}

#[test]
fn work_out_of_reach_is_refused() {
    each(|program, at, instr| {
        let first = uses(program, &instr).first().map(|u| u.0);
        let (Some(first), false) = (first, matches!(instr, Instr::Alloc(_) | Instr::Free(_)))
        else {
            return;
        };
        let own = stream(program, &instr);
        for by in [1, 4] {
            let other = Stream::ALL[(own as usize + by) % Stream::ALL.len()];
            let no = broken(program, |p| match &mut p.code[at] {
                Instr::Launch { stream, .. } | Instr::Copy { stream, .. } => *stream = other,
                _ => {}
            });
            no.is(&["wrong place", "missing wait", "early free", "seam"]);
            if own == Stream::Compute && other == Stream::HostCompute {
                no.is(&["wrong place"]).names(program, first);
                assert_eq!(no.at, at);
            }
        }
    });
}

#[test]
fn too_little_scratch_is_refused() {
    each(|program, at, instr| {
        let Instr::Launch {
            scratch: Some(id), ..
        } = instr
        else {
            return;
        };
        let less = |p: &mut Program| p.buffers[id.0 as usize].exact.0 -= 1;
        broken(program, less).is(&["scratch"]).names(program, id);
        let none = |p: &mut Program| match &mut p.code[at] {
            Instr::Launch { scratch, .. } => *scratch = None,
            _ => unreachable!(),
        };
        assert_eq!(broken(program, none).is(&["scratch"]).at, at);
    });
}
