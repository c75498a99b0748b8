//! The next inputs: sampled rows of the table, moved towards a weighted mean of many.
//!
//! A cube computes a few columns. Its units share out the rows of the table: all of them, or those on the list. A row
//! of the vocabulary that weighs less than [`LEFT_OUT`] / vocabulary is not read: all such rows together weigh less
//! than `LEFT_OUT`, which is what float32 rounds a sum of this size to.

use cubecl::prelude::*;

use super::{EmbeddingTable, HEADER, ROW};
use crate::{
    Buffer, Device, PackedBuffer, Weights,
    outcome::TILE,
    packed::{Four, Layout, factors, quants},
    reduce::UNITS,
};

/// Of the whole probability.
const LEFT_OUT: f32 = 1e-7;

/// What a cube knows of its row.
#[derive(CubeType, Clone, Copy)]
struct Mixture {
    logits: usize,
    vocab: usize,
    maximum: f32,
    sum: f32,
    gate: f32,
    token: usize,
    /// Tokens on the list that take part; 0 for the whole vocabulary.
    support: usize,
    mixes: bool,
    /// Where the list begins.
    list: usize,
}

#[cube]
fn mixture(
    specs: &Array<f32>,
    words: &Array<u32>,
    row: usize,
    vocab: usize,
    #[comptime] listed: usize,
) -> Mixture {
    let at = row * comptime![HEADER + 2 * listed];
    Mixture {
        logits: row * vocab,
        vocab,
        maximum: f32::reinterpret(words[at + 4]),
        sum: f32::reinterpret(words[at + 5]),
        gate: f32::reinterpret(words[at + 3]),
        token: words[at] as usize,
        support: usize::cast_from(specs[row * ROW + 7]),
        mixes: specs[row * ROW + 8] > 0.0f32,
        list: at + HEADER,
    }
}

/// Rows of the table that take part.
#[cube]
fn count(mixture: Mixture) -> usize {
    let of = select(mixture.support > 0, mixture.support, mixture.vocab);
    select(mixture.mixes, of, 0usize)
}

/// One of these rows, and its weight: 0 where it is not worth reading.
#[cube]
fn entry(
    logits: &Array<f32>,
    words: &Array<u32>,
    mixture: Mixture,
    i: usize,
    #[comptime] listed: usize,
) -> (usize, f32) {
    let of_list = mixture.support > 0;
    let id = if of_list { words[mixture.list + i] as usize } else { i };
    let weight = if of_list {
        f32::reinterpret(words[mixture.list + listed + i])
    } else {
        let weight = (max(logits[mixture.logits + i] - mixture.maximum, -1e30f32)).exp() / mixture.sum;
        let bound = LEFT_OUT / f32::cast_from(mixture.vocab);
        select(weight > bound, weight, 0.0f32)
    };
    (id, weight)
}

#[cube(launch_unchecked)]
fn blend_kernel<W: Float, N: Size>(
    logits: &Array<f32>,
    specs: &Array<f32>,
    words: &Array<u32>,
    table: &Array<Vector<W, N>>,
    out: &mut Array<f32>,
    vocab: u32,
    width: u32,
    scale: f32,
    #[comptime] listed: usize,
    #[comptime] lanes: usize,
    #[comptime] vector: usize,
    #[define(W)] _weight: StorageType,
) {
    let groups = comptime![UNITS / lanes];
    let wide = comptime![lanes * vector + 1];
    let mut shared = SharedMemory::<f32>::new(comptime![groups * wide]);
    let (row, unit) = (CUBE_POS_Y as usize, UNIT_POS as usize);
    let mixture = mixture(specs, words, row, vocab as usize, listed);
    let (lane, group) = (unit % lanes, unit / lanes);
    // In vectors; those behind the last column are read as the last.
    let vectors = width as usize / vector;
    let column = min(CUBE_POS_X as usize * lanes + lane, vectors - 1);
    let mut sum = Vector::<f32, N>::new(0.0);
    for i in range_stepped(group, count(mixture), groups) {
        let (id, weight) = entry(logits, words, mixture, i, listed);
        if weight > 0.0f32 {
            sum += Vector::<f32, N>::cast_from(table[id * vectors + column]) * Vector::<f32, N>::new(weight);
        }
    }
    #[unroll]
    for j in 0..vector {
        shared[group * wide + lane * vector + j] = sum[j];
    }
    sync_cube();
    if unit < lanes && CUBE_POS_X as usize * lanes + lane < vectors {
        let token = Vector::<f32, N>::cast_from(table[mixture.token * vectors + column]);
        #[unroll]
        for j in 0..vector {
            let mut mean = 0.0f32;
            for from in 0..groups {
                mean += shared[from * wide + lane * vector + j];
            }
            let mut value = token[j];
            if mixture.mixes {
                value += mixture.gate * (mean - value);
            }
            out[row * width as usize + column * vector + j] = value * scale;
        }
    }
}

