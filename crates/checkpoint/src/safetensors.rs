//! Opens safetensors files, single or sharded.

use std::{collections::BTreeMap, path::Path};

use safetensors::{Dtype, SafeTensorError, SafeTensors};
use serde::de::IgnoredAny;

use crate::{
    Checkpoint, CheckpointError, CodeType, LazyTensor, Quantisation, Storage,
    file::{is_there, shown},
    quantised,
    shards::{Merged, open_indexed, open_unindexed},
    tensor::Source,
    unique::Unique,
};

/// The file of an unsharded checkpoint.
pub const SINGLE_FILE: &str = "model.safetensors";
/// The index of a sharded checkpoint.
pub const INDEX_FILE: &str = "model.safetensors.index.json";

/// Whether a tensor is a buffer (a causal mask, position ids, or a table of rotary positions), which old checkpoints
/// store beside the weights, masks often as booleans or integers. A parameter can have such a name, too.
pub(crate) fn is_buffer(name: &str) -> bool {
    let names = ["inv_freq", "cos_cached", "sin_cached", "masked_bias", "position_ids"];
    let suffixes = [".attn.bias", ".self_attn.bias", ".attention.bias"];
    let own: &str = name.rsplit('.').next().unwrap_or(name);
    names.contains(&own) || suffixes.iter().any(|suffix| name.ends_with(suffix))
}

/// Opens a safetensors file, or a directory that holds [`SINGLE_FILE`], or [`INDEX_FILE`] with its shards, or all
/// shards of one model without an index. Masks of booleans and integers are left out.
///
/// # Errors
/// If a file cannot be opened, is truncated or damaged, or has a type other than F64, F32, F16 or BF16; if a shard is
/// missing.
///
/// # Examples
/// ```
/// use moi_checkpoint::open_safetensors;
/// # use safetensors::{Dtype, tensor::TensorView};
/// # let directory = tempfile::tempdir()?;
/// # let path = directory.path().join("model.safetensors");
/// # let bytes: Vec<u8> = [1.0f32, 2.0, 3.0, 4.0].into_iter().flat_map(f32::to_le_bytes).collect();
/// # let view = TensorView::new(Dtype::F32, vec![2, 2], &bytes)?;
/// # std::fs::write(&path, safetensors::serialize([("weight", view)], None)?)?;
/// let checkpoint = open_safetensors(directory.path())?; // it holds `model.safetensors`
/// let weight = &checkpoint.tensors()["weight"];
/// assert_eq!(weight.shape(), [2, 2]);
/// assert_eq!(weight.read(), [1.0, 2.0, 3.0, 4.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn open_safetensors(path: &Path) -> Result<Checkpoint, CheckpointError> {
    without_codes(open(path)?)
}

/// Opens safetensors as [`open_safetensors`] does, with weights that another program has quantised.
///
/// # Errors
/// As [`open_safetensors`], and if codes and scales do not fit each other.
///
/// # Examples
/// ```
/// use moi_checkpoint::{Quantisation, QuantisedFormat, open_quantised_safetensors};
/// use safetensors::{Dtype, tensor::TensorView};
///
/// // Two 8-bit floats, 1 and 2, and their scale.
/// let scale = 0.5f32.to_le_bytes();
/// let codes = TensorView::new(Dtype::F8_E4M3, vec![1, 2], &[0x38, 0x40])?;
/// let scale = TensorView::new(Dtype::F32, vec![1], &scale)?;
/// # let directory = tempfile::tempdir()?;
/// # let path = directory.path().join("model.safetensors");
/// let tensors = [("lm_head.weight", codes), ("lm_head.weight_scale", scale)];
/// std::fs::write(&path, safetensors::serialize(tensors, None)?)?;
/// let how = Quantisation::new(QuantisedFormat::Fp8);
/// let checkpoint = open_quantised_safetensors(&path, &how)?;
/// assert_eq!(checkpoint.tensors()["lm_head.weight"].read(), [0.5, 1.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn open_quantised_safetensors(path: &Path, how: &Quantisation) -> Result<Checkpoint, CheckpointError> {
    without_codes(quantised::composed(open(path)?, how)?)
}

/// Refuses integers and small floats that belong to no weight.
fn without_codes(mut checkpoint: Checkpoint) -> Result<Checkpoint, CheckpointError> {
    checkpoint.tensors.retain(|name, tensor| tensor.codes().is_none() || !is_buffer(name));
    let codes = checkpoint.tensors.iter().find(|(_, tensor)| tensor.codes().is_some());
    match codes {
        None => Ok(checkpoint),
        Some((name, tensor)) => Err(CheckpointError::Format {
            path: tensor.path().to_owned(),
            place: format!("tensor `{name}`"),
            what: unsupported(tensor.storage().name()),
        }),
    }
}

fn unsupported(kind: &str) -> String {
    let hint = match is_quantised(kind) {
        true => "; it is quantised: use a copy in float32, float16 or bfloat16, or a GGUF file",
        false => "",
    };
    format!("type {kind} is not supported (supported: F64, F32, F16, BF16){hint}")
}

