//! Attention over a KV cache of blocks.
//!
//! A cube takes one key head and a few queries of one sequence, with all query heads that share the key head, so that
//! keys and values are read once for all of them. A single query has too little work for a GPU unless its positions
//! are split: each cube then takes some of them, and a second launch merges the parts, as in Flash-Decoding. Softmax
//! is computed online (Milakov and Gimelshein, arXiv 1805.02867).

use cubecl::{ir::StorageType, prelude::*};
use moi_kernels::CACHE_BLOCK;

use crate::{AttentionPlan, Buffer, Device};

/// Units per cube.
const UNITS: usize = 128;

/// The score of masked positions: below every real score, and finite, so that it causes no NaN.
const HIDDEN: f32 = -1e30;

/// Minimum number of positions that a cube takes.
const MIN_COLUMNS: usize = 128;

/// Inputs of attention.
#[derive(Clone, Debug)]
pub struct Attend<'a> {
    /// Queries, `[tokens, heads, head_dim]` in float32, scaled already.
    pub q: &'a Buffer,
    /// Keys, in slabs of blocks `[blocks, kv_heads, CACHE_BLOCK, head_dim]`.
    pub keys: &'a Buffer,
    /// Values, of the same shape and type.
    pub values: &'a Buffer,
    /// The block tables of the queries' sequences, and which positions each query sees.
    pub plan: &'a AttentionPlan,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Values per head.
    pub head_dim: usize,
    /// Logit soft cap: scores become `cap * tanh(score / cap)`.
    pub softcap: Option<f32>,
    /// Attention sinks: a logit per head, `[heads]` in float32, that adds to the softmax denominator but has no
    /// value; it is not soft-capped.
    pub sinks: Option<&'a Buffer>,
}

#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
struct Sizes {
    head_dim: usize,
    /// Query heads that share a key head.
    group: usize,
    /// Queries per cube.
    queries: usize,
    /// Positions in a tile of keys.
    columns: usize,
    vector: usize,
    softcap: bool,
    sinks: bool,
    /// Whether the positions are split into several parts.
    split: bool,
}

impl Sizes {
    /// Number of query rows of a cube: its queries times the heads of the group.
    fn rows(self) -> usize {
        self.queries * self.group
    }

    /// Units that read one position's values.
    fn lanes(self) -> usize {
        self.head_dim / self.vector
    }

    /// Positions whose values are read at the same time.
    fn at_once(self) -> usize {
        UNITS / self.lanes()
    }

    /// Numbers in a cube's shared memory for a tile of keys, and in the end for the partial sums of a row.
    fn tile(self) -> usize {
        self.columns.max(self.at_once()) * (self.head_dim + 1)
    }

    fn shared(self) -> usize {
        let numbers =
            self.rows() * self.head_dim + self.tile() + self.rows() * self.columns + 2 * self.rows();
        numbers * size_of::<f32>()
    }
}

/// The place of a position in the cache, as `block * CACHE_BLOCK + position in the block`. In a tree, where `path` is
/// not 0, positions are counted along the path to the query, as if its positions were consecutive.
#[cube]
fn place(plan: &Array<u32>, position: usize, table: usize, first_block: usize, path: usize) -> usize {
    let mut real = position;
    if path > 0 {
        let past = plan[path] as usize;
        if position >= past {
            real = plan[path + 1 + position - past] as usize;
        }
    }
    plan[table + real / CACHE_BLOCK - first_block] as usize * CACHE_BLOCK + real % CACHE_BLOCK
}

