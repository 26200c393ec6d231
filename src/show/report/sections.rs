//! The parts of the page in words: verdict, facts, claim, misfit, time, assumptions, measurements, and how it was made.

use super::Report;
use super::markup::{Row, Set, bytes, number, paragraph, seconds, section, table};
use crate::machine::sim::{MATMUL_EFFICIENCY, MEMORY_EFFICIENCY};
use crate::search::Outcome;
use crate::show::choice::class_sentence;
use crate::show::figure::Figure;
use crate::show::figure::svg::{escape, key};
use crate::show::job::{assumptions as assumed, device_line, host_values, model_line};
use crate::show::memory::{in_use, passed, phase_name, row_name, stream_name};
use crate::show::text::{blame, proof_line};
use crate::spec::device::{LAUNCH, RESERVED};
use crate::spec::units::{Bytes, Seconds};

/// Whether it fits, in a sentence.
pub fn verdict(report: &Report) -> String {
    let estimate = &report.best().estimate;
    let step = seconds(estimate.step, "/estimate/step_seconds");
    let rate = estimate.tokens_per_second;
    let rate = number(rate, &format!("{rate:.0}"), "/estimate/tokens_per_second");
    let peak = bytes(estimate.peak.gpu, "/estimate/peak/gpu");
    let most = report.answer.budget.most(crate::spec::job::Place::Gpu);
    let most = bytes(most, "/budget/gpu");
    let name = escape(report.name);
    let (class, says) = match report.fits() {
        true => (
            "verdict",
            format!(
                "<strong>Fits</strong> with <em>{name}</em>: a step takes {step} ({rate} tokens/s) and {peak} of the {most} of device memory that there are for it."
            ),
        ),
        false => (
            "verdict misfit",
            format!(
                "<strong>Does not fit.</strong> The closest plan, <em>{name}</em>, needs {peak} of device memory and has {most}."
            ),
        ),
    };
    let proof = report.answer.certificate.as_ref().map(proof_line);
    let proof = proof.map_or(String::new(), |line| paragraph("note", &line));
    let pytorch = paragraph("note", report.pytorch.trim());
    let exactness = paragraph("", class_sentence(report.plan()));
    let tiles = tiles(report);
    format!("<p class=\"{class}\">{says}</p>\n{tiles}{exactness}{proof}{pytorch}")
}

/// The figures that a decision hangs on, large.
fn tiles(report: &Report) -> String {
    let estimate = &report.best().estimate;
    let budget = &report.answer.budget;
    let rate = estimate.tokens_per_second;
    let at = "/estimate/tokens_per_second";
    let days = 1e9 / rate / 86_400.0;
    let mut tiles = vec![
        (number(rate, &format!("{rate:.0}"), at), "tokens a second"),
        (
            seconds(estimate.step, "/estimate/step_seconds"),
            "an optimizer step",
        ),
        (format!("{days:.1} days"), "for a billion tokens"),
    ];
    for row in in_use(estimate, budget) {
        tiles.push((bytes(row.need, ""), row_name(row.places)));
    }
    let tile = |(figure, name): &(String, &str)| {
        format!("<div><strong>{figure}</strong><span>{name}</span></div>\n")
    };
    let tiles: String = tiles.iter().map(tile).collect();
    format!("<div class=\"tiles\">\n{tiles}</div>\n")
}

/// Model, device and machine.
pub fn facts(report: &Report) -> String {
    let plan = report.plan();
    let target = &plan.job.target;
    let host = host_values(&target.host, &target.device).into_iter();
    let host: Vec<String> = host.map(|value| value.text).collect();
    let facts = [
        ("model", model_line(plan, report.asked)),
        ("device", device_line(&target.device)),
        ("machine", host.join(", ")),
    ];
    let each = facts.map(|(name, text)| format!("<dt>{name}</dt><dd>{}</dd>\n", escape(&text)));
    format!("<dl>\n{}</dl>\n", each.concat())
}

