//! The buying guide: `gpus`, `fit`, goals, and what training costs.

use std::process::Output;

use memfit::search::market::{self, Key, Question, Verdict};
use memfit::spec::cost::{Cost, Tariff, runs};
use memfit::spec::device;
use serde_json::Value;

/// A job that every device takes and that is planned quickly.
const JOB: &str = "--model tiny --seq 64 --batch 2 --precision f32";

fn memfit(line: &str) -> Output {
    let words = line.split(' ').filter(|w| !w.is_empty());
    let mut command = assert_cmd::cargo::cargo_bin_cmd!("memfit");
    command.args(words).output().unwrap()
}

fn text(line: &str, status: i32) -> String {
    let output = memfit(line);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(status), "{line}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

fn json(line: &str, status: i32) -> Value {
    serde_json::from_str(&text(&format!("{line} --json"), status)).unwrap()
}

fn refusal(line: &str) -> String {
    let output = memfit(line);
    assert_eq!(output.status.code(), Some(2), "{line}");
    String::from_utf8(output.stderr).unwrap()
}

/// The job on every device: asked once, as it takes longest.
fn everywhere() -> &'static Value {
    static ANSWER: std::sync::LazyLock<Value> =
        std::sync::LazyLock::new(|| json(&format!("gpus {JOB}"), 0));
    &ANSWER
}

fn rows(answer: &Value) -> &Vec<Value> {
    answer["devices"].as_array().unwrap()
}

fn ids(answer: &Value) -> Vec<&str> {
    let ids = rows(answer).iter().map(|row| row["id"].as_str().unwrap());
    ids.collect()
}

fn number(value: &Value) -> f64 {
    value
        .as_f64()
        .unwrap_or_else(|| panic!("{value} is no number"))
}

#[test]
fn every_row_is_what_plan_answers() {
    let answer = everywhere();
    assert_eq!(rows(answer).len(), device::all().count());
    for id in [
        "rtx-4090",
        "t4",
        "mi300x",
        "apple-m3-max-128gb",
        "rtx-2060-6gb",
    ] {
        let row = rows(answer).iter().find(|row| row["id"] == id).unwrap();
        let plan = json(&format!("plan {JOB} --gpu {id}"), 0);
        assert_eq!(row["outcome"], plan["outcome"], "{id}");
        assert_eq!(row["plan"]["name"], plan["name"], "{id}");
        let speed = &plan["estimate"]["tokens_per_second"];
        assert_eq!(row["tokens_per_second"], *speed, "{id}");
        assert_eq!(row["step_seconds"], plan["estimate"]["step_seconds"]);
        for place in ["gpu", "host", "pinned", "disk"] {
            assert_eq!(row["plan"]["peak"][place], plan["estimate"]["peak"][place]);
        }
        let hours = 1e9 / number(speed) / 3600.0;
        assert!((number(&row["hours"]) / hours - 1.0).abs() < 1e-12, "{id}");
    }
}

#[test]
fn rows_that_do_not_fit_say_so_and_come_last() {
    let tight = "gpus --vendor intel --max-price 400 --model llama-2-13b --seq 512 --ram 16GB --disk 1GB --fix recompute";
    let answer = json(tight, 1);
    for row in rows(&answer) {
        assert_eq!(row["outcome"], "misfit", "{row}");
        assert!(row["plan"].is_null() && row["hours"].is_null() && row["cost"].is_null());
        assert!(number(&row["misfit"]["need"]) > number(&row["misfit"]["have"]));
    }
    let page = text(tight, 1);
    assert!(
        page.contains("MISFIT") && page.contains("0 of 2 devices fit"),
        "{page}"
    );
}

#[test]
fn devices_that_cannot_compute_the_format_are_refused_by_name() {
    let answer = json(
        "gpus --vendor nvidia --max-price 1300 --model tiny --seq 64 --precision bf16",
        0,
    );
    let row = |id: &str| rows(&answer).iter().find(|row| row["id"] == id).unwrap();
    assert_eq!(row("rtx-4090")["outcome"], "fits");
    assert_eq!(row("rtx-2080-ti")["outcome"], "refused");
    assert!(row("rtx-2080-ti")["why"].as_str().unwrap().contains("bf16"));
    let last = ids(&answer).len() - 1;
    assert_eq!(rows(&answer)[last]["outcome"], "refused");
    // What is wrong everywhere is an error.
    let error = refusal("gpus --model tiny --seq 1000000");
    assert!(error.contains("sequence length"), "{error}");
}

