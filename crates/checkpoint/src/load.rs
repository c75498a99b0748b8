//! Loads a checkpoint into a module.

use std::borrow::Cow;

use burn::{
    module::{Module, ModuleMapper, ModuleVisitor, Param},
    tensor::{DType, FloatDType, Int, Tensor, TensorData, backend::Backend},
};

use bytemuck::{AnyBitPattern, NoUninit};
use half::{bf16, f16};
use moi_kernels::{BLOCK, PackedForm, ROWS};

use crate::{
    Checkpoint, CheckpointError, LazyTensor, NotFinite, Parameter, Storage,
    arena::{Arena, Region},
    finite::Count,
    packed,
};

/// The progress of a load.
///
/// # Examples
/// ```
/// use burn::{nn::LinearConfig, tensor::FloatDType};
/// use burn_flex::Flex;
/// use moi_checkpoint::{LoadProgress, Upload, load, open_safetensors};
/// # use safetensors::{Dtype, tensor::TensorView};
/// # let directory = tempfile::tempdir()?;
/// # let path = directory.path().join("model.safetensors");
/// # let bytes: Vec<u8> = [1.0f32, 2.0, 3.0, 4.0].into_iter().flat_map(f32::to_le_bytes).collect();
/// # let view = TensorView::new(Dtype::F32, vec![2, 2], &bytes)?;
/// # std::fs::write(&path, safetensors::serialize([("weight", view)], None)?)?;
/// let module = LinearConfig::new(2, 2).with_bias(false).init::<Flex>(&Default::default());
/// let checkpoint = open_safetensors(&path)?;
/// let mut share = 0;
/// let progress = |now: LoadProgress<'_>| share = 100 * now.bytes / now.total_bytes;
/// load(module, &checkpoint, |_| false, |_| FloatDType::F32, Upload::Whole, progress)?;
/// assert_eq!(share, 100);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadProgress<'a> {
    /// Bytes read from the files so far.
    pub bytes: usize,
    /// Bytes of all tensors that will be read.
    pub total_bytes: usize,
    /// The NaN and infinite values of the tensor that was just read, if it has any.
    pub not_finite: Option<&'a NotFinite>,
}

/// How a tensor's values are sent to a device.
///
/// # Examples
/// ```
/// use burn::{nn::LinearConfig, tensor::FloatDType};
/// use burn_flex::Flex;
/// use moi_checkpoint::{Upload, load, open_safetensors};
/// # use safetensors::{Dtype, tensor::TensorView};
/// # let directory = tempfile::tempdir()?;
/// # let path = directory.path().join("model.safetensors");
/// # let bytes: Vec<u8> = [1.0f32, 2.0, 3.0, 4.0].into_iter().flat_map(f32::to_le_bytes).collect();
/// # let view = TensorView::new(Dtype::F32, vec![2, 2], &bytes)?;
/// # std::fs::write(&path, safetensors::serialize([("weight", view)], None)?)?;
/// let checkpoint = open_safetensors(&path)?;
/// for upload in [Upload::Whole, Upload::InPieces] {
///     let module = LinearConfig::new(2, 2).with_bias(false).init::<Flex>(&Default::default());
///     let module = load(module, &checkpoint, |_| false, |_| FloatDType::F32, upload, |_| {})?;
///     assert_eq!(module.weight.val().to_data().iter::<f32>().sum::<f32>(), 10.0);
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upload {
    /// All values at once, for devices that use the host's memory and take the values over without a copy.
    Whole,
    /// A few million values at a time, for GPUs: on its way to a GPU a value is in memory two or three times, as
    /// stored, as converted and as the driver takes it.
    InPieces,
}

impl Upload {
    /// The number of values that are sent at a time.
    fn piece(self) -> usize {
        match self {
            Self::Whole => usize::MAX,
            Self::InPieces => 1 << 23,
        }
    }

    /// The memory for values. Values that stay in host memory share large mappings, so that the processor finds a
    /// model's weights in few large pages; other values are freed when they are on the device.
    fn arena(self, total_bytes: usize) -> Arena {
        const CHUNK: usize = 64 << 20;
        match self {
            Self::Whole => Arena::new(total_bytes.min(CHUNK)),
            Self::InPieces => Arena::new(0),
        }
    }
}

