//! What cannot be used.

use std::{io, path::PathBuf};

/// A task or a file of results that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// A file that cannot be read or written.
    #[error("{path}: {error}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        error: io::Error,
    },
    /// A line of a task.
    #[error("{path}, line {line}: {what}", path = path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What is wrong with it.
        what: String,
    },
    /// A task without problems.
    #[error("{path} has no problems", path = .0.display())]
    Empty(PathBuf),
    /// A prompt template.
    #[error("the prompt template cannot be used: {0}")]
    Template(#[from] minijinja::Error),
    /// Files of shards that do not make a whole.
    #[error("{path}: {what}", path = path.display())]
    Shards {
        /// One of the files.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// Results of something else.
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
