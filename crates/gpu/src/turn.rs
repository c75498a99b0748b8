//! Heads on their way from projections into attention: norms, rotary positions, and the cache, in one launch.

use cubecl::prelude::*;

use moi_kernels::CACHE_BLOCK;

use crate::{
    AttentionPlan, Buffer, Device, NormSpec, NormWeights,
    norm::{Fixed, scaled, statistics},
    reduce::{SHARED, UNITS},
};

/// What is turned.
#[derive(Clone, Debug)]
pub struct Turn<'a> {
    /// `[tokens, heads * head_dim]`, float32.
    pub q: &'a Buffer,
    /// `[tokens, kv_heads * head_dim]`, float32.
    pub k: &'a Buffer,
    /// Likewise.
    pub v: &'a Buffer,
    /// Cosines and sines `[tokens, dims]`, float32, of the first `dims` values of a head, and `dims`.
    pub angles: Option<(&'a Buffer, &'a Buffer, usize)>,
    /// Over each head of the queries, and of the keys; in one type.
    pub norms: Option<(&'a NormWeights, &'a NormWeights)>,
    /// Of these norms.
    pub spec: NormSpec,
    /// Slabs of blocks `[blocks, kv_heads, CACHE_BLOCK, head_dim]` of one type: keys and values go into them.
    pub cache: (&'a Buffer, &'a Buffer),
    /// Where.
    pub plan: &'a AttentionPlan,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Numbers of a head.
    pub head_dim: usize,
    /// A factor on queries, last.
    pub scale: f32,
}

#[cube]
fn turned<W: Float>(
    x: &Array<f32>,
    start: usize,
    i: usize,
    mean: f32,
    factor: f32,
    weight: &Array<W>,
    bias: &Array<W>,
    cos: &Array<f32>,
    sin: &Array<f32>,
    angles: usize,
    #[comptime] dims: usize,
    #[comptime] norm: Fixed,
) -> f32 {
    let mut value = x[start + i];
    if comptime![norm.is_there] {
        value = scaled::<W>(value, mean, factor, weight, bias, i, norm);
    }
    if comptime![dims > 0] {
        if i < dims {
            let half = comptime![dims / 2];
            let lower = i < half;
            let at = select(lower, i + half, i - select(lower, 0usize, half));
            let mut other = x[start + at];
            if comptime![norm.is_there] {
                other = scaled::<W>(other, mean, factor, weight, bias, at, norm);
            }
            let sign = select(lower, -1.0f32, 1.0f32);
            value = value * cos[angles + i] + sign * other * sin[angles + i];
        }
    }
    value
}