/// Loads every parameter of `module` from the tensor that has the parameter's path as its name.
///
/// Names and shapes are compared first; no data is read unless all fit. Values are converted to the type that `dtype`
/// returns for the parameter's name, one tensor at a time. A weight may be packed: then it is an enum's variant with
/// the name of a [`PackedForm`], which holds 32-bit `words`, `scales` (of the type that `dtype` returns for them)
/// and, for some forms, `minima`. Blocks are taken from the file if it has blocks of this form, and encoded
/// otherwise.
///
/// # Errors
/// Lists all tensors that are missing, unknown (and not `ignored`) or of another shape; [`Checkpoint::select`] adapts
/// checkpoints with other names.
///
/// # Examples
/// ```
/// use burn::{nn::LinearConfig, tensor::FloatDType};
/// use burn_flex::Flex;
/// use moi_checkpoint::{Upload, load, open_safetensors};
/// # use safetensors::{Dtype, tensor::TensorView};
/// # let directory = tempfile::tempdir()?;
/// # let path = directory.path().join("model.safetensors");
/// # let bytes: Vec<u8> = [1.0f32, 2.0, 3.0, 4.0].into_iter().flat_map(f32::to_le_bytes).collect();
/// # let view = TensorView::new(Dtype::F32, vec![2, 2], &bytes)?;
/// # std::fs::write(&path, safetensors::serialize([("weight", view)], None)?)?;
/// let module = LinearConfig::new(2, 2).with_bias(false).init::<Flex>(&Default::default());
/// let checkpoint = open_safetensors(&path)?; // one tensor, `weight`
/// let module = load(module, &checkpoint, |_| false, |_| FloatDType::F32, Upload::Whole, |_| {})?;
/// let values: Vec<f32> = module.weight.val().to_data().iter::<f32>().collect();
/// assert_eq!(values, [1.0, 2.0, 3.0, 4.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn load<B: Backend, M: Module<B>>(
    module: M,
    checkpoint: &Checkpoint,
    ignored: impl Fn(&str) -> bool,
    dtype: impl Fn(&str) -> FloatDType,
    upload: Upload,
    mut progress: impl FnMut(LoadProgress<'_>),
) -> Result<M, CheckpointError> {
    let mut parameters = Parameters { checkpoint: Some(checkpoint), ..Parameters::default() };
    module.visit(&mut parameters);
    let checkpoint = &checkpoint.select(&parameters.all, ignored)?;
    let total_bytes = checkpoint.num_bytes();
    let mut reader = Reader {
        checkpoint,
        path: Path::default(),
        packed: None,
        bytes: 0,
        total_bytes,
        dtype: &dtype,
        piece: upload.piece(),
        arena: upload.arena(total_bytes),
        progress: &mut progress,
    };
    Ok(module.map(&mut reader))
}

/// The path of the parameter that is being visited.
#[derive(Default)]
struct Path(Vec<PathStep>);

/// A step of the path: a module, or the variant of an enum, which is no part of a parameter's name.
struct PathStep {
    name: String,
    is_variant: bool,
}

impl Path {
    fn enter(&mut self, name: &str, container: &str) {
        self.0.push(PathStep { name: name.to_owned(), is_variant: container.starts_with("Enum:") });
    }

    fn exit(&mut self) {
        self.0.pop();
    }

    fn name(&self) -> String {
        let modules = self.0.iter().filter(|step| !step.is_variant).map(|step| step.name.as_str());
        modules.collect::<Vec<_>>().join(".")
    }

    /// The weight that the parameter is a part of, and its form, if it is part of a packed weight: such parts stand
    /// in an enum's variant with the form's name.
    fn packed(&self) -> Option<(String, PackedForm)> {
        let [.., variant, _] = &self.0[..] else { return None };
        let form = PackedForm::named(&variant.name).filter(|_| variant.is_variant)?;
        let (weight, _) = self.name().rsplit_once('.').map(|(a, b)| (a.to_owned(), b.to_owned()))?;
        Some((weight, form))
    }
}

/// Names and shapes of a module's parameters, without allocating them.
#[derive(Default)]
struct Parameters<'a> {
    path: Path,
    all: Vec<Parameter>,
    checkpoint: Option<&'a Checkpoint>,
}

impl Parameters<'_> {
    /// The shape of a packed weight. Its tiles may have more rows than the weight, so the checkpoint's tensor gives
    /// the number of rows.
    fn shape(&self, weight: &str, form: PackedForm, [tiles, words]: [usize; 2]) -> Vec<usize> {
        let columns = words * 4 / form.block_bytes() * BLOCK;
        let stored = self.checkpoint.and_then(|checkpoint| checkpoint.tensors.get(weight));
        match stored.map(LazyTensor::shape) {
            Some(&[rows, width]) if rows.div_ceil(ROWS) == tiles && width == columns => vec![rows, columns],
            _ => vec![tiles * ROWS, columns],
        }
    }
}

