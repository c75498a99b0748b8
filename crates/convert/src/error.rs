//! Why a conversion ends.

use std::path::{Path, PathBuf};

use moi_checkpoint::CheckpointError;
use moi_pretrained::PretrainedError;

/// Why nothing was converted.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// A file cannot be read or written.
    #[error("{path}: {error}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// A file is not what it should be.
    #[error("{path}: {what}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The source is no model, or the result none.
    #[error(transparent)]
    Model(#[from] PretrainedError),
    /// The weights' files.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// What was asked for cannot be done.
    #[error("{0}")]
    Refused(String),
    /// The result is not what it should be.
    #[error("the result differs from the source: {0}")]
    Differs(String),
}

impl ConvertError {
    pub(crate) fn io(path: &Path, error: std::io::Error) -> Self {
        Self::Io { path: path.to_owned(), error }
    }

    pub(crate) fn file(path: &Path, what: impl ToString) -> Self {
        Self::File { path: path.to_owned(), what: what.to_string() }
    }
}