/// The same of a packed table: a cube computes the 32 columns of a block.
#[cube(launch_unchecked)]
fn blend_packed_kernel<S: Float>(
    logits: &Array<f32>,
    specs: &Array<f32>,
    words: &Array<u32>,
    quants_of: &Array<u32>,
    scales: &Array<S>,
    minima: &Array<S>,
    out: &mut Array<f32>,
    vocab: u32,
    blocks: u32,
    scale: f32,
    #[comptime] listed: usize,
    #[comptime] layout: Layout,
    #[define(S)] _scale: StorageType,
) {
    const LANES: usize = 8;
    let groups = comptime![UNITS / LANES];
    let wide = comptime![4 * LANES + 1];
    let mut shared = SharedMemory::<f32>::new(comptime![groups * wide]);
    let (block, row, unit) = (CUBE_POS_X as usize, CUBE_POS_Y as usize, UNIT_POS as usize);
    let blocks = blocks as usize;
    let mixture = mixture(specs, words, row, vocab as usize, listed);
    // Neighbouring units take neighbouring rows of a tile, whose words lie side by side.
    let (lane, group) = (unit / groups, unit % groups);
    let spans = blocks / comptime![layout.blocks_per_scale()] * TILE;
    let mut sum = Four::new(0.0);
    for i in range_stepped(group, count(mixture), groups) {
        let (id, weight) = entry(logits, words, mixture, i, listed);
        if weight > 0.0f32 {
            let base = (id / TILE * blocks + block) * comptime![layout.block_words()];
            let four = quants(quants_of, base, lane, id % TILE, layout);
            let (factor, minimum) = factors::<S>(
                quants_of,
                scales,
                minima,
                base,
                id / TILE * spans,
                block,
                lane,
                id % TILE,
                layout,
            );
            sum += (four * Four::new(factor) + Four::new(minimum)) * Four::new(weight);
        }
    }
    #[unroll]
    for j in 0..4usize {
        shared[group * wide + lane * 4 + j] = sum[j];
    }
    sync_cube();
    if unit < LANES {
        let (tile, at) = (mixture.token / TILE, mixture.token % TILE);
        let base = (tile * blocks + block) * comptime![layout.block_words()];
        let four = quants(quants_of, base, unit, at, layout);
        let (factor, minimum) =
            factors::<S>(quants_of, scales, minima, base, tile * spans, block, unit, at, layout);
        let token = four * Four::new(factor) + Four::new(minimum);
        #[unroll]
        for j in 0..4usize {
            let mut mean = 0.0f32;
            for from in 0..groups {
                mean += shared[from * wide + unit * 4 + j];
            }
            let mut value = token[j];
            if mixture.mixes {
                value += mixture.gate * (mean - value);
            }
            out[(row * blocks + block) * 32 + unit * 4 + j] = value * scale;
        }
    }
}

pub(super) fn blend<R: Runtime>(
    device: &Device<R>,
    logits: &Buffer,
    specs: &Buffer,
    words: &Buffer,
    rows: usize,
    listed: usize,
    table: EmbeddingTable<'_>,
) -> Buffer {
    let EmbeddingTable { weights, width, scale } = table;
    let out = device.floats(rows * width);
    let vocab = (logits.len / rows) as u32;
    let units = CubeDim::new_1d(UNITS as u32);
    match weights {
        Weights::Dense(table) => {
            let vector = device.vector_width(table.dtype, width).min(4);
            // Few columns for each cube where that is what it takes to keep the device busy; whole sectors of 32 bytes.
            let least = (32 / (vector * table.dtype.size())).max(1);
            let cores =
                device.client.properties().hardware.num_streaming_multiprocessors.unwrap_or(32) as usize;
            let lanes = [16, 8, 4, 2, 1]
                .into_iter()
                .find(|&lanes| lanes <= least || (width / vector).div_ceil(lanes) * rows >= 2 * cores)
                .unwrap_or(1);
            let cubes = (width / vector).div_ceil(lanes);
            // SAFETY: tokens are of the vocabulary, columns are clamped.
            unsafe {
                blend_kernel::launch_unchecked::<R>(
                    &device.client,
                    CubeCount::Static(cubes as u32, rows as u32, 1),
                    units,
                    vector,
                    logits.numbers(),
                    specs.numbers(),
                    words.numbers(),
                    table.vectors(vector),
                    out.numbers(),
                    vocab,
                    width as u32,
                    scale,
                    listed,
                    lanes,
                    vector,
                    table.dtype,
                );
            }
        }
        Weights::Packed(PackedBuffer { form, words: quants, scales, minima, .. }) => {
            let blocks = width / moi_kernels::BLOCK;
            // SAFETY: as above.
            unsafe {
                blend_packed_kernel::launch_unchecked::<R>(
                    &device.client,
                    CubeCount::Static(blocks as u32, rows as u32, 1),
                    units,
                    logits.numbers(),
                    specs.numbers(),
                    words.numbers(),
                    quants.numbers(),
                    scales.numbers(),
                    minima.as_ref().unwrap_or(scales).numbers(),
                    out.numbers(),
                    vocab,
                    blocks as u32,
                    scale,
                    listed,
                    Layout::new(*form),
                    scales.dtype,
                );
            }
        }
    }
    out
}
