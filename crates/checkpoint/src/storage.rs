//! Types in which values are stored.

use half::{bf16, f16};

use moi_formats::BlockFormat;

use crate::QuantisedFormat;

/// The storage type of a tensor's values.
///
/// # Examples
/// ```
/// use moi_checkpoint::Storage;
///
/// let mut values = Vec::new();
/// Storage::F16.decode(&[0x00, 0x3c, 0x00, 0x40], &mut values);
/// assert_eq!(values, [1.0, 2.0]);
/// assert_eq!(Storage::F16.block(), (1, 2)); // one value, two bytes
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// IEEE double precision.
    F64,
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of a float32 (bfloat16).
    BF16,
    /// Blocks of one of ggml's formats.
    Block(BlockFormat),
    /// Codes and scales in several stored tensors.
    Quantised(QuantisedFormat),
    /// Integers or small floats, which are no weights by themselves.
    Codes(CodeType),
}

/// The types of quantised weights' codes and of the tensors that belong to them.
///
/// # Examples
/// ```
/// use moi_checkpoint::CodeType;
///
/// assert_eq!(CodeType::F8E4M3.name(), "F8_E4M3");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "they are named as safetensors names them")]
pub enum CodeType {
    U8,
    I8,
    I32,
    U32,
    I64,
    F8E4M3,
}

impl CodeType {
    /// The type's name in safetensors.
    pub fn name(self) -> &'static str {
        match self {
            Self::U8 => "U8",
            Self::I8 => "I8",
            Self::I32 => "I32",
            Self::U32 => "U32",
            Self::I64 => "I64",
            Self::F8E4M3 => "F8_E4M3",
        }
    }

    fn bytes(self) -> usize {
        match self {
            Self::U8 | Self::I8 | Self::F8E4M3 => 1,
            Self::I32 | Self::U32 => 4,
            Self::I64 => 8,
        }
    }
}

impl Storage {
    /// The number of values in a block, and the bytes of a block.
    pub fn block(self) -> (usize, usize) {
        match self {
            Self::F64 => (1, 8),
            Self::F32 => (1, 4),
            Self::F16 | Self::BF16 => (1, 2),
            Self::Block(kind) => kind.size(),
            // A value of several tensors has no size of its own.
            Self::Quantised(_) => (1, 1),
            Self::Codes(kind) => (1, kind.bytes()),
        }
    }

    /// The type's name, as the formats spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F64 => "F64",
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::Block(kind) => kind.name(),
            Self::Quantised(format) => format.name(),
            Self::Codes(kind) => kind.name(),
        }
    }

    /// ggml's number of the type, if it has one.
    pub fn ggml_type(self) -> Option<u32> {
        match self {
            Self::F32 => Some(0),
            Self::F16 => Some(1),
            Self::F64 => Some(28),
            Self::BF16 => Some(30),
            Self::Block(kind) => Some(kind.ggml_type()),
            Self::Quantised(_) | Self::Codes(_) => None,
        }
    }

    /// Appends the values of whole blocks as float32; the conversion is exact except for F64.
    pub fn decode(self, bytes: &[u8], values: &mut Vec<f32>) {
        match self {
            Self::F64 => values.extend(words(bytes).map(|w| f64::from_le_bytes(w) as f32)),
            Self::F32 => values.extend(words(bytes).map(f32::from_le_bytes)),
            Self::F16 => values.extend(words(bytes).map(|w| f16::from_le_bytes(w).to_f32())),
            Self::BF16 => values.extend(words(bytes).map(|w| bf16::from_le_bytes(w).to_f32())),
            Self::Block(kind) => kind.decode(bytes, values),
            // Quantised tensors are read by rows instead, and codes are refused before they are read.
            Self::Quantised(_) | Self::Codes(_) => {}
        }
    }
}

fn words<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> {
    bytes.as_chunks::<N>().0.iter().copied()
}
