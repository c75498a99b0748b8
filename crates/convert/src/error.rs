//! Errors of conversions.

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
        /// The system's error.
        error: std::io::Error,
    },
    /// A file is not valid.
    #[error("{path}: {what}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with the file.
        what: String,
    },
    /// The source or the result is no usable model.
    #[error(transparent)]
    Model(#[from] PretrainedError),
    /// The files of the weights are not valid.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The requested conversion is not possible.
    #[error("{0}")]
    Refused(String),
    /// The result differs from the source.
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
