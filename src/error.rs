//! The one error type: each variant names the thing, the value and the next step.

use std::fmt;
use std::path::{Path, PathBuf};

/// What went wrong, with the values a caller could act on. A plan that does not fit is not an error but an answer.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// A name that is in no list: a model, a device, a technique, a key.
    Unknown {
        /// What kind of thing was asked for, in the singular.
        kind: &'static str,
        /// The name as typed.
        name: String,
        /// The nearest known name, where one is near.
        suggestion: Option<String>,
        /// What to do next.
        next: String,
    },
    /// A value that is understood but cannot be used.
    Value {
        /// The argument, field or setting.
        what: String,
        /// The value as given.
        value: String,
        /// Why it cannot be used.
        why: String,
        /// What to do next.
        next: String,
    },
    /// A file whose contents cannot be used.
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and where.
        why: String,
        /// What to do next.
        next: String,
    },
    /// The operating system refused an action on a file or folder.
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was attempted: "read", "write", "create".
        action: &'static str,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// An op was given tensors it is not defined on.
    Shape {
        /// The op.
        op: &'static str,
        /// What was expected and what came.
        why: String,
    },
    /// Two choices that exclude each other.
    Conflict {
        /// The first choice.
        one: String,
        /// The second choice.
        other: String,
        /// Why they exclude each other.
        why: String,
        /// What to do next.
        next: String,
    },
    /// A program broke a rule of the checker.
    Rule {
        /// The rule's name.
        rule: &'static str,
        /// The instruction's index in the program's text.
        instruction: usize,
        /// What happened, naming every buffer concerned.
        why: String,
    },
    /// The user asked to stop; what was saved remains.
    Interrupted {
        /// Where the last save is, where there is one.
        saved: Option<PathBuf>,
    },
}

/// A result whose error is [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An unknown `name` of a `kind`, with the nearest of `known` as suggestion.
    pub fn unknown<'a>(
        kind: &'static str,
        name: &str,
        known: impl IntoIterator<Item = &'a str>,
        next: impl Into<String>,
    ) -> Error {
        let wanted = name.to_lowercase();
        let suggestion = known
            .into_iter()
            .map(|k| (strsim::damerau_levenshtein(&wanted, &k.to_lowercase()), k))
            .min()
            .filter(|(distance, k)| *distance <= 1 + k.len() / 3)
            .map(|(_, k)| k.to_string());
        Error::Unknown {
            kind,
            name: name.to_string(),
            suggestion,
            next: next.into(),
        }
    }

    /// A value of `what` that cannot be used, because of `why`; do `next`.
    pub fn value(
        what: impl Into<String>,
        value: impl fmt::Display,
        why: impl Into<String>,
        next: impl Into<String>,
    ) -> Error {
        Error::Value {
            what: what.into(),
            value: value.to_string(),
            why: why.into(),
            next: next.into(),
        }
    }

    /// A file at `path` whose contents cannot be used, because of `why`; do `next`.
    pub fn file(path: impl AsRef<Path>, why: impl Into<String>, next: impl Into<String>) -> Error {
        Error::File {
            path: path.as_ref().to_path_buf(),
            why: why.into(),
            next: next.into(),
        }
    }

    /// The operating system refused `action` on `path`.
    pub fn io(path: impl AsRef<Path>, action: &'static str, source: std::io::Error) -> Error {
        Error::Io {
            path: path.as_ref().to_path_buf(),
            action,
            source,
        }
    }

    /// An op that was given tensors it is not defined on.
    pub fn shape(op: &'static str, why: impl Into<String>) -> Error {
        Error::Shape {
            op,
            why: why.into(),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Unknown {
                kind,
                name,
                suggestion: Some(near),
                next,
            } => write!(f, "unknown {kind} `{name}`; did you mean `{near}`? {next}"),
            Error::Unknown {
                kind,
                name,
                suggestion: None,
                next,
            } => write!(f, "unknown {kind} `{name}`; {next}"),
            Error::Value {
                what,
                value,
                why,
                next,
            } => write!(f, "{what} `{value}`: {why}; {next}"),
            Error::File { path, why, next } => write!(f, "{}: {why}; {next}", path.display()),
            Error::Io {
                path,
                action,
                source,
            } => write!(
                f,
                "cannot {action} {}: {source}; {}",
                path.display(),
                io_next(source)
            ),
            Error::Shape { op, why } => write!(f, "op `{op}`: {why}"),
            Error::Conflict {
                one,
                other,
                why,
                next,
            } => write!(f, "`{one}` and `{other}` exclude each other: {why}; {next}"),
            Error::Rule {
                rule,
                instruction,
                why,
            } => write!(
                f,
                "program breaks the rule `{rule}` at instruction {instruction}: {why}"
            ),
            Error::Interrupted { saved: Some(path) } => {
                write!(
                    f,
                    "interrupted; the last save is {0}; continue with --resume {0}",
                    path.display()
                )
            }
            Error::Interrupted { saved: None } => write!(
                f,
                "interrupted before anything was saved; start again, with --save DIR to keep progress"
            ),
        }
    }
}

/// The next step for the operating system's common refusals.
fn io_next(source: &std::io::Error) -> &'static str {
    use std::io::ErrorKind::{NotFound, PermissionDenied, ReadOnlyFilesystem, StorageFull};
    match source.kind() {
        NotFound => "check the path",
        PermissionDenied | ReadOnlyFilesystem => "choose a folder you may write to",
        StorageFull => "free space there or choose another disk",
        _ => "check the device and try again",
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}
