//! From a checkpoint into a module.

use burn::{
    module::{Module, ModuleMapper, ModuleVisitor, Param},
    tensor::{Tensor, TensorData, backend::Backend},
};

use crate::{Checkpoint, CheckpointError, Parameter};

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
/// With all tensors that are missing, unknown (and not `ignored`) or of another shape; see [`Checkpoint::select`] for checkpoints
/// that name them otherwise.
pub fn load<B: Backend, M: Module<B>>(
    module: M,
    checkpoint: &Checkpoint,
    ignored: impl Fn(&str) -> bool,
    mut progress: impl FnMut(LoadProgress),
) -> Result<M, CheckpointError> {
    let mut parameters = Parameters::default();
    module.visit(&mut parameters);
    let checkpoint = &checkpoint.select(&parameters.all, ignored)?;
    let total_bytes = checkpoint.num_bytes();
    let mut reader =
        Reader { checkpoint, path: Path::default(), bytes: 0, total_bytes, progress: &mut progress };
    Ok(module.map(&mut reader))
}

/// The path of the parameter that is being visited.
#[derive(Default)]
struct Path(Vec<String>);

impl Path {
    fn name(&self) -> String {
        self.0.join(".")
    }

    /// A variant of an enum is no part of a parameter's name.
    fn enter(&mut self, name: &str, container: &str) {
        if !container.starts_with("Enum:") {
            self.0.push(name.to_owned());
        }
    }

    fn exit(&mut self, container: &str) {
        if !container.starts_with("Enum:") {
            self.0.pop();
        }
    }
}

/// Names and shapes of a module's parameters, none of them allocated.
#[derive(Default)]
struct Parameters {
    path: Path,
    all: Vec<Parameter>,
}

impl<B: Backend> ModuleVisitor<B> for Parameters {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        self.all.push(Parameter::whole(self.path.name(), param.lazy_shape().to_vec()));
    }

    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, container: &str) {
        self.path.exit(container);
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
        // The selection has seen the same paths: every parameter has its tensor.
        let Some(tensor) = self.checkpoint.tensors.get(&self.path.name()) else { return param };
        let data = TensorData::new(tensor.read(), tensor.shape().to_vec());
        let value = Tensor::from_data(data, &param.lazy_device());
        self.bytes += tensor.num_bytes();
        (self.progress)(LoadProgress { bytes: self.bytes, total_bytes: self.total_bytes });
        Param::initialized(param.id, value)
    }

    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, container: &str) {
        self.path.exit(container);
    }
}
