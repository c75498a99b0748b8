//! Computes statistics of a chunk of the vocabulary, its most likely tokens, and for mixtures of the whole vocabulary
//! all its tokens in the order of [`levels`](super::levels).

use cubecl::prelude::*;

use super::{
    CHUNK, ROW, STATS, Survey,
    levels::{COUNTS, Part, STARTS, mixes_all, sort},
};
use crate::{
    Buffer, Device,
    reduce::{SHARED, UNITS, before, largest, sum},
};

/// Tokens per unit.
pub(super) const OWN: usize = CHUNK / UNITS;

/// A key that orders floats as unsigned integers.
#[cube]
pub(super) fn key(value: f32) -> u32 {
    let bits = u32::reinterpret(value);
    select(bits >> 31 == 1, !bits, bits | 0x8000_0000u32)
}

#[cube(launch_unchecked)]
fn survey_kernel(
    logits: &Array<f32>,
    specs: &Array<f32>,
    stats: &mut Array<f32>,
    values: &mut Array<f32>,
    ids: &mut Array<u32>,
    order: &mut Array<u32>,
    vocab: u32,
    #[comptime] listed: usize,
    #[comptime] whole: bool,
) {
    let mut shared = SharedMemory::<f32>::new(SHARED);
    let mut counts = SharedMemory::<u32>::new(comptime![if whole { COUNTS } else { 1 }]);
    let mut starts = SharedMemory::<f32>::new(comptime![if whole { STARTS } else { 1 }]);
    let vocab = vocab as usize;
    let (chunk, row, unit) = (CUBE_POS_X as usize, CUBE_POS_Y as usize, UNIT_POS as usize);
    let inverse_temperature = specs[row * ROW];
    let first = chunk * CHUNK + unit * OWN;

    let mut own = Array::<f32>::new(OWN);
    let mut top = f32::new(f32::MIN);
    let mut broken = 0.0f32;
    #[unroll]
    for i in 0..OWN {
        let inside = first + i < vocab;
        let value = logits[row * vocab + min(first + i, vocab - 1)];
        let value = select(inside, value, f32::new(f32::MIN));
        own[i] = value;
        // An exponent of all ones means infinity or NaN, of which only minus infinity is allowed.
        let bits = u32::reinterpret(value);
        if (bits & 0x7f80_0000u32) == 0x7f80_0000u32 && bits != 0xff80_0000u32 {
            broken = 1.0f32;
        }
        top = max(top, value);
    }
    let maximum = largest(top, &mut shared);
    // A chunk in which all logits are minus infinity must not give NaN.
    let base = max(maximum, -1e30f32);
    let mut exponentials = 0.0f32;
    let mut products = 0.0f32;
    let mut tempered = 0.0f32;
    let mut lowest = f32::new(CHUNK as f32);
    #[unroll]
    for i in 0..OWN {
        let below = max(own[i] - base, -1e30f32);
        let exponential = below.exp();
        exponentials += exponential;
        products += exponential * below;
        tempered += (below * inverse_temperature).exp() * select(own[i] > -3e38f32, 1.0f32, 0.0f32);
        if own[i] == maximum {
            lowest = min(lowest, f32::cast_from(unit * OWN + i));
        }
    }
    let exponentials = sum(exponentials, &mut shared);
    let products = sum(products, &mut shared);
    let tempered = sum(tempered, &mut shared);
    let lowest = -largest(-lowest, &mut shared);
    let broken = largest(broken, &mut shared);
    let at = row * CUBE_COUNT_X as usize + chunk;
    if unit == 0 {
        stats[at * STATS] = maximum;
        stats[at * STATS + 1] = f32::cast_from(chunk * CHUNK) + lowest;
        stats[at * STATS + 2] = exponentials;
        stats[at * STATS + 3] = products;
        stats[at * STATS + 4] = tempered;
        stats[at * STATS + 5] = broken;
    }
    if comptime![whole] {
        if mixes_all(specs, row) {
            let part = Part { first, list: row * vocab + chunk * CHUNK, stats: at * STATS, maximum };
            sort(&own, part, order, stats, &mut counts, &mut starts, &mut shared);
        }
    }
    if comptime![listed > 0] {
        // Finds the key of the last token on the list, bit by bit.
        let mut threshold = 0u32;
        for bit in 0..32u32 {
            let candidate = threshold | (1u32 << (31 - bit));
            let mut count = 0.0f32;
            #[unroll]
            for i in 0..OWN {
                count += select(key(own[i]) >= candidate, 1.0f32, 0.0f32);
            }
            if sum(count, &mut shared) >= comptime![listed as f32] {
                threshold = candidate;
            }
        }
        let mut above = 0.0f32;
        let mut equal = 0.0f32;
        #[unroll]
        for i in 0..OWN {
            let own_key = key(own[i]);
            above += select(own_key > threshold, 1.0f32, 0.0f32);
            equal += select(own_key == threshold, 1.0f32, 0.0f32);
        }
        let all_above = sum(above, &mut shared);
        let mut above_at = before(above, &mut shared);
        let mut equal_at = all_above + before(equal, &mut shared);
        #[unroll]
        for i in 0..OWN {
            let own_key = key(own[i]);
            let mut place = f32::new(listed as f32);
            if own_key > threshold {
                place = above_at;
                above_at += 1.0f32;
            } else if own_key == threshold {
                place = equal_at;
                equal_at += 1.0f32;
            }
            if place < comptime![listed as f32] {
                let to = at * listed + usize::cast_from(place);
                values[to] = own[i];
                ids[to] = u32::cast_from(min(first + i, vocab - 1));
            }
        }
    }
}

pub(super) fn survey<R: Runtime>(
    device: &Device<R>,
    logits: &Buffer,
    specs: &Buffer,
    rows: usize,
    listed: usize,
    whole: bool,
) -> Survey {
    let vocab = logits.len / rows;
    let chunks = vocab.div_ceil(CHUNK);
    let stats = device.floats(rows * chunks * STATS);
    let candidates = (rows * chunks * listed).max(1);
    let values = device.floats(candidates);
    let words = u32::as_type_native_unchecked().storage_type();
    let ids = device.empty(candidates, words);
    let order = device.empty(if whole { logits.len } else { 1 }, words);
    // SAFETY: indices are clamped to the vocabulary, places are below the list's length, and levels below their
    // number; a chunk's ids are where its logits are.
    unsafe {
        survey_kernel::launch_unchecked::<R>(
            &device.client,
            CubeCount::Static(chunks as u32, rows as u32, 1),
            CubeDim::new_1d(UNITS as u32),
            logits.numbers(),
            specs.numbers(),
            stats.numbers(),
            values.numbers(),
            ids.numbers(),
            order.numbers(),
            vocab as u32,
            listed,
            whole,
        );
    }
    Survey { stats, values, ids, order, chunks }
}
