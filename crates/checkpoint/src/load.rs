//! From a checkpoint into a module.

use burn::{
    module::{Module, ModuleMapper, ModuleVisitor, Param},
    tensor::{DType, Int, Tensor, TensorData, backend::Backend},
};

use crate::{
    Checkpoint, CheckpointError, LazyTensor, Parameter,
    gguf::BlockKind,
    packed::{PackedBlocks, packable, per_word},
};

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
/// float type. A weight may be packed: in an enum's variant with the name of a block format (`Q8_0`, `Q4_0`,
/// `Q4_1`) then stand 32-bit `words`, `scales` and, for `Q4_1`, `minima`; blocks are taken from the file where it
/// has them, and made where not.
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
    let mut reader = Reader {
        checkpoint,
        path: Path::default(),
        packed: None,
        bytes: 0,
        total_bytes,
        progress: &mut progress,
    };
    Ok(module.map(&mut reader))
}

/// The path of the parameter that is being visited.
#[derive(Default)]
struct Path(Vec<Step>);

/// A module, or the variant of an enum, which is no part of a parameter's name.
struct Step {
    name: String,
    is_variant: bool,
}

impl Path {
    fn enter(&mut self, name: &str, container: &str) {
        self.0.push(Step { name: name.to_owned(), is_variant: container.starts_with("Enum:") });
    }

    fn exit(&mut self) {
        self.0.pop();
    }

    fn name(&self) -> String {
        let modules = self.0.iter().filter(|step| !step.is_variant).map(|step| step.name.as_str());
        modules.collect::<Vec<_>>().join(".")
    }

    /// The weight that the parameter is a part of, and its format, if it is one of a packed weight: these stand
    /// in an enum's variant that bears the format's name.
    fn packed(&self) -> Option<(String, BlockKind)> {
        let [.., variant, _] = &self.0[..] else { return None };
        let kind = packable(&variant.name).filter(|_| variant.is_variant)?;
        let (weight, _) = self.name().rsplit_once('.').map(|(a, b)| (a.to_owned(), b.to_owned()))?;
        Some((weight, kind))
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
        // Of a packed weight the words say all.
        if self.path.packed().is_none() {
            self.all.push(Parameter::whole(self.path.name(), param.lazy_shape().to_vec()));
        }
    }

    fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<B, D, Int>>) {
        if let Some((weight, kind)) = self.path.packed() {
            let mut shape = param.lazy_shape().to_vec();
            shape.iter_mut().skip(1).for_each(|columns| *columns *= per_word(kind));
            self.all.push(Parameter::whole(weight, shape));
        }
    }

    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.exit();
    }
}

struct Reader<'a, P> {
    checkpoint: &'a Checkpoint,
    path: Path,
    /// The parts of the packed weight that is being visited.
    packed: Option<(String, PackedBlocks)>,
    bytes: usize,
    total_bytes: usize,
    progress: &'a mut P,
}

impl<P: FnMut(LoadProgress)> Reader<'_, P> {
    fn count(&mut self, tensor: &LazyTensor) {
        tensor.release();
        self.bytes += tensor.num_bytes();
        (self.progress)(LoadProgress { bytes: self.bytes, total_bytes: self.total_bytes });
    }

    /// The parts of the packed weight that the parameter belongs to, read when the first of them is visited.
    fn packed(&mut self) -> Option<&mut PackedBlocks> {
        let (weight, kind) = self.path.packed()?;
        if self.packed.as_ref().is_none_or(|(name, _)| *name != weight) {
            let tensor = self.checkpoint.tensors.get(&weight)?;
            self.packed = Some((weight, PackedBlocks::read(tensor, kind)));
            self.count(tensor);
        }
        self.packed.as_mut().map(|(_, blocks)| blocks)
    }
}

impl<B: Backend, P: FnMut(LoadProgress)> ModuleMapper<B> for Reader<'_, P> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let device = param.lazy_device();
        let is_scale = self.path.0.last().is_some_and(|step| step.name == "scales");
        if let Some(blocks) = self.packed() {
            let values = std::mem::take(if is_scale { &mut blocks.scales } else { &mut blocks.minima });
            let data = TensorData::new(values, param.lazy_shape());
            return Param::initialized(param.id, Tensor::from_data(data, (&device, DType::F32)));
        }
        // The selection has seen the same paths: every parameter has its tensor.
        let Some(tensor) = self.checkpoint.tensors.get(&self.path.name()) else { return param };
        let data = TensorData::new(tensor.read(), tensor.shape().to_vec());
        let value = Tensor::from_data(data, &device);
        self.count(tensor);
        Param::initialized(param.id, value)
    }

    fn map_int<const D: usize>(&mut self, param: Param<Tensor<B, D, Int>>) -> Param<Tensor<B, D, Int>> {
        let device = param.lazy_device();
        let Some(blocks) = self.packed() else { return param };
        let data = TensorData::new(std::mem::take(&mut blocks.words), param.lazy_shape());
        Param::initialized(param.id, Tensor::from_data(data, (&device, DType::I32)))
    }

    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.exit();
    }
}
