//! The next inputs: embeddings of the sampled tokens, moved towards a weighted mean of many embeddings.
//!
//! A cube computes a few columns. It goes through the [`entries`](super::entries) of the mixture: each unit finds
//! some of them, then the units divide their rows of the table among themselves. The weight that these entries leave
//! goes to the table's mean row.

use cubecl::prelude::*;

use super::{
    Decided, EmbeddingTable, MAX_CHUNKS, StepBuffers,
    entries::{AT_ONCE, ENTRIES, Mixture, find_entries, load_starts, mixture, rest},
};
use crate::{
    Buffer, Device, PackedBuffer, Weights,
    outcome::TILE,
    packed::{Four, Layout, factors, quants},
    reduce::UNITS,
};

/// A value of the next input, from that of the sampled token's row and the sum of the weighted rows.
#[cube]
fn moved(token: f32, total: f32, mixture: Mixture, rest: f32, mean_row: &Array<f32>, column: usize) -> f32 {
    let mut value = token;
    if mixture.mixes {
        let mut mean = total;
        if rest > 0.0f32 {
            mean += rest * mean_row[column];
        }
        value += mixture.gate * (mean - value);
    }
    value
}

#[cube(launch_unchecked)]
fn blend_kernel<W: Float, N: Size>(
    logits: &Array<f32>,
    specs: &Array<f32>,
    words: &Array<u32>,
    kept: &Array<u32>,
    order: &Array<u32>,
    table: &Array<Vector<W, N>>,
    mean_row: &Array<f32>,
    out: &mut Array<f32>,
    vocab: u32,
    width: u32,
    scale: f32,
    #[comptime] listed: usize,
    #[comptime] whole: bool,
    #[comptime] lanes: usize,
    #[comptime] vector: usize,
    #[define(W)] _weight: StorageType,
) {
    let groups = comptime![UNITS / lanes];
    let wide = comptime![lanes * vector + 1];
    let mut ids = SharedMemory::<u32>::new(ENTRIES);
    let mut weights = SharedMemory::<f32>::new(ENTRIES);
    let mut starts = SharedMemory::<u32>::new(comptime![if whole { MAX_CHUNKS } else { 1 }]);
    let mut partials = SharedMemory::<f32>::new(comptime![groups * wide]);
    let (row, unit) = (CUBE_POS_Y as usize, UNIT_POS as usize);
    let mixture = mixture(specs, words, kept, row, vocab as usize, listed, whole);
    load_starts(kept, mixture, &mut starts, whole);
    let (lane, group) = (unit % lanes, unit / lanes);
    // Columns are counted in vectors. Units past the last one read the last one.
    let vectors = width as usize / vector;
    let column = min(CUBE_POS_X as usize * lanes + lane, vectors - 1);
    let mut mixed = Vector::<f32, N>::new(0.0);
    let mut own = 0.0f32;
    for tile in 0..mixture.count.div_ceil(ENTRIES) {
        let first = tile * ENTRIES;
        // This barrier ensures that the starts of chunks are loaded, and that the previous entries have been used.
        sync_cube();
        own += find_entries(
            logits,
            words,
            order,
            &starts,
            mixture,
            first,
            &mut ids,
            &mut weights,
            listed,
            whole,
        );
        sync_cube();
        let end = min(mixture.count - first, ENTRIES);
        for at in range_stepped(group, end, comptime![groups * AT_ONCE]) {
            #[unroll]
            for j in 0..AT_ONCE {
                let from = at + j * groups;
                let weight = weights[from];
                let values = Vector::<f32, N>::cast_from(table[ids[from] as usize * vectors + column]);
                mixed += values * Vector::<f32, N>::new(weight);
            }
        }
    }
    #[unroll]
    for j in 0..vector {
        partials[group * wide + lane * vector + j] = mixed[j];
    }
    sync_cube();
    let rest = rest(mixture, own, &mut weights);
    if unit < lanes && CUBE_POS_X as usize * lanes + lane < vectors {
        let token = Vector::<f32, N>::cast_from(table[mixture.token * vectors + column]);
        #[unroll]
        for j in 0..vector {
            let mut total = 0.0f32;
            for from in 0..groups {
                total += partials[from * wide + lane * vector + j];
            }
            let value = moved(token[j], total, mixture, rest, mean_row, column * vector + j);
            out[row * width as usize + column * vector + j] = value * scale;
        }
    }
}

/// Four values of a row of a packed table, the `lane`-th four of a block.
#[cube]
fn unpacked<S: Float>(
    quants_of: &Array<u32>,
    scales: &Array<S>,
    minima: &Array<S>,
    id: usize,
    blocks: usize,
    block: usize,
    lane: usize,
    #[comptime] layout: Layout,
) -> Four {
    let (tile, at) = (id / TILE, id % TILE);
    let base = (tile * blocks + block) * comptime![layout.block_words()];
    let first_scale = tile * (blocks / comptime![layout.blocks_per_scale()]) * TILE;
    let four = quants(quants_of, base, lane, at, layout);
    let (factor, minimum) =
        factors::<S>(quants_of, scales, minima, base, first_scale, block, lane, at, layout);
    four * Four::new(factor) + Four::new(minimum)
}

