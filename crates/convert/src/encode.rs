//! Encodes a stored tensor as bytes of another type, some rows at a time.

use half::{bf16, f16};
use moi_checkpoint::{LazyTensor, Storage};
use moi_formats::{BlockFormat, FloatType};

use crate::ConvertError;

/// The storage of floats of this type.
pub(crate) fn storage_of(float: FloatType) -> Storage {
    match float {
        FloatType::F32 => Storage::F32,
        FloatType::F16 => Storage::F16,
        FloatType::BF16 => Storage::BF16,
    }
}

/// Encodes a tensor in another storage and passes on the bytes piece by piece.
pub(crate) fn encode(
    name: &str,
    tensor: &LazyTensor,
    storage: Storage,
    mut each: impl FnMut(&[u8]) -> Result<(), ConvertError>,
) -> Result<(), ConvertError> {
    let lost = || ConvertError::Refused(format!("tensor `{name}` cannot be read row by row"));
    // If the storage stays the same, bytes are copied.
    let is_kept = tensor.storage() == storage && tensor.is_as_stored();
    for piece in tensor.pieces().ok_or_else(lost)? {
        let bytes = match is_kept {
            true => piece.read_stored().ok_or_else(lost)?,
            false => encoded(name, &piece.read(), storage)?,
        };
        each(&bytes)?;
    }
    tensor.release();
    Ok(())
}

fn encoded(name: &str, values: &[f32], storage: Storage) -> Result<Vec<u8>, ConvertError> {
    Ok(match storage {
        Storage::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        Storage::BF16 => values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect(),
        Storage::F16 => halves(name, values)?,
        Storage::Block(kind) => blocks(name, kind, values)?,
        Storage::F64 => values.iter().flat_map(|&value| f64::from(value).to_le_bytes()).collect(),
        Storage::Quantised(_) | Storage::Codes(_) => {
            return Err(ConvertError::Refused(format!("`{name}` cannot be written as {}", storage.name())));
        }
    })
}

fn halves(name: &str, values: &[f32]) -> Result<Vec<u8>, ConvertError> {
    let half = |&value: &f32| {
        let half = f16::from_f32(value);
        match half.is_infinite() && value.is_finite() {
            true => Err(ConvertError::Refused(format!(
                "tensor `{name}` holds {value}, which float16 cannot hold; use bf16 or f32"
            ))),
            false => Ok(half.to_le_bytes()),
        }
    };
    Ok(values.iter().map(half).collect::<Result<Vec<_>, _>>()?.concat())
}

fn blocks(name: &str, kind: BlockFormat, values: &[f32]) -> Result<Vec<u8>, ConvertError> {
    // The largest float16, because scales and minima of blocks are float16.
    const LARGEST: f32 = 65_504.0;
    if let Some(value) = values.iter().find(|value| !value.is_finite() || value.abs() > LARGEST) {
        return Err(ConvertError::Refused(format!(
            "tensor `{name}` holds {value}, which {} cannot hold; use bf16 or f32",
            kind.name()
        )));
    }
    kind.encode(values)
        .ok_or_else(|| ConvertError::Refused(format!("tensor `{name}`: {} cannot be written", kind.name())))
}
