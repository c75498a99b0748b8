//! The tokens of a mixture and their weights, as found by the cubes that read their rows of the table.
//!
//! They are the tokens on a row's list, or those that [`keep`](super::levels::keep) has kept of the vocabulary: the
//! first tokens of each chunk's list. A cube holds some of them at a time in shared memory, so that it can request
//! their rows without waiting for ids and weights one by one.

use cubecl::prelude::*;

use super::{CHUNK, HEADER, MAX_CHUNKS, ROW};
use crate::reduce::{UNITS, sum};

/// Number of rows that a unit requests before it waits for the first of them.
pub(super) const AT_ONCE: usize = 4;

/// Number of tokens whose ids and weights a cube holds at a time.
pub(super) const ENTRIES: usize = UNITS * AT_ONCE;

/// Number of steps of a binary search among the chunks.
const HALVINGS: usize = MAX_CHUNKS.ilog2() as usize;

/// The mixture of a cube's row.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Mixture {
    /// Index of the row's first logit, and of its first id in the order of levels.
    logits: usize,
    chunks: usize,
    maximum: f32,
    sum: f32,
    pub(super) gate: f32,
    pub(super) token: usize,
    /// Number of tokens that are mixed.
    pub(super) count: usize,
    /// Whether these are the tokens on the row's list.
    is_listed: bool,
    pub(super) mixes: bool,
    /// Whether their weights may sum to less than one.
    tolerates: bool,
    /// Index of the row's list.
    list: usize,
    /// Index of the starts of the chunks' parts.
    kept: usize,
}

#[cube]
pub(super) fn mixture(
    specs: &Array<f32>,
    words: &Array<u32>,
    kept: &Array<u32>,
    row: usize,
    vocab: usize,
    #[comptime] listed: usize,
    #[comptime] whole: bool,
) -> Mixture {
    let at = row * comptime![HEADER + 2 * listed];
    let chunks = vocab.div_ceil(CHUNK);
    let support = usize::cast_from(specs[row * ROW + 7]);
    let mixes = specs[row * ROW + 8] > 0.0f32;
    let first = row * (chunks + 1);
    let mut count = support;
    if comptime![whole] {
        if support == 0 {
            count = kept[first + chunks] as usize;
        }
    }
    Mixture {
        logits: row * vocab,
        chunks,
        maximum: f32::reinterpret(words[at + 4]),
        sum: f32::reinterpret(words[at + 5]),
        gate: f32::reinterpret(words[at + 3]),
        token: words[at] as usize,
        count: select(mixes, count, 0usize),
        is_listed: support > 0,
        mixes,
        tolerates: support == 0 && specs[row * ROW + 9] > 0.0f32,
        list: at + HEADER,
        kept: first,
    }
}

/// The `i`-th token of the mixture and its weight; past the last one, the sampled token and 0.
#[cube]
fn entry(
    logits: &Array<f32>,
    words: &Array<u32>,
    order: &Array<u32>,
    starts: &SharedMemory<u32>,
    mixture: Mixture,
    i: usize,
    #[comptime] listed: usize,
    #[comptime] whole: bool,
) -> (usize, f32) {
    let mut id = mixture.token;
    let mut weight = 0.0f32;
    if i < mixture.count {
        if mixture.is_listed {
            id = words[mixture.list + i] as usize;
            weight = f32::reinterpret(words[mixture.list + listed + i]);
        }
        if comptime![whole] {
            if !mixture.is_listed {
                // Finds the last chunk whose part starts at `i` or before; those before it with the same start are
                // empty.
                let mut chunk = 0usize;
                #[unroll]
                for step in 0..HALVINGS {
                    let next = chunk + comptime![(MAX_CHUNKS / 2) >> step];
                    if next < mixture.chunks && starts[next] <= i as u32 {
                        chunk = next;
                    }
                }
                let place = chunk * CHUNK + i - starts[chunk] as usize;
                let own = order[mixture.logits + place] as usize;
                let below = max(logits[mixture.logits + own] - mixture.maximum, -1e30f32);
                weight = below.exp() / mixture.sum;
                // The row of a token without weight need not be read.
                id = select(weight > 0.0f32, own, mixture.token);
            }
        }
    }
    (id, weight)
}

/// Stores [`ENTRIES`] tokens from `first` on, and their weights. Returns the sum of the weights that this unit has
/// found.
#[cube]
pub(super) fn find_entries(
    logits: &Array<f32>,
    words: &Array<u32>,
    order: &Array<u32>,
    starts: &SharedMemory<u32>,
    mixture: Mixture,
    first: usize,
    ids: &mut SharedMemory<u32>,
    weights: &mut SharedMemory<f32>,
    #[comptime] listed: usize,
    #[comptime] whole: bool,
) -> f32 {
    let mut own = 0.0f32;
    #[unroll]
    for j in 0..AT_ONCE {
        let at = j * UNITS + UNIT_POS as usize;
        let (id, weight) = entry(logits, words, order, starts, mixture, first + at, listed, whole);
        ids[at] = u32::cast_from(id);
        weights[at] = weight;
        own += weight;
    }
    own
}

/// Loads the starts of the chunks' parts, which [`entry`] needs to find a token.
#[cube]
pub(super) fn load_starts(
    kept: &Array<u32>,
    mixture: Mixture,
    starts: &mut SharedMemory<u32>,
    #[comptime] whole: bool,
) {
    if comptime![whole] {
        let unit = UNIT_POS as usize;
        if unit < mixture.chunks {
            starts[unit] = kept[mixture.kept + unit];
        }
    }
}

/// The mean row's weight; `own` is the sum of the weights that the unit has found.
#[cube]
pub(super) fn rest(mixture: Mixture, own: f32, shared: &mut SharedMemory<f32>) -> f32 {
    let found = sum(own, shared);
    select(mixture.mixes && mixture.tolerates, clamp(1.0f32 - found, 0.0f32, 1.0f32), 0.0f32)
}