/// Like `blend_kernel`, for a packed table: a cube computes the 32 columns of a block.
#[cube(launch_unchecked)]
fn blend_packed_kernel<S: Float>(
    logits: &Array<f32>,
    specs: &Array<f32>,
    words: &Array<u32>,
    kept: &Array<u32>,
    order: &Array<u32>,
    quants_of: &Array<u32>,
    scales: &Array<S>,
    minima: &Array<S>,
    mean_row: &Array<f32>,
    out: &mut Array<f32>,
    vocab: u32,
    blocks: u32,
    scale: f32,
    #[comptime] listed: usize,
    #[comptime] whole: bool,
    #[comptime] layout: Layout,
    #[define(S)] _scale: StorageType,
) {
    const LANES: usize = 8;
    let groups = comptime![UNITS / LANES];
    let wide = comptime![4 * LANES + 1];
    let mut ids = SharedMemory::<u32>::new(ENTRIES);
    let mut weights = SharedMemory::<f32>::new(ENTRIES);
    let mut starts = SharedMemory::<u32>::new(comptime![if whole { MAX_CHUNKS } else { 1 }]);
    let mut partials = SharedMemory::<f32>::new(comptime![groups * wide]);
    let (block, row, unit) = (CUBE_POS_X as usize, CUBE_POS_Y as usize, UNIT_POS as usize);
    let blocks = blocks as usize;
    let mixture = mixture(specs, words, kept, row, vocab as usize, listed, whole);
    load_starts(kept, mixture, &mut starts, whole);
    // Neighbouring units take neighbouring entries, because if many rows are kept, these share a tile with adjacent
    // words.
    let (lane, group) = (unit / groups, unit % groups);
    let mut mixed = Four::new(0.0);
    let mut own = 0.0f32;
    for tile in 0..mixture.count.div_ceil(ENTRIES) {
        let first = tile * ENTRIES;
        // The same barrier as in `blend_kernel`.
        sync_cube();
        own += find_entries(
            logits,
            words,
            order,
            &starts,
            mixture,
            first,
            &mut ids,
            &mut weights,
            listed,
            whole,
        );
        sync_cube();
        let end = min(mixture.count - first, ENTRIES);
        for at in range_stepped(group, end, comptime![groups * AT_ONCE]) {
            #[unroll]
            for j in 0..AT_ONCE {
                let from = at + j * groups;
                let weight = weights[from];
                let id = ids[from] as usize;
                let four = unpacked::<S>(quants_of, scales, minima, id, blocks, block, lane, layout);
                mixed += four * Four::new(weight);
            }
        }
    }
    #[unroll]
    for j in 0..4usize {
        partials[group * wide + lane * 4 + j] = mixed[j];
    }
    sync_cube();
    let rest = rest(mixture, own, &mut weights);
    if unit < LANES {
        let token = unpacked::<S>(quants_of, scales, minima, mixture.token, blocks, block, unit, layout);
        #[unroll]
        for j in 0..4usize {
            let mut total = 0.0f32;
            for from in 0..groups {
                total += partials[from * wide + unit * 4 + j];
            }
            let column = block * 32 + unit * 4 + j;
            let value = moved(token[j], total, mixture, rest, mean_row, column);
            out[row * blocks * 32 + column] = value * scale;
        }
    }
}

pub(super) fn blend<R: Runtime>(
    device: &Device<R>,
    step: &StepBuffers<'_>,
    decided: &Decided,
    table: EmbeddingTable<'_>,
) -> Buffer {
    let StepBuffers { logits, specs, survey, kept, rows, whole } = step;
    let Decided { words, listed } = decided;
    let (rows, whole, listed) = (*rows, *whole, *listed);
    let EmbeddingTable { weights, width, scale, mean } = table;
    // Without a mean row, this buffer is passed but not read.
    let mean = mean.unwrap_or(specs);
    let out = device.floats(rows * width);
    let vocab = (logits.len / rows) as u32;
    let units = CubeDim::new_1d(UNITS as u32);
    match weights {
        Weights::Dense(table) => {
            let vector = device.vector_width(table.dtype, width).min(4);
            // Each cube takes few columns if that is needed to keep the device busy, but reads whole sectors of 32
            // bytes.
            let least = (32 / (vector * table.dtype.size())).max(1);
            let cores =
                device.client.properties().hardware.num_streaming_multiprocessors.unwrap_or(32) as usize;
            let lanes = [16, 8, 4, 2, 1]
                .into_iter()
                .find(|&lanes| lanes <= least || (width / vector).div_ceil(lanes) * rows >= 2 * cores)
                .unwrap_or(1);
            let cubes = (width / vector).div_ceil(lanes);
            // SAFETY: tokens are in the vocabulary, columns are clamped, and a mean row is as wide as the table.
            unsafe {
                blend_kernel::launch_unchecked::<R>(
                    &device.client,
                    CubeCount::Static(cubes as u32, rows as u32, 1),
                    units,
                    vector,
                    logits.numbers(),
                    specs.numbers(),
                    words.numbers(),
                    kept.numbers(),
                    survey.order.numbers(),
                    table.vectors(vector),
                    mean.numbers(),
                    out.numbers(),
                    vocab,
                    width as u32,
                    scale,
                    listed,
                    whole,
                    lanes,
                    vector,
                    table.dtype,
                );
            }
        }
        Weights::Packed(PackedBuffer { form, words: quants, scales, minima, .. }) => {
            let blocks = width / moi_kernels::BLOCK;
            // SAFETY: tokens are in the vocabulary, columns are clamped, and a mean row is as wide as the table.
            unsafe {
                blend_packed_kernel::launch_unchecked::<R>(
                    &device.client,
                    CubeCount::Static(blocks as u32, rows as u32, 1),
                    units,
                    logits.numbers(),
                    specs.numbers(),
                    words.numbers(),
                    kept.numbers(),
                    survey.order.numbers(),
                    quants.numbers(),
                    scales.numbers(),
                    minima.as_ref().unwrap_or(scales).numbers(),
                    mean.numbers(),
                    out.numbers(),
                    vocab,
                    blocks as u32,
                    scale,
                    listed,
                    whole,
                    Layout::new(*form),
                    scales.dtype,
                );
            }
        }
    }
    out
}
