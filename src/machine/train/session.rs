//! A training run of a plan on the machine it is lowered for, predicted and measured side by side.

mod decisions;

use std::path::{Path, PathBuf};

use super::adapter;
use super::desk::{Desk, Kept};
use super::memory;
use super::origin::{LOSS_SCALE, origin, storages};
use super::save::{Progress, Save};
use super::text::{Corpus, Rows, Split};
use crate::error::Result;
use crate::graph::When;
use crate::graph::op::Scalars;
use crate::machine::cpu::Settings;
use crate::machine::estimate::{self, Estimate};
use crate::machine::executor::Executor;
use crate::machine::timeline::Timeline;
use crate::plan::Plan;
use crate::program::check::check;
use crate::program::{Program, renewing, updating};
use crate::spec::job::PerPlace;
use crate::spec::units::{Bytes, Seconds};
use crate::technique::Policy;

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
    /// A folder of the plan's adapter to start from, in PEFT's format.
    pub adapter: Option<PathBuf>,
    /// A save to continue.
    pub resume: Option<PathBuf>,
    /// The model's config, as saves carry it.
    pub config: String,
    /// Held-out rows an evaluation reads at most.
    pub evaluation_rows: u64,
    /// What a save carries so that a run can be continued from it alone.
    pub settings: serde_json::Value,
}

/// Finite steps after which the loss scale of fp16 doubles (PyTorch's GradScaler).
const DOUBLES: u64 = 2_000;

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
    executor: Executor,
    desk: Desk,
    corpus: Corpus,
    options: Options,
    progress: Progress,
    before: Bytes,
    seconds: Vec<f64>,
    /// The timelines of the last step.
    timelines: Vec<(When, Timeline)>,
    policy: Option<Box<dyn Policy>>,
}

impl Session {
    /// Lowers and checks `plan` for the backend it names, takes its memory, and fills it.
    ///
    /// # Errors
    /// Where the plan's machine is not there, text or weights do not fit it, or memory is refused.
    pub fn open(plan: Plan, corpus: Corpus, options: Options) -> Result<Session> {
        corpus.check(plan.job.seq)?;
        memory::reset_peak();
        let before = memory::resident();
        let programs = estimate::all(&plan)?;
        programs.iter().try_for_each(|p| check(p).map(|_| ()))?;
        let storages = storages(&programs);
        let predicted = estimate::summarize(&plan, &programs)?;
        let (origin, mut progress) = origin(&plan, &options, &storages)?;
        let saved = std::mem::replace(&mut progress.settings, options.settings.clone());
        let settings = Settings {
            seed: progress.seed,
            ..options.machine
        };
        let backend = plan.job.target.backend;
        let executor = Executor::open(&programs, backend, &options.folder, settings)?;
        let desk = Desk::new(plan.job.model.clone(), &storages, origin);
        let (seconds, timelines) = (Vec::new(), Vec::new());
        let mut session = Session {
            plan,
            programs,
            storages,
            predicted,
            executor,
            desk,
            corpus,
            options,
            progress,
            before,
            seconds,
            timelines,
            policy: None,
        };
        session.begin_policy(&saved)?;
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

    /// What it runs on.
    pub fn executor(&self) -> &Executor {
        &self.executor
    }

    /// The machine's own marks.
    pub fn mark(&self) -> PerPlace<Bytes> {
        self.executor.mark()
    }

    /// Who held each place when what was handed out of it was most.
    pub fn roles(&self) -> PerPlace<crate::machine::cpu::Roles> {
        self.executor.roles()
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
            if micro == 0 {
                seconds += self.renew(step)?;
            }
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
        self.decide(step, loss)?;
        Ok(Stepped {
            step,
            loss,
            seconds: Seconds(seconds),
            skipped,
        })
    }

    /// Renews what updates project with where that is due, on the batch that is laid; the seconds it took.
    fn renew(&mut self, step: u64) -> Result<f64> {
        let Some(when) = renewing(&self.programs, step).map(|p| p.when) else {
            return Ok(0.0);
        };
        let timeline = self.run(when, 0)?;
        // Its loss is that of the step's first micro-batch, which is yet to come.
        self.desk.take_loss();
        let seconds = timeline.total.0;
        self.timelines.push((when, timeline));
        Ok(seconds)
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
            if progress.finite_steps.is_multiple_of(DOUBLES) {
                progress.loss_scale = (progress.loss_scale * 2.0).min(LOSS_SCALE * 65_536.0);
            }
        }
        overflowed
    }

    /// The mean loss over held-out text; `None` where none is held out.
    ///
    /// # Errors
    /// Where an instruction fails.
    pub fn evaluate(&mut self) -> Result<Option<f32>> {
        let batches = self.held_out()?;
        if batches.is_empty() {
            return Ok(None);
        }
        let counted: u64 = batches.iter().map(|(_, count)| count).sum();
        let weighed = batches
            .iter()
            .map(|&(loss, count)| f64::from(loss) * count as f64);
        let loss = (weighed.sum::<f64>() / counted.max(1) as f64) as f32;
        self.progress.evaluations.push((self.progress.step, loss));
        Ok(Some(loss))
    }

    /// The mean loss of each batch of held-out text and the tokens that count in it; none where none is held out.
    ///
    /// # Errors
    /// Where an instruction fails.
    pub fn held_out(&mut self) -> Result<Vec<(f32, u64)>> {
        let seq = self.plan.job.seq;
        let per = self.plan.job.batch / self.plan.draft()?.micro_batches;
        let most = self.options.evaluation_rows;
        let total = self.corpus.evaluation_rows(seq).min(most);
        let mut batches = Vec::new();
        for index in 0..total.div_ceil(per) {
            let rows = Rows {
                first: index * per,
                count: per,
                seq,
            };
            let seed = self.progress.seed;
            let batch = self.corpus.rows(Split::HeldOut, seed, 0, rows)?;
            let count = batch.counted();
            self.desk.lay(batch, count, 1.0);
            self.run(When::Evaluate, 0)?;
            batches.push((self.desk.take_loss(), count));
        }
        Ok(batches)
    }

    /// Saves weights and state to `dir`: the old save stays until the new one is whole.
    ///
    /// # Errors
    /// Where the folder cannot be written.
    pub fn save(&mut self, dir: &Path) -> Result<()> {
        self.keep_policy();
        let saved = self.storages.iter().filter(|k| !k.first.is_frozen());
        let types: Vec<_> = saved.map(|k| (k.name.clone(), k.at.clone())).collect();
        let model = &self.plan.job.model;
        let base = self.progress.base.as_ref();
        let base = base.map_or(model.name.clone(), |path| path.display().to_string());
        self.desk
            .open_save(match adapter::config(&self.plan, &base)? {
                Some(config) => Save::begin_adapter(dir, model, &types, config)?,
                None => Save::begin(dir, model, &types)?,
            });
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
        self.executor.run(program, &self.desk, scalars)
    }
}
