//! Finds the rows of the table that the mixture of a whole vocabulary reads, without a pass over the logits.
//!
//! Logits are assigned to levels of half a nat, on one grid for all chunks, so the weights on a level differ by a
//! factor of at most 1.65. The survey, which has many cubes, sorts the tokens of each chunk by level ([`sort`]), so
//! that the tokens above any threshold are a prefix of each chunk's list. [`keep`] finds the threshold from sums per
//! level and computes the lengths of these prefixes; no data is moved once the threshold is known. Tokens are ordered
//! by chunk, level and id, which is the same in every run.
//!
//! The cost for a row of 131,072 logits on an H100, where one cube moves at most 64 bytes per cycle: [`keep`] reads
//! seven numbers of each of 32 chunks, less than 1 KiB, for six sums over a cube and a prefix sum, about 2 µs. If one
//! cube went through the logits instead, it would read 512 KiB, 5 µs at best, and write up to 1 MiB of ids and
//! weights. [`sort`] adds 512 KiB of ids to what the survey writes, by 32 cubes in parallel: 16 KiB and about 3 µs
//! each.

use cubecl::prelude::*;

use super::{BOUNDS, REACHES, ROW, survey::OWN};
use crate::reduce::{UNITS, before, sum};

/// Number of levels of a chunk, from that of its largest logit downwards; the last one has all logits below.
pub(super) const LEVELS: usize = 32;

/// Counts per word, of one byte each.
const PER_WORD: usize = 4;

/// Words of counts per unit, which has a count for each level.
const WORDS: usize = LEVELS / PER_WORD;

/// Number of units whose counts are added up serially: few enough for their sums to fit in a byte.
const SLICE: usize = 16;

const SLICES: usize = UNITS / SLICE;

/// Words of counts of the same levels, one from each unit. Each slice has another, unused one, so that neighbouring
/// slices begin in different memory banks.
const COLUMNS: usize = UNITS + SLICES;

/// Number of words that [`sort`] needs for counts.
pub(super) const COUNTS: usize = WORDS * COLUMNS;

/// Numbers that [`sort`] needs: where the tokens of each level and slice begin, and where all end.
pub(super) const STARTS: usize = LEVELS * SLICES + 1;

/// The largest number of levels that the search of [`keep`] can return, which means that all are kept.
const ALL: u32 = 63;

/// A unit's part of a chunk.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Part {
    /// The unit's first token.
    pub(super) first: usize,
    /// Where the ids of the chunk are written.
    pub(super) list: usize,
    /// Where the statistics of the chunk are written.
    pub(super) stats: usize,
    /// The largest logit of the chunk.
    pub(super) maximum: f32,
}

/// Whether a row mixes the whole vocabulary.
#[cube]
pub(super) fn mixes_all(specs: &Array<f32>, row: usize) -> bool {
    specs[row * ROW + 7] == 0.0f32 && specs[row * ROW + 8] > 0.0f32
}

/// The level of a logit on the grid, which grows with the logit.
#[cube]
fn place(logit: f32) -> f32 {
    (clamp(logit, -1e30f32, 1e30f32) * 2.0f32).floor()
}

/// Whether a logit is neither infinite, nor NaN, nor past the end of the vocabulary.
#[cube]
fn is_possible(logit: f32) -> bool {
    logit > -3e38f32 && logit < 3e38f32
}

/// Sorts the ids of a chunk by level, and within a level by id. For each level, it writes the number of tokens on it
/// and the levels above ([`REACHES`]), and an upper bound of the weight of the tokens on it and the levels below
/// ([`BOUNDS`]). For the bound, each token counts as the heaviest that its level allows, so that for levels above the
/// last one the bound is at most 1.65 times the weight. A weight of 1 is that of the upper end of the chunk's first
/// level.
#[cube]
pub(super) fn sort(
    own: &Array<f32>,
    part: Part,
    order: &mut Array<u32>,
    stats: &mut Array<f32>,
    counts: &mut SharedMemory<u32>,
    starts: &mut SharedMemory<f32>,
    shared: &mut SharedMemory<f32>,
) {
    let unit = UNIT_POS as usize;
    let column = unit + unit / SLICE;
    let top = place(part.maximum);
    #[unroll]
    for i in 0..WORDS {
        counts[i * COLUMNS + column] = 0u32;
    }
    // The level of each token and, from bit 8 on, how many earlier tokens of the unit are on it.
    let mut ranks = Array::<u32>::new(OWN);
    #[unroll]
    for i in 0..OWN {
        let below = top - place(own[i]);
        // Broken logits give NaN, which compares as false: the level must be a valid one.
        let below = select(below > 0.0f32, below, 0.0f32);
        let level = u32::cast_from(min(below, comptime![(LEVELS - 1) as f32]));
        let shift = (level % 4u32) * 8u32;
        let at = (level / 4u32) as usize * COLUMNS + column;
        let word = counts[at];
        let one = select(is_possible(own[i]), 1u32, 0u32);
        ranks[i] = level | (((word >> shift) & 255u32) << 8u32);
        counts[at] = word + (one << shift);
    }
    sync_cube();
    add_slices(counts, starts);
    sync_cube();
    let left = starts[2 * unit];
    let both = left + starts[2 * unit + 1];
    let passed = before(both, shared);
    starts[2 * unit] = passed;
    starts[2 * unit + 1] = passed + left;
    if unit == comptime![UNITS - 1] {
        starts[LEVELS * SLICES] = passed + both;
    }
    sync_cube();
    #[unroll]
    for i in 0..OWN {
        if is_possible(own[i]) {
            let level = ranks[i] & 255u32;
            let word = counts[(level / 4u32) as usize * COLUMNS + column];
            let within = ((word >> ((level % 4u32) * 8u32)) & 255u32) + (ranks[i] >> 8u32);
            let start = usize::cast_from(starts[level as usize * SLICES + unit / SLICE]);
            order[part.list + start + within as usize] = u32::cast_from(part.first + i);
        }
    }
    if unit < LEVELS {
        let mut bound = 0.0f32;
        for level in unit..LEVELS {
            let count = starts[(level + 1) * SLICES] - starts[level * SLICES];
            bound += count * (f32::cast_from(level) * -0.5f32).exp();
        }
        stats[part.stats + BOUNDS + unit] = bound;
        stats[part.stats + REACHES + unit] = starts[(unit + 1) * SLICES];
    }
}

