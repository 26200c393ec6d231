//! `memfit completions` and `memfit man`: what shells and `man` know of the command line.

use std::fs;
use std::path::PathBuf;

use clap_complete::Shell;
use clap_mangen::Man;
use memfit::error::{Error, Result};
use serde_json::json;

use super::{Answer, DONE, examples};

/// Arguments of `completions`.
#[derive(Debug, clap::Args)]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Arguments of `man`.
#[derive(Debug, clap::Args)]
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
    clap_complete::generate(args.shell, &mut examples::command(), "memfit", &mut script);
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
    let cli = examples::command();
    let Some(dir) = &args.output else {
        let mut page = Vec::new();
        let rendered = Man::new(cli).render(&mut page);
        rendered.map_err(|e| Error::io("memfit.1", "render", e))?;
        let text = String::from_utf8_lossy(&page).into_owned();
        return Ok(Answer {
            json: json!({"page": text}),
            text,
            status: DONE,
        });
    };
    let written = fs::create_dir_all(dir).and_then(|()| clap_mangen::generate_to(cli, dir));
    written.map_err(|e| Error::io(dir, "write", e))?;
    Ok(Answer {
        text: format!("wrote the pages into {}\n", dir.display()),
        json: json!({"written": dir}),
        status: DONE,
    })
}
