//! What comes before what in a program, decided pair by pair: the slow definition that the checker's clocks must agree with.

use memfit::graph::Stream;
use memfit::graph::op::transfer::SETTLE;
use memfit::program::{Buffer, BufferId, Instr, Program};

/// The buffers an instruction uses, and whether it writes them. Handing out and taking back are writes.
pub fn uses(program: &Program, instr: &Instr) -> Vec<(BufferId, bool)> {
    match *instr {
        Instr::Alloc(id) | Instr::Free(id) => vec![(id, true)],
        Instr::Copy { from, to, .. } => vec![(from.buffer, false), (to.buffer, true)],
        Instr::Signal(..) | Instr::Wait(..) => Vec::new(),
        Instr::Launch { node, scratch, .. } => {
            let node = &program.step.nodes[node as usize];
            if node.op.name() == SETTLE {
                return Vec::new();
            }
            let buffer = |value: &memfit::graph::tensor::TensorId| {
                let storage = program.step.tensor(*value).storage;
                let found = program
                    .buffers
                    .iter()
                    .position(|b| b.storage == Some(storage));
                BufferId(found.unwrap() as u32)
            };
            let reads = node.inputs.iter().map(|v| (buffer(v), false));
            let writes = node.outputs.iter().map(|v| (buffer(v), true));
            reads
                .chain(writes)
                .chain(scratch.map(|s| (s, true)))
                .collect()
        }
    }
}

pub fn stream(program: &Program, instr: &Instr) -> Stream {
    match *instr {
        Instr::Alloc(id) | Instr::Free(id) => program.buffer(id).home,
        Instr::Launch { stream, .. } | Instr::Copy { stream, .. } => stream,
        Instr::Signal(stream, _) | Instr::Wait(stream, _) => stream,
    }
}

/// Pairs of positions that must not overlap in time; the position behind the text is the end, which Compute reaches.
pub fn conflicts(program: &Program) -> Vec<(usize, usize)> {
    let code = &program.code;
    let used: Vec<_> = code.iter().map(|i| uses(program, i)).collect();
    let mut pairs = Vec::new();
    for later in 0..code.len() {
        for earlier in 0..later {
            let same = |a: &(BufferId, bool), b: &(BufferId, bool)| a.0 == b.0 && (a.1 || b.1);
            let clash = used[later]
                .iter()
                .any(|b| used[earlier].iter().any(|a| same(a, b)));
            if clash || reuses(program, &code[earlier], &code[later]) {
                pairs.push((earlier, later));
            }
        }
        if !used[later].is_empty() && !matches!(code[later], Instr::Free(_)) {
            pairs.push((later, code.len()));
        }
    }
    pairs
}

/// Whether `later` hands out bytes that `earlier` took back.
fn reuses(program: &Program, earlier: &Instr, later: &Instr) -> bool {
    let (Instr::Free(old), Instr::Alloc(new)) = (earlier, later) else {
        return false;
    };
    let (old, new) = (program.buffer(*old), program.buffer(*new));
    let end = |b: &Buffer| b.offset + b.bytes;
    old.place == new.place && old.offset < end(new) && new.offset < end(old)
}

/// The first of `pairs` whose earlier end does not come before the later one, with instruction `without` taken out.
pub fn race(
    program: &Program,
    pairs: &[(usize, usize)],
    without: Option<usize>,
) -> Option<(usize, usize)> {
    let count = program.code.len();
    let words = count.div_ceil(64);
    let mut before = vec![vec![0u64; words]; count + 1];
    let mut last = [None; Stream::ALL.len()];
    let mut signals = vec![None; program.events as usize];
    for at in 0..=count {
        let mut direct = Vec::new();
        let own = program
            .code
            .get(at)
            .map_or(Stream::Compute, |i| stream(program, i));
        if without != Some(at) {
            direct.extend(last[own as usize].replace(at));
            match program.code.get(at) {
                Some(Instr::Signal(_, event)) => signals[event.0 as usize] = Some(at),
                Some(Instr::Wait(_, event)) => direct.extend(signals[event.0 as usize]),
                _ => {}
            }
        }
        for earlier in direct {
            let (done, rest) = before.split_at_mut(at);
            rest[0]
                .iter_mut()
                .zip(&done[earlier])
                .for_each(|(b, d)| *b |= d);
            rest[0][earlier / 64] |= 1 << (earlier % 64);
        }
    }
    let is_before = |a: usize, b: usize| before[b][a / 64] >> (a % 64) & 1 == 1;
    pairs.iter().copied().find(|&(a, b)| !is_before(a, b))
}
