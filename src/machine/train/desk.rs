//! The outside of a training run's programs: batches and weights in, losses and saves out.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use super::initial::initial;
use super::origin::Origin;
use super::quantize::derive;
use super::save::Save;
use super::text::Batch;
use crate::error::{Error, Result};
use crate::graph::build::{LOSS, SCALE, TARGETS, TOKENS};
use crate::graph::op::{Element, Port};
use crate::graph::tensor::{DType, Derivation, First, Name, Type};
use crate::plan::steps::GUARD;
use crate::spec::model::ModelSpec;
use crate::technique::SCALARS;
use crate::with_float;

/// What the next program will read, and what the last one wrote.
#[derive(Debug, Default)]
struct Tray {
    batch: Batch,
    scale: [f32; 2],
    loss: f32,
    guard: Option<[f32; 3]>,
    scalars: BTreeMap<String, f32>,
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
    /// The quantized weight whose absmaxes were last needed all at once, and they.
    absmax: Mutex<(Name, Option<Vec<f32>>)>,
    tray: Mutex<Tray>,
}

impl Desk {
    /// A desk for `model` whose persistent storages are `storages`.
    pub fn new(model: ModelSpec, storages: &[Kept], origin: Origin) -> Desk {
        let mut desk = Desk {
            model,
            storages: BTreeMap::new(),
            origin,
            absmax: Mutex::new(("".into(), None)),
            tray: Mutex::default(),
        };
        desk.know(storages);
        desk
    }

    fn tray(&self) -> std::sync::MutexGuard<'_, Tray> {
        self.tray.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// Takes the scalars written since the last call, by name.
    pub fn take_scalars(&self) -> BTreeMap<String, f32> {
        std::mem::take(&mut self.tray().scalars)
    }

    /// The persistent storages are these from now on.
    pub fn know(&mut self, storages: &[Kept]) {
        let named = storages
            .iter()
            .map(|kept| (kept.name.clone(), kept.clone()));
        self.storages = named.collect();
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
        self.origin = Origin::seed(0);
        self.absmax = Mutex::new(("".into(), None));
    }

    fn persistent(&self, name: &str, offset: u64, into: &mut [u8]) -> Result<()> {
        let next = "report this plan";
        let Kept { at, first, .. } = self
            .storages
            .get(name)
            .ok_or_else(|| Error::value("storage", name, "nobody knows it", next))?;
        if let Some(saved) = self.origin.saved.as_ref().filter(|_| !first.is_frozen()) {
            return saved.read(name, offset, into);
        }
        match first {
            First::Derived { of, how } => self.derived(of, how, offset, into),
            first => self.value((name, first), offset, at.dtype, into),
        }
    }

    /// Bytes `offset..` of a value in `dtype` as it starts, from files where they have it.
    fn value(
        &self,
        (name, first): (&str, &First),
        offset: u64,
        dtype: DType,
        into: &mut [u8],
    ) -> Result<()> {
        let Origin {
            seed,
            weights,
            adapter,
            ..
        } = &self.origin;
        let parameter = name.strip_suffix(".master").unwrap_or(name);
        let files = [weights, adapter].into_iter().flatten();
        match files.into_iter().find(|f| f.dtype(parameter).is_some()) {
            Some(files) => files.read(parameter, offset, dtype, into),
            None => initial(&self.model, (name, first), *seed, offset, dtype, into),
        }
    }

    /// Bytes `offset..` of a part of the quantized weight `of`.
    fn derived(&self, of: &Name, how: &Derivation, offset: u64, into: &mut [u8]) -> Result<()> {
        let mut absmax = self.absmax.lock().unwrap_or_else(PoisonError::into_inner);
        if absmax.0 != *of {
            *absmax = (of.clone(), None);
        }
        let source = how.source;
        let mut bytes = Vec::new();
        derive(how, offset, into, &mut absmax.1, &mut |first, values| {
            bytes.resize(values.len() * source.bytes() as usize, 0);
            self.value(
                (of, &First::Frozen),
                first * source.bytes(),
                source,
                &mut bytes,
            )?;
            with_float!("quantize", source, T => {
                for (value, element) in values.iter_mut().zip(bytes.chunks_exact(size_of::<T>())) {
                    *value = bytemuck::pod_read_unaligned::<T>(element).wide();
                }
                Ok(())
            })
        })
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
            _ if name.starts_with(SCALARS) => {
                let value = bytemuck::pod_read_unaligned(from);
                tray.scalars.insert(name.to_string(), value);
            }
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