#[cube(launch_unchecked)]
fn attend_kernel<C: Float, N: Size>(
    q: &Array<f32>,
    keys: &Array<Vector<C, N>>,
    values: &Array<Vector<C, N>>,
    plan: &Array<u32>,
    sinks: &Array<f32>,
    out: &mut Array<f32>,
    parts: &mut Array<f32>,
    tokens: u32,
    per_part: u32,
    kv_heads: u32,
    softcap: f32,
    #[comptime] sizes: Sizes,
    #[define(C)] _cache: StorageType,
) {
    let (head_dim, group, tile) = comptime![(sizes.head_dim, sizes.group, sizes.columns)];
    let (rows, lanes) = comptime![(sizes.rows(), sizes.lanes())];
    let mut query = SharedMemory::<f32>::new(comptime![rows * head_dim]);
    let mut held = SharedMemory::<f32>::new(comptime![sizes.tile()]);
    let mut scores = SharedMemory::<f32>::new(comptime![rows * tile]);
    // Of each row, the largest score so far; then, of each row, the factor for its earlier sums.
    let mut state = SharedMemory::<f32>::new(comptime![2 * rows]);
    let unit = UNIT_POS as usize;
    let (part, head, index) = (CUBE_POS_X as usize, CUBE_POS_Y as usize, CUBE_POS_Z as usize);
    let (kv_heads, tokens) = (kv_heads as usize, tokens as usize);

    // The plan has the cache slots of all new positions, then the range and path that each query sees, then for each
    // cube its queries and the block table of their sequence.
    let tile_at = 4 * tokens + 4 * index;
    let first = plan[tile_at] as usize;
    let count = plan[tile_at + 1] as usize;
    let table = plan[tile_at + 2] as usize;
    let first_block = plan[tile_at + 3] as usize;
    let path = plan[tokens + 3 * first + 2] as usize;
    // In a sequence, later queries neither begin nor end earlier than those before them.
    let mut begin = plan[tokens + 3 * first] as usize;
    let mut stop = plan[tokens + 3 * (first + count - 1) + 1] as usize;
    begin += part * per_part as usize;
    stop = min(stop, begin + per_part as usize);

    for i in range_stepped(unit, comptime![rows * head_dim], UNITS) {
        let row = i / head_dim;
        let token = first + min(row / group, count - 1);
        let own = (token * kv_heads + head) * group + row % group;
        query[i] = q[own * head_dim + i % head_dim];
    }
    if unit < rows {
        state[unit] = HIDDEN;
    }
    let (lane, which) = (unit % lanes, unit / lanes);
    let mut sums = Array::<Vector<f32, N>>::new(rows);
    let mut weights = Array::<f32>::new(rows);
    #[unroll]
    for row in 0..rows {
        sums[row] = Vector::<f32, N>::new(0.0);
        weights[row] = 0.0f32;
    }

    let mut column = begin;
    while column < stop {
        // Keys are held in float32, padded so that units on neighbouring positions access different memory banks.
        for i in range_stepped(unit, comptime![tile * lanes], UNITS) {
            let at = i / lanes;
            let from = place(plan, min(column + at, stop - 1), table, first_block, path);
            let block = (from / CACHE_BLOCK * kv_heads + head) * CACHE_BLOCK + from % CACHE_BLOCK;
            let vector = Vector::<f32, N>::cast_from(keys[block * lanes + i % lanes]);
            #[unroll]
            for j in 0..N::value() {
                held[at * comptime![head_dim + 1] + i % lanes * N::value() + j] = vector[j];
            }
        }
        sync_cube();
        for pair in range_stepped(unit, comptime![rows * tile], UNITS) {
            let (row, at) = (pair / tile, pair % tile);
            let mut score = 0.0f32;
            for i in 0..head_dim {
                score += query[row * head_dim + i] * held[at * comptime![head_dim + 1] + i];
            }
            if comptime![sizes.softcap] {
                score = (score / softcap).tanh() * softcap;
            }
            let seen = tokens + 3 * (first + min(row / group, count - 1));
            let position = column + at;
            let is_seen =
                position >= plan[seen] as usize && position < plan[seen + 1] as usize && position < stop;
            scores[pair] = select(is_seen, score, HIDDEN);
        }
        sync_cube();
        if unit < rows {
            let before = state[unit];
            let mut largest = before;
            for i in 0..tile {
                largest = max(largest, scores[unit * tile + i]);
            }
            state[unit] = largest;
            state[rows + unit] = (before - largest).exp();
        }
        sync_cube();
        for pair in range_stepped(unit, comptime![rows * tile], UNITS) {
            let score = scores[pair];
            let weight = (score - state[pair / tile]).exp();
            // Masked positions have exactly this score. A NaN score has not, so that it shows in the result.
            scores[pair] = select(score == HIDDEN, 0.0f32, weight);
        }
        sync_cube();
        if which < comptime![sizes.at_once()] {
            #[unroll]
            for row in 0..rows {
                let factor = state[rows + row];
                sums[row] *= Vector::<f32, N>::new(factor);
                weights[row] *= factor;
            }
            for at in range_stepped(which, tile, comptime![sizes.at_once()]) {
                let from = place(plan, min(column + at, stop - 1), table, first_block, path);
                let block = (from / CACHE_BLOCK * kv_heads + head) * CACHE_BLOCK + from % CACHE_BLOCK;
                let value = Vector::<f32, N>::cast_from(values[block * lanes + lane]);
                #[unroll]
                for row in 0..rows {
                    let weight = scores[row * tile + at];
                    sums[row] += value * Vector::<f32, N>::new(weight);
                    weights[row] += weight;
                }
            }
        }
        column += tile;
    }

    let wide = comptime![head_dim + 1];
    #[unroll]
    for row in 0..rows {
        sync_cube();
        if which < comptime![sizes.at_once()] {
            let vector = sums[row];
            #[unroll]
            for j in 0..N::value() {
                held[which * wide + lane * N::value() + j] = vector[j];
            }
            if lane == 0 {
                held[which * wide + head_dim] = weights[row];
            }
        }
        sync_cube();
        if comptime![row / group] < count {
            let own = ((first + comptime![row / group]) * kv_heads + head) * group + comptime![row % group];
            for i in range_stepped(unit, head_dim, UNITS) {
                let mut sum = 0.0f32;
                let mut weight = 0.0f32;
                for from in 0..comptime![sizes.at_once()] {
                    sum += held[from * wide + i];
                    weight += held[from * wide + head_dim];
                }
                if comptime![sizes.split] {
                    let of_part = tokens * kv_heads * group * comptime![head_dim + 2];
                    let to = part * of_part + own * comptime![head_dim + 2];
                    parts[to + i] = sum;
                    if i == 0 {
                        parts[to + head_dim] = weight;
                        parts[to + comptime![head_dim + 1]] = state[row];
                    }
                } else if comptime![sizes.sinks] {
                    let sink = sinks[head * group + comptime![row % group]];
                    let largest = max(state[row], sink);
                    let factor = (state[row] - largest).exp();
                    out[own * head_dim + i] = sum * factor / (weight * factor + (sink - largest).exp());
                } else {
                    out[own * head_dim + i] = sum / weight;
                }
            }
        }
    }
}

