//! What each command's help ends with: lines that work as they stand. A test runs every one of them.

use clap::CommandFactory;

use super::Cli;

/// Commands with their examples.
const EXAMPLES: [(&str, &[&str]); 21] = [
    (
        "plan",
        &[
            "memfit plan --gpu 24GB --model 7b",
            "memfit plan --gpu rtx-4090 --model llama-3.2-1b --seq 1024 --batch 4 -o plan.toml",
            "memfit plan --gpu 16GB --model gpt2 --fix recompute --json",
        ],
    ),
    (
        "gpus",
        &["memfit gpus --model llama-3.2-1b --max-price 500 --tokens 1B --sort price"],
    ),
    (
        "fit",
        &["memfit fit --gpu rtx-3060-12gb --model gpt2 --goal lora"],
    ),
    ("tui", &["memfit tui", "memfit tui --gpu 24GB --model 7b"]),
    (
        "run",
        &[
            "memfit run --model tiny --gpu 64MiB --seq 64 --batch 4 --steps 10 --save saved",
            "memfit run --resume saved --steps 15",
        ],
    ),
    (
        "trial",
        &[
            "memfit trial --model tiny --gpu 64MiB --seq 64 --batch 4 --steps 10 --candidates adamw,lion",
        ],
    ),
    (
        "estimate",
        &[
            "memfit estimate --model gpt2 --torch batch=4,seq=512,autocast=bf16",
            "memfit estimate --model llama-3.2-1b --gpu 24GB --torch batch=1,seq=2048,lora.r=16",
        ],
    ),
    ("validate", &["memfit validate tiny-cpu"]),
    ("selftest", &["memfit selftest -o selftest.json"]),
    ("explain", &["memfit explain 7b-24gb"]),
    (
        "report",
        &[
            "memfit report 7b-24gb -o report.html",
            "memfit report --gpu 24GB --model gpt2 --svg memory -o memory.svg",
        ],
    ),
    ("trace", &["memfit trace 7b-24gb -o trace.json"]),
    ("models", &["memfit models", "memfit models --json"]),
    ("devices", &["memfit devices", "memfit devices --json"]),
    ("techniques", &["memfit techniques"]),
    ("calibrate", &["memfit calibrate --quick -o here.toml"]),
    ("place", &["memfit place buffers.csv --capacity 1048576"]),
    ("compare", &["memfit compare runs.jsonl --worst 5"]),
    ("bench", &["memfit bench agreement --smoke"]),
    (
        "completions",
        &["memfit completions bash", "memfit completions zsh"],
    ),
    ("man", &["memfit man", "memfit man -o man"]),
];

/// The command line with its examples.
pub fn command() -> clap::Command {
    EXAMPLES.iter().fold(Cli::command(), |cli, (name, lines)| {
        cli.mut_subcommand(name, |command| {
            let said = command.get_after_help().map(|said| format!("{said}\n\n"));
            let lines: Vec<String> = lines.iter().map(|line| format!("  {line}")).collect();
            let said = said.unwrap_or_default() + "Examples:\n" + &lines.join("\n");
            command.after_help(said)
        })
    })
}
