//! The outside of a training run's programs: batches and weights in, losses and saves out.

use std::collections::BTreeMap;
use std::sync::Mutex;

use super::initial::initial;
use super::save::{Save, Saved};
use super::text::Batch;
use super::weights::WeightFiles;
use crate::error::{Error, Result};
use crate::graph::build::{LOSS, SCALE, TARGETS, TOKENS};
use crate::graph::op::Port;
use crate::graph::tensor::{First, Type};
use crate::plan::steps::GUARD;
use crate::spec::model::ModelSpec;

/// Where persistent values come from before the first step.
#[derive(Debug)]
pub enum Origin {
    /// Drawn from a seed.
    Seed(u64),
    /// Weights from files, optimizer state from nothing.
    Weights(WeightFiles),
    /// Everything from a save.
    Saved(Box<Saved>),
}

/// What the next program will read, and what the last one wrote.
#[derive(Debug, Default)]
struct Tray {
    batch: Batch,
    scale: [f32; 2],
    loss: f32,
    guard: Option<[f32; 3]>,
    save: Option<Save>,
}

/// A persistent storage as the outside knows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Kept {
    /// Its name.
    pub name: String,
    /// Its type.
    pub at: Type,
    /// What it holds before the first step.
    pub first: First,
}

/// The desk between a run and its programs.
#[derive(Debug)]
pub struct Desk {
    model: ModelSpec,
    storages: BTreeMap<String, Kept>,
    origin: Origin,
    tray: Mutex<Tray>,
}

impl Desk {
    /// A desk for `model` whose persistent storages are `storages`.
    pub fn new(model: ModelSpec, storages: &[Kept], origin: Origin) -> Desk {
        let named = storages
            .iter()
            .map(|kept| (kept.name.clone(), kept.clone()));
        Desk {
            model,
            storages: named.collect(),
            origin,
            tray: Mutex::default(),
        }
    }

    fn tray(&self) -> std::sync::MutexGuard<'_, Tray> {
        self.tray
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Lays out the next batch: `counted` tokens count in the whole global batch.
    pub fn lay(&self, batch: Batch, counted: u64, loss_scale: f32) {
        let mut tray = self.tray();
        tray.batch = batch;
        tray.scale = [1.0 / counted.max(1) as f32, loss_scale];
    }

    /// Takes the sum of losses written since the last call.
    pub fn take_loss(&self) -> f32 {
        std::mem::take(&mut self.tray().loss)
    }

    /// Takes the last guard written: (coefficient, finite, norm).
    pub fn take_guard(&self) -> Option<[f32; 3]> {
        self.tray().guard.take()
    }

    /// Sends what the save program writes to `save`.
    pub fn open_save(&self, save: Save) {
        self.tray().save = Some(save);
    }

    /// Takes the save back, complete or not.
    pub fn close_save(&self) -> Option<Save> {
        self.tray().save.take()
    }

    /// Forgets where values came from: they are in place now.
    pub fn settle(&mut self) {
        self.origin = Origin::Seed(0);
    }

    fn persistent(&self, name: &str, offset: u64, into: &mut [u8]) -> Result<()> {
        let next = "report this plan";
        let Kept { at, first, .. } = self
            .storages
            .get(name)
            .ok_or_else(|| Error::value("storage", name, "nobody knows it", next))?;
        let parameter = name.trim_end_matches(".master");
        match &self.origin {
            Origin::Seed(seed) => {
                initial(&self.model, (name, first), *seed, offset, at.dtype, into)
            }
            Origin::Saved(saved) => saved.read(name, offset, into),
            Origin::Weights(files) => match files.dtype(parameter) {
                Some(_) => files.read(parameter, offset, at.dtype, into),
                None => initial(&self.model, (name, first), 0, offset, at.dtype, into),
            },
        }
    }
}

impl Port for Desk {
    fn read(&self, name: &str, offset: u64, into: &mut [u8]) -> Result<()> {
        match name {
            TOKENS => fill(into, bytemuck::cast_slice(&self.tray().batch.tokens)),
            TARGETS => fill(into, bytemuck::cast_slice(&self.tray().batch.targets)),
            SCALE => fill(into, bytemuck::cast_slice(&self.tray().scale)),
            _ => self.persistent(name, offset, into),
        }
    }

    fn write(&self, name: &str, offset: u64, from: &[u8]) -> Result<()> {
        let mut tray = self.tray();
        match name {
            LOSS => tray.loss += bytemuck::pod_read_unaligned::<f32>(from),
            GUARD => tray.guard = Some(bytemuck::pod_read_unaligned(from)),
            _ => {
                let save = tray.save.as_ref();
                let next = "report this run";
                let save =
                    save.ok_or_else(|| Error::value("output", name, "nobody waits for it", next))?;
                save.write(name, offset, from)?;
            }
        }
        Ok(())
    }
}

fn fill(into: &mut [u8], from: &[u8]) -> Result<()> {
    if into.len() != from.len() {
        let why = format!("the program wants {} bytes", into.len());
        return Err(Error::value(
            "batch bytes",
            from.len(),
            why,
            "report this run",
        ));
    }
    into.copy_from_slice(from);
    Ok(())
}