fn open(path: &Path) -> Result<Checkpoint, CheckpointError> {
    let (single, index) = (path.join(SINGLE_FILE), path.join(INDEX_FILE));
    let of_file = |path: &Path| -> Result<Checkpoint, CheckpointError> {
        Ok(Checkpoint {
            path: path.to_owned(),
            tensors: open_file(path)?,
            notes: Vec::new(),
            is_by_parameter: false,
        })
    };
    if !path.is_dir() {
        return of_file(path);
    }
    if is_there(&single) {
        return of_file(&single);
    }
    if is_there(&index) {
        let Merged { tensors, notes } = open_indexed(path, &index)?;
        return Ok(Checkpoint { path: index, tensors, notes, is_by_parameter: false });
    }
    match open_unindexed(path)? {
        Some(Merged { tensors, notes }) => {
            Ok(Checkpoint { path: path.to_owned(), tensors, notes, is_by_parameter: false })
        }
        // The error then says that the file is missing.
        None => of_file(&single),
    }
}

/// Opens the tensors of one file.
pub(crate) fn open_file(path: &Path) -> Result<BTreeMap<String, LazyTensor>, CheckpointError> {
    let source = Source::open(path)?;
    let wrong = |place: String, what: String| CheckpointError::Format { path: path.to_owned(), place, what };
    // The library checks that offsets lie in the file, are in order, and agree with shapes and types.
    let (header, metadata) = SafeTensors::read_metadata(source.bytes())
        .map_err(|error| wrong("header".into(), format!("{}; {DAMAGED}", what_is_wrong(error, &source))))?;
    let start = header + size_of::<u64>();
    serde_json::from_slice::<Unique<IgnoredAny>>(&source.bytes()[size_of::<u64>()..start])
        .map_err(|error| wrong("header".into(), format!("{error}; {DAMAGED}")))?;
    let tensor = |(name, info): (String, &safetensors::tensor::TensorInfo)| {
        let storage = match info.dtype {
            Dtype::F64 => Storage::F64,
            Dtype::F32 => Storage::F32,
            Dtype::F16 => Storage::F16,
            Dtype::BF16 => Storage::BF16,
            Dtype::U8 => Storage::Codes(CodeType::U8),
            Dtype::I8 => Storage::Codes(CodeType::I8),
            Dtype::I32 => Storage::Codes(CodeType::I32),
            Dtype::U32 => Storage::Codes(CodeType::U32),
            Dtype::I64 => Storage::Codes(CodeType::I64),
            Dtype::F8_E4M3 => Storage::Codes(CodeType::F8E4M3),
            // A buffer that is no float is no weight either, so it is left out.
            _ if is_buffer(&name) => return Ok(None),
            other => return Err(wrong(format!("tensor `{name}`"), unsupported(&format!("{other:?}")))),
        };
        let (from, to) = info.data_offsets;
        let range = start + from..start + to;
        let tensor = LazyTensor::stored(info.shape.clone(), storage, source.clone(), range);
        Ok(Some((name, tensor)))
    };
    metadata.tensors().into_iter().filter_map(|entry| tensor(entry).transpose()).collect()
}

/// Whether weights of this type are quantised: packed into integers, or floats of 8 bits or fewer.
fn is_quantised(kind: &str) -> bool {
    kind.starts_with("F8") || kind.starts_with("F4") || ["U8", "I8", "U32", "I32"].contains(&kind)
}

const DAMAGED: &str = "the file is damaged or incomplete, fetch it again";

/// The library's error in words, with what was found in the file.
fn what_is_wrong(error: SafeTensorError, source: &Source) -> String {
    let bytes = source.bytes();
    let announced = bytes.first_chunk().map_or(0, |&length| u64::from_le_bytes(length));
    let length = bytes.len();
    match error {
        SafeTensorError::HeaderTooSmall => format!("expected 8 bytes of a length, found {length} in all"),
        SafeTensorError::HeaderTooLarge => {
            format!("a header of {announced} bytes announced, expected 100000000 at most")
        }
        SafeTensorError::InvalidHeaderLength => {
            format!("a header of {announced} bytes announced, found {length} bytes in all")
        }
        SafeTensorError::InvalidHeaderStart => "expected JSON, an object".to_owned(),
        SafeTensorError::InvalidHeader(error) => format!("expected UTF-8: {error}"),
        SafeTensorError::InvalidHeaderDeserialization(error) => {
            format!("expected names with types, shapes and offsets: {error}")
        }
        SafeTensorError::MetadataIncompleteBuffer => {
            format!("the tensors end elsewhere than the file of {length} bytes")
        }
        SafeTensorError::InvalidOffset(name) => {
            format!(
                "tensor `{}` does not begin where the one before it ends, or ends before it begins",
                shown(&name)
            )
        }
        SafeTensorError::TensorInvalidInfo => {
            "the offsets of a tensor do not fit its type and shape".to_owned()
        }
        SafeTensorError::ValidationOverflow => "the size of a tensor is beyond all memory".to_owned(),
        other => other.to_string(),
    }
}
