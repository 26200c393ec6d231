//! A training run of a plan on this machine's cores, predicted and measured side by side.

use std::path::{Path, PathBuf};

use super::desk::{Desk, Kept, Origin};
use super::memory;
use super::save::{Progress, Save, Saved};
use super::text::{Corpus, Rows, Split};
use super::weights::WeightFiles;
use crate::error::{Error, Result};
use crate::graph::When;
use crate::graph::op::Scalars;
use crate::graph::tensor::{Role, Tensor};
use crate::machine::cpu::{Cpu, Settings};
use crate::machine::estimate::{self, Estimate};
use crate::machine::timeline::Timeline;
use crate::plan::Plan;
use crate::program::check::check;
use crate::program::{Program, height, updating};
use crate::spec::job::{PerPlace, Precision};
use crate::spec::units::{Bytes, Seconds};

/// How the learning rate moves after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Schedule {
    /// It stays.
    Constant,
    /// Half a cosine down to a tenth.
    Cosine,
    /// A line down to zero.
    Linear,
}

/// What a run is asked for besides its plan and text.
#[derive(Debug, Clone)]
pub struct Options {
    /// Optimizer steps, those of resumed runs included.
    pub steps: u64,
    /// Peak learning rate.
    pub rate: f64,
    /// How it moves.
    pub schedule: Schedule,
    /// Steps in which it grows from zero.
    pub warmup: u64,
    /// Seed of initial weights, batches and dropout.
    pub seed: u64,
    /// How this machine stands in for the device; its seed is set from `seed`.
    pub machine: Settings,
    /// Folder of the unnamed offload file.
    pub folder: PathBuf,
    /// Weights to start from.
    pub weights: Option<PathBuf>,
    /// A save to continue.
    pub resume: Option<PathBuf>,
    /// The model's config, as saves carry it.
    pub config: String,
    /// Held-out rows an evaluation reads at most.
    pub evaluation_rows: u64,
    /// What a save carries so that a run can be continued from it alone.
    pub settings: serde_json::Value,
}

/// The loss scale fp16 starts with, and the finite steps after which it doubles (Micikevicius et al. 2018, PyTorch's GradScaler).
const LOSS_SCALE: (f32, u64) = (65_536.0, 2_000);

/// One step that was run.
#[derive(Debug, Clone, PartialEq)]
pub struct Stepped {
    /// Its number, from 1.
    pub step: u64,
    /// Mean loss over the tokens that count.
    pub loss: f32,
    /// Its time.
    pub seconds: Seconds,
    /// Whether the update was skipped because a gradient overflowed.
    pub skipped: bool,
}

/// A run under way.
pub struct Session {
    plan: Plan,
    programs: Vec<Program>,
    storages: Vec<Kept>,
    predicted: Estimate,
    cpu: Cpu,
    desk: Desk,
    corpus: Corpus,
    options: Options,
    progress: Progress,
    before: Bytes,
    seconds: Vec<f64>,
    /// The timelines of the last step.
    timelines: Vec<(When, Timeline)>,
}

impl Session {
    /// Lowers and checks `plan` for the backend it names, takes its memory, and fills it.
    ///
    /// # Errors
    /// Where the plan is no CPU plan, text or weights do not fit it, or memory is refused.
    pub fn open(plan: Plan, corpus: Corpus, options: Options) -> Result<Session> {
        corpus.check(plan.job.seq)?;
        memory::reset_peak();
        let before = memory::resident();
        let programs = estimate::all(&plan)?;
        programs.iter().try_for_each(|p| check(p).map(|_| ()))?;
        let storages = storages(&programs);
        let predicted = estimate::summarize(&plan, &programs)?;
        let (origin, mut progress) = origin(&plan, &options)?;
        progress.settings = options.settings.clone();
        let settings = Settings {
            seed: progress.seed,
            ..options.machine
        };
        let cpu = Cpu::new(
            height(&programs),
            plan.job.target.backend,
            &options.folder,
            settings,
        )?;
        let desk = Desk::new(plan.job.model.clone(), &storages, origin);
        let (seconds, timelines) = (Vec::new(), Vec::new());
        let mut session = Session {
            plan,
            programs,
            storages,
            predicted,
            cpu,
            desk,
            corpus,
            options,
            progress,
            before,
            seconds,
            timelines,
        };
        session.run(When::Start, 0)?;
        session.desk.settle();
        Ok(session)
    }

