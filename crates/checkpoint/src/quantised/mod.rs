//! Weights that other programs have quantised: files hold codes and scales, and a weight is read as floats computed
//! from them. Activations are not rounded, even if a file says so.

mod codes;
mod fp4;
mod fp8;
mod int4;
mod mlx;

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use crate::{
    Checkpoint, CheckpointError, CodeType, LazyTensor, Storage, made::MadeRows, shown, tensor::Source,
};

/// The formats of quantised weights.
///
/// # Examples
/// ```
/// use moi_checkpoint::QuantisedFormat;
///
/// assert_eq!(QuantisedFormat::Mxfp4.name(), "MXFP4");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuantisedFormat {
    /// 8-bit floats, with a scale for each block, row or tensor.
    Fp8,
    /// 8-bit integers, with a scale for each row or tensor.
    Int8,
    /// 4-bit floats, with a power of 2 for each 32 values (Open Compute's microscaling).
    Mxfp4,
    /// 4-bit floats, with an 8-bit float for each 16 values and one scale for the tensor.
    Nvfp4,
    /// AWQ: 4-bit integers, packed along the outputs.
    Awq,
    /// GPTQ: 4-bit or 8-bit integers, packed along the inputs.
    Gptq,
    /// compressed-tensors' 4-bit or 8-bit integers, packed along the inputs.
    Packed,
    /// MLX: integers of 2 to 8 bits, with a scale and a bias for each group.
    Mlx,
}

impl QuantisedFormat {
    /// The format's name, as its files spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fp8 => "FP8",
            Self::Int8 => "INT8",
            Self::Mxfp4 => "MXFP4",
            Self::Nvfp4 => "NVFP4",
            Self::Awq => "AWQ",
            Self::Gptq => "GPTQ",
            Self::Packed => "pack-quantized",
            Self::Mlx => "MLX",
        }
    }
}

/// A config's description of quantised weights. Which weights are quantised follows from the tensors that the files
/// have.
///
/// # Examples
/// ```
/// use moi_checkpoint::{Quantisation, QuantisedFormat};
///
/// let how = Quantisation { bits: 8, ..Quantisation::new(QuantisedFormat::Mlx) };
/// assert_eq!((how.bits, how.group_size), (8, 64));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quantisation {
    /// The format.
    pub format: QuantisedFormat,
    /// Bits per code.
    pub bits: usize,
    /// The number of values with one scale, if the shapes do not determine it.
    pub group_size: usize,
    /// `group_size` of modules that differ, by module name.
    pub group_sizes: BTreeMap<String, usize>,
    /// Rows and columns of the blocks that have one scale.
    pub block: [usize; 2],
    /// The number to add to stored zero points.
    pub zero_plus: i32,
}

impl Quantisation {
    /// A description of this format with the usual sizes.
    pub fn new(format: QuantisedFormat) -> Self {
        Self {
            format,
            bits: 4,
            group_size: 64,
            group_sizes: BTreeMap::new(),
            block: [128, 128],
            zero_plus: 0,
        }
    }
}

/// A tensor of codes.
#[derive(Clone, Debug)]
pub(crate) struct Codes {
    pub(crate) shape: Vec<usize>,
    pub(crate) kind: CodeType,
    pub(crate) source: Arc<Source>,
    pub(crate) range: Range<usize>,
}

impl Codes {
    fn into_tensor(self) -> LazyTensor {
        LazyTensor::stored(self.shape, Storage::Codes(self.kind), self.source, self.range)
    }

    fn bytes(&self) -> &[u8] {
        &self.source.bytes()[self.range.clone()]
    }

    /// The bytes of a row, where rows are all axes except the last.
    fn row(&self, row: usize) -> &[u8] {
        let rows: usize = self.shape[..self.shape.len().saturating_sub(1)].iter().product();
        let len = self.range.len().checked_div(rows).unwrap_or(0);
        &self.bytes()[row * len..][..len]
    }

    /// The 32-bit words of a row.
    fn words(&self, row: usize) -> impl Iterator<Item = u32> {
        self.row(row).as_chunks::<4>().0.iter().map(|&word| u32::from_le_bytes(word))
    }

    /// The word at this row and column of a matrix.
    fn word(&self, row: usize, column: usize) -> u32 {
        let bytes = self.row(row).as_chunks::<4>().0[column];
        u32::from_le_bytes(bytes)
    }

    /// Rows and columns, if the tensor is a matrix of one of these types.
    fn matrix(&self, kinds: &[CodeType]) -> Result<[usize; 2], String> {
        match self.shape[..] {
            [rows, columns] if kinds.contains(&self.kind) && rows > 0 && columns > 0 => Ok([rows, columns]),
            _ => {
                let names: Vec<&str> = kinds.iter().map(|kind| kind.name()).collect();
                let found = self.kind.name();
                Err(format!(
                    "has shape {:?} and type {found}, expected a matrix of {}",
                    self.shape,
                    names.join(" or ")
                ))
            }
        }
    }
}

