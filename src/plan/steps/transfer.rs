//! The steps around training: persistent storages filled and copied out, in tiles through pinned memory.

use std::sync::Arc;

use crate::error::Result;
use crate::graph::op::transfer::{Feed, Move, Report};
use crate::graph::reach;
use crate::graph::tensor::{DType, Name, Role, Storage, StorageId, Tensor, TensorId, Type};
use crate::graph::{Phase, Spot, Step, Stream};
use crate::spec::job::Place;

/// Largest piece in which persistent storages are filled and saved.
const TILE: u64 = 16 << 20;

/// Fills every persistent storage but gradients, or copies out all of them that change.
pub(super) fn transfer(shared: &[Storage], fills: bool) -> Result<Step> {
    let mut step = Step::default();
    let moved = |s: &&Storage| s.role != Role::Gradient && (fills || !s.first.is_frozen());
    for storage in shared.iter().filter(moved) {
        let id = step.add_storage(storage.clone());
        for (count, offset) in (0..storage.bytes.0).step_by(TILE as usize).enumerate() {
            let bytes = TILE.min(storage.bytes.0 - offset);
            match fills {
                true => fill(&mut step, id, (offset, bytes), count as u32)?,
                false => save(&mut step, id, (offset, bytes))?,
            }
        }
    }
    Ok(step)
}

/// Bytes `tile` (first, count) of a storage as a value of `version`.
fn part(step: &mut Step, storage: StorageId, tile: (u64, u64), version: u32) -> TensorId {
    let (offset, bytes) = tile;
    // Raw bytes, by two where their number is even.
    let at = match bytes.is_multiple_of(2) {
        true => Type::new(&[bytes / 2], DType::Bf16),
        false => Type::new(&[bytes], DType::U8),
    };
    step.tensors.push(Tensor {
        storage,
        at,
        offset,
        version,
    });
    TensorId(step.tensors.len() as u32 - 1)
}

fn spot(name: &Name, leaf: &str, phase: Phase, stream: Stream) -> Spot {
    Spot {
        origin: format!("{name}.{leaf}").into(),
        phase,
        block: name.clone(),
        stream,
    }
}

/// One tile of a storage, in from outside, as version `count + 1`.
fn fill(step: &mut Step, id: StorageId, tile: (u64, u64), count: u32) -> Result<()> {
    let Storage { name, place, .. } = step.storage(id).clone();
    let value = part(step, id, tile, count);
    let feed = Feed {
        name: name.to_string(),
        offset: tile.0,
        at: step.type_of(value).clone(),
    };
    let outside = spot(&name, "outside", Phase::Load, Stream::HostCompute);
    let feed = step.node(Arc::new(feed), &[], outside, Role::Temporary, Place::Pinned)?;
    let staged = feed.outputs[0];
    step.nodes.push(feed);
    let stream = reach::copy_stream(Place::Pinned, place);
    let fill = spot(&name, "fill", Phase::Load, stream);
    let over = Arc::new(Move { into: true });
    let fill = step.node(over, &[staged, value], fill, Role::Temporary, place)?;
    step.nodes.push(fill);
    Ok(())
}

/// One tile of a storage, out.
fn save(step: &mut Step, id: StorageId, tile: (u64, u64)) -> Result<()> {
    let Storage { name, place, .. } = step.storage(id).clone();
    let value = part(step, id, tile, 0);
    let stream = reach::copy_stream(place, Place::Pinned);
    let copy = spot(&name, "copy", Phase::Save, stream);
    let away = Arc::new(Move { into: false });
    let copy = step.node(away, &[value], copy, Role::Temporary, Place::Pinned)?;
    let staged = copy.outputs[0];
    step.nodes.push(copy);
    let report = Report {
        name: name.to_string(),
        offset: tile.0,
    };
    let outside = spot(&name, "outside", Phase::Save, Stream::HostCompute);
    let report = step.node(
        Arc::new(report),
        &[staged],
        outside,
        Role::Temporary,
        Place::Pinned,
    )?;
    step.nodes.push(report);
    Ok(())
}
