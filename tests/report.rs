//! The page of a plan: its numbers are those of `plan --json`, its markup is whole, and it needs nothing else.

use std::fs;
use std::path::Path;
use std::process::Output;

use memfit::spec::units::{Bytes, Seconds};
use serde_json::Value;

fn memfit(words: &[&str]) -> Output {
    let mut command = assert_cmd::cargo::cargo_bin_cmd!("memfit");
    command.args(words).output().unwrap()
}

/// What a line prints, where it ends with `status`.
fn said(line: &str, status: i32) -> String {
    let words: Vec<&str> = line.split_whitespace().collect();
    let output = memfit(&words);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(status), "{line}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

fn json(line: &str, status: i32) -> Value {
    serde_json::from_str(&said(&format!("{line} --json"), status)).unwrap()
}

/// The JSON that a page carries under `id`.
fn embedded(page: &str, id: &str) -> Value {
    let open = format!("<script type=\"application/json\" id=\"{id}\">");
    let text = page.split_once(&open).unwrap().1;
    serde_json::from_str(text.split_once("</script>").unwrap().0).unwrap()
}

/// A tag as it stands: its name, whether it closes, and whether it is closed in itself.
fn tags(text: &str) -> Vec<(String, bool, bool)> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some((_, after)) = rest.split_once('<') {
        let (tag, after) = after.split_once('>').expect("a tag ends");
        rest = after;
        assert!(!tag.contains('<'), "{tag}");
        if tag.starts_with('!') {
            continue;
        }
        let name = tag.trim_matches('/').split_whitespace().next().unwrap();
        found.push((name.to_string(), tag.starts_with('/'), tag.ends_with('/')));
        // What scripts and styles hold is no markup.
        if !tag.starts_with('/') && (name == "script" || name == "style") {
            let end = format!("</{name}>");
            rest = &rest[rest.find(&end).expect("it ends")..];
        }
    }
    found
}

/// Asserts that every element of a page or a drawing is closed in its turn.
fn assert_whole(text: &str) {
    let mut open: Vec<String> = Vec::new();
    for (name, closes, itself) in tags(text) {
        match (closes, itself || ["meta", "link"].contains(&name.as_str())) {
            (true, _) => assert_eq!(open.pop().as_ref(), Some(&name)),
            (false, false) => open.push(name),
            (false, true) => {}
        }
    }
    assert!(open.is_empty(), "{open:?}");
}

/// The figures of a page: value, pointer, and what is shown.
fn figures(page: &str) -> Vec<(String, String, String)> {
    let parts = page.split("<data value=\"").skip(1);
    let figure = |part: &str| {
        let (value, rest) = part.split_once("\" data-at=\"").unwrap();
        let (at, rest) = rest.split_once("\">").unwrap();
        let shown = rest.split_once("</data>").unwrap().0;
        (value.to_string(), at.to_string(), shown.to_string())
    };
    parts.map(figure).collect()
}

/// Asserts that every figure of a page is the number that it says to stand for; how many say so.
fn assert_figures(page: &str) -> usize {
    let plan = embedded(page, "plan");
    let mut pointed = 0;
    for (value, at, shown) in figures(page) {
        let of_bytes = value.parse().is_ok_and(|n| Bytes(n).to_string() == shown);
        let number: f64 = value.parse().unwrap();
        let of_seconds = Seconds(number).to_string() == shown;
        let rate = format!("{number:.0}") == shown;
        assert!(
            of_bytes || of_seconds || rate,
            "{value} is shown as {shown}"
        );
        if at.is_empty() {
            continue;
        }
        pointed += 1;
        let from = match at.strip_prefix("#measured") {
            Some(at) => embedded(page, "measured").pointer(at).cloned(),
            None => plan.pointer(&at).cloned(),
        };
        let from = from.unwrap_or_else(|| panic!("{at} is nowhere"));
        assert_eq!(from.as_f64(), Some(number), "{at}");
    }
    pointed
}

/// Asserts that a page asks nothing of anybody.
fn assert_alone(page: &str) {
    for word in [
        " src=",
        "@import",
        "url(",
        "fetch(",
        "XMLHttpRequest",
        "<iframe",
        "<img",
    ] {
        assert!(!page.contains(word), "{word}");
    }
    for link in page.split("href=\"").skip(1) {
        assert!(link.starts_with("data:,"), "{}", &link[..40]);
    }
}

#[test]
fn a_page_carries_the_numbers_of_the_plan_and_shows_them() {
    for job in [
        "--gpu 64MiB --model tiny",
        "--gpu 4GB --model gpt2 --batch 2 --allow lossy",
    ] {
        let page = said(&format!("report {job}"), 0);
        let mut plan = json(&format!("plan {job}"), 0);
        plan["search"].as_object_mut().unwrap().remove("seconds");
        assert_eq!(embedded(&page, "plan"), plan, "{job}");
        assert!(assert_figures(&page) > 30);
        assert_whole(&page);
        assert_alone(&page);
        assert_eq!(
            page.matches("class=\"wide\"").count(),
            page.matches("class=\"narrow\"").count()
        );
        assert!(page.matches("class=\"wide\"").count() >= 4);
        assert!(page.contains("<strong>Fits</strong>"));
    }
}

