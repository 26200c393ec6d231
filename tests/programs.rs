//! A plan's programs: checked, run on this machine's cores, and compared with what was predicted.

use std::sync::Mutex;

use memfit::error::Result;
use memfit::graph::When;
use memfit::graph::op::{Port, Scalars};
use memfit::graph::order::is_ordered;
use memfit::graph::random::Key;
use memfit::machine::cpu::{Cpu, Settings};
use memfit::plan::{Choice, Plan};
use memfit::program::{Program, check::check, height, programs, renewing, updating};
use memfit::spec::config;
use memfit::spec::device;
use memfit::spec::job::{Backend, Host, Job, Optimizer, PerPlace, Place, Precision, Target};
use memfit::spec::units::Bytes;

/// The model laws are tested on: hidden 32, 2 layers, vocabulary 64.
pub const MICRO: &str = r#"{"model_type":"llama","vocab_size":64,"hidden_size":32,"intermediate_size":88,
"num_hidden_layers":2,"num_attention_heads":4,"num_key_value_heads":2,"rms_norm_eps":1e-5,"hidden_act":"silu",
"tie_word_embeddings":false,"max_position_embeddings":128}"#;

pub fn target(threads: u32) -> Target {
    let mut target = Target::new(device::find("1GiB").unwrap(), Host::default());
    target.backend = Backend::Cpu { threads };
    target
}

pub fn job(config: &str, batch: u64, seq: u64, precision: Precision, threads: u32) -> Job {
    Job {
        model: config::parse("micro", config).unwrap(),
        seq,
        batch,
        precision,
        optimizer: Optimizer("adamw".into()),
        target: target(threads),
    }
}

/// Random tokens in, losses out; parameters from the counter.
pub struct Desk {
    vocab: u32,
    tokens: u64,
    /// Whether parameters are of 16 bits.
    half: bool,
    micro: Mutex<u64>,
    pub losses: Mutex<Vec<f32>>,
    pub step: Mutex<u64>,
}

impl Desk {
    pub fn new(job: &Job) -> Desk {
        let tokens = job.seq * job.batch;
        Desk {
            vocab: job.model.vocab as u32,
            tokens,
            half: job.precision != Precision::F32,
            micro: Mutex::new(0),
            losses: Mutex::default(),
            step: Mutex::new(0),
        }
    }
}

impl Port for Desk {
    fn read(&self, name: &str, offset: u64, into: &mut [u8]) -> Result<()> {
        let step = *self.step.lock().unwrap();
        match name {
            "input/tokens" | "input/targets" => {
                let key = Key::new(7, step, name);
                let first = *self.micro.lock().unwrap() * (into.len() as u64 / 4);
                for (i, word) in into.chunks_exact_mut(4).enumerate() {
                    let id = (key.bits(first + i as u64) >> 20) as u32 % self.vocab;
                    word.copy_from_slice(&id.to_le_bytes());
                }
            }
            "input/scale" => {
                into[..4].copy_from_slice(&(1.0 / self.tokens as f32).to_le_bytes());
                into[4..].copy_from_slice(&1f32.to_le_bytes());
            }
            _ if ![".weight", ".bias", ".master"]
                .iter()
                .any(|end| name.ends_with(end)) =>
            {
                into.fill(0)
            }
            _ => {
                let base = name.trim_end_matches(".master");
                let key = Key::new(3, 0, base);
                let wide = into.len() >= 4 && name.ends_with(".master");
                let value = |i: u64| {
                    if base.contains("norm") {
                        1.0
                    } else {
                        key.normal(i) * 0.05
                    }
                };
                let half = self.half && !wide;
                let size = if half { 2 } else { 4 };
                for (i, word) in into.chunks_exact_mut(size).enumerate() {
                    let value = value(offset / size as u64 + i as u64);
                    match half {
                        true => word.copy_from_slice(&half::bf16::from_f32(value).to_le_bytes()),
                        false => word.copy_from_slice(&value.to_le_bytes()),
                    }
                }
            }
        }
        Ok(())
    }
    fn write(&self, name: &str, _: u64, from: &[u8]) -> Result<()> {
        if name == "output/loss" {
            self.losses
                .lock()
                .unwrap()
                .push(f32::from_le_bytes(from.try_into().unwrap()));
        }
        Ok(())
    }
}

pub fn lower(plan: &Plan) -> Vec<Program> {
    let mut set = plan.steps().unwrap();
    set.steps.extend(plan.transfers(&set.shared()).unwrap());
    programs(set, plan.job.target.backend).unwrap()
}

