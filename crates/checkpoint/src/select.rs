//! From the tensors that a checkpoint has to the parameters that a model has.

use std::collections::{BTreeMap, BTreeSet};

use moi_formats::{PairedRows, RowBlocks};

use crate::{Checkpoint, CheckpointError, LazyTensor, TensorProblem, safetensors::is_buffer};

/// A parameter of a model, and where it stands in a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// The model's name for it.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// The checkpoint's tensor that it is, or is a part of.
    pub tensor: String,
    /// The rows of that tensor that it is; all where none are given.
    pub rows: Option<RowBlocks>,
    /// Heads of rows that are stored as pairs side by side, and are halves in the parameter.
    pub pairs: Option<PairedRows>,
    /// Whether the tensor is stored with its axes exchanged. Rows are counted behind the exchange.
    pub transposed: bool,
}

impl Parameter {
    /// A parameter that is a tensor of the same name.
    pub fn whole(name: String, shape: Vec<usize>) -> Self {
        Self { tensor: name.clone(), name, shape, rows: None, pairs: None, transposed: false }
    }

    /// The shape that the tensor must have.
    fn stored_shape(&self) -> Vec<usize> {
        let mut shape = self.shape.clone();
        if let (Some(rows), Some(first)) = (self.rows, shape.first_mut()) {
            *first = rows.blocks * rows.block;
        }
        if self.transposed {
            shape.reverse();
        }
        shape
    }

    fn view(&self, tensor: &LazyTensor) -> Option<LazyTensor> {
        // A number, a vector that is stored as a row, a matrix with an axis of 1 between.
        let is_plain = self.rows.is_none() && !self.transposed;
        match (&self.shape[..], tensor.shape()) {
            ([1], []) => return tensor.scalar_as_vector(),
            (&[n], &[1, m]) if is_plain && n == m => return Some(tensor.as_vector()),
            (&[rows, columns], &[a, 1, b]) if is_plain && (rows, columns) == (a, b) => {
                return Some(tensor.without_middle_axis());
            }
            _ => {}
        }
        if *tensor.shape() != *self.stored_shape() {
            return None;
        }
        let whole = if self.transposed { tensor.transpose()? } else { tensor.clone() };
        let rows = match self.rows {
            Some(RowBlocks { blocks, block, start, len }) => whole.select_rows(blocks, block, start, len)?,
            None => whole,
        };
        match self.pairs {
            Some(PairedRows { head, kept }) => rows.pairs_as_halves(head, kept),
            None => Some(rows),
        }
    }
}

impl Checkpoint {
    /// The tensors that these parameters are, under the parameters' names. No data is read.
    ///
    /// # Errors
    /// With all tensors that are missing, of another shape, or belong to no parameter and are neither `ignored` nor one of
    /// the buffers that old checkpoints store.
    pub fn select(
        &self,
        parameters: &[Parameter],
        ignored: impl Fn(&str) -> bool,
    ) -> Result<Self, CheckpointError> {
        let (mut tensors, mut problems) = (BTreeMap::new(), Vec::new());
        // Several parameters can be parts of one tensor: it is reported once.
        let mut seen = BTreeSet::new();
        for parameter in parameters {
            let name = &parameter.tensor;
            let first = seen.insert(name.as_str());
            let problem = match self.tensors.get(name) {
                None => TensorProblem::Missing { name: name.clone(), expected: parameter.stored_shape() },
                Some(tensor) => match parameter.view(tensor) {
                    Some(view) => {
                        tensors.insert(parameter.name.clone(), view);
                        continue;
                    }
                    None => TensorProblem::Shape {
                        file: tensor.file_name(),
                        name: name.clone(),
                        expected: parameter.stored_shape(),
                        found: tensor.shape().to_vec(),
                    },
                },
            };
            if first {
                problems.push(problem);
            }
        }
        for (name, tensor) in &self.tensors {
            if !seen.contains(name.as_str()) && !is_buffer(name) && !ignored(name) {
                problems.push(TensorProblem::Unknown {
                    file: tensor.file_name(),
                    name: name.clone(),
                    found: tensor.shape().to_vec(),
                });
            }
        }
        match problems.is_empty() {
            true => Ok(Self {
                path: self.path.clone(),
                tensors,
                notes: self.notes.clone(),
                is_by_parameter: true,
            }),
            false => Err(CheckpointError::Tensors { path: self.path.clone(), problems }),
        }
    }
}
