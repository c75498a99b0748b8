//! Weights that other programs have quantised: what stands in files are codes and scales, and a weight is read as the float
//! that they make. Activations are not rounded, whatever a file says of them.

mod codes;
mod fp4;
mod fp8;
mod int4;
mod mlx;

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use crate::{
    Checkpoint, CheckpointError, CodeType, LazyTensor, Storage, made::MadeRows, shown, tensor::Source,
};

/// Who has quantised weights, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuantisedFormat {
    /// Floats of 8 bits, with a scale for each block, row or tensor.
    Fp8,
    /// Whole numbers of 8 bits, with a scale for each row or tensor.
    Int8,
    /// Floats of 4 bits, with a power of 2 for 32 of them (Open Compute's microscaling).
    Mxfp4,
    /// Floats of 4 bits, with a float of 8 bits for 16 of them and one scale for all.
    Nvfp4,
    /// AWQ: whole numbers of 4 bits, packed along the outputs.
    Awq,
    /// GPTQ: whole numbers of 4 or 8 bits, packed along the inputs.
    Gptq,
    /// compressed-tensors' whole numbers of 4 or 8 bits, packed along the inputs.
    Packed,
    /// MLX: whole numbers of 2 to 8 bits, each times a scale and with a bias.
    Mlx,
}

impl QuantisedFormat {
    /// Its name, as its files spell it.
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

/// What a config says of quantised weights. Which tensors are quantised shows in the tensors that are there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quantisation {
    /// How.
    pub format: QuantisedFormat,
    /// Bits of a code.
    pub bits: usize,
    /// Values that have a scale in common, where their shapes do not say it.
    pub group_size: usize,
    /// The same for modules of their own sizes.
    pub group_sizes: BTreeMap<String, usize>,
    /// Rows and columns of a block with one scale.
    pub block: [usize; 2],
    /// What is added to stored zero points.
    pub zero_plus: i32,
}

impl Quantisation {
    /// Of a format, with the sizes that are usual.
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

    /// The bytes of a row: of all axes but the last.
    fn row(&self, row: usize) -> &[u8] {
        let rows: usize = self.shape[..self.shape.len().saturating_sub(1)].iter().product();
        let len = self.range.len().checked_div(rows).unwrap_or(0);
        &self.bytes()[row * len..][..len]
    }

    /// The 32-bit words of a row.
    fn words(&self, row: usize) -> impl Iterator<Item = u32> {
        self.row(row).as_chunks::<4>().0.iter().map(|&word| u32::from_le_bytes(word))
    }

    /// The word at a place of a matrix.
    fn word(&self, row: usize, column: usize) -> u32 {
        let bytes = self.row(row).as_chunks::<4>().0[column];
        u32::from_le_bytes(bytes)
    }

    /// Rows and columns, if it is a matrix of one of these types.
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

/// What a checkpoint's files hold: floats, and codes.
#[derive(Debug, Default)]
struct Stored {
    floats: BTreeMap<String, LazyTensor>,
    codes: BTreeMap<String, Codes>,
}

/// A tensor's name, and what is wrong with it.
type TensorError = (String, String);

/// A weight of floats made of what a module has stored, under its name.
type NamedTensor = (String, LazyTensor);

/// The checkpoint with its codes made floats. Codes that belong to no weight stay.
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
    // Of activations and of the cache, which stay floats.
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
    /// The names of all modules that have codes or floats of a name.
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

/// A matrix of such rows, or a stack of matrices.
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

/// The error about a part of a module.
fn about(module: &str, part: &str) -> impl FnOnce(String) -> TensorError {
    let name = format!("{module}{part}");
    move |what| (name, what)
}

/// Refuses scales of another shape.
fn expect_shape(module: &str, part: &str, found: &[usize], expected: &[usize]) -> Result<(), TensorError> {
    match found == expected {
        true => Ok(()),
        false => Err((format!("{module}{part}"), format!("has shape {found:?}, expected {expected:?}"))),
    }
}

/// One number, whatever axes it has.
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