impl<B: Backend> ModuleVisitor<B> for Parameters<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        // For a packed weight, the words alone determine the shape.
        if self.path.packed().is_none() {
            self.all.push(Parameter::whole(self.path.name(), param.lazy_shape().to_vec()));
        }
    }

    fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<B, D, Int>>) {
        if let (Some((weight, form)), &[tiles, words]) = (self.path.packed(), &param.lazy_shape()[..]) {
            let shape = self.shape(&weight, form, [tiles, words]);
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

/// Sends a tensor to the device, `piece` values at a time; also counts its NaN and infinite values.
fn upload<B: Backend, const D: usize>(
    tensor: &LazyTensor,
    dtype: FloatDType,
    device: &B::Device,
    piece: usize,
    arena: &mut Arena,
) -> (Tensor<B, D>, Count) {
    let shape: [usize; D] = std::array::from_fn(|axis| tensor.shape().get(axis).copied().unwrap_or(1));
    let len: usize = shape.iter().product();
    // The values are sent as a vector, because a device may put gaps between the rows of tensors with several axes.
    let mut count = Count::default();
    let mut send = |part: &LazyTensor| {
        let (data, of_part) = data(part, dtype, arena);
        count.add(of_part);
        Tensor::<B, 1>::from_data(data, (device, DType::from(dtype)))
    };
    let row: usize = shape[1..].iter().product();
    let piece = (piece / row.max(1)).max(1);
    // For a transposed tensor, each piece would read the whole tensor.
    if D != 2 || shape[0] <= piece || !tensor.is_in_rows() {
        let whole = send(tensor);
        return (whole.reshape(shape), count);
    }
    let mut whole = Tensor::<B, 1>::empty([len], (device, DType::from(dtype)));
    for start in (0..shape[0]).step_by(piece) {
        let rows = piece.min(shape[0] - start);
        let Some(part) = tensor.slice_rows(start, rows) else { break };
        let range: std::ops::Range<usize> = start * row..(start + rows) * row;
        whole = whole.slice_assign([range], send(&part));
    }
    (whole.reshape(shape), count)
}

/// The values converted to a type, as a vector, and the number of NaN and infinite ones. Half-precision values that
/// are stored in the wanted type are never widened.
fn data(tensor: &LazyTensor, dtype: FloatDType, arena: &mut Arena) -> (TensorData, Count) {
    fn stored(tensor: &LazyTensor, storage: Storage) -> Option<Cow<'_, [u8]>> {
        (tensor.storage() == storage).then(|| tensor.stored_bytes()).flatten()
    }
    match dtype {
        FloatDType::F16 => {
            let values = filled(arena, tensor, |part| match stored(part, Storage::F16) {
                Some(bytes) => bytes.as_chunks::<2>().0.iter().map(|&b| f16::from_le_bytes(b)).collect(),
                None => part.read().into_iter().map(f16::from_f32).collect(),
            });
            let count = Count::of_f16(values.slice());
            (values.into_data(DType::F16), count)
        }
        FloatDType::BF16 => {
            let values = filled(arena, tensor, |part| match stored(part, Storage::BF16) {
                Some(bytes) => bytes.as_chunks::<2>().0.iter().map(|&b| bf16::from_le_bytes(b)).collect(),
                None => part.read().into_iter().map(bf16::from_f32).collect(),
            });
            let count = Count::of_bf16(values.slice());
            (values.into_data(DType::BF16), count)
        }
        _ => {
            let values = filled(arena, tensor, LazyTensor::read);
            let count = Count::of_f32(values.slice());
            (values.into_data(DType::F32), count)
        }
    }
}

/// Reads the values of a tensor, some millions at a time if it can be read in pieces.
fn filled<T: NoUninit + AnyBitPattern>(
    arena: &mut Arena,
    tensor: &LazyTensor,
    read: impl Fn(&LazyTensor) -> Vec<T>,
) -> Region<T> {
    let mut region = arena.zeroed(tensor.shape().iter().product());
    // For a transposed tensor, each piece would read the whole tensor.
    let pieces = if tensor.is_in_rows() { tensor.pieces() } else { None };
    let mut rest = region.slice_mut();
    for piece in pieces.unwrap_or_else(|| vec![tensor.clone()]) {
        let values = read(&piece);
        let (part, behind) = rest.split_at_mut(values.len());
        part.copy_from_slice(&values);
        rest = behind;
    }
    region
}

struct Reader<'a, T, P> {
    checkpoint: &'a Checkpoint,
    path: Path,
    /// The parts of the packed weight that is being visited.
    packed: Option<(String, packed::Parts)>,
    bytes: usize,
    total_bytes: usize,
    dtype: &'a T,
    /// The number of values that are sent to the device at a time.
    piece: usize,
    arena: Arena,
    progress: &'a mut P,
}

