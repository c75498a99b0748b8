//! Storage formats of weights.
//!
//! - [`FloatType`]: the floating-point types in which models are stored and computed
//! - [`BlockFormat`]: ggml's blocks of quantised values; all formats can be decoded, some also encoded
//! - [`RowBlocks`], [`PairedRows`], [`ExpertStacks`]: which part of a stored tensor is one weight
//! - [`PackedForm`]: the block formats in which weights can be held in memory, in the layout that matrix products
//!   need

mod block_format;
mod encode;
mod float_type;
mod grids;
mod iq_blocks;
mod k_blocks;
mod packed_form;
mod parts;
mod ternary_blocks;

pub use block_format::BlockFormat;
pub use float_type::FloatType;
pub use packed_form::{BLOCK, PackedForm, ROWS};
pub use parts::{ExpertStacks, PairedRows, RowBlocks};
