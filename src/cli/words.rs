//! The words of the command line: those given, and those of a job file, which stand ahead of them.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use clap::CommandFactory;
use memfit::error::{Error, Result};
use toml::{Table, Value};

use super::Cli;

/// The job file that `plan` reads where neither a model nor another job file is named.
const USUAL: &str = "memfit.toml";

/// What a job file may not say: it would be about itself.
const OWN: &str = "job";

/// The arguments of this process, with those of the job file it names. A key of the file is the argument of that name; what the command
/// does not take is left out, and what is given as well wins.
///
/// # Errors
/// Where the file cannot be read, or holds something that no command takes.
pub fn all() -> Result<Vec<OsString>> {
    let given: Vec<OsString> = std::env::args_os().collect();
    let Some(at) = command_at(&given) else {
        return Ok(given);
    };
    let name = given[at].to_string_lossy().into_owned();
    let Some(file) = file(&name, &given) else {
        return Ok(given);
    };
    let table = read(&file)?;
    let mut words = given[..=at].to_vec();
    for (key, value) in &table {
        let flag = flag(&file, key)?;
        let is_given = has(&given, &flag) && !repeats(&name, &flag);
        if !is_given && takes(&name, &flag) {
            words.extend(said(&file, &flag, value)?);
        }
    }
    words.extend_from_slice(&given[at + 1..]);
    Ok(words)
}

/// Where the command stands.
fn command_at(given: &[OsString]) -> Option<usize> {
    let cli = Cli::command();
    let known = |word: &OsString| {
        word.to_str()
            .is_some_and(|w| cli.find_subcommand(w).is_some())
    };
    given.iter().skip(1).position(known).map(|at| at + 1)
}

/// The job file: the one that is named, or for `plan` without a model the usual one, where there is one.
fn file(command: &str, given: &[OsString]) -> Option<PathBuf> {
    let mut words = given.iter().map(|word| word.to_string_lossy());
    while let Some(word) = words.next() {
        match word.as_ref() {
            "--job" => return words.next().map(|path| path.into_owned().into()),
            word => {
                if let Some(path) = word.strip_prefix("--job=") {
                    return Some(path.into());
                }
            }
        }
    }
    let usual = PathBuf::from(USUAL);
    let open =
        command == "plan" && !has(given, "--model") && !has(given, "--help") && usual.is_file();
    open.then_some(usual)
}

fn read(file: &Path) -> Result<Table> {
    let text = fs::read_to_string(file).map_err(|e| Error::io(file, "read", e))?;
    let next = "write lines such as model = \"llama-3.1-8b\", one for each argument";
    text.parse()
        .map_err(|e: toml::de::Error| Error::file(file, e.message().to_string(), next))
}

/// The flag of a key.
fn flag(file: &Path, key: &str) -> Result<String> {
    let flag = format!("--{}", key.replace('_', "-"));
    let cli = Cli::command();
    let commands = cli.get_subcommands();
    let known = commands.flat_map(|c| c.get_arguments().filter_map(|a| a.get_long()));
    let mut known: Vec<String> = known.map(|long| long.replace('-', "_")).collect();
    known.retain(|long| long != OWN);
    if known.iter().any(|long| *long == key.replace('-', "_")) {
        return Ok(flag);
    }
    let next = format!(
        "see `memfit plan --help` for what {} may say",
        file.display()
    );
    Err(Error::unknown(
        "key of the job file",
        key,
        known.iter().map(String::as_str),
        next,
    ))
}

/// Whether a flag is among the words.
fn has(given: &[OsString], flag: &str) -> bool {
    let is = |word: &OsString| {
        let word = word.to_string_lossy();
        word == flag
            || word
                .strip_prefix(flag)
                .is_some_and(|rest| rest.starts_with('='))
    };
    given.iter().any(is)
}

/// Whether a command takes a flag.
fn takes(command: &str, flag: &str) -> bool {
    argument(command, flag).is_some()
}

/// Whether a command takes a flag more than once.
fn repeats(command: &str, flag: &str) -> bool {
    argument(command, flag).is_some_and(|a| matches!(a.get_action(), clap::ArgAction::Append))
}

fn argument(command: &str, flag: &str) -> Option<clap::Arg> {
    let cli = Cli::command();
    let mut own = cli.find_subcommand(command)?.get_arguments();
    let long = flag.strip_prefix("--");
    own.find(|a| a.get_long() == long).cloned()
}

/// A flag with its value, as they stand on a command line.
fn said(file: &Path, flag: &str, value: &Value) -> Result<Vec<OsString>> {
    let word = |value: &Value| match value {
        Value::String(text) => Ok(text.clone()),
        Value::Integer(number) => Ok(number.to_string()),
        Value::Float(number) => Ok(number.to_string()),
        _ => {
            let what = format!("{} has no text, number or list of them", &flag[2..]);
            Err(Error::file(file, what, "write it as on the command line"))
        }
    };
    let one = |value: &Value| Ok(OsString::from(format!("{flag}={}", word(value)?)));
    match value {
        Value::Boolean(true) => Ok(vec![flag.into()]),
        Value::Boolean(false) => Ok(Vec::new()),
        Value::Array(all) => all.iter().map(one).collect(),
        value => Ok(vec![one(value)?]),
    }
}
