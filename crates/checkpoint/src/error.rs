//! Errors of opening and loading checkpoints. Each error says which file, where in it, what was expected and what was
//! found. Messages are complete: a cause is part of its error's text, not a `source`, which would be printed twice.

use std::{fmt, path::PathBuf};

use crate::file::shown;

/// Why a checkpoint cannot be opened or loaded.
///
/// # Examples
/// ```
/// use moi_checkpoint::{CheckpointError, open_safetensors};
///
/// # let directory = tempfile::tempdir()?;
/// let absent = directory.path().join("absent.safetensors");
/// assert!(matches!(open_safetensors(&absent), Err(CheckpointError::Io { path, .. }) if path == absent));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The file cannot be opened or mapped.
    #[error("cannot open {path}: {error}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        error: std::io::Error,
    },
    /// The file does not follow its format: it is truncated, damaged, or something else.
    #[error("{path}: {place}: {what}", path = path.display(), place = shown(place), what = shown(what))]
    Format {
        /// The file.
        path: PathBuf,
        /// Where in the file.
        place: String,
        /// What is wrong there.
        what: String,
    },
    /// Tensors of the checkpoint do not fit the model.
    #[error("{path} does not fit the model:{problems}", path = path.display(), problems = list(problems))]
    Tensors {
        /// The file or directory.
        path: PathBuf,
        /// All tensors that do not fit.
        problems: Vec<TensorProblem>,
    },
}

/// A tensor that does not fit the model.
///
/// # Examples
/// ```
/// use moi_checkpoint::TensorProblem;
///
/// let problem = TensorProblem::Missing { name: "lm_head.weight".to_owned(), expected: vec![32, 16] };
/// assert_eq!(problem.to_string(), "tensor `lm_head.weight` is missing (expected shape [32, 16])");
/// ```
#[derive(Clone, Debug, PartialEq)]
pub enum TensorProblem {
    /// The model needs the tensor, but the checkpoint lacks it.
    Missing {
        /// The tensor's name.
        name: String,
        /// The shape the model expects.
        expected: Vec<usize>,
    },
    /// The checkpoint has the tensor, but the model has no parameter for it.
    Unknown {
        /// The file that holds it.
        file: String,
        /// The tensor's name.
        name: String,
        /// The tensor's shape.
        found: Vec<usize>,
    },
    /// The tensor's shape differs from the parameter's shape.
    Shape {
        /// The file that holds it.
        file: String,
        /// The tensor's name.
        name: String,
        /// The shape the model expects.
        expected: Vec<usize>,
        /// The shape in the file.
        found: Vec<usize>,
    },
}

impl fmt::Display for TensorProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { name, expected } => {
                write!(f, "tensor `{}` is missing (expected shape {expected:?})", shown(name))
            }
            Self::Unknown { file, name, found } => {
                let found = shown(&format!("{found:?}"));
                write!(
                    f,
                    "{file}: tensor `{}` is not known to the model (found with shape {found})",
                    shown(name)
                )
            }
            Self::Shape { file, name, expected, found } => {
                write!(
                    f,
                    "{file}: tensor `{}` has the wrong shape: expected {expected:?}, found {}",
                    shown(name),
                    shown(&format!("{found:?}")),
                )
            }
        }
    }
}

/// The first few problems, one per line, and the number of the others.
fn list(problems: &[TensorProblem]) -> String {
    const SHOWN: usize = 5;
    let mut text = String::new();
    for problem in problems.iter().take(SHOWN) {
        text += &format!("\n  {problem}");
    }
    if problems.len() > SHOWN {
        text += &format!("\n  and {} more", problems.len() - SHOWN);
    }
    text
}
