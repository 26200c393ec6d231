//! Offsets: where in its place each buffer lies, so that no two live ones share a byte.

use std::collections::BTreeMap;

use super::packing::{Effort, Item, pack};
use super::{Instr, Program};
use crate::graph::Stream;
use crate::spec::job::{PerPlace, Place};
use crate::spec::units::Bytes;

/// Buffers that may share addresses with each other, one home in one place: their numbers and their lives in the text.
#[derive(Debug, Default)]
struct Lane {
    buffers: Vec<usize>,
    items: Vec<Item>,
}

/// Places all buffers of a program: shared ones, which all programs of a set begin with, at the bottom of each place, transient ones
/// above, each home in a lane of its own. Fills in offsets, loads and heights.
pub fn place(program: &mut Program) {
    let mut height = place_shared(program);
    for ((place, _), lane) in lanes(program) {
        let packing = pack(&lane.items, &Effort::PROGRAM);
        for (&buffer, offset) in lane.buffers.iter().zip(packing.offsets) {
            program.buffers[buffer].offset = height[place] + Bytes(offset);
        }
        height[place] += Bytes(packing.height);
    }
    program.height = height;
    program.load = load(program);
}

/// Stacks the shared buffers; returns the tops.
fn place_shared(program: &mut Program) -> PerPlace<Bytes> {
    let mut top = PerPlace::default();
    for buffer in program.buffers.iter_mut().filter(|b| b.shared) {
        buffer.offset = top[buffer.place];
        top[buffer.place] += buffer.bytes;
    }
    top
}

/// The transient buffers by place and home, with their lives.
fn lanes(program: &Program) -> BTreeMap<(Place, Stream), Lane> {
    let mut lives = vec![(0, program.code.len()); program.buffers.len()];
    for (at, instr) in program.code.iter().enumerate() {
        match instr {
            Instr::Alloc(id) => lives[id.0 as usize].0 = at,
            Instr::Free(id) => lives[id.0 as usize].1 = at,
            _ => {}
        }
    }
    let mut lanes: BTreeMap<(Place, Stream), Lane> = BTreeMap::new();
    for (buffer, what) in program
        .buffers
        .iter()
        .enumerate()
        .filter(|(_, b)| !b.shared)
    {
        let (from, to) = lives[buffer];
        let lane = lanes.entry((what.place, what.home)).or_default();
        lane.buffers.push(buffer);
        lane.items.push(Item {
            bytes: what.bytes.0,
            from: from as u64,
            to: to as u64,
        });
    }
    lanes
}

/// The largest sum of live buffers at any position, by place.
fn load(program: &Program) -> PerPlace<Bytes> {
    let mut now = PerPlace::<Bytes>::default();
    for buffer in program.buffers.iter().filter(|b| b.shared) {
        now[buffer.place] += buffer.bytes;
    }
    let mut most = now;
    for instr in &program.code {
        match instr {
            Instr::Alloc(id) => {
                let buffer = program.buffer(*id);
                now[buffer.place] += buffer.bytes;
                most[buffer.place] = most[buffer.place].max(now[buffer.place]);
            }
            Instr::Free(id) => {
                let buffer = program.buffer(*id);
                now[buffer.place] = now[buffer.place] - buffer.bytes;
            }
            _ => {}
        }
    }
    most
}
