//! Samples the token: inverts the cumulative distribution, in order of ids, of the tokens that the filters keep.
//!
//! If the filters keep at most as many tokens as are listed, the list is enough. Otherwise a threshold on logits
//! stands for them. It is found bit by bit, in many passes over the logits, but only a flat distribution needs that.
//! In this case only, tokens as likely as the last one that is kept are kept too.

use cubecl::prelude::*;

use super::{
    CHUNK,
    survey::{OWN, key},
};
use crate::reduce::{UNITS, before, largest, sum};

/// A row's logits, and what turns them into weights.
#[derive(CubeType, Clone, Copy)]
pub(super) struct SampleParams {
    pub(super) start: usize,
    pub(super) vocab: usize,
    pub(super) chunks: usize,
    pub(super) maximum: f32,
    pub(super) inverse_temperature: f32,
}

/// The weight of a logit, not normalized: 1 for the most likely token.
#[cube]
pub(super) fn weight(value: f32, row: SampleParams) -> f32 {
    (max(value - row.maximum, -1e30f32) * row.inverse_temperature).exp()
}

/// The weight, or the number, of a chunk's tokens whose key is at least `threshold` and whose weight is at least
/// `floor`.
#[cube]
fn chunk_mass(
    logits: &Array<f32>,
    row: SampleParams,
    chunk: usize,
    threshold: u32,
    floor: f32,
    counts: bool,
    shared: &mut SharedMemory<f32>,
) -> f32 {
    let first = chunk * CHUNK + UNIT_POS as usize * OWN;
    let mut mass = 0.0f32;
    for i in 0..OWN {
        if first + i < row.vocab {
            let value = logits[row.start + first + i];
            let own = weight(value, row);
            if key(value) >= threshold && own >= floor {
                mass += select(counts, 1.0f32, own);
            }
        }
    }
    sum(mass, shared)
}

#[cube]
fn mass(
    logits: &Array<f32>,
    row: SampleParams,
    threshold: u32,
    counts: bool,
    shared: &mut SharedMemory<f32>,
) -> f32 {
    let mut total = 0.0f32;
    for chunk in 0..row.chunks {
        total += chunk_mass(logits, row, chunk, threshold, 0.0f32, counts, shared);
    }
    total
}

/// The highest threshold that tokens with a total weight, or number, of at least `target` reach.
#[cube]
fn threshold_of(
    logits: &Array<f32>,
    row: SampleParams,
    target: f32,
    counts: bool,
    shared: &mut SharedMemory<f32>,
) -> u32 {
    let mut threshold = 0u32;
    for bit in 0..32u32 {
        let candidate = threshold | (1u32 << (31 - bit));
        if mass(logits, row, candidate, counts, shared) >= target {
            threshold = candidate;
        }
    }
    threshold
}

/// The filters as a threshold, if they keep more tokens than are listed. `masses` are set to the weights of the kept
/// tokens in each chunk.
#[cube]
pub(super) fn filtered(
    logits: &Array<f32>,
    row: SampleParams,
    top_k: f32,
    top_p: f32,
    min_p: f32,
    masses: &mut SharedMemory<f32>,
    shared: &mut SharedMemory<f32>,
) -> u32 {
    let mut threshold = 0u32;
    if top_k > 0.0f32 {
        threshold = threshold_of(logits, row, top_k, true, shared);
    }
    if top_p < 1.0f32 {
        let target = top_p * mass(logits, row, threshold, false, shared);
        threshold = max(threshold, threshold_of(logits, row, target, false, shared));
    }
    for chunk in 0..row.chunks {
        let mass = chunk_mass(logits, row, chunk, threshold, min_p, false, shared);
        if UNIT_POS == 0 {
            masses[chunk] = mass;
        }
    }
    sync_cube();
    threshold
}