#[cube(launch_unchecked)]
fn turn_kernel<W: Float, C: Float>(
    q: &Array<f32>,
    k: &Array<f32>,
    v: &Array<f32>,
    cos: &Array<f32>,
    sin: &Array<f32>,
    q_weight: &Array<W>,
    q_bias: &Array<W>,
    k_weight: &Array<W>,
    k_bias: &Array<W>,
    turned_q: &mut Array<f32>,
    keys: &mut Array<C>,
    values: &mut Array<C>,
    plan: &Array<u32>,
    rows: u32,
    heads: u32,
    kv_heads: u32,
    scale: f32,
    eps: f32,
    #[comptime] head_dim: usize,
    #[comptime] dims: usize,
    #[comptime] norm: Fixed,
    #[define(W)] _weight: StorageType,
    #[define(C)] _cache: StorageType,
) {
    let mut shared = SharedMemory::<f32>::new(SHARED);
    let (heads, kv_heads) = (heads as usize, kv_heads as usize);
    let of_row = heads + 2 * kv_heads;
    let (row, head) = (CUBE_POS / of_row, CUBE_POS % of_row);
    if row < rows as usize {
        let angles = row * comptime![dims];
        let slot = plan[row] as usize;
        let (block, column) = (slot / CACHE_BLOCK, slot % CACHE_BLOCK);
        if head < heads {
            let start = (row * heads + head) * head_dim;
            let mut mean = 0.0f32;
            let mut factor = 1.0f32;
            if comptime![norm.is_there] {
                let centered = comptime![norm.centered];
                let found = statistics::<f32>(q, start, head_dim, eps, &mut shared, centered);
                mean = found.0;
                factor = found.1;
            }
            for i in range_stepped(UNIT_POS as usize, head_dim, CUBE_DIM as usize) {
                turned_q[start + i] = scale
                    * turned::<W>(q, start, i, mean, factor, q_weight, q_bias, cos, sin, angles, dims, norm);
            }
        } else if head < heads + kv_heads {
            let head = head - heads;
            let start = (row * kv_heads + head) * head_dim;
            let to = ((block * kv_heads + head) * CACHE_BLOCK + column) * head_dim;
            let mut mean = 0.0f32;
            let mut factor = 1.0f32;
            if comptime![norm.is_there] {
                let centered = comptime![norm.centered];
                let found = statistics::<f32>(k, start, head_dim, eps, &mut shared, centered);
                mean = found.0;
                factor = found.1;
            }
            for i in range_stepped(UNIT_POS as usize, head_dim, CUBE_DIM as usize) {
                keys[to + i] = C::cast_from(turned::<W>(
                    k, start, i, mean, factor, k_weight, k_bias, cos, sin, angles, dims, norm,
                ));
            }
        } else {
            let head = head - heads - kv_heads;
            let start = (row * kv_heads + head) * head_dim;
            let to = ((block * kv_heads + head) * CACHE_BLOCK + column) * head_dim;
            for i in range_stepped(UNIT_POS as usize, head_dim, CUBE_DIM as usize) {
                values[to + i] = C::cast_from(v[start + i]);
            }
        }
    }
}

/// Turns queries, which it gives as `[tokens, heads, head_dim]` in float32, and keys, which go into the cache with
/// the values.
pub fn turn<R: Runtime>(device: &Device<R>, turn: &Turn<'_>) -> Buffer {
    let &Turn { q, k, v, plan, heads, kv_heads, head_dim, .. } = turn;
    let rows = plan.tokens;
    let out = device.floats(q.len);
    let (cos, sin, dims) = turn.angles.unwrap_or((q, q, 0));
    let norm = turn.norms.map(|(q, _)| Fixed::new(&turn.spec, q)).unwrap_or_default();
    // What is absent is never read.
    let (q_weight, k_weight) = turn.norms.map_or((q, q), |(q, k)| (&q.weight, &k.weight));
    let bias = |norm: &'_ NormWeights| norm.bias.clone().unwrap_or_else(|| norm.weight.clone());
    let (q_bias, k_bias) = turn.norms.map_or((q.clone(), q.clone()), |(q, k)| (bias(q), bias(k)));
    let units = if norm.is_there { UNITS } else { head_dim.next_multiple_of(32).min(UNITS) };
    // SAFETY: rows and heads are checked; the caller says how large the buffers are.
    unsafe {
        turn_kernel::launch_unchecked::<R>(
            &device.client,
            device.cubes(rows * (heads + 2 * kv_heads)),
            CubeDim::new_1d(units as u32),
            q.numbers(),
            k.numbers(),
            v.numbers(),
            cos.numbers(),
            sin.numbers(),
            q_weight.numbers(),
            q_bias.numbers(),
            k_weight.numbers(),
            k_bias.numbers(),
            out.numbers(),
            turn.cache.0.numbers(),
            turn.cache.1.numbers(),
            plan.words.numbers(),
            rows as u32,
            heads as u32,
            kv_heads as u32,
            turn.scale,
            turn.spec.eps,
            head_dim,
            dims,
            norm,
            q_weight.dtype,
            turn.cache.0.dtype,
        );
    }
    out
}
