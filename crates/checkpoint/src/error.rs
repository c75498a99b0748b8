//! Every refusal says which file, where in it, what was expected and what was found. Messages are whole: a
//! cause is part of its error's text, not a `source` that would be printed twice.

use std::{fmt, path::PathBuf};

use crate::file::shown;

/// Why a checkpoint cannot be opened or loaded.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The file cannot be opened or mapped.
    #[error("cannot open {path}: {error}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// The file is not what its format defines: truncated, damaged, or something else.
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
        /// Everything that does not fit.
        problems: Vec<TensorProblem>,
    },
}

/// A tensor that does not fit the model.
#[derive(Clone, Debug, PartialEq)]
pub enum TensorProblem {
    /// The model needs it, the checkpoint lacks it.
    Missing {
        /// Its name.
        name: String,
        /// The shape the model expects.
        expected: Vec<usize>,
    },
    /// The checkpoint has it, the model has no place for it.
    Unknown {
        /// The file that holds it.
        file: String,
        /// Its name.
        name: String,
        /// Its shape.
        found: Vec<usize>,
    },
    /// Its shape is not the model's.
    Shape {
        /// The file that holds it.
        file: String,
        /// Its name.
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

/// The first few problems, one a line, and how many there are besides.
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