/// The token at which the cumulative distribution passes `uniform`, among those above `threshold` and `floor`.
/// `masses` are their weights in each chunk.
#[cube]
pub(super) fn token_of_all(
    logits: &Array<f32>,
    row: SampleParams,
    uniform: f32,
    threshold: u32,
    floor: f32,
    masses: &SharedMemory<f32>,
    shared: &mut SharedMemory<f32>,
) -> f32 {
    let mut total = 0.0f32;
    for chunk in 0..row.chunks {
        total += masses[chunk];
    }
    let target = uniform * total;
    let mut reached = 0.0f32;
    let mut chosen = 0usize;
    let mut rest = 0.0f32;
    let mut found = false;
    for chunk in 0..row.chunks {
        // If rounding keeps the sum below the target, the last chunk with a positive weight is chosen.
        if !found && masses[chunk] > 0.0f32 {
            chosen = chunk;
            rest = target - reached;
            reached += masses[chunk];
            found = reached > target;
        }
    }
    let first = chosen * CHUNK + UNIT_POS as usize * OWN;
    let mut own = 0.0f32;
    let mut last = f32::new(-1.0);
    for i in 0..OWN {
        if first + i < row.vocab {
            let value = logits[row.start + first + i];
            let weight = weight(value, row);
            if key(value) >= threshold && weight >= floor && weight > 0.0f32 {
                own += weight;
                last = f32::cast_from(first + i);
            }
        }
    }
    let mut passed = before(own, shared);
    let mut token = f32::new(1e9);
    for i in 0..OWN {
        if first + i < row.vocab {
            let value = logits[row.start + first + i];
            let weight = weight(value, row);
            if key(value) >= threshold && weight >= floor && weight > 0.0f32 {
                passed += weight;
                if passed > rest && token > 9e8f32 {
                    token = f32::cast_from(first + i);
                }
            }
        }
    }
    let token = -largest(-token, shared);
    let last = largest(last, shared);
    select(token > 9e8f32, last, token)
}

/// How many of the listed tokens the filters keep, and whether these are all that they keep. `weights` are those of
/// the listed tokens, in order; `all` is the weight of the whole vocabulary.
#[cube]
pub(super) fn listed_left(
    weights: &SharedMemory<f32>,
    all: f32,
    top_k: f32,
    top_p: f32,
    min_p: f32,
    #[comptime] listed: usize,
) -> (usize, bool) {
    let mut count = usize::new(listed as i64);
    let mut enough = false;
    let mut total = all;
    if top_k > 0.0f32 && top_k <= comptime![listed as f32] {
        count = usize::cast_from(top_k);
        enough = true;
        total = 0.0f32;
        for i in 0..count {
            total += weights[i];
        }
    }
    let target = top_p * total;
    let mut reached = 0.0f32;
    let mut left = 0usize;
    let mut cut = false;
    for i in 0..count {
        if !cut {
            if weights[i] < min_p {
                cut = true;
            } else {
                left = i + 1;
                reached += weights[i];
                cut = top_p < 1.0f32 && reached >= target;
            }
        }
    }
    (max(left, 1usize), enough || cut)
}

/// Like [`token_of_all`], for the first `count` listed tokens.
#[cube]
pub(super) fn token_of_listed(
    ids: &SharedMemory<f32>,
    weights: &SharedMemory<f32>,
    passed: &mut SharedMemory<f32>,
    count: usize,
    uniform: f32,
) -> f32 {
    let unit = UNIT_POS as usize;
    if unit < count {
        let mut sum = 0.0f32;
        for i in 0..count {
            sum += select(ids[i] <= ids[unit], weights[i], 0.0f32);
        }
        passed[unit] = sum;
    }
    sync_cube();
    let mut total = 0.0f32;
    for i in 0..count {
        total = max(total, passed[i]);
    }
    let target = uniform * total;
    let mut token = f32::new(1e9);
    let mut last = f32::new(-1.0);
    for i in 0..count {
        if weights[i] > 0.0f32 {
            last = max(last, ids[i]);
            if passed[i] > target {
                token = min(token, ids[i]);
            }
        }
    }
    select(token > 9e8f32, last, token)
}

/// The units of a cube must cover exactly one chunk.
const _: () = assert!(UNITS * OWN == CHUNK);
