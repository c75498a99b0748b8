//! Decides the token of a row, and computes what its mixture needs, such as how many tokens of each chunk it reads.

use cubecl::prelude::*;

use super::{
    HEADER, ROW, STATS, Survey,
    levels::{Known, keep, mixes_all},
    sampling::{SampleParams, filtered, listed_left, token_of_all, token_of_listed, weight},
    survey::key,
};
use crate::{
    Buffer, Device,
    reduce::{SHARED, UNITS, before, largest, sum},
};

/// Merges the lists of a row's chunks to the row's list, sorted by logit, the largest first, and ties by id.
#[cube]
fn list(
    values: &Array<f32>,
    ids: &Array<u32>,
    start: usize,
    count: usize,
    sorted_values: &mut SharedMemory<f32>,
    sorted_ids: &mut SharedMemory<f32>,
    shared: &mut SharedMemory<f32>,
    #[comptime] listed: usize,
) {
    let unit = UNIT_POS as usize;
    let own = count.div_ceil(UNITS);
    let (from, to) = (min(unit * own, count), min((unit + 1) * own, count));
    let mut threshold = 0u32;
    for bit in 0..32u32 {
        let candidate = threshold | (1u32 << (31 - bit));
        let mut number = 0.0f32;
        for i in from..to {
            number += select(key(values[start + i]) >= candidate, 1.0f32, 0.0f32);
        }
        if sum(number, shared) >= comptime![listed as f32] {
            threshold = candidate;
        }
    }
    let mut above = 0.0f32;
    let mut equal = 0.0f32;
    for i in from..to {
        let own_key = key(values[start + i]);
        above += select(own_key > threshold, 1.0f32, 0.0f32);
        equal += select(own_key == threshold, 1.0f32, 0.0f32);
    }
    let all_above = sum(above, shared);
    let mut above_at = before(above, shared);
    let mut equal_at = all_above + before(equal, shared);
    // Ties are in order of ids across all chunks, so the first ones are those to keep.
    let mut unsorted_values = SharedMemory::<f32>::new(listed);
    let mut unsorted_ids = SharedMemory::<f32>::new(listed);
    for i in from..to {
        let own_key = key(values[start + i]);
        let mut place = f32::new(listed as f32);
        if own_key > threshold {
            place = above_at;
            above_at += 1.0f32;
        } else if own_key == threshold {
            place = equal_at;
            equal_at += 1.0f32;
        }
        if place < comptime![listed as f32] {
            unsorted_values[usize::cast_from(place)] = values[start + i];
            unsorted_ids[usize::cast_from(place)] = f32::cast_from(ids[start + i]);
        }
    }
    sync_cube();
    if unit < listed {
        let value = unsorted_values[unit];
        let id = unsorted_ids[unit];
        let mut rank = 0u32;
        for i in 0..listed {
            let other = unsorted_values[i];
            let first = other > value
                || (other == value && (unsorted_ids[i] < id || (unsorted_ids[i] == id && i < unit)));
            rank += select(first, 1u32, 0u32);
        }
        sorted_values[rank as usize] = value;
        sorted_ids[rank as usize] = id;
    }
    sync_cube();
}

