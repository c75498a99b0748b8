//! Keys and values of the positions that sequences have seen.
//!
//! They lie in blocks of [`BLOCK_POSITIONS`] positions (PagedAttention, arXiv 2309.06180), which a [`KvPool`] hands out.
//! A sequence has a [`BlockTable`]: which blocks hold its positions, in order. Sequences of any lengths are computed
//! together, join and leave without a copy, and those that begin alike share blocks: a fork copies the table, and the last
//! block of it, if that is not full, when one of the two writes to it.
//!
//! Layers that see all positions have one table, those of each window size another, from which blocks fall out that
//! nothing sees any more. Block n of a table holds positions 64n to 64n + 63, whatever came before, so that a position's
//! place in its block, and with it the order in which attention adds up, is the same in every company.
//!
//! Layers that keep a state in the place of positions have a slot for each sequence. A fork shares it until one of the two
//! runs on; it cannot be taken back, and is not shared between sequences that begin alike.

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

/// Positions of a block.
pub const BLOCK_POSITIONS: usize = 64;

/// Positions that a sequence can be taken back by without losing what a window sees.
pub(crate) const SLACK: usize = BLOCK_POSITIONS;

/// The first position that is still seen when the next one is `next`.
pub(crate) fn first_seen(next: usize, window: Option<usize>) -> usize {
    window.map_or(0, |window| (next + 1).saturating_sub(window))
}
