#![allow(missing_docs)]
use memfit::machine::estimate;
use memfit::plan::{Choice, Plan, Request};
use memfit::search::{self, solve::Problems};
use memfit::spec::{catalog, device, job::*, units::Bytes};
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let model = catalog::find(&a[1]).unwrap();
    let seq = a
        .get(3)
        .map_or(model.max_positions.min(2048), |s| s.parse().unwrap());
    let host = Host {
        ram: Bytes(256 << 30),
        ..Host::default()
    };
    let target = Target::new(device::find(&a[2]).unwrap(), host);
    let job = Job {
        model,
        seq,
        batch: 1,
        precision: Precision::Bf16,
        optimizer: Optimizer("adamw".into()),
        target,
    };
    let request = Request {
        job,
        fixed: vec![],
        allow: Exactness::Rounding,
    };
    let budget = request.job.target.budget();
    let t = std::time::Instant::now();
    let ps = Problems::of(&request).unwrap();
    println!("coefficients {:?}", t.elapsed());
    if a.len() > 4 {
        for c in &ps.changes {
            println!(
                "{:?} {:?} held {:.3?} f {:.3} ms l {:.3} ms",
                ps.saved[c.saved].leaves,
                c.fate,
                c.held.map(|b| b / 1048576.),
                c.forward.0[0] * 1e3,
                c.later.0[0] * 1e3
            );
        }
    }
    for p in &ps.all {
        let t = std::time::Instant::now();
        let b = p.layers.bound(&budget);
        let t1 = t.elapsed();
        let t = std::time::Instant::now();
        let w = p.layers.fastest(&budget, &[]);
        println!(
            "{:50} kept {:.2} floor {:.2} GiB compute f {:.1} l {:.1} ms | LP {:.5?} in {:?} | IP {:.5?} in {:?}",
            p.home.name,
            p.layers.rest.peak.gpu / 1073741824.,
            p.layers.floor / 1073741824.,
            p.layers.kinds[0].takes.spent[0] * 1e3,
            p.layers.kinds[0].takes.spent[1] * 1e3,
            b,
            t1,
            w.as_ref().map(|b| b.seconds),
            t.elapsed()
        );
        if let Some(w) = w {
            let pr = ps.proposal(p, &w);
            let mut ch = vec![];
            ch.extend(pr.choices.clone());
            match Plan::new(request.job.clone(), ch).and_then(|pl| estimate::quick(&pl)) {
                Ok(e) => println!(
                    "    {} -> gpu {:.2} GiB step {:.5} exposed {:.4}",
                    pr.name,
                    e.peak.gpu.0 as f64 / 1073741824.,
                    e.step.0,
                    e.exposed.0
                ),
                Err(e) => println!("   {} ERR {e}", pr.name),
            }
            if a.len() > 4 {
                println!(
                    "    {:?}",
                    pr.choices.iter().map(|c| c.to_string()).collect::<Vec<_>>()
                );
            }
        }
    }
    let t = std::time::Instant::now();
    let ans = search::search(&request).unwrap();
    if let search::Outcome::Fits(c) = ans.outcome {
        println!(
            "ANSWER {} {:.5} bound {:?} in {:?}",
            c.name,
            c.estimate.step.0,
            ans.bound,
            t.elapsed()
        );
    }
}