#[test]
fn filters_take_vendors_and_prices() {
    let answer = json(&format!("gpus {JOB} --vendor apple"), 0);
    assert!(rows(&answer).iter().all(|row| row["vendor"] == "Apple"));
    assert_eq!(rows(&answer).len(), 9);
    let answer = json(&format!("gpus {JOB} --max-price 500 --sort price"), 0);
    let prices: Vec<f64> = rows(&answer)
        .iter()
        .map(|row| number(&row["cost"]["purchase"]["low"]))
        .collect();
    assert!(
        prices.len() > 5 && prices.iter().all(|&p| p <= 500.0),
        "{prices:?}"
    );
    assert!(prices.is_sorted());
    let left_out = answer["left_out_without_price"].as_array().unwrap();
    assert!(left_out.iter().any(|id| id == "b200-sxm"), "{left_out:?}");
    for row in rows(&answer) {
        let id = row["id"].as_str().unwrap();
        let known = device::find(id).unwrap().price;
        assert!(known.iter().any(|p| p.kind != "cloud_usd_per_hour"), "{id}");
    }
    let error = refusal("gpus --model 7b --vendor nvida");
    assert!(error.contains("did you mean `NVIDIA`"), "{error}");
    let error = refusal("gpus --model lama-2-7b");
    assert!(error.contains("did you mean `llama-2-7b`"), "{error}");
    assert!(refusal("gpus --model 7b --gpu rtx-4090").contains("plan --gpu rtx-4090"));
    assert!(refusal("gpus --model 7b --tokens many").contains("--tokens"));
    assert!(refusal("gpus --model 7b --kwh-price=-1").contains("--kwh-price"));
    assert!(refusal("gpus").contains("--model"));
}

#[test]
fn rows_are_in_order_and_the_frontier_is_what_nobody_beats() {
    let answer = everywhere();
    let speeds: Vec<f64> = rows(answer)
        .iter()
        .map(|row| number(&row["tokens_per_second"]))
        .collect();
    assert!(speeds.is_sorted_by(|a, b| a >= b));
    for (key, mark) in [("purchase", "leads_by_price"), ("rent", "leads_by_rent")] {
        let point = |row: &Value| {
            let usd = row["cost"][key]["low"].as_f64()?;
            Some((usd, number(&row["tokens_per_second"])))
        };
        let points: Vec<(f64, f64)> = rows(answer).iter().filter_map(point).collect();
        let mut leaders = 0;
        for row in rows(answer) {
            let own = point(row);
            let beaten = |own: (f64, f64)| {
                let better = |o: &(f64, f64)| o.0 <= own.0 && o.1 >= own.1 && *o != own;
                points.iter().any(better)
            };
            let leads = own.is_some_and(|own| !beaten(own));
            assert_eq!(row[mark], leads, "{key}: {row}");
            leaders += usize::from(leads);
        }
        assert!(leaders > 1 && leaders < points.len(), "{key}: {leaders}");
    }
}

#[test]
fn every_offer_is_heard_of_as_it_comes_and_nothing_executes_there_yet() {
    let names = ["rtx-4090", "t4", "b200-sxm"];
    let request = |name: &str| {
        let mut answer = memfit::plan::library::find("tiny-cpu").unwrap().job;
        answer.gpu = name.to_string();
        answer.precision = memfit::spec::job::Precision::F32;
        let job = answer.open(Default::default())?;
        let allow = memfit::spec::job::Exactness::Rounding;
        Ok(memfit::plan::Request {
            job,
            fixed: vec![],
            allow,
        })
    };
    let question = |name: &&str| Question {
        device: device::find(name).unwrap(),
        request: request(name),
    };
    let heard = std::sync::Mutex::new(Vec::new());
    let each = |offer: &market::Offer| heard.lock().unwrap().push(offer.device.id.clone());
    let questions = names.iter().map(question).collect();
    let mut offers = market::survey(questions, None, &Tariff::default(), &each).unwrap();
    let mut heard = heard.into_inner().unwrap();
    heard.sort();
    assert_eq!(heard, ["b200-sxm", "rtx-4090", "t4"]);
    for offer in &offers {
        assert!(offer.plan_only() && matches!(offer.found, Verdict::Fits(_)));
    }
    market::sort(&mut offers, Key::Name);
    let names: Vec<&str> = offers.iter().map(|o| o.device.id.as_str()).collect();
    assert_eq!(names, ["b200-sxm", "rtx-4090", "t4"]);
}