#[cube(launch_unchecked)]
fn put_together_kernel(
    parts: &Array<f32>,
    sinks: &Array<f32>,
    out: &mut Array<f32>,
    count: u32,
    #[comptime] head_dim: usize,
    #[comptime] has_sinks: bool,
) {
    let width = comptime![head_dim + 2];
    let own = CUBE_POS;
    if own >= out.len() / head_dim {
        terminate!();
    }
    let of_part = out.len() / head_dim * width;
    let mut largest = f32::new(HIDDEN);
    if comptime![has_sinks] {
        largest = sinks[own % sinks.len()];
    }
    for part in 0..count as usize {
        largest = max(largest, parts[part * of_part + own * width + comptime![head_dim + 1]]);
    }
    for i in range_stepped(UNIT_POS as usize, head_dim, CUBE_DIM as usize) {
        let mut sum = 0.0f32;
        let mut weight = 0.0f32;
        if comptime![has_sinks] {
            weight = (sinks[own % sinks.len()] - largest).exp();
        }
        for part in 0..count as usize {
            let from = part * of_part + own * width;
            let factor = (parts[from + comptime![head_dim + 1]] - largest).exp();
            sum += parts[from + i] * factor;
            weight += parts[from + head_dim] * factor;
        }
        out[own * head_dim + i] = sum / weight;
    }
}