#[test]
fn a_saved_plan_has_the_numbers_it_was_saved_with() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plan.toml");
    let path = path.display();
    let job = "--gpu 64MiB --model tiny --ram 64GB";
    let plan = json(&format!("plan {job} -o {path}"), 0);
    let page = said(&format!("report {path}"), 0);
    let shown = embedded(&page, "plan");
    for part in [
        "plan",
        "budget",
        "estimate",
        "assumptions",
        "outcome",
        "pytorch",
        "front",
    ] {
        assert_eq!(shown[part], plan[part], "{part}");
    }
    assert_eq!(shown["claim"]["holds"], true);
    assert!(page.contains("derived again, equal"));
    assert!(assert_figures(&page) > 30);
}

#[test]
fn equal_plans_have_equal_pages() {
    assert_eq!(said("report 7b-24gb", 0), said("report 7b-24gb", 0));
}

#[test]
fn a_plan_that_does_not_fit_has_a_page_that_says_what_would() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("page.html");
    let lines = ["--gpu 1MiB --model tiny", "tiny-cpu --gpu 16MiB"];
    for line in lines {
        let told = said(&format!("report {line} -o {}", path.display()), 1);
        assert!(told.contains("does NOT fit"), "{told}");
        let page = fs::read_to_string(&path).unwrap();
        assert!(page.contains("Does not fit.") && page.contains("too much"));
        assert!(page.contains("alone would fit") && page.contains("who holds it"));
        assert_eq!(embedded(&page, "plan")["outcome"], "misfit");
        assert!(assert_figures(&page) > 30);
        assert_whole(&page);
    }
}

#[test]
fn a_claim_that_does_not_hold_is_shown() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a<b>&\"c\".toml");
    let name = path.to_str().unwrap();
    let saved = memfit(&["plan", "--gpu", "64MiB", "--model", "tiny", "-o", name]);
    assert_eq!(saved.status.code(), Some(0));
    let text = fs::read_to_string(&path).unwrap();
    let claim = text.find("[claim.peak]").unwrap();
    let damaged = text[..claim].to_string() + &text[claim..].replacen("gpu = ", "gpu = 1", 1);
    fs::write(&path, damaged).unwrap();
    let output = memfit(&["report", name]);
    assert_eq!(output.status.code(), Some(1));
    let page = String::from_utf8(output.stdout).unwrap();
    assert!(page.contains("does NOT hold: gpu peak"));
    // A name is text, whatever is in it.
    assert!(page.contains("a&lt;b&gt;&amp;&quot;c&quot;.toml") && !page.contains("a<b>"));
    assert_whole(&page);
}

#[test]
fn what_a_run_measured_stands_beside_what_was_predicted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("measured.json");
    let lines = [
        "run tiny-cpu --seq 64 --steps 2",
        "validate tiny-cpu --seq 64 --steps 1",
    ];
    for line in lines {
        fs::write(&path, said(&format!("{line} --json"), 0)).unwrap();
        let page = said(&format!("report tiny-cpu --measured {}", path.display()), 0);
        assert!(page.contains("equal to the byte"), "{line}");
        let shown = figures(&page);
        let measured = shown
            .iter()
            .filter(|(_, at, _)| at.starts_with("#measured"));
        assert!(measured.count() >= 8, "{line}");
        assert_figures(&page);
        let mut wrong: Value = embedded(&page, "measured");
        let peaks = ["/measured/peak/gpu", "/validation/measured/gpu"];
        let peak = peaks.iter().find(|at| wrong.pointer(at).is_some()).unwrap();
        *wrong.pointer_mut(peak).unwrap() = 1.into();
        fs::write(&path, wrong.to_string()).unwrap();
        let page = said(&format!("report tiny-cpu --measured {}", path.display()), 0);
        assert!(page.contains("DIFFERENT"), "{line}");
    }
    assert!(said("report tiny-cpu", 0).contains("Nothing was measured"));
}

#[test]
fn each_figure_is_a_file_of_its_own() {
    for figure in ["memory", "timeline", "front", "budget"] {
        let drawing = said(&format!("report 7b-24gb --svg {figure}"), 0);
        assert!(drawing.starts_with("<svg xmlns=\"http://www.w3.org/2000/svg\""));
        assert_whole(&drawing);
        assert!(!drawing.contains("NaN") && !drawing.contains("inf\""));
        assert!(drawing.contains("prefers-color-scheme"));
    }
    let memory = said("report 7b-24gb --svg memory", 0);
    let peak = json("explain 7b-24gb", 0)["estimate"]["peak"]["gpu"].as_u64();
    let peak = peak.unwrap() as f64 / (1u64 << 30) as f64;
    assert!(memory.contains(&format!("peak {peak:.2} GiB")) && memory.contains("budget 23.07 GiB"));
    // A pointer is told the largest tensors by name.
    assert!(memory.contains("MiB  embedding/token.weight (parameters)"));
}

#[test]
fn what_is_no_measurement_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("measured.json");
    for text in ["", "{}", "[1]", "{\"predicted\":{\"peak\":{}}}", "\u{0}"] {
        fs::write(&path, text).unwrap();
        let line = format!("report tiny-cpu --measured {}", path.display());
        let told: Value = json(&line, 2);
        let error = told["error"].as_str().unwrap();
        assert!(error.contains("measured.json"), "{error}");
        assert!(error.contains("memfit run"), "{error}");
    }
    assert!(!Path::new(&folder.path().join("page.html")).exists());
    for line in [
        "report",
        "report 7b-25gb",
        "report tiny-cpu --svg cake",
        "trace",
    ] {
        said(line, 2);
    }
}