/// Checks all programs, runs `steps` steps, compares the marks; returns losses per step and the peak.
pub fn train(plan: &Plan, steps: u64) -> (Vec<f32>, PerPlace<Bytes>) {
    let programs = lower(plan);
    for program in &programs {
        let top = check(program).unwrap_or_else(|e| panic!("{:?}: {e}", program.when));
        for place in Place::ALL {
            assert!(top[place] <= program.height[place]);
            assert!(program.load[place] <= program.height[place]);
        }
    }
    let peak = height(&programs);
    let settings = Settings {
        poison: true,
        seed: 1,
        ..Settings::default()
    };
    let folder = tempfile::tempdir().unwrap();
    let mut cpu = Cpu::new(peak, plan.job.target.backend, folder.path(), settings).unwrap();
    let desk = Desk::new(&plan.job);
    let find = |when: fn(&When) -> bool| programs.iter().find(|p| when(&p.when));
    let mut run = |program: &Program, step: u64, micro: u64| {
        *desk.step.lock().unwrap() = step;
        *desk.micro.lock().unwrap() = micro;
        let timeline = cpu.run(
            program,
            &desk,
            Scalars {
                step,
                micro,
                rate: 1e-2,
            },
        );
        timeline.unwrap_or_else(|e| panic!("{:?}: {e}", program.when))
    };
    run(find(|w| *w == When::Start).unwrap(), 0, 0);
    desk.losses.lock().unwrap().clear();
    let mut losses = Vec::new();
    for step in 1..=steps {
        let mut micro = 0;
        if let Some(renewal) = renewing(&programs, step) {
            run(renewal, step, micro);
            desk.losses.lock().unwrap().clear();
        }
        if let Some(first) = find(|w| *w == When::First) {
            run(first, step, micro);
            micro += 1;
        }
        if let Some(middle) = find(|w| matches!(w, When::Micro { .. })) {
            let When::Micro { times } = middle.when else {
                unreachable!()
            };
            for _ in 0..times {
                run(middle, step, micro);
                micro += 1;
            }
        }
        run(updating(&programs, step), step, micro);
        losses.push(desk.losses.lock().unwrap().drain(..).sum());
    }
    run(find(|w| *w == When::Evaluate).unwrap(), steps, 0);
    run(find(|w| *w == When::Save).unwrap(), steps, 0);
    assert_eq!(cpu.mark(), peak, "predicted and measured peaks differ");
    (losses, peak)
}

pub fn plan(job: Job, choices: &[&str]) -> Plan {
    Plan::new(
        job,
        choices.iter().map(|c| Choice::parse(c).unwrap()).collect(),
    )
    .unwrap()
}

#[test]
fn techniques_that_claim_bitwise_give_the_same_losses_and_other_peaks() {
    let base = || job(MICRO, 4, 16, Precision::F32, 2);
    let (plain, plain_peak) = train(&plan(base(), &[]), 3);
    assert!(
        plain.iter().all(|l| l.is_finite()) && plain[2] < plain[0] + 1.0,
        "{plain:?}"
    );
    for choices in [
        &["recompute"][..],
        &["recompute:what=cheap"],
        &["recompute:what=attention"],
        &["recompute:segment=2"],
        &["fused_update"],
        &["offload:what=optimizer"],
        &["offload:what=optimizer,update=host"],
        &["offload:what=optimizer,to=disk"],
        &["offload:what=parameters"],
        &[
            "offload:what=parameters,to=disk",
            "offload:what=optimizer,to=disk,update=host",
        ],
        &["offload:what=activations"],
        &["offload:what=activations,to=disk"],
        &[
            "offload:what=gradients",
            "offload:what=optimizer,update=host",
        ],
        &[
            "recompute",
            "fused_update",
            "offload:what=parameters",
            "offload:what=optimizer,update=host",
        ],
    ] {
        let (losses, peak) = train(&plan(base(), choices), 3);
        println!("{choices:?}: {peak:?}");
        assert_eq!(losses, plain, "{choices:?}");
        assert!(
            peak.gpu < plain_peak.gpu,
            "{choices:?}: {} is not below {}",
            peak.gpu,
            plain_peak.gpu
        );
    }
}

#[test]
fn techniques_that_claim_rounding_stay_close() {
    let base = || job(MICRO, 4, 16, Precision::F32, 2);
    let (plain, _) = train(&plan(base(), &[]), 3);
    for choices in [
        &["flash_attention"][..],
        &["chunked_loss:rows=8"],
        &["accumulate:micro=1"],
        &["accumulate:micro=2"],
        &[
            "accumulate:micro=1",
            "recompute",
            "chunked_loss:rows=16",
            "flash_attention",
        ],
    ] {
        let (losses, _) = train(&plan(base(), choices), 3);
        let worst = losses
            .iter()
            .zip(&plain)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max);
        assert!(worst < 1e-4, "{choices:?}: {losses:?} against {plain:?}");
    }
}

#[test]
fn every_step_stands_in_an_order_its_dependencies_allow() {
    for choices in [
        &["accumulate:micro=2", "recompute:what=attention"][..],
        &[
            "fused_update",
            "recompute:segment=2",
            "offload:what=parameters",
        ],
        &[
            "offload:what=gradients",
            "offload:what=optimizer,update=host",
        ],
    ] {
        let set = plan(job(MICRO, 4, 16, Precision::Bf16, 2), choices)
            .steps()
            .unwrap();
        for (when, step) in &set.steps {
            assert!(is_ordered(step), "{choices:?}: {when:?}");
            let mut turned = step.clone();
            turned.nodes.reverse();
            assert!(!is_ordered(&turned), "{choices:?}: {when:?} backwards");
        }
    }
}