/// The constants that a kernel is compiled with, except for the options that [`attend`] sets. `None` where the device
/// cannot run the kernel.
fn sizes<R: Runtime>(
    device: &Device<R>,
    [heads, kv_heads, head_dim]: [usize; 3],
    queries: usize,
    cache_type: StorageType,
) -> Option<Sizes> {
    let hardware = &device.client.properties().hardware;
    let (_, max_y, _) = hardware.max_cube_count;
    let (group, vector) = (heads / kv_heads, device.vector_width(cache_type, head_dim).min(4));
    if head_dim / vector > UNITS || kv_heads > max_y as usize || queries * group > UNITS {
        return None;
    }
    let sizes = [32, 16, 8].map(|columns| Sizes {
        head_dim,
        group,
        queries,
        columns,
        vector,
        softcap: false,
        sinks: false,
        split: false,
    });
    sizes.into_iter().find(|sizes| sizes.shared() <= hardware.max_shared_memory_size)
}

/// Number of queries of a sequence that a cube takes, where sequences have up to `longest` queries: more queries
/// share the keys that are read, but need more registers. `heads` are the numbers of query heads, of key heads, and
/// of values per head. `None` where the device cannot run [`attend`] for these.
pub fn queries_at_once<R: Runtime>(
    device: &Device<R>,
    heads: [usize; 3],
    longest: usize,
    cache_type: StorageType,
) -> Option<usize> {
    const ROWS: usize = 16;
    let wanted = (ROWS / (heads[0] / heads[1])).min(longest).max(1);
    // A power of two limits the number of kernels that are compiled.
    let mut queries = wanted.next_power_of_two() / if wanted.is_power_of_two() { 1 } else { 2 };
    while sizes(device, heads, queries, cache_type).is_none() {
        queries = Some(queries / 2).filter(|&queries| queries > 0)?;
    }
    Some(queries)
}

/// Computes attention: `[tokens, heads * head_dim]` in float32. `None` where the device cannot run it.
pub fn attend<R: Runtime>(device: &Device<R>, attend: &Attend<'_>) -> Option<Buffer> {
    let &Attend { q, keys, values, plan, heads, kv_heads, head_dim, .. } = attend;
    let sizes = sizes(device, [heads, kv_heads, head_dim], plan.queries, keys.dtype)?;
    let hardware = &device.client.properties().hardware;
    if plan.tiles > hardware.max_cube_count.2 as usize {
        return None;
    }
    let cores = hardware.num_streaming_multiprocessors;
    let cubes = cores.map_or(64, |cores| 2 * cores as usize);
    let parts = (cubes / (kv_heads * plan.tiles)).clamp(1, plan.longest.div_ceil(MIN_COLUMNS));
    let per_part = plan.longest.div_ceil(parts).next_multiple_of(sizes.columns);
    let parts = plan.longest.div_ceil(per_part);
    let (softcap, has_sinks) = (attend.softcap.is_some(), attend.sinks.is_some());
    let sizes = Sizes { softcap, sinks: has_sinks, split: parts > 1, ..sizes };
    let out = device.floats(q.len);
    // Without sinks, this buffer is passed but not read.
    let sinks = attend.sinks.unwrap_or(q);
    let of_part = plan.tokens * heads * (head_dim + 2);
    let between = device.floats(if parts > 1 { parts * of_part } else { 1 });
    // SAFETY: positions are clamped to those that queries see, whose blocks are in the plan.
    unsafe {
        attend_kernel::launch_unchecked::<R>(
            &device.client,
            CubeCount::Static(parts as u32, kv_heads as u32, plan.tiles as u32),
            CubeDim::new_1d(UNITS as u32),
            sizes.vector,
            q.numbers(),
            keys.vectors(sizes.vector),
            values.vectors(sizes.vector),
            plan.words.numbers(),
            sinks.numbers(),
            out.numbers(),
            between.numbers(),
            plan.tokens as u32,
            per_part as u32,
            kv_heads as u32,
            attend.softcap.unwrap_or(1.0),
            sizes,
            keys.dtype,
        );
        if parts > 1 {
            put_together_kernel::launch_unchecked::<R>(
                &device.client,
                device.cubes(plan.tokens * heads),
                CubeDim::new_1d(head_dim.next_multiple_of(32).min(UNITS) as u32),
                between.numbers(),
                sinks.numbers(),
                out.numbers(),
                parts as u32,
                head_dim,
                has_sinks,
            );
        }
    }
    Some(out)
}
