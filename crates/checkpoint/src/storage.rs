//! How values are stored.

use half::{bf16, f16};

use moi_formats::BlockFormat;

use crate::QuantisedFormat;

/// How a tensor's values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// IEEE double precision.
    F64,
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of a single.
    BF16,
    /// Blocks of ggml.
    Block(BlockFormat),
    /// Codes and scales of several stored tensors.
    Quantised(QuantisedFormat),
    /// Whole numbers or small floats, which are no weights by themselves.
    Codes(CodeType),
}

/// The types of codes that weights are quantised to, and of what stands beside them.
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
    /// As safetensors spells it.
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
    /// Values in a block, and bytes that hold them.
    pub fn block(self) -> (usize, usize) {
        match self {
            Self::F64 => (1, 8),
            Self::F32 => (1, 4),
            Self::F16 | Self::BF16 => (1, 2),
            Self::Block(kind) => kind.size(),
            // Of several tensors there is no size of one value.
            Self::Quantised(_) => (1, 1),
            Self::Codes(kind) => (1, kind.bytes()),
        }
    }

    /// Its name, as the formats spell it.
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

    /// Appends the values of whole blocks as float32; exact for all but F64.
    pub fn decode(self, bytes: &[u8], values: &mut Vec<f32>) {
        match self {
            Self::F64 => values.extend(words(bytes).map(|w| f64::from_le_bytes(w) as f32)),
            Self::F32 => values.extend(words(bytes).map(f32::from_le_bytes)),
            Self::F16 => values.extend(words(bytes).map(|w| f16::from_le_bytes(w).to_f32())),
            Self::BF16 => values.extend(words(bytes).map(|w| bf16::from_le_bytes(w).to_f32())),
            Self::Block(kind) => kind.decode(bytes, values),
            // Of what is quantised rows are asked for; codes are refused before they are read.
            Self::Quantised(_) | Self::Codes(_) => {}
        }
    }
}

fn words<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> {
    bytes.as_chunks::<N>().0.iter().copied()
}
