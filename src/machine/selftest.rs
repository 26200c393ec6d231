//! A GPU's machine held against the CPU's: the same plans on both, to the byte in memory and within rounding in losses.

use std::collections::BTreeSet;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::agreement::cases;
use super::cpu::Settings;
use super::cuda::ceilings::{Ceilings, ceilings};
use super::cuda::driver::Gpu;
use super::cuda::missing;
use super::estimate::{self, on_cpu, on_cuda};
use super::micro::{self, FAMILIES, Size};
use super::train::session::Session;
use super::{calibrate, measure};
use crate::error::Result;
use crate::graph::tensor::{DType, Role};
use crate::plan::{Choice, Plan};
use crate::program::{Program, height};
use crate::spec::device;
use crate::spec::job::{Host, Job, Optimizer, PerPlace, Place, Precision, Target};
use crate::spec::units::{Bytes, Seconds};

/// The models: three families whose ops together are those of most.
const CHOSEN: [&str; 3] = ["llama", "gpt2", "mixtral"];
const SIZE: Size = Size {
    hidden: 32,
    layers: 2,
    vocab: 256,
};
/// Sequences and their length: the first at which a plan can be made. The second is for plans that send values away, of which small ones stay.
const BATCHES: [(u64, u64); 2] = [(4, 16), (4, 96)];

/// Steps whose losses are compared. A program's third walk is the first that its graphs launch, and shows in the loss behind it.
const STEPS: u64 = 4;

/// How far losses may be apart, relative to their size: in f32; and in 16 bits, or with moments as codes of 8 bits, where a value may round
/// to the other neighbour. A second moment whose code becomes zero lets its weight step by the first over ε, as in bitsandbytes.
const BOUND: [f32; 2] = [1e-4, 3e-2];

/// One plan on both machines.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Family, format and choices.
    pub name: String,
    /// Its choices.
    pub choices: Vec<String>,
    /// Bytes of each place, predicted.
    pub predicted: PerPlace<Bytes>,
    /// Bytes of each place: the machine's own mark.
    pub measured: PerPlace<Bytes>,
    /// Bytes of the device that were free before and not while the plan was open, kernels included, as the driver tells.
    pub taken: Bytes,
    /// Losses on the CPU.
    pub cpu: Vec<f32>,
    /// Losses on the GPU.
    pub gpu: Vec<f32>,
    /// The largest distance, relative to the loss.
    pub distance: f32,
    /// The most it may be.
    pub bound: f32,
    /// The middle time of a step on the GPU.
    pub step: Seconds,
    /// The op that has no kernel yet: the plan was not run.
    pub missing: Option<String>,
    /// What went wrong.
    pub failure: Option<String>,
}

/// What a self-test found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The device, as its driver names it.
    pub device: String,
    /// Compute capability times ten.
    pub capability: u32,
    /// Memory of the device, and what of it was free before and after.
    pub memory: Bytes,
    /// Free before.
    pub free_before: Bytes,
    /// Free after.
    pub free_after: Bytes,
    /// How programs ran: what compiled kernels, what could not be had.
    pub notes: Vec<String>,
    /// The plans.
    pub rows: Vec<Row>,
    /// What the device reaches.
    pub ceilings: Ceilings,
}

impl Report {
    /// Whether everything that ran held.
    pub fn holds(&self) -> bool {
        self.rows.iter().all(|row| row.failure.is_none())
    }

    /// Plans that ran and agree.
    pub fn agree(&self) -> usize {
        let agrees = |row: &&Row| row.failure.is_none() && row.missing.is_none();
        self.rows.iter().filter(agrees).count()
    }
}

/// Plans that together use every technique that has kernels, on each family: the first of the agreement's that adds one.
pub fn chosen() -> Vec<(String, Precision, Vec<String>)> {
    let mut met = BTreeSet::new();
    let mut found = Vec::new();
    for case in cases().into_iter().filter(|c| !c.big) {
        if !FAMILIES.contains(&case.model.as_str()) || !CHOSEN.contains(&case.model.as_str()) {
            continue;
        }
        let technique = |text: &String| text.split(':').next().unwrap_or(text).to_string();
        let own = case.choices.iter().map(technique);
        let own = own.chain([case.precision.name().to_string()]);
        let new: Vec<_> = own
            .filter(|t| !met.contains(&(case.model.clone(), t.clone())))
            .collect();
        if !new.is_empty() {
            met.extend(new.into_iter().map(|t| (case.model.clone(), t)));
            found.push((case.model, case.precision, case.choices));
        }
    }
    found
}