impl<T, P: FnMut(LoadProgress<'_>)> Reader<'_, T, P> {
    fn count(&mut self, tensor: &LazyTensor, not_finite: Option<NotFinite>) {
        tensor.release();
        self.bytes += tensor.num_bytes();
        let not_finite = not_finite.as_ref();
        (self.progress)(LoadProgress { bytes: self.bytes, total_bytes: self.total_bytes, not_finite });
    }

    /// The parts of the packed weight that the parameter belongs to, read when the first part is visited.
    fn packed(&mut self) -> Option<&mut packed::Parts> {
        let (weight, form) = self.path.packed()?;
        if self.packed.as_ref().is_none_or(|(name, _)| *name != weight) {
            let tensor = self.checkpoint.tensors.get(&weight)?;
            let (parts, count) = packed::read(tensor, form, &mut self.arena)?;
            let not_finite = count.of(&weight, tensor, FloatDType::F16);
            self.packed = Some((weight, parts));
            self.count(tensor, not_finite);
        }
        self.packed.as_mut().map(|(_, parts)| parts)
    }
}

impl<B: Backend, T: Fn(&str) -> FloatDType, P: FnMut(LoadProgress<'_>)> ModuleMapper<B> for Reader<'_, T, P> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let device = param.lazy_device();
        let name = self.path.name();
        let dtype = (self.dtype)(&name);
        let is_scale = self.path.0.last().is_some_and(|step| step.name == "scales");
        if let Some(parts) = self.packed() {
            let Some(values) = (if is_scale { &mut parts.scales } else { &mut parts.minima }).take() else {
                return param;
            };
            let shape = param.lazy_shape().dims::<D>();
            let data = match dtype {
                FloatDType::F16 => values.into_data(DType::F16),
                _ => {
                    let wide: Vec<f32> = values.slice().iter().copied().map(f16::to_f32).collect();
                    self.arena.copy(&wide).into_data(DType::F32)
                }
            };
            let flat = Tensor::<B, 1>::from_data(data, (&device, DType::from(dtype)));
            return Param::initialized(param.id, flat.reshape(shape));
        }
        // The selection has visited the same paths, so every parameter has its tensor.
        let Some(tensor) = self.checkpoint.tensors.get(&name) else { return param };
        let (value, count) = upload(tensor, dtype, &device, self.piece, &mut self.arena);
        self.count(tensor, count.of(&name, tensor, dtype));
        Param::initialized(param.id, value)
    }

    fn map_int<const D: usize>(&mut self, param: Param<Tensor<B, D, Int>>) -> Param<Tensor<B, D, Int>> {
        let device = param.lazy_device();
        let Some(words) = self.packed().and_then(|parts| parts.words.take()) else { return param };
        let shape = param.lazy_shape().dims::<D>();
        let flat = Tensor::<B, 1, Int>::from_data(words.into_data(DType::I32), (&device, DType::I32));
        Param::initialized(param.id, flat.reshape(shape))
    }

    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.exit();
    }
}

#[cfg(test)]
mod tests {
    use burn_flex::Flex;
    use safetensors::{Dtype, tensor::TensorView};

    use super::*;
    use crate::open_safetensors;

    #[test]
    fn pieces_make_the_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("model.safetensors");
        let values: Vec<f32> = (0..7 * 5).map(|i| i as f32 * 0.5).collect();
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let view = TensorView::new(Dtype::F32, vec![7, 5], &bytes).unwrap();
        std::fs::write(&path, safetensors::serialize([("a", view)], None).unwrap()).unwrap();
        let checkpoint = open_safetensors(&path).unwrap();
        let tensor = &checkpoint.tensors["a"];
        // Pieces of one row, of two rows with one row left over, of all rows, and larger than the tensor.
        for piece in [1, 12, 35, 1000] {
            let whole = |tensor: &LazyTensor| {
                upload::<Flex, 2>(tensor, FloatDType::F16, &Default::default(), piece, &mut Arena::new(0)).0
            };
            let loaded = whole(tensor);
            assert_eq!(loaded.dtype(), DType::F16);
            assert_eq!(loaded.into_data().convert::<f32>().to_vec::<f32>().unwrap(), values);
            let turned = whole(&tensor.transpose().unwrap()).swap_dims(0, 1);
            assert_eq!(turned.into_data().convert::<f32>().to_vec::<f32>().unwrap(), values);
        }
    }
}
