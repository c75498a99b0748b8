//! The KV cache: keys and values of the positions that sequences have seen.
//!
//! They are stored in blocks of [`BLOCK_POSITIONS`] positions (PagedAttention, arXiv 2309.06180), which a [`KvPool`]
//! allocates. A sequence has a [`BlockTable`], which lists the blocks of its positions in order. Sequences of any
//! lengths are computed together, and can be added and removed without a copy. Sequences with a common prefix share
//! blocks: a fork copies the table, and the table's last block is copied, if it is not full, when one of the two
//! writes to it.
//!
//! Layers that see all positions share one table; layers of each window size share another, from which blocks are
//! dropped when no layer sees them any more. Block n of a table holds positions 64n to 64n + 63, whatever came
//! before. So a position's place in its block, and with it the order of attention's sums, does not depend on other
//! sequences.
//!
//! Recurrent layers have a state instead of positions, in a slot per sequence. A fork shares the slot until one of
//! the two runs on. A state cannot be rolled back, and is not shared between sequences with a common prefix.

mod blocks;
mod layer;
mod parked;
mod pool;
mod states;
mod table;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "a failure must end the test")]
mod tests;

pub use layer::{BlockRun, CacheLayout, LayerBlocks};
pub use parked::ParkedTable;
pub use pool::KvPool;
pub(crate) use pool::{CacheShape, KindTables, LayerShape};
use states::StateSlots;
pub use table::{BlockTable, Checkpoint, SharedBlock};

/// Positions per block.
pub const BLOCK_POSITIONS: usize = 64;

/// Number of positions that a sequence can be rolled back by without losing positions that a window sees.
pub(crate) const SLACK: usize = BLOCK_POSITIONS;

/// The first position that is seen when the next position is `next`.
pub(crate) fn first_seen(next: usize, window: Option<usize>) -> usize {
    window.map_or(0, |window| (next + 1).saturating_sub(window))
}
