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
