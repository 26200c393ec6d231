//! A self-test for people: which plans held, and what the device reaches.

use super::table::{Column, Table};
use crate::machine::selftest::Report;
use crate::spec::units::show_rate;

/// The report as text.
pub fn text(report: &Report) -> String {
    let capability = format!("{}.{}", report.capability / 10, report.capability % 10);
    let mut text = format!(
        "{}, compute capability {capability}: {} of {} plans agree with the CPU\n",
        report.device,
        report.agree(),
        report.rows.len(),
    );
    for row in &report.rows {
        if let Some(why) = &row.failure {
            text += &format!("  {}: {why}\n", row.name);
        }
        if let Some(op) = &row.missing {
            text += &format!("  {}: not run, `{op}` has no kernel yet\n", row.name);
        }
    }
    let largest = report.rows.iter().map(|r| r.distance / r.bound);
    text += &format!(
        "largest distance of losses: {:.0} % of what is allowed\n",
        100.0 * largest.fold(0.0, f32::max)
    );
    text += &format!(
        "memory: {} in total, {} free before, {} after\n",
        report.memory, report.free_before, report.free_after
    );
    for note in &report.notes {
        text += &format!("{note}\n");
    }
    text + "\n" + &reached(report)
}

fn reached(report: &Report) -> String {
    let c = &report.ceilings;
    let flops = |rate: f64| format!("{:.2} TFLOP/s", rate / 1e12);
    let mut table = Table::new(&[Column::Left, Column::Right]).heads(&["reached", ""]);
    let rows = [
        ("product of our own, f32", flops(c.product_f32)),
        ("product of our own, bf16", flops(c.product_bf16)),
        ("product of our own, fp16", flops(c.product_fp16)),
        ("copy within the device", show_rate(c.copy)),
        ("to the device", show_rate(c.to_device)),
        ("to the host", show_rate(c.to_host)),
        ("both ways at once", show_rate(c.both)),
        ("kernels", format!("{:.1} µs each", 1e6 * c.launch)),
    ];
    for (what, value) in rows {
        table.row(vec![what.to_string(), value]);
    }
    table.render()
}
