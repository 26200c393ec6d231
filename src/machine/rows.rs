//! Files of results that grow as they are made: a JSON object a line.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};

/// The rows of a file, none where there is no file; a line cut short by a crash is no row.
///
/// # Errors
/// Where the file is there but cannot be read.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    let text = match std::fs::read_to_string(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        text => text.map_err(|e| Error::io(path, "read", e))?,
    };
    let rows = text.lines();
    Ok(rows
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect())
}

/// A row that stands for something by its name: a later one replaces an earlier one.
pub trait Named {
    /// What it stands for.
    fn name(&self) -> &str;
}

/// The rows of a file, one for each name, those that were made last.
///
/// # Errors
/// As [`read`].
pub fn latest<T: DeserializeOwned + Named>(path: &Path) -> Result<Vec<T>> {
    let mut kept = Vec::new();
    read(path)?
        .into_iter()
        .for_each(|row| replace(&mut kept, row));
    Ok(kept)
}

/// Puts a row in the place of the one of its name.
fn replace<T: Named>(rows: &mut Vec<T>, row: T) {
    rows.retain(|r| r.name() != row.name());
    rows.push(row);
}

/// Whether a case called `name` is wanted where `only` those are that begin so.
pub fn wants(only: Option<&str>, name: &str) -> bool {
    only.is_none_or(|only| name.starts_with(only))
}

/// Expects at least one of `names` to be wanted; `form` says what they look like.
///
/// # Errors
/// Where none is.
pub fn expect_any(only: Option<&str>, names: &[String], form: &str) -> Result<()> {
    match only {
        Some(only) if !names.iter().any(|name| wants(Some(only), name)) => {
            let known = names.iter().map(String::as_str);
            let next = format!("give {form}, or how it begins");
            Err(Error::unknown("case", only, known, next))
        }
        _ => Ok(()),
    }
}

/// Adds a row to a file and to the rows that were read from it.
///
/// # Errors
/// As [`append`].
pub fn keep<T: Serialize + Named>(path: &Path, rows: &mut Vec<T>, row: T) -> Result<()> {
    append(path, row.name(), &row)?;
    replace(rows, row);
    Ok(())
}

/// Adds a row to a file, called `name` where it cannot be written as JSON.
///
/// # Errors
/// Where the file cannot be written.
pub fn append<T: Serialize>(path: &Path, name: &str, row: &T) -> Result<()> {
    let next = "report it with the command that led to it";
    let line =
        serde_json::to_string(row).map_err(|e| Error::value("row", name, e.to_string(), next))?;
    let file = OpenOptions::new().create(true).append(true).open(path);
    let mut file = file.map_err(|e| Error::io(path, "open", e))?;
    file.write_all(format!("{line}\n").as_bytes())
        .map_err(|e| Error::io(path, "write", e))
}
