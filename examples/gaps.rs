#![allow(missing_docs)]
use memfit::graph::{Stream, When};
use memfit::machine::estimate;
use memfit::plan::{Choice, Plan};
use memfit::program::{Instr, programs};
use memfit::spec::{catalog, device, job::*, units::Bytes};
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let mut model = catalog::find(&a[1]).unwrap();
    if let Ok(l) = std::env::var("LAYERS") {
        model.layers = l.parse().unwrap();
    }
    let seq = model.max_positions.min(2048);
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
    let ch = a[3..].iter().map(|c| Choice::parse(c).unwrap()).collect();
    let plan = Plan::new(job, ch).unwrap();
    let ps = programs(plan.steps().unwrap(), plan.job.target.backend).unwrap();
    let p = ps.iter().find(|p| p.when == When::Steady).unwrap();
    let t = estimate::simulate(p, &plan).unwrap();
    let nm = |at: usize| match p.code[at] {
        Instr::Launch { node, .. } | Instr::Copy { node, .. } => format!(
            "{:?} {} {}",
            p.step.nodes[node as usize].phase,
            p.step.nodes[node as usize].op.name(),
            p.step.nodes[node as usize].origin
        ),
        _ => String::new(),
    };
    let mut m = t.marks.clone();
    m.sort_by(|a, b| a.start.total_cmp(&b.start));
    println!("total {:.5} busy {:?}", t.total.0, t.busy());
    if std::env::var("FULL").is_ok() {
        for x in &m {
            println!("{:.5} {:.5} {:?} {}", x.start, x.end, x.stream, nm(x.at));
        }
        return;
    }
    let mut last = 0.0;
    let mut shown = 0;
    for x in m.iter().filter(|m| m.stream == Stream::Compute) {
        if x.start - last > 2e-4 && shown < 40 {
            shown += 1;
            println!("gap {:.5}..{:.5} before {}", last, x.start, nm(x.at));
            for y in m.iter().filter(|y| {
                y.stream != Stream::Compute && y.end > last - 1e-3 && y.start < x.start + 1e-9
            }) {
                println!(
                    "     {:?} {:.5}..{:.5} {}",
                    y.stream,
                    y.start,
                    y.end,
                    nm(y.at)
                );
            }
        }
        last = x.end;
    }
    println!("tail {:.5}", t.total.0 - last);
}