    /// Steps done, those of resumed runs included.
    pub fn done(&self) -> u64 {
        self.progress.step
    }

    /// What the plan was predicted to take on the backend it runs on.
    pub fn predicted(&self) -> &Estimate {
        &self.predicted
    }

    /// The programs that run.
    pub fn programs(&self) -> &[Program] {
        &self.programs
    }

    /// The plan, as lowered here.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// When each instruction of the last step ran.
    pub fn timelines(&self) -> &[(When, Timeline)] {
        &self.timelines
    }

    /// Losses, evaluations and counters so far.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// The machine's own marks.
    pub fn mark(&self) -> PerPlace<Bytes> {
        self.cpu.mark()
    }

    /// Who held each place when what was handed out of it was most.
    pub fn roles(&self) -> PerPlace<crate::machine::cpu::Roles> {
        self.cpu.roles()
    }

    /// The most memory the process has held since the session was opened, less what it held before.
    pub fn process_peak(&self) -> Bytes {
        memory::peak().saturating_sub(self.before)
    }

    /// The median time of the steps of this session, the first left out where there are others.
    pub fn step_seconds(&self) -> Seconds {
        let mut times = self
            .seconds
            .get(1..)
            .filter(|s| !s.is_empty())
            .unwrap_or(&self.seconds)
            .to_vec();
        times.sort_by(f64::total_cmp);
        Seconds(times.get(times.len() / 2).copied().unwrap_or(0.0))
    }

    /// One optimizer step: all micro-batches and the update.
    ///
    /// # Errors
    /// Where an instruction fails.
    pub fn step(&mut self) -> Result<Stepped> {
        let step = self.progress.step + 1;
        let (batch, seq) = (self.plan.job.batch, self.plan.job.seq);
        let counted = self
            .corpus
            .counted(Split::Train, self.progress.seed, step, batch, seq)?;
        let draft = self.plan.draft()?;
        let rows = batch / draft.micro_batches;
        let mut seconds = 0.0;
        self.timelines.clear();
        for micro in 0..draft.micro_batches {
            let laid =
                self.corpus
                    .batch(Split::Train, self.progress.seed, step, micro, rows, seq)?;
            self.desk.lay(laid, counted, self.progress.loss_scale);
            let when = match micro {
                last if last + 1 == draft.micro_batches => updating(&self.programs, step).when,
                0 => When::First,
                _ => When::Micro {
                    times: (draft.micro_batches - 2) as u32,
                },
            };
            let timeline = self.run(when, micro)?;
            seconds += timeline.total.0;
            self.timelines.push((when, timeline));
        }
        let loss = self.desk.take_loss();
        let skipped = self.rescale(draft.loss_scale);
        self.seconds.push(seconds);
        self.progress.step = step;
        self.progress.tokens_seen += batch * seq;
        self.progress.losses.push(loss);
        Ok(Stepped {
            step,
            loss,
            seconds: Seconds(seconds),
            skipped,
        })
    }

    /// Moves the loss scale as the last update says; true where it was skipped.
    fn rescale(&mut self, scaled: bool) -> bool {
        let guard = self.desk.take_guard();
        let overflowed = scaled && guard.is_some_and(|g| g[1] == 0.0);
        let progress = &mut self.progress;
        if overflowed {
            progress.loss_scale = (progress.loss_scale / 2.0).max(1.0);
            progress.finite_steps = 0;
            progress.skipped_steps += 1;
        } else if scaled {
            progress.finite_steps += 1;
            if progress.finite_steps.is_multiple_of(LOSS_SCALE.1) {
                progress.loss_scale = (progress.loss_scale * 2.0).min(LOSS_SCALE.0 * 65_536.0);
            }
        }
        overflowed
    }

