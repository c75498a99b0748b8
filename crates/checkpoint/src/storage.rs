//! How values are stored.

use half::{bf16, f16};

use moi_formats::BlockFormat;

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
}

impl Storage {
    /// Values in a block, and bytes that hold them.
    pub fn block(self) -> (usize, usize) {
        match self {
            Self::F64 => (1, 8),
            Self::F32 => (1, 4),
            Self::F16 | Self::BF16 => (1, 2),
            Self::Block(kind) => kind.size(),
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
        }
    }

    /// ggml's number of the type.
    pub fn ggml_type(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::F64 => 28,
            Self::BF16 => 30,
            Self::Block(kind) => kind.ggml_type(),
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
        }
    }
}

fn words<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> {
    bytes.as_chunks::<N>().0.iter().copied()
}
