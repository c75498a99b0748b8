//! Attention of a few queries over a long cache.
//!
//! One query has too little work for a GPU unless its keys are split: each cube takes some columns of one key head, for
//! all query heads that share it, so that keys and values are read once. Softmax is computed as it goes (Milakov and
//! Gimelshein, arXiv 1805.02867); a second launch puts the parts together, as in Flash-Decoding.

use cubecl::{ir::StorageType, prelude::*};

use crate::{Buffer, Device};

/// Units of a cube.
const UNITS: usize = 128;

/// Below every score; finite, so that nothing becomes NaN.
const HIDDEN: f32 = -1e30;

/// Columns that a cube takes at least.
const MIN_COLUMNS: usize = 128;

/// What attends to what.
#[derive(Clone, Debug)]
pub struct Attend<'a> {
    /// `[rows, heads, head_dim]` in float32, scaled; `seq` rows behind one another share a row of the cache.
    pub q: &'a Buffer,
    /// `[batch, kv_heads, capacity, head_dim]`.
    pub keys: &'a Buffer,
    /// Likewise, in the same type.
    pub values: &'a Buffer,
    /// Columns of these buffers.
    pub capacity: usize,
    /// The columns that each row of queries sees, `[rows]`.
    pub visible: &'a [std::ops::Range<usize>],
    /// Queries for each row of the cache.
    pub seq: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Numbers of a head.
    pub head_dim: usize,
    /// Scores become `cap * tanh(score / cap)`.
    pub softcap: Option<f32>,
}

#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
struct Sizes {
    head_dim: usize,
    group: usize,
    /// Columns at a time.
    columns: usize,
    vector: usize,
    softcap: bool,
    /// Whether all rows see the same columns.
    uniform: bool,
    /// Whether there is more than one part.
    split: bool,
}

impl Sizes {
    /// Units for one column of values.
    fn lanes(self) -> usize {
        self.head_dim / self.vector
    }

    /// Columns of values that are read at once.
    fn rows(self) -> usize {
        UNITS / self.lanes()
    }

    /// Numbers that a cube holds of a tile of keys, or of sums in the end.
    fn tile(self) -> usize {
        let sums = self.rows() * self.group * (self.head_dim + 1);
        (self.columns * (self.head_dim + 1)).max(sums)
    }

    fn shared(self) -> usize {
        let numbers = self.group * self.head_dim + self.tile() + self.group * self.columns + 2 * self.group;
        numbers * size_of::<f32>()
    }
}

