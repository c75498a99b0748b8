//! CPU kernels for decoding, on plain slices. This crate does not depend on tensors, models or files.
//!
//! Decoding one sequence reads every weight once per token, so its speed is limited by memory bandwidth; prefilling a
//! prompt is limited by arithmetic. Therefore weights stay [packed](Packed) and are widened in registers, activations
//! are rounded to [8-bit blocks](QuantizedRows) where that is asked for, and work is split by rows over
//! [threads](pool) that busy-wait for it.
//!
//! Every kernel is written once over sixteen lanes of float32 and compiled for AVX-512, AVX2, NEON and plain Rust.
//! Products in 8 bits have an implementation for each of these (and one more where an instruction sums four products:
//! VNNI of AVX-512, AVX-VNNI, NEON's dot products), and all are tested against a plain reference. The CPU's
//! instruction set is detected at run time. Setting `MOI_KERNELS` to `avx512bw`, `avx2`, `neon` or `portable` selects
//! a narrower set, for comparison.

mod activation;
mod attention;
mod blocks;
mod columns;
mod dense;
mod lanes;
mod mixture;
mod norm;
mod packed;
pub mod pool;
mod quantize;
mod recurrence;
mod rope;
mod shortlist;
mod softmax;
mod threshold;

pub use activation::{Gated, gated};
pub use attention::{AttentionSizes, AttentionSpan, BlockPlace, CACHE_BLOCK, CachedBlocks, Visible, attend};
pub use blocks::{PackedParts, pack, pack_into};
pub use columns::{Run, write_columns};
pub use dense::{Dense, Float, dense_products};
pub use lanes::{Isa, isa};
pub use mixture::{RowCache, Table, mean_rows, weighted_sums};
pub use moi_formats::{BLOCK, PackedForm, ROWS};
pub use norm::{NormSpec, norm_rows};
pub use packed::Packed;
pub use quantize::{QuantizedRows, Rounding};
pub use recurrence::{StateSteps, state_steps};
pub use rope::{HeadValue, Rotary, rotate_heads};
pub use shortlist::{Filters, Shortlist, draw, shortlist};
pub use softmax::{Distribution, distribution, first_of_largest};