#[test]
fn rows_are_said_as_they_are_found_and_the_answer_is_in_order() {
    let line = format!("gpus {JOB} --vendor intel");
    let output = memfit(&line);
    let said = String::from_utf8(output.stderr).unwrap();
    let known = device::all().filter(|d| d.vendor == "Intel");
    for device in known {
        let rows = said.lines().filter(|row| row.starts_with(&device.id));
        assert_eq!(rows.count(), 1, "{}: {said}", device.id);
    }
    for more in ["--quiet", "--json"] {
        assert!(memfit(&format!("{line} {more}")).stderr.is_empty());
    }
    // The first row comes while others are searched for, and is whole when it comes.
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_memfit"));
    let words = format!("gpus {JOB} --vendor apple");
    command.args(words.split(' '));
    command.stdout(std::process::Stdio::null());
    command.stderr(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut first = String::new();
    let mut rows = std::io::BufReader::new(child.stderr.take().unwrap());
    std::io::BufRead::read_line(&mut rows, &mut first).unwrap();
    assert!(child.try_wait().unwrap().is_none(), "it had ended by then");
    assert!(
        first.contains("tokens/s") && first.ends_with('\n'),
        "{first}"
    );
    std::io::copy(&mut rows, &mut std::io::sink()).unwrap();
    assert!(child.wait().unwrap().success());
}

#[test]
fn the_table_fits_a_page() {
    for line in [
        format!("gpus {JOB} --vendor amd"),
        "fit --gpu 64MiB --model tiny".to_string(),
    ] {
        let page = text(&line, 0);
        for line in page.lines() {
            assert!(line.chars().count() <= 100, "{line}");
        }
        assert!(page.contains("tokens/s"), "{page}");
    }
    let page = text(&format!("gpus {JOB} --vendor amd"), 0);
    assert!(
        page.contains("plan only") && page.contains("an assumption"),
        "{page}"
    );
    assert!(
        page.contains("cloud price by the hour, 2025, grade C"),
        "{page}"
    );
    assert!(page.contains("give --kwh-price"), "{page}");
}

#[test]
fn cost_is_what_a_hand_calculation_gives() {
    // 1000 tokens a second: a billion take 277.78 h; 450 W make 125 kWh of it.
    let card = device::find("rtx4090").unwrap();
    let tariff = Tariff {
        tokens: Some(1_000_000_000),
        kwh_price: Some(0.3),
        carbon: Some(400.0),
    };
    let cost = Cost::of(&card, 1000.0, &tariff);
    let near = |a: Option<f64>, b: f64| assert!((a.unwrap() - b).abs() < 1e-9 * b, "{a:?} {b}");
    near(cost.hours, 1e6 / 3600.0);
    near(cost.kwh, 125.0);
    near(cost.electricity, 37.5);
    near(cost.carbon_kg, 50.0);
    let (rent, bought) = (cost.rent.unwrap(), cost.purchase.unwrap());
    near(Some(rent.usd.low), 0.31 * 1e6 / 3600.0);
    near(Some(rent.usd.high), 0.69 * 1e6 / 3600.0);
    assert_eq!(bought.price.kind, "street_usd");
    // 1200 / (191.67 - 37.5) = 7.78, 2400 / (86.11 - 37.5) = 49.37.
    let at = cost.break_even.unwrap();
    assert_eq!((at.fewest, at.most), (Some(8), Some(50)));
    // The first run after which buying is cheaper, and none before it.
    for (purchase, rent, power) in [(1000.0, 7.0, 2.0), (999.0, 10.0, 0.5), (10.0, 20.0, 1.0)] {
        let first = runs(purchase, rent, Some(power)).unwrap();
        let bought = |n: u64| purchase + n as f64 * power < n as f64 * rent;
        assert!(bought(first) && !bought(first - 1), "{purchase} {first}");
    }
    assert_eq!(runs(1000.0, 1.0, Some(1.0)), None);
}

#[test]
fn what_nobody_knows_is_said_and_never_guessed() {
    let rented = device::find("b200").unwrap();
    let cost = Cost::of(&rented, 1000.0, &Tariff::default());
    // Rent needs hours, which need tokens; and this card is only rented.
    assert!(cost.rent.is_none() && cost.purchase.is_none() && cost.break_even.is_none());
    let page = text("plan --gpu b200 --model tiny --tokens 500M", 0);
    assert!(page.contains("no price known for buying"), "{page}");
    assert!(page.contains("electricity: give --kwh-price"), "{page}");
    assert!(!page.contains("buying beats"), "{page}");
    let none = device::all().find(|d| d.price.is_empty()).unwrap();
    let answer = json(
        &format!(
            "plan --gpu {} --model tiny --tokens 1k --carbon 100",
            none.id
        ),
        0,
    );
    let cost = &answer["cost"];
    assert!(cost["rent"].is_null() && cost["purchase"].is_null() && cost["electricity"].is_null());
    assert_eq!(cost["missing"].as_array().unwrap().len(), 3, "{cost}");
    assert!(number(&cost["co2_kg"]) > 0.0);
    // A size is no card that anybody sells.
    let page = text("plan --gpu 24GB --model tiny --tokens 1M", 0);
    assert!(
        page.contains("no power known") && page.contains("no price known"),
        "{page}"
    );
    // Without a question about cost there is no answer about it.
    let plain = json("plan --gpu rtx4090 --model tiny", 0);
    assert!(plain["cost"].is_null() && plain["goal"].is_null());
}

#[test]
fn goals_decide_what_is_trained() {
    let techniques = |answer: &Value| -> Vec<String> {
        let all = answer["plan"]["choices"].as_array().unwrap().iter();
        all.map(|c| c["technique"].as_str().unwrap().to_string())
            .collect()
    };
    let job = "plan --model tiny --gpu 8GB --seq 128";
    let full = json(&format!("{job} --goal full --allow lossy"), 0);
    assert_eq!(full["goal"], "full");
    assert!(!techniques(&full).contains(&"lora".to_string()));
    let considered = full["alternatives"].as_array().unwrap();
    assert!(
        considered
            .iter()
            .all(|c| c["family"] != "LoRA" && c["family"] != "QLoRA")
    );
    assert!(considered.iter().any(|c| c["family"] == "8-bit AdamW"));
    let lora = json(&format!("{job} --goal lora"), 0);
    assert!(techniques(&lora).contains(&"lora".to_string()));
    // Where everything fits, any is full and exact.
    let any = json(&format!("{job} --goal any"), 0);
    assert!(!techniques(&any).contains(&"lora".to_string()));
    // What is frozen is not all.
    let error = refusal(&format!("{job} --goal full --fix lora"));
    assert!(error.contains("freezes the model"), "{error}");
    let error = refusal(&format!("{job} --goal lora --fix prefix_tuning"));
    assert!(error.contains("low-rank"), "{error}");
    let error = refusal(&format!("{job} --goal lorra"));
    assert!(error.contains("did you mean `lora`"), "{error}");
    let named = json(&format!("{job} --goal lora --fix qlora"), 0);
    assert!(techniques(&named).contains(&"nf4_weights".to_string()));
    let error = refusal("plan --engine torch --gpu 24GB --model gpt2 --goal lora");
    assert!(error.contains("--torch lora.r"), "{error}");
}

#[test]
fn what_fits_most_is_planned_and_one_more_does_not_fit() {
    let answer = json(
        "fit --gpu 40MiB --ram 100MB --disk 1MB --seq 32 --model tiny --goal full",
        0,
    );
    assert_eq!(answer["device"]["id"], "40mib");
    let classes = answer["classes"].as_array().unwrap();
    assert_eq!(classes.len(), 2);
    let exact = &classes[0];
    assert_eq!(exact["class"], "full_exact");
    assert_eq!(exact["model"]["name"], "tiny");
    let most = exact["batch"]["count"].as_u64().unwrap();
    assert_eq!(exact["batch"]["ended_by"], "memory");
    let plan = |batch: u64, status: i32| {
        let line = format!(
            "plan --gpu 40MiB --ram 100MB --disk 1MB --seq 32 --model tiny --goal full --batch {batch} --fix accumulate:micro={batch}"
        );
        json(&line, status)
    };
    assert!(most > 1);
    let fits = plan(most, 0);
    assert_eq!(fits["name"], exact["batch"]["plan"]["name"]);
    assert_eq!(
        fits["estimate"]["tokens_per_second"],
        exact["batch"]["tokens_per_second"]
    );
    plan(most + 1, 1);
}

#[test]
fn the_largest_model_fits_and_the_next_larger_does_not() {
    let line = "--gpu 600MiB --ram 2GB --disk 1GB --seq 64 --goal full";
    let answer = json(&format!("fit {line}"), 0);
    let exact = &answer["classes"][0];
    let (name, count) = (
        exact["model"]["name"].as_str().unwrap(),
        number(&exact["model"]["parameters"]),
    );
    json(&format!("plan {line} --model {name}"), 0);
    let listed = json("models", 0);
    let mut larger: Vec<(u64, &str)> = listed["models"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| {
            (
                m["parameters"].as_u64().unwrap(),
                m["name"].as_str().unwrap(),
            )
        })
        .filter(|m| m.0 as f64 > count)
        .collect();
    larger.sort_unstable();
    json(&format!("plan {line} --model {}", larger[0].1), 1);
    assert!(refusal("fit --gpu rtx4099x --model tiny").contains("rtx"));
    assert!(refusal("fit").contains("--gpu"));
}
