//! Prepares heads for attention in one launch: norms, rotary embedding, and cache writes.

use cubecl::prelude::*;

use moi_kernels::CACHE_BLOCK;

use crate::{
    AttentionPlan, Buffer, Device, NormSpec, NormWeights,
    norm::{Fixed, scaled, statistics},
    reduce::{SHARED, UNITS},
};

/// Inputs of the launch.
#[derive(Clone, Debug)]
pub struct Rotate<'a> {
    /// Queries, `[tokens, heads * head_dim]`, float32.
    pub q: &'a Buffer,
    /// Keys, `[tokens, kv_heads * head_dim]`, float32.
    pub k: &'a Buffer,
    /// Values, of the same shape and type.
    pub v: &'a Buffer,
    /// Cosines and sines `[tokens, dims]` in float32, and `dims`: the first `dims` values of a head are rotated.
    pub angles: Option<(&'a Buffer, &'a Buffer, usize)>,
    /// Norms over each head of the queries, and of the keys, with parameters of one type.
    pub norms: Option<(&'a NormWeights, &'a NormWeights)>,
    /// Options of these norms.
    pub spec: NormSpec,
    /// The key and value caches, slabs of blocks `[blocks, kv_heads, CACHE_BLOCK, head_dim]` of one type, which are
    /// written.
    pub cache: (&'a Buffer, &'a Buffer),
    /// The plan that has the cache slots.
    pub plan: &'a AttentionPlan,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Values per head.
    pub head_dim: usize,
    /// A factor on the queries, applied last.
    pub scale: f32,
}

#[cube]
fn rotated<W: Float>(
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
fn rotate_kernel<W: Float, C: Float>(
    q: &Array<f32>,
    k: &Array<f32>,
    v: &Array<f32>,
    cos: &Array<f32>,
    sin: &Array<f32>,
    q_weight: &Array<W>,
    q_bias: &Array<W>,
    k_weight: &Array<W>,
    k_bias: &Array<W>,
    rotated_q: &mut Array<f32>,
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
                rotated_q[start + i] = scale
                    * rotated::<W>(q, start, i, mean, factor, q_weight, q_bias, cos, sin, angles, dims, norm);
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
                keys[to + i] = C::cast_from(rotated::<W>(
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

/// Rotates queries, which are returned as `[tokens, heads, head_dim]` in float32, and keys, which are written to the
/// cache with the values.
pub fn rotate<R: Runtime>(device: &Device<R>, rotate: &Rotate<'_>) -> Buffer {
    let &Rotate { q, k, v, plan, heads, kv_heads, head_dim, .. } = rotate;
    let rows = plan.tokens;
    let out = device.floats(q.len);
    let (cos, sin, dims) = rotate.angles.unwrap_or((q, q, 0));
    let norm = rotate.norms.map(|(q, _)| Fixed::new(&rotate.spec, q)).unwrap_or_default();
    // Buffers that stand in for absent weights are never read.
    let (q_weight, k_weight) = rotate.norms.map_or((q, q), |(q, k)| (&q.weight, &k.weight));
    let bias = |norm: &'_ NormWeights| norm.bias.clone().unwrap_or_else(|| norm.weight.clone());
    let (q_bias, k_bias) = rotate.norms.map_or((q.clone(), q.clone()), |(q, k)| (bias(q), bias(k)));
    let units = if norm.is_there { UNITS } else { head_dim.next_multiple_of(32).min(UNITS) };
    // SAFETY: rows and heads are checked in the kernel; the caller ensures the sizes of the buffers.
    unsafe {
        rotate_kernel::launch_unchecked::<R>(
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
            rotate.cache.0.numbers(),
            rotate.cache.1.numbers(),
            plan.words.numbers(),
            rows as u32,
            heads as u32,
            kv_heads as u32,
            rotate.scale,
            rotate.spec.eps,
            head_dim,
            dims,
            norm,
            q_weight.dtype,
            rotate.cache.0.dtype,
        );
    }
    out
}
