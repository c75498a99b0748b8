//! Products of a few inputs with dense float matrices, which read nearly all of a model's bytes in decoding.
//!
//! A cube computes 16 rows of one matrix. Thirty-two units read a row side by side, two rows each, so that loads are
//! whole cache lines and an input is loaded once for two rows. Sums are in float32 whatever the type of the weights.

use cubecl::prelude::*;

use crate::{
    Buffer, Device,
    outcome::{Bindings, Fixed, Outcome, Product, TILE, finish, partials},
};

/// Units that read a row of weights side by side.
pub(crate) const LANES: usize = 32;

/// The places of a tile's matrix and inputs in their buffers, and a factor on its sums.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct Of {
    /// Offset of the matrix, in vectors.
    pub(crate) weight: usize,
    /// Offset of the inputs, in vectors.
    pub(crate) input: usize,
    /// The factor on sums that are added to others.
    pub(crate) factor: f32,
}

/// Computes the partial sums of a tile's rows. If `added`, they are multiplied with the factor and added to
/// `partials`; else they overwrite it.
#[cube]
pub(crate) fn tile<W: Float, N: Size>(
    x: &Array<Vector<f32, N>>,
    weight: &Array<Vector<W, N>>,
    partials: &mut SharedMemory<f32>,
    of: Of,
    tile: usize,
    rows: usize,
    width: usize,
    n: usize,
    #[comptime] batch: usize,
    #[comptime] offset: usize,
    #[comptime] added: bool,
) {
    let lane = UNIT_POS as usize % LANES;
    let pair = UNIT_POS as usize / LANES;
    // Rows past the last one are read as the last one, and their sums are not written.
    let upper = of.weight + min(tile * TILE + pair, rows - 1) * width;
    let lower = of.weight + min(tile * TILE + pair + TILE / 2, rows - 1) * width;
    let mut sums = Array::<Vector<f32, N>>::new(2 * batch);
    #[unroll]
    for i in 0..2 * batch {
        sums[i] = Vector::<f32, N>::new(0.0);
    }
    for i in range_stepped(lane, width, LANES) {
        let above = Vector::<f32, N>::cast_from(weight[upper + i]);
        let below = Vector::<f32, N>::cast_from(weight[lower + i]);
        #[unroll]
        for b in 0..batch {
            let input = x[of.input + min(b, n - 1) * width + i];
            sums[2 * b] += above * input;
            sums[2 * b + 1] += below * input;
        }
    }
    #[unroll]
    for b in 0..batch {
        #[unroll]
        for half in 0..2usize {
            let vector = sums[2 * b + half];
            let mut total = 0.0f32;
            #[unroll]
            for i in 0..N::value() {
                total += vector[i];
            }
            let row = pair + half * (TILE / 2);
            let at = offset + (lane * batch + b) * TILE + row;
            if comptime![added] {
                partials[at] += total * of.factor;
            } else {
                partials[at] = total;
            }
        }
    }
}

/// For a matrix and inputs at the beginning of their buffers.
#[cube]
fn whole() -> Of {
    Of { weight: 0usize, input: 0usize, factor: 1.0f32 }
}

#[cube(launch_unchecked)]
fn products_kernel<W: Float, V: Float, N: Size>(
    x: &Array<Vector<f32, N>>,
    weight_0: &Array<Vector<W, N>>,
    weight_1: &Array<Vector<W, N>>,
    weight_2: &Array<Vector<W, N>>,
    bias_0: &Array<V>,
    bias_1: &Array<V>,
    bias_2: &Array<V>,
    out_0: &mut Array<f32>,
    out_1: &mut Array<f32>,
    out_2: &mut Array<f32>,
    rows_0: u32,
    rows_1: u32,
    rows_2: u32,
    width: u32,
    n: u32,
    #[comptime] fixed: Fixed,
    #[define(W)] _weight: StorageType,
    #[define(V)] _bias: StorageType,
) {
    let batch = comptime![fixed.batch];
    let mut shared = SharedMemory::<f32>::new(comptime![partials(fixed)]);
    let (width, n) = (width as usize, n as usize);
    let (rows_0, rows_1, rows_2) = (rows_0 as usize, rows_1 as usize, rows_2 as usize);
    let tiles_0 = rows_0.div_ceil(TILE);
    let cube = CUBE_POS;
    if cube < tiles_0 {
        tile::<W, N>(x, weight_0, &mut shared, whole(), cube, rows_0, width, n, batch, 0usize, false);
        if comptime![fixed.gated()] {
            let offset = comptime![partials(fixed) / 2];
            tile::<W, N>(x, weight_1, &mut shared, whole(), cube, rows_0, width, n, batch, offset, false);
        }
        sync_cube();
        finish::<V>(&shared, bias_0, bias_1, out_0, 0usize, 0usize, cube, rows_0, n, fixed);
    } else if comptime![fixed.count > 1 && !fixed.gated()] {
        let cube = cube - tiles_0;
        let tiles_1 = rows_1.div_ceil(TILE);
        if cube < tiles_1 {
            tile::<W, N>(x, weight_1, &mut shared, whole(), cube, rows_1, width, n, batch, 0usize, false);
            sync_cube();
            finish::<V>(&shared, bias_1, bias_1, out_1, 0usize, 0usize, cube, rows_1, n, fixed);
        } else if comptime![fixed.count > 2] {
            let cube = cube - tiles_1;
            if cube < rows_2.div_ceil(TILE) {
                tile::<W, N>(x, weight_2, &mut shared, whole(), cube, rows_2, width, n, batch, 0usize, false);
                sync_cube();
                finish::<V>(&shared, bias_2, bias_2, out_2, 0usize, 0usize, cube, rows_2, n, fixed);
            }
        }
    }
}

/// Launches the products of `x` `[n, width]` in float32, `n` at most [`MAX_ROWS`](crate::MAX_ROWS), with one to three
/// matrices `[rows, width]` of one type. Returns `[n, rows]` in float32 for each, or for both together if they are
/// gated.
pub(crate) fn launch<R: Runtime>(
    device: &Device<R>,
    x: &Buffer,
    n: usize,
    products: &[Product<'_, &Buffer>],
    outcome: Outcome,
) -> Vec<Buffer> {
    let width = x.len / n;
    let fixed = Fixed::new(n, products, outcome, LANES);
    let bindings = Bindings::new(device, n, products, fixed);
    let weight = |i: usize| products.get(i).unwrap_or(&products[0]).weight;
    let vector = device.vector_width(weight(0).dtype, width).min(4);
    let [bias_0, bias_1, bias_2] = bindings.biases::<R>();
    let [out_0, out_1, out_2] = bindings.outs.each_ref().map(Buffer::numbers::<R>);
    let [rows_0, rows_1, rows_2] = bindings.rows;
    // SAFETY: rows are clamped to the last one, and columns end at the width.
    unsafe {
        products_kernel::launch_unchecked::<R>(
            &device.client,
            device.cubes(bindings.cubes),
            CubeDim::new_1d((LANES * TILE / 2) as u32),
            vector,
            x.vectors(vector),
            weight(0).vectors(vector),
            weight(1).vectors(vector),
            weight(2).vectors(vector),
            bias_0,
            bias_1,
            bias_2,
            out_0,
            out_1,
            out_2,
            rows_0,
            rows_1,
            rows_2,
            (width / vector) as u32,
            n as u32,
            fixed,
            weight(0).dtype,
            bindings.bias_type,
        );
    }
    bindings.outs.into_iter().take(fixed.outputs()).collect()
}