#[cube(launch_unchecked)]
fn attend_kernel<C: Float, N: Size>(
    q: &Array<f32>,
    keys: &Array<Vector<C, N>>,
    values: &Array<Vector<C, N>>,
    visible: &Array<u32>,
    out: &mut Array<f32>,
    parts: &mut Array<f32>,
    first: u32,
    end: u32,
    per_part: u32,
    capacity: u32,
    seq: u32,
    kv_heads: u32,
    softcap: f32,
    #[comptime] sizes: Sizes,
    #[define(C)] _cache: StorageType,
) {
    let (head_dim, group, tile) = comptime![(sizes.head_dim, sizes.group, sizes.columns)];
    let lanes = comptime![sizes.lanes()];
    let mut query = SharedMemory::<f32>::new(comptime![group * head_dim]);
    let mut held = SharedMemory::<f32>::new(comptime![sizes.tile()]);
    let mut scores = SharedMemory::<f32>::new(comptime![group * tile]);
    // The largest score so far, and what earlier sums are to be multiplied with.
    let mut state = SharedMemory::<f32>::new(comptime![2 * group]);
    let unit = UNIT_POS as usize;
    let (part, head, row) = (CUBE_POS_X as usize, CUBE_POS_Y as usize, CUBE_POS_Z as usize);
    let kv_heads = kv_heads as usize;

    let mut begin = first as usize;
    let mut stop = end as usize;
    if comptime![!sizes.uniform] {
        begin = visible[2 * row] as usize;
        stop = visible[2 * row + 1] as usize;
    }
    begin += part * per_part as usize;
    stop = min(stop, begin + per_part as usize);

    let own = (row * kv_heads + head) * comptime![group * head_dim];
    for i in range_stepped(unit, comptime![group * head_dim], UNITS) {
        query[i] = q[own + i];
    }
    if unit < group {
        state[unit] = HIDDEN;
    }
    let buffer = (row / seq as usize * kv_heads + head) * capacity as usize * lanes;
    let (lane, which) = (unit % lanes, unit / lanes);
    let mut sums = Array::<Vector<f32, N>>::new(group);
    let mut weights = Array::<f32>::new(group);
    #[unroll]
    for g in 0..group {
        sums[g] = Vector::<f32, N>::new(0.0);
        weights[g] = 0.0f32;
    }

    let mut column = begin;
    while column < stop {
        // Keys as float32, padded so that units on neighbouring columns meet different banks.
        for i in range_stepped(unit, comptime![tile * lanes], UNITS) {
            let at = i / lanes;
            let from = min(column + at, stop - 1);
            let vector = Vector::<f32, N>::cast_from(keys[buffer + from * lanes + i % lanes]);
            #[unroll]
            for j in 0..N::value() {
                held[at * comptime![head_dim + 1] + i % lanes * N::value() + j] = vector[j];
            }
        }
        sync_cube();
        for pair in range_stepped(unit, comptime![group * tile], UNITS) {
            let (g, at) = (pair / tile, pair % tile);
            let mut score = 0.0f32;
            for i in 0..head_dim {
                score += query[g * head_dim + i] * held[at * comptime![head_dim + 1] + i];
            }
            if comptime![sizes.softcap] {
                score = (score / softcap).tanh() * softcap;
            }
            scores[pair] = select(column + at < stop, score, HIDDEN);
        }
        sync_cube();
        if unit < group {
            let before = state[unit];
            let mut largest = before;
            for i in 0..tile {
                largest = max(largest, scores[unit * tile + i]);
            }
            state[unit] = largest;
            state[group + unit] = (before - largest).exp();
        }
        sync_cube();
        for pair in range_stepped(unit, comptime![group * tile], UNITS) {
            let at = pair % tile;
            let weight = (scores[pair] - state[pair / tile]).exp();
            scores[pair] = select(column + at < stop, weight, 0.0f32);
        }
        sync_cube();
        if which < comptime![sizes.rows()] {
            #[unroll]
            for g in 0..group {
                let factor = state[group + g];
                sums[g] *= Vector::<f32, N>::new(factor);
                weights[g] *= factor;
            }
            for at in range_stepped(which, tile, comptime![sizes.rows()]) {
                let from = min(column + at, stop - 1);
                let value = Vector::<f32, N>::cast_from(values[buffer + from * lanes + lane]);
                #[unroll]
                for g in 0..group {
                    let weight = scores[g * tile + at];
                    sums[g] += value * Vector::<f32, N>::new(weight);
                    weights[g] += weight;
                }
            }
        }
        column += tile;
    }

    sync_cube();
    let wide = comptime![head_dim + 1];
    if which < comptime![sizes.rows()] {
        #[unroll]
        for g in 0..group {
            let to = (which * group + g) * wide;
            #[unroll]
            for j in 0..N::value() {
                let vector = sums[g];
                held[to + lane * N::value() + j] = vector[j];
            }
            if lane == 0 {
                held[to + head_dim] = weights[g];
            }
        }
    }
    sync_cube();
    for i in range_stepped(unit, comptime![group * head_dim], UNITS) {
        let (g, at) = (i / head_dim, i % head_dim);
        let mut sum = 0.0f32;
        let mut weight = 0.0f32;
        for from in 0..comptime![sizes.rows()] {
            sum += held[(from * group + g) * wide + at];
            weight += held[(from * group + g) * wide + head_dim];
        }
        if comptime![sizes.split] {
            let heads = kv_heads * group;
            let of_part = (CUBE_COUNT_Z as usize * heads) * comptime![head_dim + 2];
            let to = part * of_part + (row * heads + head * group + g) * comptime![head_dim + 2];
            parts[to + at] = sum;
            if at == 0 {
                parts[to + head_dim] = weight;
                parts[to + comptime![head_dim + 1]] = state[g];
            }
        } else {
            out[own + i] = sum / weight;
        }
    }
}

#[cube(launch_unchecked)]
fn put_together_kernel(parts: &Array<f32>, out: &mut Array<f32>, count: u32, #[comptime] head_dim: usize) {
    let width = comptime![head_dim + 2];
    let own = CUBE_POS;
    let of_part = out.len() / head_dim * width;
    let mut largest = f32::new(HIDDEN);
    for part in 0..count as usize {
        largest = max(largest, parts[part * of_part + own * width + comptime![head_dim + 1]]);
    }
    for i in range_stepped(UNIT_POS as usize, head_dim, CUBE_DIM as usize) {
        let mut sum = 0.0f32;
        let mut weight = 0.0f32;
        for part in 0..count as usize {
            let from = part * of_part + own * width;
            let factor = (parts[from + comptime![head_dim + 1]] - largest).exp();
            sum += parts[from + i] * factor;
            weight += parts[from + head_dim] * factor;
        }
        out[own * head_dim + i] = sum / weight;
    }
}

