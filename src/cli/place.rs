//! `memfit place`: offsets for buffers of known lives.

use std::path::PathBuf;
use std::time::Instant;

use memfit::error::{Error, Result};
use memfit::program::packing::{Effort, Item, Packing, file, pack};
use serde_json::json;

use super::{Answer, DONE, MISFIT, files};

/// Arguments of `place`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// CSV with columns id, lower, upper and size: a buffer lives from lower until before upper
    pub file: PathBuf,
    /// Units that there are: it is enough to stay within them
    #[arg(long, value_name = "SIZE")]
    pub capacity: Option<u64>,
    /// Buffers live at upper, too
    #[arg(long)]
    pub closed: bool,
    /// Where the buffers are written with their offsets
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// Places the buffers of a file.
///
/// # Errors
/// Where the file cannot be read or used, or the output cannot be written.
pub fn place(args: &Args) -> Result<Answer> {
    let begin = Instant::now();
    let text = std::fs::read_to_string(&args.file).map_err(|e| Error::io(&args.file, "read", e))?;
    let named = file::parse(&args.file.display().to_string(), &text, args.closed)?;
    let items: Vec<Item> = named.iter().map(|(_, item)| *item).collect();
    let effort = Effort {
        capacity: args.capacity.unwrap_or(0),
        ..Effort::THOROUGH
    };
    let found = pack(&items, &effort);
    let seconds = begin.elapsed().as_secs_f64();
    if let Some(output) = &args.output {
        files::write(output, &file::solution(&named, &found.offsets, args.closed))?;
    }
    let Packing {
        offsets,
        height,
        load,
    } = found;
    let over = match args.capacity {
        Some(capacity) if height > capacity => {
            format!("MISFIT: {} above {capacity}\n", height - capacity)
        }
        _ => String::new(),
    };
    let proof = match height == load {
        true => "the load, so no placement is lower".to_string(),
        false => format!(
            "{:.3} % above the load, {load}",
            100.0 * (height as f64 / load.max(1) as f64 - 1.0)
        ),
    };
    let status = if over.is_empty() { DONE } else { MISFIT };
    Ok(Answer {
        text: format!(
            "{over}{} buffers in {height}: {proof} ({seconds:.2} s)\n",
            items.len()
        ),
        json: json!({
            "buffers": items.len(),
            "height": height,
            "load": load,
            "offsets": offsets,
            "seconds": seconds,
        }),
        status,
    })
}
