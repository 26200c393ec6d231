//! `memfit completions` and `memfit man`: what shells and `man` know of the command line.

use std::fs;
use std::path::PathBuf;

use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;
use memfit::error::{Error, Result};
use serde_json::json;

use super::{Answer, Cli, DONE, files};

/// Arguments of `completions`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  memfit completions bash")]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Arguments of `man`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  memfit man -o man")]
pub struct ManArgs {
    /// Write the pages of all commands into this folder
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
}

/// The script that completes commands and arguments.
///
/// # Errors
/// None.
pub fn completions(args: &CompletionsArgs) -> Result<Answer> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "memfit", &mut script);
    let text = String::from_utf8_lossy(&script).into_owned();
    Ok(Answer {
        json: json!({"shell": args.shell.to_string(), "script": text}),
        text,
        status: DONE,
    })
}

/// The page of memfit, or the pages of it and all its commands.
///
/// # Errors
/// Where a page cannot be written.
pub fn man(args: &ManArgs) -> Result<Answer> {
    let cli = Cli::command();
    let Some(dir) = &args.output else {
        let text = page("memfit", &cli)?;
        return Ok(Answer {
            json: json!({"page": text}),
            text,
            status: DONE,
        });
    };
    fs::create_dir_all(dir).map_err(|e| Error::io(dir, "make", e))?;
    let commands = cli
        .get_subcommands()
        .map(|c| (format!("memfit-{}", c.get_name()), c));
    let mut written = Vec::new();
    for (name, command) in [("memfit".to_string(), &cli)].into_iter().chain(commands) {
        let path = dir.join(format!("{name}.1"));
        files::write(&path, &page(&name, command)?)?;
        written.push(path);
    }
    let lines = written
        .iter()
        .map(|path| format!("wrote {}\n", path.display()));
    Ok(Answer {
        text: lines.collect(),
        json: json!({"written": written}),
        status: DONE,
    })
}

fn page(name: &str, command: &Command) -> Result<String> {
    let mut page = Vec::new();
    let named = command.clone().name(name.to_string());
    let rendered = Man::new(named).render(&mut page);
    rendered.map_err(|e| Error::io(name, "render", e))?;
    Ok(String::from_utf8_lossy(&page).into_owned())
}
