//! Errors of tasks and files of results.

use std::{io, path::PathBuf};

/// Why a task or a file of results cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// A file cannot be read or written.
    #[error("{path}: {error}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },
    /// A line of a task is not valid.
    #[error("{path}, line {line}: {what}", path = path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line number, from 1.
        line: usize,
        /// What is wrong with the line.
        what: String,
    },
    /// A task has no problems.
    #[error("{path} has no problems", path = .0.display())]
    Empty(PathBuf),
    /// A prompt template is not valid.
    #[error("the prompt template cannot be used: {0}")]
    Template(#[from] minijinja::Error),
    /// The files of shards do not form a complete run.
    #[error("{path}: {what}", path = path.display())]
    Shards {
        /// One of the files.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A file has results of another run.
    #[error(
        "{path} has results of another run: {what}; give another file, or move that one away",
        path = path.display()
    )]
    OtherRun {
        /// The file.
        path: PathBuf,
        /// What differs.
        what: String,
    },
}
