//! The lists of models, devices and techniques, for people.

use super::facts::{ArgumentFacts, DeviceFacts, ModelFacts, RefusedPair, TechniqueFacts};
use super::table::Column::{Left, Right, Wrapped};
use super::table::{Table, labelled};
use crate::spec::units::{show_count, show_flops, show_rate};

/// The models, one a row.
pub fn models(models: &[ModelFacts]) -> String {
    let heads = [
        "model",
        "parameters",
        "layers",
        "hidden",
        "vocab",
        "longest",
        "also",
    ];
    let columns = [Left, Right, Right, Right, Right, Right, Wrapped];
    // What a narrow terminal does without: vocabulary, length, width, depth.
    let mut table = Table::new(&columns).gives_way(&[4, 5, 3, 2]).heads(&heads);
    for model in models {
        table.row(vec![
            model.name.to_string(),
            show_count(model.parameters),
            model.layers.to_string(),
            model.hidden.to_string(),
            model.vocab.to_string(),
            model.max_positions.to_string(),
            shortest(&model.aliases),
        ]);
    }
    let note = "--model also takes a config.json, a folder that holds one, or a .gguf file.";
    format!("{}\n{}", table.render(), labelled("", note, 0))
}

/// The shortest other name: the one to type.
fn shortest(aliases: &[&str]) -> String {
    let shortest = aliases.iter().min_by_key(|a| a.len());
    shortest.map_or(String::new(), |a| a.to_string())
}

/// The devices, one a row.
pub fn devices(devices: &[DeviceFacts]) -> String {
    let heads = [
        "device",
        "name",
        "memory",
        "memory rate",
        "bf16 TFLOP/s",
        "link",
    ];
    let columns = [Left, Wrapped, Right, Right, Right, Right];
    // What a narrow terminal does without: the name, which the first column tells, the link, the memory's rate.
    let mut table = Table::new(&columns).gives_way(&[1, 5, 3]).heads(&heads);
    for DeviceFacts { device, .. } in devices {
        table.row(vec![
            device.id.clone(),
            device.name.clone(),
            device.memory.to_string(),
            show_rate(device.bandwidth),
            device.peak.bf16.map_or("-".to_string(), show_flops),
            show_rate(device.link),
        ]);
    }
    let note = "--gpu also takes a size such as 24GB (any card sold with that much) or 512MiB (exactly that), or a device file.";
    format!("{}\n{}", table.render(), labelled("", note, 0))
}

/// The techniques, each with its arguments.
pub fn techniques(techniques: &[TechniqueFacts]) -> String {
    let each: Vec<String> = techniques.iter().map(technique).collect();
    each.join("\n")
}

fn technique(technique: &TechniqueFacts) -> String {
    let mut text = format!("{} ({})\n", technique.name, technique.exactness);
    text += &labelled("", technique.summary, 2);
    text += &labelled("", technique.source, 2);
    if !technique.composed_of.is_empty() {
        text += &labelled("", &format!("is {}", technique.composed_of.join(" + ")), 2);
    }
    let mut table = Table::new(&[Left, Left, Wrapped]).indent(4);
    for ArgumentFacts {
        key,
        default,
        meaning,
    } in &technique.arguments
    {
        table.row(vec![
            key.to_string(),
            default.to_string(),
            meaning.to_string(),
        ]);
    }
    text + &table.render()
}

/// The pairs that exclude each other, by the one that is listed first.
pub fn refused(pairs: &[RefusedPair]) -> String {
    let mut text = "All of them compose with each other, but for\n".to_string();
    for one in pairs.chunk_by(|a, b| a.one == b.one) {
        let others: Vec<&str> = one.iter().map(|pair| pair.other).collect();
        text += &labelled("", &format!("{}: {}", one[0].one, others.join(", ")), 2);
    }
    text + "(`--json` says why).\n"
}