#[cube(launch_unchecked)]
fn decide_kernel(
    logits: &Array<f32>,
    specs: &Array<f32>,
    stats: &Array<f32>,
    values: &Array<f32>,
    ids: &Array<u32>,
    words: &mut Array<u32>,
    kept: &mut Array<u32>,
    vocab: u32,
    chunks: u32,
    #[comptime] listed: usize,
    #[comptime] whole: bool,
) {
    let room = comptime![if listed > 0 { listed } else { 1 }];
    let mut shared = SharedMemory::<f32>::new(SHARED);
    let mut masses = SharedMemory::<f32>::new(UNITS);
    let mut sorted_values = SharedMemory::<f32>::new(room);
    let mut sorted_ids = SharedMemory::<f32>::new(room);
    let mut weights = SharedMemory::<f32>::new(room);
    let mut passed = SharedMemory::<f32>::new(room);
    let mut gate_of_row = SharedMemory::<f32>::new(1usize);
    let (vocab, chunks) = (vocab as usize, chunks as usize);
    let (index, unit) = (CUBE_POS, UNIT_POS as usize);
    let spec = index * ROW;
    let uniform = specs[spec + 4];
    let support = specs[spec + 7];

    // Each unit loads the statistics of one chunk.
    let at = (index * chunks + min(unit, chunks - 1)) * STATS;
    let inside = unit < chunks;
    let own = stats[at];
    let maximum = largest(select(inside, own, f32::new(f32::MIN)), &mut shared);
    let broken = largest(select(inside, stats[at + 5], 0.0f32), &mut shared);
    let row = SampleParams { start: index * vocab, vocab, chunks, maximum, inverse_temperature: specs[spec] };
    let below = max(max(own, -1e30f32) - maximum, -1e30f32);
    let factor = select(inside, below.exp(), 0.0f32);
    let exponentials = sum(factor * stats[at + 2], &mut shared);
    let products = sum(factor * (stats[at + 3] + below * stats[at + 2]), &mut shared);
    let tempered = select(inside, (below * row.inverse_temperature).exp() * stats[at + 4], 0.0f32);
    let all = sum(tempered, &mut shared);
    masses[unit] = tempered;
    let most_likely = -largest(select(inside && own == maximum, -stats[at + 1], -1e9f32), &mut shared);
    let log_sum = exponentials.ln();

    if comptime![listed > 0] {
        list(
            values,
            ids,
            index * chunks * listed,
            chunks * listed,
            &mut sorted_values,
            &mut sorted_ids,
            &mut shared,
            listed,
        );
        if unit < listed {
            weights[unit] = weight(sorted_values[unit], row);
        }
    }
    sync_cube();

    let mut token = most_likely;
    if row.inverse_temperature > 0.0f32 {
        let (top_k, top_p, min_p) = (specs[spec + 1], specs[spec + 2], specs[spec + 3]);
        let filters = top_k > 0.0f32 || top_p < 1.0f32 || min_p > 0.0f32;
        let mut done = false;
        if comptime![listed > 0] {
            if filters {
                let (count, enough) = listed_left(&weights, all, top_k, top_p, min_p, listed);
                if enough {
                    token = token_of_listed(&sorted_ids, &weights, &mut passed, count, uniform);
                    done = true;
                }
            }
        }
        if !done {
            let mut threshold = 0u32;
            let mut floor = 0.0f32;
            if filters {
                threshold = filtered(logits, row, top_k, top_p, min_p, &mut masses, &mut shared);
                floor = min_p;
            }
            token = token_of_all(logits, row, uniform, threshold, floor, &masses, &mut shared);
        }
    }
    // With NaN logits, there may be no token at all.
    let token = u32::cast_from(clamp(token, 0.0f32, f32::cast_from(vocab - 1)));

    if unit == 0 {
        let to = index * comptime![HEADER + 2 * listed];
        let value = logits[row.start + token as usize];
        let mut nats = log_sum - products / exponentials;
        let mut size = f32::cast_from(vocab);
        let mut sum_of_support = exponentials;
        let mut token_probability = (value - maximum).exp() / exponentials;
        if comptime![listed > 0] {
            if support > 0.0f32 {
                let mut sum = 0.0f32;
                let mut products = 0.0f32;
                let mut inside = 0.0f32;
                for i in 0..usize::cast_from(support) {
                    let below = max(sorted_values[i] - maximum, -1e30f32);
                    sum += below.exp();
                    products += below.exp() * below;
                    inside = select(u32::cast_from(sorted_ids[i]) == token, 1.0f32, inside);
                }
                nats = sum.ln() - products / sum;
                size = support;
                sum_of_support = sum;
                token_probability = inside * (value - maximum).exp() / sum;
            }
            for i in 0..listed {
                let below = max(sorted_values[i] - maximum, -1e30f32);
                let within = support == 0.0f32 || f32::cast_from(i) < support;
                let probability = select(within, below.exp() / sum_of_support, 0.0f32);
                words[to + HEADER + i] = u32::cast_from(sorted_ids[i]);
                words[to + comptime![HEADER + listed] + i] = u32::reinterpret(probability);
            }
        }
        let mut entropy = 0.0f32;
        if size > 1.0f32 {
            entropy = clamp(nats / size.ln(), 0.0f32, 1.0f32);
        }
        let clamped = clamp(specs[spec + 5] * entropy + specs[spec + 6], 0.0f32, 1.0f32);
        let gate = select(clamped < specs[spec + 10], 0.0f32, clamped);
        words[to] = token;
        words[to + 1] = u32::reinterpret(value - maximum - log_sum);
        words[to + 2] = u32::reinterpret(entropy);
        words[to + 3] = u32::reinterpret(gate);
        words[to + 4] = u32::reinterpret(maximum);
        words[to + 5] = u32::reinterpret(exponentials);
        words[to + 6] = u32::cast_from(broken);
        words[to + 7] = u32::reinterpret(token_probability);
        gate_of_row[0] = gate;
    }
    if comptime![whole] {
        sync_cube();
        if mixes_all(specs, index) {
            let known = Known { stats: at, inside, own, maximum };
            let allowed = specs[spec + 9] * exponentials;
            keep(stats, known, gate_of_row[0], allowed, kept, index * (chunks + 1), chunks, &mut shared);
        }
    }
}

/// Launches the decision. Returns the words of each row, and for rows that mix the whole vocabulary what [`keep`]
/// writes.
pub(super) fn decide<R: Runtime>(
    device: &Device<R>,
    logits: &Buffer,
    specs: &Buffer,
    survey: &Survey,
    rows: usize,
    listed: usize,
    whole: bool,
) -> (Buffer, Buffer) {
    let word = u32::as_type_native_unchecked().storage_type();
    let words = device.empty(rows * (HEADER + 2 * listed), word);
    let kept = device.empty(if whole { rows * (survey.chunks + 1) } else { 1 }, word);
    // SAFETY: the token is clamped to the vocabulary, and places are below the list's length.
    unsafe {
        decide_kernel::launch_unchecked::<R>(
            &device.client,
            CubeCount::Static(rows as u32, 1, 1),
            CubeDim::new_1d(UNITS as u32),
            logits.numbers(),
            specs.numbers(),
            survey.stats.numbers(),
            survey.values.numbers(),
            survey.ids.numbers(),
            words.numbers(),
            kept.numbers(),
            (logits.len / rows) as u32,
            survey.chunks as u32,
            listed,
            whole,
        );
    }
    (words, kept)
}