/// Replaces each unit's counts by their sums over the units before it in its slice, and writes the sums of whole
/// slices.
#[cube]
fn add_slices(counts: &mut SharedMemory<u32>, starts: &mut SharedMemory<f32>) {
    let unit = UNIT_POS as usize;
    if unit < comptime![WORDS * SLICES] {
        let (kind, slice) = (unit / SLICES, unit % SLICES);
        let first = kind * COLUMNS + slice * comptime![SLICE + 1];
        let mut passed = 0u32;
        let mut last = 0u32;
        for i in 0..SLICE {
            // This adds four counts at once, because none of their sums exceeds its byte.
            passed += last;
            last = counts[first + i];
            counts[first + i] = passed;
        }
        #[unroll]
        for i in 0..PER_WORD {
            let shift = comptime![8 * i as u32];
            // The sum of the whole slice may be one too large for a byte.
            let count = ((passed >> shift) & 255u32) + ((last >> shift) & 255u32);
            starts[(kind * PER_WORD + i) * SLICES + slice] = f32::cast_from(count);
        }
    }
}

/// A chunk, as the unit that handles it knows it.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Known {
    /// Index of the chunk's statistics.
    pub(super) stats: usize,
    /// Whether the chunk exists.
    pub(super) inside: bool,
    /// The largest logit of the chunk.
    pub(super) own: f32,
    /// The largest logit of the row.
    pub(super) maximum: f32,
}

/// Keeps the fewest levels for which the bound of the weight of the other levels, times `gate`, is at most `allowed`.
/// A weight of 1 is that of the most likely token. The kept tokens of a chunk are a prefix of its list. From `to` on,
/// this writes where each chunk's part begins if these prefixes are concatenated, and then the number of all kept
/// tokens.
#[cube]
pub(super) fn keep(
    stats: &Array<f32>,
    known: Known,
    gate: f32,
    allowed: f32,
    kept: &mut Array<u32>,
    to: usize,
    chunks: usize,
    shared: &mut SharedMemory<f32>,
) {
    let unit = UNIT_POS as usize;
    // The number of levels by which the chunk's first level is below that of the row.
    let own_top = place(known.own);
    let lower = place(known.maximum) - own_top;
    let largest = clamp(known.maximum, -1e30f32, 1e30f32);
    let upper_end = ((own_top + 1.0f32) * 0.5f32 - largest).exp();
    let mut levels = 0u32;
    for bit in 0..6u32 {
        let candidate = levels + (32u32 >> bit);
        // The bound of what is left out if one level less than the candidate is kept.
        let level = max(f32::cast_from(candidate - 1u32) - lower, 0.0f32);
        let mut bound = 0.0f32;
        if known.inside && level < comptime![LEVELS as f32] {
            bound = upper_end * stats[known.stats + BOUNDS + usize::cast_from(level)];
        }
        let is_enough = sum(bound, shared) * gate <= allowed;
        if !is_enough {
            levels = candidate;
        }
    }
    let own_levels = clamp(f32::cast_from(levels) - lower, 0.0f32, comptime![LEVELS as f32]);
    let own_levels = select(levels == ALL, f32::new(LEVELS as f32), own_levels);
    let mut count = 0.0f32;
    if known.inside && own_levels > 0.0f32 {
        count = stats[known.stats + REACHES + usize::cast_from(own_levels) - 1];
    }
    let start = before(count, shared);
    if known.inside {
        kept[to + unit] = u32::cast_from(start);
    }
    if unit == chunks - 1 {
        kept[to + chunks] = u32::cast_from(start + count);
    }
}

// Sums over a slice without its last unit fit in a byte, and each unit handles two sums of slices.
const _: () = assert!(OWN * (SLICE - 1) < 256 && LEVELS * SLICES == 2 * UNITS);