/// What a kernel is compiled with, but for what follows from the columns; `None` where the device cannot run it.
fn sizes<R: Runtime>(
    device: &Device<R>,
    [heads, kv_heads, head_dim]: [usize; 3],
    rows: usize,
    cache_type: StorageType,
) -> Option<Sizes> {
    let hardware = &device.client.properties().hardware;
    let (_, max_y, max_z) = hardware.max_cube_count;
    let vector = device.vector_width(cache_type, head_dim).min(4);
    if head_dim / vector > UNITS || kv_heads > max_y as usize || rows > max_z as usize {
        return None;
    }
    let sizes = [32, 16, 8].map(|columns| Sizes {
        head_dim,
        group: heads / kv_heads,
        columns,
        vector,
        softcap: false,
        uniform: true,
        split: false,
    });
    sizes.into_iter().find(|sizes| sizes.shared() <= hardware.max_shared_memory_size)
}

/// Whether the device can run [`attend`] for so many heads, key heads and numbers of a head, for `rows` queries.
pub fn can_attend<R: Runtime>(
    device: &Device<R>,
    heads: [usize; 3],
    rows: usize,
    cache_type: StorageType,
) -> bool {
    sizes(device, heads, rows, cache_type).is_some()
}

/// Attention: `[rows, heads * head_dim]` in float32; `None` where the device cannot, or where a query sees nothing.
pub fn attend<R: Runtime>(device: &Device<R>, attend: &Attend<'_>) -> Option<Buffer> {
    let &Attend { q, keys, values, heads, kv_heads, head_dim, visible, .. } = attend;
    let rows = visible.len();
    let columns = visible.iter().map(|range| range.len()).max()?;
    if visible.iter().any(std::ops::Range::is_empty) {
        return None;
    }
    let sizes = sizes(device, [heads, kv_heads, head_dim], rows, keys.dtype)?;
    let cores = device.client.properties().hardware.num_streaming_multiprocessors;
    let cubes = cores.map_or(64, |cores| 2 * cores as usize);
    let parts = (cubes / (kv_heads * rows)).clamp(1, columns.div_ceil(MIN_COLUMNS));
    let per_part = columns.div_ceil(parts).next_multiple_of(sizes.columns);
    let parts = columns.div_ceil(per_part);
    let sizes = Sizes {
        softcap: attend.softcap.is_some(),
        uniform: visible.iter().all(|range| *range == visible[0]),
        split: parts > 1,
        ..sizes
    };
    let ranges: Vec<u32> = visible.iter().flat_map(|r| [r.start as u32, r.end as u32]).collect();
    // Ranges that are all the same are numbers of the launch.
    let ranges = match sizes.uniform {
        true => q.handle.clone(),
        false => device.client.create_from_slice(u32::as_bytes(&ranges)),
    };
    let out = device.floats(q.len);
    let between = device.floats(if parts > 1 { parts * rows * heads * (head_dim + 2) } else { 1 });
    // SAFETY: columns are clamped to those that are seen.
    unsafe {
        attend_kernel::launch_unchecked::<R>(
            &device.client,
            CubeCount::Static(parts as u32, kv_heads as u32, rows as u32),
            CubeDim::new_1d(UNITS as u32),
            sizes.vector,
            q.numbers(),
            keys.vectors(sizes.vector),
            values.vectors(sizes.vector),
            ArrayArg::from_raw_parts(ranges, 2 * rows),
            out.numbers(),
            between.numbers(),
            visible[0].start as u32,
            visible[0].end as u32,
            per_part as u32,
            attend.capacity as u32,
            attend.seq as u32,
            kv_heads as u32,
            attend.softcap.unwrap_or(1.0),
            sizes,
            keys.dtype,
        );
        if parts > 1 {
            put_together_kernel::launch_unchecked::<R>(
                &device.client,
                device.cubes(rows * heads),
                CubeDim::new_1d(head_dim.next_multiple_of(32).min(UNITS) as u32),
                between.numbers(),
                out.numbers(),
                parts as u32,
                head_dim,
            );
        }
    }
    Some(out)
}
