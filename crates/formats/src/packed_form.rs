//! The memory layout of packed weights.
//!
//! ggml's block formats store the values of one row together. A matrix product needs the same column of many rows
//! together, because one activation is then multiplied by sixteen weights in one instruction, without a sum across
//! SIMD lanes. So a matrix is cut into tiles of [`ROWS`] rows, and a tile into blocks of [`BLOCK`] columns. The bytes
//! of a block of a tile:
//!
//! | bytes | what |
//! |---|---|
//! | 4 x 64 | 4-bit forms: byte `64 c + 4 r + i` has the low four bits of row r's values 8c + i and, above them, 8c + 4 + i |
//! | 8 x 64 | 8-bit forms: byte `64 g + 4 r + i` has row r's value 4g + i, plus 128 |
//! | 64 for each bit above four | bit `4 r + i` of the 64-bit word g belongs to row r's value 4g + i |
//! | 32, K forms | for each row its scale, then for each row its minimum (Q6_K: the scale of its other half) |
//!
//! The float16 scales and minima are stored separately, those of sixteen rows together, for each block, or for each
//! eight blocks of the K forms. Missing rows of the last tile are zeros.

use crate::BlockFormat;

/// Columns that share a scale.
pub const BLOCK: usize = 32;
/// Rows of a tile.
pub const ROWS: usize = 16;

/// A block format of ggml in which weights can be held in memory. `q` is the quant of a value; `d` and `m` are
/// float16.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types, reason = "ggml's own names")]
pub enum PackedForm {
    /// 8 bits: `d (q - 128)`.
    Q8_0,
    /// 4 bits: `d (q - 8)`.
    Q4_0,
    /// 4 bits: `d q + m`.
    Q4_1,
    /// 5 bits: `d (q - 16)`.
    Q5_0,
    /// 5 bits: `d q + m`.
    Q5_1,
    /// 4 bits in parts of 32 with 6-bit scale s and minimum n: `d s q - m n`.
    Q4_K,
    /// 5 bits, otherwise as `Q4_K`.
    Q5_K,
    /// 6 bits in parts of 16 with an 8-bit scale s: `d s (q - 32)`.
    Q6_K,
}

impl PackedForm {
    /// All packed forms.
    pub const ALL: [Self; 8] =
        [Self::Q8_0, Self::Q4_0, Self::Q4_1, Self::Q5_0, Self::Q5_1, Self::Q4_K, Self::Q5_K, Self::Q6_K];

    /// The packed form with this ggml name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|form| form.name() == name)
    }

    /// ggml's name.
    pub fn name(self) -> &'static str {
        self.format().name()
    }

    /// Bits per quant.
    pub const fn bits(self) -> usize {
        match self {
            Self::Q8_0 => 8,
            Self::Q4_0 | Self::Q4_1 | Self::Q4_K => 4,
            Self::Q5_0 | Self::Q5_1 | Self::Q5_K => 5,
            Self::Q6_K => 6,
        }
    }

    /// The number of bits above four, each of which is stored in a plane of its own.
    pub const fn planes(self) -> usize {
        match self.bits() {
            8 => 0,
            bits => bits - 4,
        }
    }

    /// The number that is subtracted from the stored, unsigned quant.
    pub const fn offset(self) -> i32 {
        match self {
            Self::Q8_0 => 128,
            Self::Q4_0 => 8,
            Self::Q5_0 => 16,
            Self::Q6_K => 32,
            Self::Q4_1 | Self::Q5_1 | Self::Q4_K | Self::Q5_K => 0,
        }
    }

    /// The number of columns that share a float16 scale.
    pub const fn span(self) -> usize {
        match self.is_k() {
            true => 256,
            false => BLOCK,
        }
    }

    /// Whether blocks have small scales in addition to the float16 ones.
    pub const fn is_k(self) -> bool {
        matches!(self, Self::Q4_K | Self::Q5_K | Self::Q6_K)
    }

    /// Whether the form has float16 minima.
    pub const fn has_minima(self) -> bool {
        matches!(self, Self::Q4_1 | Self::Q5_1 | Self::Q4_K | Self::Q5_K)
    }

    /// Bytes of a block of a tile, without the float16 scales.
    pub const fn block_bytes(self) -> usize {
        let quants = match self.bits() {
            8 => 512,
            _ => 256 + 64 * self.planes(),
        };
        quants + if self.is_k() { 2 * ROWS } else { 0 }
    }

    /// The position of a block's small scales, in bytes.
    pub const fn small_scales(self) -> usize {
        self.block_bytes() - 2 * ROWS
    }

    /// Bytes of all blocks of a matrix, without the float16 scales.
    pub const fn quant_bytes(self, rows: usize, columns: usize) -> usize {
        rows.div_ceil(ROWS) * (columns / BLOCK) * self.block_bytes()
    }

    /// The number of float16 scales of a matrix, which is also the number of minima if there are any.
    pub const fn num_scales(self, rows: usize, columns: usize) -> usize {
        rows.div_ceil(ROWS) * (columns / self.span()) * ROWS
    }

    /// The numbers of 32-bit words, scales and minima of a matrix.
    pub const fn lengths(self, rows: usize, columns: usize) -> [usize; 3] {
        let scales = self.num_scales(rows, columns);
        [self.quant_bytes(rows, columns) / 4, scales, if self.has_minima() { scales } else { 0 }]
    }

    /// The ggml format that this form holds.
    pub const fn format(self) -> BlockFormat {
        match self {
            Self::Q8_0 => BlockFormat::Q8_0,
            Self::Q4_0 => BlockFormat::Q4_0,
            Self::Q4_1 => BlockFormat::Q4_1,
            Self::Q5_0 => BlockFormat::Q5_0,
            Self::Q5_1 => BlockFormat::Q5_1,
            Self::Q4_K => BlockFormat::Q4_K,
            Self::Q5_K => BlockFormat::Q5_K,
            Self::Q6_K => BlockFormat::Q6_K,
        }
    }
}