/// The tensors of a checkpoint: floats and codes.
#[derive(Debug, Default)]
struct Stored {
    floats: BTreeMap<String, LazyTensor>,
    codes: BTreeMap<String, Codes>,
}

/// A tensor's name, and the error message about it.
type TensorError = (String, String);

/// The name of a weight, and its values computed from the stored tensors of a module.
type NamedTensor = (String, LazyTensor);

/// Replaces a checkpoint's codes and scales by float weights. Codes that belong to no weight stay.
pub(crate) fn composed(checkpoint: Checkpoint, how: &Quantisation) -> Result<Checkpoint, CheckpointError> {
    let Checkpoint { path, tensors, notes, is_by_parameter } = checkpoint;
    let mut stored = Stored::default();
    for (name, tensor) in tensors {
        match tensor.codes() {
            Some(codes) => drop(stored.codes.insert(name, codes)),
            None => drop(stored.floats.insert(name, tensor)),
        }
    }
    let made = match how.format {
        QuantisedFormat::Fp8 | QuantisedFormat::Int8 => fp8::compose(&mut stored, how),
        QuantisedFormat::Mxfp4 => fp4::compose_mxfp4(&mut stored),
        QuantisedFormat::Nvfp4 => fp4::compose_nvfp4(&mut stored),
        QuantisedFormat::Awq => int4::compose_awq(&mut stored),
        QuantisedFormat::Gptq => int4::compose_gptq(&mut stored, how),
        QuantisedFormat::Packed => int4::compose_packed(&mut stored, how),
        QuantisedFormat::Mlx => mlx::compose(&mut stored, how),
    };
    let made = made.map_err(|(name, what)| CheckpointError::Format {
        path: path.clone(),
        place: format!("tensor `{}`", shown(&name)),
        what: format!("{what} ({})", how.format.name()),
    })?;
    // Scales of activations and of the cache, which are not quantised here.
    const ROUNDINGS: &[&str] = &[
        ".input_scale",
        ".activation_scale",
        ".input_global_scale",
        ".k_scale",
        ".v_scale",
        ".input_zero_point",
    ];
    stored.floats.retain(|name, _| !ROUNDINGS.iter().any(|end| name.ends_with(end)));
    let codes = stored.codes.into_iter().map(|(name, codes)| (name, codes.into_tensor()));
    let tensors = stored.floats.into_iter().chain(made).chain(codes).collect();
    Ok(Checkpoint { path, tensors, notes, is_by_parameter })
}

impl Stored {
    /// The names of all modules that have codes or floats with this suffix.
    fn modules(&self, part: &str) -> Vec<String> {
        let of = |name: &String| name.strip_suffix(part).map(str::to_owned);
        self.codes.keys().filter_map(of).chain(self.floats.keys().filter_map(of)).collect()
    }

    fn take_codes(&mut self, module: &str, part: &str) -> Result<Codes, TensorError> {
        let name = format!("{module}{part}");
        self.codes.remove(&name).ok_or_else(|| (name, "is missing, or stored as floats".to_owned()))
    }

    fn take_floats(&mut self, module: &str, part: &str) -> Result<LazyTensor, TensorError> {
        let name = format!("{module}{part}");
        self.floats.remove(&name).ok_or_else(|| (name, "is missing, or stored as whole numbers".to_owned()))
    }
}

/// A matrix of these rows, or a stack of matrices.
fn named_tensor(
    name: String,
    format: QuantisedFormat,
    shape: Vec<usize>,
    rows: Arc<dyn MadeRows>,
    source: &Codes,
) -> NamedTensor {
    let storage = Storage::Quantised(format);
    (name, LazyTensor::quantised(shape, storage, source.source.clone(), source.range.clone(), rows))
}

/// Makes the error about a tensor of a module.
fn about(module: &str, part: &str) -> impl FnOnce(String) -> TensorError {
    let name = format!("{module}{part}");
    move |what| (name, what)
}

/// Refuses scales of another shape than expected.
fn expect_shape(module: &str, part: &str, found: &[usize], expected: &[usize]) -> Result<(), TensorError> {
    match found == expected {
        true => Ok(()),
        false => Err((format!("{module}{part}"), format!("has shape {found:?}, expected {expected:?}"))),
    }
}

/// The only value of a tensor, whatever axes it has.
fn number(tensor: &LazyTensor) -> Option<f32> {
    match tensor.read()[..] {
        [number] => Some(number),
        _ => None,
    }
}

/// One row of a tensor of scales.
fn scales_of(scales: &LazyTensor, row: usize) -> Vec<f32> {
    scales.slice_rows(row, 1).map(|row| row.read()).unwrap_or_default()
}