/// Whether what the plan's file claims still holds.
pub fn claim(report: &Report) -> String {
    match report.claim {
        None => String::new(),
        Some([]) => paragraph(
            "",
            "The claim saved with the plan holds: derived again, equal.",
        ),
        Some(found) => {
            let found = found.join("; ");
            let text = format!(
                "The claim saved with the plan does NOT hold: {found}. Write it anew with `memfit explain PLAN -o PLAN`."
            );
            paragraph("warning", &text)
        }
    }
}

/// What is passed, who holds it, and what would fit.
pub fn misfit(report: &Report) -> String {
    let Outcome::Misfit(misfit) = &report.answer.outcome else {
        return String::new();
    };
    let estimate = &misfit.closest.estimate;
    let mut body = String::new();
    for (at, row) in passed(estimate, &report.answer.budget).iter().enumerate() {
        let over = bytes(row.need - row.have, "");
        let need = bytes(row.need, &format!("/misfit/passed/{at}/need"));
        let have = bytes(row.have, &format!("/misfit/passed/{at}/have"));
        body += &format!("<p><strong>{over} too much</strong>: needs {need}, has {have}.</p>\n");
        body += &paragraph("note", &blame(row, estimate));
    }
    body += &paragraph("", &format!("It is reached in {}.", misfit.instant));
    let holders = misfit.holders.iter().enumerate();
    let holders: Vec<Row> = holders
        .map(|(at, (name, held))| {
            let held = bytes(*held, &format!("/misfit/holders/{at}/bytes"));
            ("", vec![escape(name), held])
        })
        .collect();
    let heads = [("who holds it", Set::Text), ("bytes", Set::Number)];
    body += &table(&heads, &holders);
    let changes = [&misfit.change].into_iter().chain(&misfit.changes);
    let changes = changes.map(|change| format!("<li>{}</li>\n", escape(change)));
    body += &format!(
        "<p>Each of these alone would fit:</p>\n<ul>\n{}</ul>\n",
        changes.collect::<String>()
    );
    section("What is over, and what would fit", &body)
}

/// The timeline, and where the time goes.
pub fn time(report: &Report) -> String {
    let estimate = &report.best().estimate;
    let mut rows: Vec<Row> = vec![(
        "own",
        vec![
            "step".into(),
            seconds(estimate.step, "/estimate/step_seconds"),
        ],
    )];
    for (phase, &spent) in &estimate.phases {
        let at = format!("/estimate/phases/{}", key(phase));
        let name = format!("device: {}", phase_name(*phase));
        rows.push(("part", vec![name, seconds(Seconds(spent), &at)]));
    }
    let waits = seconds(estimate.exposed, "/estimate/exposed_seconds");
    let name = "device: waits for copies and the host";
    rows.push(("part", vec![name.into(), waits]));
    for (stream, &busy) in &estimate.busy {
        if *stream != crate::graph::Stream::Compute {
            let at = format!("/estimate/busy/{}", key(stream));
            let name = format!("beside it: {}", stream_name(*stream));
            rows.push(("part", vec![name, seconds(Seconds(busy), &at)]));
        }
    }
    let heads = [
        ("of an optimizer step", Set::Text),
        ("seconds", Set::Number),
    ];
    let caption = "A bar is as high as the stream is busy. Each program of the step is drawn once, however often it runs.";
    let body = report.figure(Figure::Timeline, caption) + &table(&heads, &rows);
    section("The step by stream", &body)
}

