//! The residual addition and the norms around it.

use cubecl::prelude::*;

use crate::{
    Buffer, Device, NormSpec, NormWeights,
    norm::{Fixed, scaled, statistics},
    reduce::{SHARED, UNITS},
};

/// Inputs of a residual addition with norms: `sum = x + scale * after(block)` and `normed = before(sum)`.
#[derive(Clone, Debug)]
pub struct AddNorm<'a> {
    /// The residual stream `[rows, width]`, float32.
    pub x: &'a Buffer,
    /// The block's output, `[rows, width]`, in any float type.
    pub block: Option<&'a Buffer>,
    /// A norm over the block's output, before the addition.
    pub after: Option<&'a NormWeights>,
    /// A factor on the block's output.
    pub scale: f32,
    /// A norm over the sum, for the next block. Its parameters have the same type as those of `after`.
    pub before: Option<&'a NormWeights>,
    /// Options of both norms.
    pub spec: NormSpec,
    /// Number of values in a row.
    pub width: usize,
}

/// The results, in float32, `[rows, width]`.
#[derive(Clone, Debug)]
pub struct AddNormOutput {
    /// The new residual stream, if a block was added.
    pub sum: Option<Buffer>,
    /// The normalized residual stream, the next block's input.
    pub normed: Option<Buffer>,
}

#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
struct Parts {
    block: bool,
    after: Fixed,
    before: Fixed,
}

#[cube(launch_unchecked)]
fn add_norm_kernel<B: Float, W: Float>(
    x: &Array<f32>,
    block: &Array<B>,
    after_weight: &Array<W>,
    after_bias: &Array<W>,
    before_weight: &Array<W>,
    before_bias: &Array<W>,
    out: &mut Array<f32>,
    normed: &mut Array<f32>,
    width: u32,
    scale: f32,
    eps: f32,
    #[comptime] parts: Parts,
    #[define(B)] _block: StorageType,
    #[define(W)] _weight: StorageType,
) {
    let mut shared = SharedMemory::<f32>::new(SHARED);
    let width = width as usize;
    let start = CUBE_POS * width;
    // The number of cubes may be rounded up.
    if start >= x.len() {
        terminate!();
    }
    if comptime![parts.block] {
        let mut mean = 0.0f32;
        let mut factor = 1.0f32;
        if comptime![parts.after.is_there] {
            let fixed = comptime![parts.after];
            let found = statistics::<B>(block, start, width, eps, &mut shared, comptime![fixed.centered]);
            mean = found.0;
            factor = found.1;
        }
        for i in range_stepped(UNIT_POS as usize, width, CUBE_DIM as usize) {
            let mut value = f32::cast_from(block[start + i]);
            if comptime![parts.after.is_there] {
                let fixed = comptime![parts.after];
                value = scaled::<W>(value, mean, factor, after_weight, after_bias, i, fixed);
            }
            out[start + i] = x[start + i] + value * scale;
        }
    }
    if comptime![parts.before.is_there] {
        let fixed = comptime![parts.before];
        // Each unit only reads values of `out` that it has written itself.
        if comptime![parts.block] {
            let (mean, factor) =
                statistics::<f32>(out, start, width, eps, &mut shared, comptime![fixed.centered]);
            for i in range_stepped(UNIT_POS as usize, width, CUBE_DIM as usize) {
                normed[start + i] =
                    scaled::<W>(out[start + i], mean, factor, before_weight, before_bias, i, fixed);
            }
        } else {
            let (mean, factor) =
                statistics::<f32>(x, start, width, eps, &mut shared, comptime![fixed.centered]);
            for i in range_stepped(UNIT_POS as usize, width, CUBE_DIM as usize) {
                normed[start + i] =
                    scaled::<W>(x[start + i], mean, factor, before_weight, before_bias, i, fixed);
            }
        }
    }
}

/// Launches the residual addition and the norms; see [`AddNorm`].
pub fn add_norm<R: Runtime>(device: &Device<R>, add_norm: &AddNorm<'_>) -> AddNormOutput {
    let &AddNorm { x, block, after, scale, before, spec, width } = add_norm;
    let parts = Parts {
        block: block.is_some(),
        after: after.map(|weights| Fixed::new(&spec, weights)).unwrap_or_default(),
        before: before.map(|weights| Fixed::new(&spec, weights)).unwrap_or_default(),
    };
    let rows = x.len / width;
    let out = device.floats(if parts.block { x.len } else { 1 });
    let normed = device.floats(if before.is_some() { x.len } else { 1 });
    // Buffers that stand in for absent weights are never read.
    let weight_of = |weights: Option<&NormWeights>| weights.map_or(x, |w| &w.weight).numbers::<R>();
    let bias_of = |weights: Option<&NormWeights>| {
        weights.map_or(x, |w| w.bias.as_ref().unwrap_or(&w.weight)).numbers::<R>()
    };
    let weights = before.or(after).map_or(x.dtype, |weights| weights.weight.dtype);
    // SAFETY: every index is below rows * width, or width.
    unsafe {
        add_norm_kernel::launch_unchecked::<R>(
            &device.client,
            device.cubes(rows),
            CubeDim::new_1d(UNITS as u32),
            x.numbers(),
            block.unwrap_or(x).numbers(),
            weight_of(after),
            bias_of(after),
            weight_of(before),
            bias_of(before),
            out.numbers(),
            normed.numbers(),
            width as u32,
            scale,
            spec.eps,
            parts,
            block.unwrap_or(x).dtype,
            weights,
        );
    }
    AddNormOutput { sum: block.map(|_| out), normed: before.map(|_| normed) }
}
