//! What a job asks of PyTorch's allocator, from the first weight to the end of the second step.

use super::{halted, tape, torch, trainer};
use crate::error::Result;
use crate::program::caching_allocator::{AllocatorConfig, Event, Replay, replay};
use crate::spec::model::ModelSpec;
use crate::spec::torch::TorchOptions;
use crate::spec::units::Bytes;

/// Runs the requests of a job's loading and first two steps, every layer, through the allocator as `config` sets it. `beside` is taken before the first step and kept, as
/// cuBLAS does with its workspaces.
///
/// # Errors
/// Where the job is not one the interpreter knows.
pub fn replayed(
    spec: &ModelSpec,
    options: &TorchOptions,
    beside: &[Bytes],
    config: &AllocatorConfig,
) -> Result<Replay> {
    let torch = torch::Torch::default();
    let tape = torch.tape();
    tape.restart(false, true);
    let trainer = trainer(&torch, spec, options);
    let loaded = tape.events_so_far();
    for _ in 0..2 {
        trainer.step(|| ()).map_err(|halt| halted(spec, halt))?;
    }
    let mut events: Vec<Event> = tape.take_events().into_iter().map(event).collect();
    let kept = (0u32..).zip(beside).map(|(at, bytes)| Event::Alloc {
        id: u32::MAX - at,
        bytes: *bytes,
    });
    events.splice(loaded..loaded, kept);
    replay(config, None, events)
}

fn event(of: tape::Event) -> Event {
    match of {
        tape::Event::Alloc { id, bytes } => Event::Alloc {
            id: id as u32,
            bytes: Bytes(bytes),
        },
        tape::Event::Free { id } => Event::Free { id: id as u32 },
    }
}