    /// The mean loss over held-out text; `None` where none is held out.
    ///
    /// # Errors
    /// Where an instruction fails.
    pub fn evaluate(&mut self) -> Result<Option<f32>> {
        let seq = self.plan.job.seq;
        let per = self.plan.job.batch / self.plan.draft()?.micro_batches;
        let total = self
            .corpus
            .evaluation_rows(seq)
            .min(self.options.evaluation_rows);
        if total == 0 {
            return Ok(None);
        }
        let mut counted = 0;
        let batches = total.div_ceil(per);
        let mut weighed = 0.0f64;
        for index in 0..batches {
            let rows = Rows {
                first: index * per,
                count: per,
                seq,
            };
            let batch = self
                .corpus
                .rows(Split::HeldOut, self.progress.seed, 0, rows)?;
            let count = batch.counted();
            self.desk.lay(batch, count, 1.0);
            self.run(When::Evaluate, 0)?;
            weighed += f64::from(self.desk.take_loss()) * count as f64;
            counted += count;
        }
        let loss = (weighed / counted.max(1) as f64) as f32;
        self.progress.evaluations.push((self.progress.step, loss));
        Ok(Some(loss))
    }

    /// Saves weights and state to `dir`: the old save stays until the new one is whole.
    ///
    /// # Errors
    /// Where the folder cannot be written.
    pub fn save(&mut self, dir: &Path) -> Result<()> {
        let types = self.storages.iter().map(|k| (k.name.clone(), k.at.clone()));
        let types: Vec<_> = types.collect();
        self.desk
            .open_save(Save::begin(dir, &self.plan.job.model, &types)?);
        let ran = self.run(When::Save, 0);
        let save = self.desk.close_save();
        ran?;
        match save {
            Some(save) => save.finish(&self.options.config, &self.progress),
            None => Ok(()),
        }
    }

    /// The learning rate of a step.
    fn rate(&self, step: u64) -> f32 {
        let Options {
            steps,
            rate,
            schedule,
            warmup,
            ..
        } = self.options;
        if step <= warmup {
            return (rate * step as f64 / warmup.max(1) as f64) as f32;
        }
        let way = (step - warmup) as f64 / steps.saturating_sub(warmup).max(1) as f64;
        let factor = match schedule {
            Schedule::Constant => 1.0,
            Schedule::Cosine => 0.1 + 0.45 * (1.0 + (std::f64::consts::PI * way.min(1.0)).cos()),
            Schedule::Linear => 1.0 - way.min(1.0),
        };
        (rate * factor) as f32
    }

    fn run(&mut self, when: When, micro: u64) -> Result<Timeline> {
        let step = self.progress.step + 1 - self.progress.skipped_steps.min(self.progress.step);
        let scalars = Scalars {
            step,
            micro,
            rate: self.rate(self.progress.step + 1),
        };
        let program = self.programs.iter().find(|p| p.when == when);
        let program = program.unwrap_or_else(|| panic!("a plan's programs include {when:?}"));
        self.cpu.run(program, &self.desk, scalars)
    }
}

/// The persistent storages, gradients left out.
fn storages(programs: &[Program]) -> Vec<Kept> {
    let steady = programs.iter().find(|p| p.when == When::Steady);
    let step = &steady
        .unwrap_or_else(|| panic!("every plan has a steady program"))
        .step;
    let kept = |t: &&Tensor| {
        let storage = step.storage(t.storage);
        t.version == 0 && t.offset == 0 && storage.shared && storage.role != Role::Gradient
    };
    let known = |t: &Tensor| {
        let storage = step.storage(t.storage);
        Kept {
            name: storage.name.to_string(),
            at: t.at.clone(),
            first: storage.first.clone(),
        }
    };
    step.tensors.iter().filter(kept).map(known).collect()
}

/// Where values come from, and the progress they stand for.
fn origin(plan: &Plan, options: &Options) -> Result<(Origin, Progress)> {
    if let Some(dir) = &options.resume {
        let saved = Saved::open(dir)?;
        let next = "resume with the plan the save was made with";
        if saved.model().layers != plan.job.model.layers
            || saved.model().hidden != plan.job.model.hidden
        {
            return Err(Error::file(dir, "the save is of another model", next));
        }
        let progress = saved.progress().clone();
        return Ok((Origin::Saved(Box::new(saved)), progress));
    }
    let scale = if plan.draft()?.precision == Precision::Fp16 {
        LOSS_SCALE.0
    } else {
        1.0
    };
    let progress = Progress::new(options.seed, scale);
    let origin = match &options.weights {
        Some(path) => Origin::Weights(WeightFiles::open(path, &plan.job.model)?),
        None => Origin::Seed(options.seed),
    };
    Ok((origin, progress))
}