/// What nobody gave, and where its value is from.
pub fn assumptions(report: &Report) -> String {
    let target = &report.plan().job.target;
    let device = &target.device;
    let assumed = assumed(target, &report.asked.given).into_iter();
    let mut rows: Vec<[String; 2]> = assumed
        .map(|a| [a.text, format!("default; {} sets it", a.flag)])
        .collect();
    let rates = format!("memory, rates and link of {}", device.name);
    if !device.source.is_empty() {
        rows.push([rates, device.source.clone()]);
    }
    if !device.notes.is_empty() {
        rows.push([device.notes.clone(), "the device's file".into()]);
    }
    if device.reserved == RESERVED {
        let text = format!("{RESERVED} of the device for context and libraries");
        let source = "measured contexts take 0.1 to 0.6 GiB, depending on driver and libraries";
        rows.push([text, source.into()]);
    }
    if device.efficiency.is_empty() && device.threads.is_none() {
        let text = format!(
            "matrix products reach {:.0} % of the device's peak, other kernels {:.0} % of its bandwidth",
            100.0 * MATMUL_EFFICIENCY,
            100.0 * MEMORY_EFFICIENCY
        );
        let source = "published sweeps (stas00/ml-engineering, compute/accelerator) find 0.78 to 0.87 for large products on A100, H100 and B200; nothing was measured on this device";
        rows.push([text, source.into()]);
    }
    if device.launch == LAUNCH && device.threads.is_none() {
        let text = format!("{LAUNCH} to launch a kernel");
        rows.push([text, "default where nobody measured it".into()]);
    }
    let rows: Vec<Row> = rows
        .into_iter()
        .map(|cells| ("", cells.map(|c| escape(&c)).to_vec()))
        .collect();
    let heads = [("assumed", Set::Text), ("source", Set::Text)];
    let note = "Bytes do not depend on any of the rates; seconds do.";
    let body = table(&heads, &rows) + &paragraph("note", note);
    section("What was assumed", &body)
}

/// A run beside its prediction, or how to get one.
pub fn measured(report: &Report) -> String {
    let Some(measured) = report.measured else {
        let body = "<p>Nothing was measured for this page. <code>memfit validate PLAN --json &gt; measured.json</code> runs the plan's programs \
                    on this machine's CPU, with as many layers as it holds; <code>memfit run PLAN --json</code> trains by them. \
                    <code>memfit report PLAN --measured measured.json</code> then shows both here.</p>\n";
        return section("Measured beside predicted", body);
    };
    let at = |pointer: &str| format!("#measured{pointer}");
    let mut rows: Vec<Row> = Vec::new();
    for pair in &measured.places {
        let verdict = match pair.predicted.0 == pair.measured.0 {
            true => "equal to the byte",
            false => "DIFFERENT",
        };
        let cell = |(size, pointer): &(Bytes, String)| bytes(*size, &at(pointer));
        let cells = [cell(&pair.predicted), cell(&pair.measured)];
        let [predicted, measured] = cells;
        rows.push((
            "",
            vec![pair.name.clone(), predicted, measured, verdict.into()],
        ));
    }
    for pair in &measured.times {
        let ratio = pair.predicted.0.0 / pair.measured.0.0;
        let verdict = match measured.calibrated && ratio.is_finite() {
            true => format!("{:+.0} %", 100.0 * (ratio - 1.0)),
            false => String::new(),
        };
        let cell = |(time, pointer): &(Seconds, String)| seconds(*time, &at(pointer));
        let cells = vec![
            pair.name.clone(),
            cell(&pair.predicted),
            cell(&pair.measured),
            verdict,
        ];
        rows.push(("", cells));
    }
    let heads = [
        ("", Set::Word),
        ("predicted", Set::Number),
        ("measured", Set::Number),
        ("", Set::Word),
    ];
    let mut body = paragraph("", &format!("From the answer of `{}`.", measured.command));
    body += &table(&heads, &rows);
    for left_out in &measured.left_out {
        body += &paragraph("note", &format!("Left out of that run: {left_out}."));
    }
    if !measured.calibrated {
        let text = "Its times were predicted for the plan's device, which is not the machine that ran; bytes were predicted for that machine.";
        body += &paragraph("note", text);
    }
    section("Measured beside predicted", &body)
}

/// How the page was made.
pub fn colophon(report: &Report) -> String {
    let version = env!("CARGO_PKG_VERSION");
    let allowed = crate::show::choice::class_name(report.request.allow);
    let text = format!(
        "Made by memfit {version}. The step was lowered to a program, proved by an independent checker, and simulated; every figure here \
         is read off that text. Alternatives were allowed to be {allowed}. The page carries its numbers as JSON: the script elements \
         `plan` and, where a run was given, `measured`."
    );
    paragraph("note", &text)
}
