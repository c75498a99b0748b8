//! Selects the parameters of a model from the tensors of a checkpoint.

use std::collections::{BTreeMap, BTreeSet};

use moi_formats::{PairedRows, RowBlocks};

use crate::{Checkpoint, CheckpointError, LazyTensor, TensorProblem, safetensors::is_buffer};

/// A parameter of a model, and its place in a checkpoint.
///
/// # Examples
/// ```
/// use moi_checkpoint::{Parameter, open_safetensors};
/// # use safetensors::{Dtype, tensor::TensorView};
/// # let directory = tempfile::tempdir()?;
/// # let path = directory.path().join("model.safetensors");
/// # let bytes: Vec<u8> = [1.0f32, 2.0, 3.0, 4.0].into_iter().flat_map(f32::to_le_bytes).collect();
/// # let view = TensorView::new(Dtype::F32, vec![2, 2], &bytes)?;
/// # std::fs::write(&path, safetensors::serialize([("weight", view)], None)?)?;
/// // The model's `map` is the transpose of the file's `weight`.
/// let whole = Parameter::whole("map".to_owned(), vec![2, 2]);
/// let parameter = Parameter { tensor: "weight".to_owned(), transposed: true, ..whole };
/// let selected = open_safetensors(&path)?.select(&[parameter], |_| false)?;
/// assert_eq!(selected.tensors()["map"].read(), [1.0, 3.0, 2.0, 4.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// The parameter's name in the model.
    pub name: String,
    /// The parameter's shape.
    pub shape: Vec<usize>,
    /// The checkpoint's tensor that holds the parameter.
    pub tensor: String,
    /// The rows of the tensor that are the parameter; all rows if `None`.
    pub rows: Option<RowBlocks>,
    /// The heads whose rows are stored as adjacent rotary pairs, and are halves in the parameter.
    pub pairs: Option<PairedRows>,
    /// Whether the tensor is stored transposed. `rows` and `pairs` refer to the transposed-back tensor.
    pub transposed: bool,
}

impl Parameter {
    /// A parameter that is a tensor of the same name.
    pub fn whole(name: String, shape: Vec<usize>) -> Self {
        Self { tensor: name.clone(), name, shape, rows: None, pairs: None, transposed: false }
    }

    /// The shape that the stored tensor must have.
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
        // Shapes that differ only by an axis of size 1 are accepted: a scalar, a vector stored as a row, a matrix
        // with a middle axis.
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
    /// Selects the tensors of these parameters, under the parameters' names. No data is read.
    ///
    /// # Errors
    /// Lists all tensors that are missing, of another shape, or belong to no parameter and are neither `ignored` nor
    /// one of the buffers that old checkpoints store.
    pub fn select(
        &self,
        parameters: &[Parameter],
        ignored: impl Fn(&str) -> bool,
    ) -> Result<Self, CheckpointError> {
        let (mut tensors, mut problems) = (BTreeMap::new(), Vec::new());
        // Several parameters can be parts of one tensor, which is reported only once.
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
