//! From a checkpoint into a module.

use std::collections::BTreeMap;

use burn::{
    module::{Module, ModuleMapper, ModuleVisitor, Param},
    tensor::{Tensor, TensorData, backend::Backend},
};

use crate::{Checkpoint, CheckpointError, TensorProblem};

/// How far a load has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadProgress {
    /// Bytes read from the files so far.
    pub bytes: usize,
    /// Bytes of all tensors that will be read.
    pub total_bytes: usize,
}

/// Loads every parameter of `module` from the tensor that has the parameter's path as its name.
///
/// Names and shapes are compared first; no data is read unless all fit. Values become the backend's default
/// float type.
///
/// # Errors
/// With all tensors that are missing, unknown (and not `ignored`) or of another shape.
pub fn load<B: Backend, M: Module<B>>(
    module: M,
    checkpoint: &Checkpoint,
    ignored: impl Fn(&str) -> bool,
    mut progress: impl FnMut(LoadProgress),
) -> Result<M, CheckpointError> {
    let mut shapes = Shapes::default();
    module.visit(&mut shapes);
    let problems = compare(&shapes.shapes, checkpoint, ignored);
    if !problems.is_empty() {
        return Err(CheckpointError::Tensors { path: checkpoint.path.clone(), problems });
    }
    let read = |name: &String| checkpoint.tensors[name].num_bytes();
    let total_bytes = shapes.shapes.keys().map(read).sum();
    let mut reader =
        Reader { checkpoint, path: Path::default(), bytes: 0, total_bytes, progress: &mut progress };
    Ok(module.map(&mut reader))
}

fn compare(
    expected: &BTreeMap<String, Vec<usize>>,
    checkpoint: &Checkpoint,
    ignored: impl Fn(&str) -> bool,
) -> Vec<TensorProblem> {
    let mut problems = Vec::new();
    for (name, shape) in expected {
        match checkpoint.tensors.get(name) {
            None => {
                problems.push(TensorProblem::Missing { name: name.clone(), expected: shape.clone() });
            }
            Some(tensor) if tensor.shape != *shape => problems.push(TensorProblem::Shape {
                file: tensor.file_name(),
                name: name.clone(),
                expected: shape.clone(),
                found: tensor.shape.clone(),
            }),
            Some(_) => {}
        }
    }
    for (name, tensor) in &checkpoint.tensors {
        if !expected.contains_key(name) && !ignored(name) {
            problems.push(TensorProblem::Unknown {
                file: tensor.file_name(),
                name: name.clone(),
                found: tensor.shape.clone(),
            });
        }
    }
    problems
}

/// The path of the parameter that is being visited.
#[derive(Default)]
struct Path(Vec<String>);

impl Path {
    fn name(&self) -> String {
        self.0.join(".")
    }
}

/// The shapes of a module's parameters, none of them allocated.
#[derive(Default)]
struct Shapes {
    path: Path,
    shapes: BTreeMap<String, Vec<usize>>,
}

impl<B: Backend> ModuleVisitor<B> for Shapes {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        self.shapes.insert(self.path.name(), param.lazy_shape().to_vec());
    }

    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.0.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.0.pop();
    }
}

struct Reader<'a, P> {
    checkpoint: &'a Checkpoint,
    path: Path,
    bytes: usize,
    total_bytes: usize,
    progress: &'a mut P,
}

impl<B: Backend, P: FnMut(LoadProgress)> ModuleMapper<B> for Reader<'_, P> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        // `compare` has seen the same paths: every parameter has its tensor.
        let Some(tensor) = self.checkpoint.tensors.get(&self.path.name()) else { return param };
        let data = TensorData::new(tensor.read(), tensor.shape.clone());
        let value = Tensor::from_data(data, &param.lazy_device());
        self.bytes += tensor.num_bytes();
        (self.progress)(LoadProgress { bytes: self.bytes, total_bytes: self.total_bytes });
        Param::initialized(param.id, value)
    }

    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.0.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.0.pop();
    }
}
