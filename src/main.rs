//! The command line.

fn main() {
    let a: Vec<String> = std::env::args().collect();
    let t = memfit::plan::file::JobText {
        model: a[1].clone(),
        gpu: a[2].clone(),
        seq: 2048,
        batch: 1,
        precision: memfit::spec::job::Precision::Bf16,
        optimizer: "adamw".into(),
    };
    let job = t.open(Default::default()).unwrap();
    if a.len() > 3 {
        let b = |w: &str, u: &str| {
            memfit::plan::Choice::parse(&format!("offload:what={w}{u}")).unwrap()
        };
        let plan = memfit::plan::Plan::new(
            job.clone(),
            vec![
                memfit::plan::Choice::parse("recompute:site=layers.*").unwrap(),
                b("optimizer", ",to=disk,update=host"),
                b("parameters", ",to=disk"),
                memfit::plan::Choice::parse("fused_update").unwrap(),
            ],
        )
        .unwrap();
        let t = std::time::Instant::now();
        let set = plan.steps().unwrap();
        println!(
            "steps {:?} nodes {}",
            t.elapsed(),
            set.steps[0].1.nodes.len()
        );
        let t = std::time::Instant::now();
        let shared = set.shared();
        println!("shared {:?}", t.elapsed());
        let t = std::time::Instant::now();
        let mut programs: Vec<_> = set
            .steps
            .into_iter()
            .map(|(w, s)| {
                memfit::program::lower::lower(w, s, &shared, plan.job.target.backend).unwrap()
            })
            .collect();
        println!("lower {:?} code {}", t.elapsed(), programs[0].code.len());
        let t = std::time::Instant::now();
        memfit::program::place::place(&mut programs);
        println!(
            "place {:?} load {:?} height {:?}",
            t.elapsed(),
            programs[0].load.gpu,
            programs[0].height.gpu
        );
        let t = std::time::Instant::now();
        let tl = memfit::machine::estimate::simulate(&programs[0], &plan).unwrap();
        println!("sim {:?} {:?}", t.elapsed(), tl.busy());
        let t = std::time::Instant::now();
        for p in &programs {
            memfit::program::check::check(p).unwrap();
        }
        println!("check {:?}", t.elapsed());
        return;
    }
    let ans = memfit::search::search(&memfit::plan::Request {
        job,
        fixed: vec![],
        allow: memfit::spec::job::Exactness::Rounding,
    })
    .unwrap();
    for c in &ans.considered {
        println!(
            "{:60} gpu {} pinned {} host {} disk {} step {} exposed {} {}",
            c.name,
            c.estimate.peak.gpu,
            c.estimate.peak.pinned,
            c.estimate.peak.host,
            c.estimate.peak.disk,
            c.estimate.step,
            c.estimate.exposed,
            c.fits(&ans.budget)
        );
    }
    match ans.outcome {
        memfit::search::Outcome::Fits(c) => println!("BEST {} {:?}", c.name, c.estimate),
        memfit::search::Outcome::Misfit(m) => println!("MISFIT {} {}", m.closest.name, m.change),
    }
    println!("{}", ans.seconds);
}
