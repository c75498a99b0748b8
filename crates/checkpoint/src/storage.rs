//! How values are stored.

use crate::gguf::blocks::BlockKind;

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
    Block(BlockKind),
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
}