/// Runs the chosen plans on both machines, every `every`th of them, and measures what the device reaches.
///
/// # Errors
/// Where there is no GPU. What a plan does wrong is in its row, and so is why one cannot be made.
pub fn selftest(
    every: usize,
    folder: &Path,
    progress: &mut dyn FnMut(&str, f64),
) -> Result<Report> {
    let gpu = Gpu::open()?;
    let before = gpu.room()?;
    let all: Vec<_> = chosen().into_iter().step_by(every.max(1)).collect();
    let (mut rows, mut notes) = (Vec::new(), Vec::new());
    for (done, (family, precision, choices)) in all.iter().enumerate() {
        progress(
            &format!("{family} {precision} {}", choices.join(" ")),
            done as f64 / all.len() as f64,
        );
        let chosen = (family.as_str(), *precision, choices.as_slice());
        rows.push(row(&gpu, chosen, folder, &mut notes));
    }
    progress("ceilings", 0.99);
    let ceilings = ceilings(&gpu)?;
    gpu.settle()?;
    let after = gpu.room()?;
    progress("done", 1.0);
    Ok(Report {
        device: gpu.name.clone(),
        capability: gpu.capability,
        memory: before.total,
        free_before: before.free,
        free_after: after.free,
        notes,
        rows,
        ceilings,
    })
}

fn plan(family: &str, precision: Precision, choices: &[String]) -> Result<Plan> {
    let at = |(batch, seq)| {
        let job = Job {
            model: micro::model(family, SIZE)?,
            seq,
            batch,
            precision,
            optimizer: Optimizer("adamw".into()),
            target: Target::new(device::find("64GiB")?, Host::default()),
        };
        let choices = choices.iter().map(|c| Choice::parse(c));
        let plan = Plan::new(job, choices.collect::<Result<_>>()?)?;
        plan.training_steps().map(|_| plan)
    };
    let [small, large] = BATCHES;
    at(small).or_else(|_| at(large))
}

/// One plan on both; what goes wrong is told in the row.
fn row(
    gpu: &Gpu,
    (family, precision, choices): (&str, Precision, &[String]),
    folder: &Path,
    notes: &mut Vec<String>,
) -> Row {
    let bound = match precision {
        Precision::F32 => BOUND[0],
        _ => BOUND[1],
    };
    let mut row = Row {
        name: format!("{family} {precision} {}", choices.join(" ")),
        choices: choices.to_vec(),
        predicted: PerPlace::default(),
        measured: PerPlace::default(),
        taken: Bytes::ZERO,
        cpu: Vec::new(),
        gpu: Vec::new(),
        distance: 0.0,
        bound,
        step: Seconds(0.0),
        missing: None,
        failure: None,
    };
    let ran = plan(family, precision, choices).and_then(|plan| {
        let here = on_cpu(&plan, calibrate::cores());
        row.cpu = losses(&mut measure::open(here, folder, Settings::default())?)?;
        on_gpu(gpu, &plan, folder, &mut row, notes)
    });
    if let Err(error) = ran {
        row.failure = Some(error.to_string());
    }
    row
}

fn losses(session: &mut Session) -> Result<Vec<f32>> {
    (0..STEPS).map(|_| Ok(session.step()?.loss)).collect()
}

fn on_gpu(
    gpu: &Gpu,
    plan: &Plan,
    folder: &Path,
    row: &mut Row,
    notes: &mut Vec<String>,
) -> Result<()> {
    let plan = on_cuda(plan, gpu.capability);
    let programs = estimate::all(&plan)?;
    row.missing = missing(&programs);
    if programs.iter().any(has_codes) {
        row.bound = BOUND[1];
    }
    if row.missing.is_some() {
        return Ok(());
    }
    let before = gpu.room()?.free;
    let settings = Settings {
        poison: true,
        ..Settings::default()
    };
    let mut session = measure::open(plan, folder, settings)?;
    row.taken = before.saturating_sub(gpu.room()?.free);
    row.gpu = losses(&mut session)?;
    session.evaluate()?;
    let save = folder.join(format!("selftest-{}", std::process::id()));
    session.save(&save)?;
    let _ = std::fs::remove_dir_all(&save);
    (row.predicted, row.measured) = (height(session.programs()), session.mark());
    row.step = session.step_seconds();
    if let Some(cuda) = session.executor().cuda() {
        let new = cuda.notes().into_iter().filter(|n| !notes.contains(n));
        let new: Vec<_> = new.filter(|n| !n.starts_with("beside")).collect();
        notes.extend(new);
    }
    let apart = row.cpu.iter().zip(&row.gpu);
    let apart = apart.map(|(a, b)| (a - b).abs() / a.abs().max(1.0));
    // A loss that is no number is as far away as can be.
    row.distance = apart.fold(0.0, |most, d| if d <= most { most } else { d });
    row.failure = disagreement(row);
    Ok(())
}

/// Whether moments are held as codes of 8 bits.
fn has_codes(program: &Program) -> bool {
    let mut tensors = program.step.tensors.iter();
    tensors.any(|tensor| {
        let role = program.step.storage(tensor.storage).role;
        role == Role::OptimizerState && tensor.at.dtype == DType::U8
    })
}

/// Where a row does not agree.
fn disagreement(row: &Row) -> Option<String> {
    for place in Place::ALL {
        let (predicted, measured) = (row.predicted[place], row.measured[place]);
        if predicted != measured {
            return Some(format!(
                "predicted {} bytes of {place}, the machine's mark is {}",
                predicted.0, measured.0
            ));
        }
    }
    let far = row.distance.is_nan() || row.distance > row.bound;
    far.then(|| {
        format!(
            "losses {:?} against {:?} on the CPU, {:.1e} apart where {:.1e} is allowed",
            row.gpu, row.cpu, row.distance, row.bound
        )
    })
}
