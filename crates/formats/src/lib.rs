//! How the numbers of weights are stored.
//!
//! - [`FloatType`]: the types of floats that models are stored and computed in
//! - [`BlockFormat`]: ggml's blocks of quantised values, decoded all, of which some can be encoded
//! - [`RowBlocks`], [`PairedRows`], [`ExpertStacks`]: which part of a stored tensor is one weight
//! - [`PackedForm`]: those of them that weights can stay in, and how products want them to lie in memory

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
