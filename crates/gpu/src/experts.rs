//! Products with the matrices of the experts that a router has picked. The matrices of all experts are consecutive in
//! one buffer.
//!
//! Two launches compute a mixture of experts. The first computes all inward (gate and up) products with the
//! activation, for each pair of a position and an expert. The second computes all outward (down) products, and sums
//! the outputs of each position with their weights. The picked experts are read on the device.

use cubecl::prelude::*;

use crate::{
    Buffer, Device, PackedBuffer, Weights,
    dense::{self, Of},
    outcome::{Bindings, Fixed, Outcome, Product, TILE, finish, partials, total},
    packed::{self, Four, Layout},
    router::Choice,
};
use moi_kernels::BLOCK;

/// Writes the outputs of a position for the rows of a tile: the totals of the partial sums, and the weighted biases.
#[cube]
fn summed<V: Float>(
    shared: &SharedMemory<f32>,
    ids: &Array<u32>,
    weights: &Array<f32>,
    bias: &Array<V>,
    out: &mut Array<f32>,
    position: usize,
    tile: usize,
    rows: usize,
    #[comptime] per_token: usize,
    #[comptime] fixed: Fixed,
) {
    let row = tile * TILE + UNIT_POS as usize;
    if UNIT_POS < TILE as u32 && row < rows {
        let mut y = total(shared, fixed, 0usize);
        if comptime![fixed.bias] {
            for pick in 0..per_token {
                let at = position * per_token + pick;
                y += weights[at] * f32::cast_from(bias[ids[at] as usize * rows + row]);
            }
        }
        out[position * rows + row] = y;
    }
}

#[cube]
fn clear(shared: &mut SharedMemory<f32>, #[comptime] fixed: Fixed, #[comptime] units: usize) {
    for i in range_stepped(UNIT_POS as usize, comptime![partials(fixed)], units) {
        shared[i] = 0.0f32;
    }
    sync_cube();
}

#[cube(launch_unchecked)]
fn dense_inward_kernel<W: Float, V: Float, N: Size>(
    x: &Array<Vector<f32, N>>,
    ids: &Array<u32>,
    weight_0: &Array<Vector<W, N>>,
    weight_1: &Array<Vector<W, N>>,
    bias_0: &Array<V>,
    bias_1: &Array<V>,
    out: &mut Array<f32>,
    rows: u32,
    width: u32,
    pairs: u32,
    #[comptime] per_token: usize,
    #[comptime] fixed: Fixed,
    #[define(W)] _weight: StorageType,
    #[define(V)] _bias: StorageType,
) {
    let mut shared = SharedMemory::<f32>::new(comptime![partials(fixed)]);
    let (rows, width) = (rows as usize, width as usize);
    let (pair, tile) = (CUBE_POS / rows.div_ceil(TILE), CUBE_POS % rows.div_ceil(TILE));
    if pair < pairs as usize {
        let expert = ids[pair] as usize;
        let of = Of { weight: expert * rows * width, input: pair / per_token * width, factor: 1.0f32 };
        dense::tile::<W, N>(x, weight_0, &mut shared, of, tile, rows, width, 1, 1usize, 0usize, false);
        if comptime![fixed.gated()] {
            let offset = comptime![partials(fixed) / 2];
            dense::tile::<W, N>(x, weight_1, &mut shared, of, tile, rows, width, 1, 1usize, offset, false);
        }
        sync_cube();
        finish::<V>(&shared, bias_0, bias_1, out, expert * rows, pair * rows, tile, rows, 1, fixed);
    }
}

#[cube(launch_unchecked)]
fn dense_outward_kernel<W: Float, V: Float, N: Size>(
    x: &Array<Vector<f32, N>>,
    ids: &Array<u32>,
    weights: &Array<f32>,
    weight: &Array<Vector<W, N>>,
    bias: &Array<V>,
    out: &mut Array<f32>,
    rows: u32,
    width: u32,
    n: u32,
    #[comptime] per_token: usize,
    #[comptime] fixed: Fixed,
    #[define(W)] _weight: StorageType,
    #[define(V)] _bias: StorageType,
) {
    let mut shared = SharedMemory::<f32>::new(comptime![partials(fixed)]);
    let (rows, width) = (rows as usize, width as usize);
    let (position, tile) = (CUBE_POS / rows.div_ceil(TILE), CUBE_POS % rows.div_ceil(TILE));
    if position < n as usize {
        clear(&mut shared, fixed, comptime![dense::LANES * TILE / 2]);
        for pick in 0..per_token {
            let at = position * per_token + pick;
            let of = Of { weight: ids[at] as usize * rows * width, input: at * width, factor: weights[at] };
            dense::tile::<W, N>(x, weight, &mut shared, of, tile, rows, width, 1, 1usize, 0usize, true);
        }
        sync_cube();
        summed::<V>(&shared, ids, weights, bias, out, position, tile, rows, per_token, fixed);
    }
}

#[cube(launch_unchecked)]
fn packed_inward_kernel<S: Float, V: Float>(
    x: &Array<Four>,
    ids: &Array<u32>,
    words_0: &Array<u32>,
    words_1: &Array<u32>,
    scales_0: &Array<S>,
    scales_1: &Array<S>,
    minima_0: &Array<S>,
    minima_1: &Array<S>,
    bias_0: &Array<V>,
    bias_1: &Array<V>,
    out: &mut Array<f32>,
    rows: u32,
    blocks: u32,
    pairs: u32,
    #[comptime] per_token: usize,
    #[comptime] fixed: Fixed,
    #[comptime] layouts: [Layout; 2],
    #[define(S)] _scale: StorageType,
    #[define(V)] _bias: StorageType,
) {
    let mut shared = SharedMemory::<f32>::new(comptime![partials(fixed)]);
    let (layout_0, layout_1) = comptime![(layouts[0], layouts[1])];
    let (rows, blocks) = (rows as usize, blocks as usize);
    let tiles = rows.div_ceil(TILE);
    let (pair, tile) = (CUBE_POS / tiles, CUBE_POS % tiles);
    if pair < pairs as usize {
        let expert = ids[pair] as usize;
        let input = pair / per_token * blocks * 8;
        let own = expert * tiles + tile;
        packed::tile::<S>(
            x,
            words_0,
            scales_0,
            minima_0,
            &mut shared,
            input,
            1.0f32,
            own,
            blocks,
            1,
            1usize,
            0usize,
            false,
            layout_0,
        );
        if comptime![fixed.gated()] {
            packed::tile::<S>(
                x,
                words_1,
                scales_1,
                minima_1,
                &mut shared,
                input,
                1.0f32,
                own,
                blocks,
                1,
                1usize,
                comptime![partials(fixed) / 2],
                false,
                layout_1,
            );
        }
        sync_cube();
        finish::<V>(&shared, bias_0, bias_1, out, expert * rows, pair * rows, tile, rows, 1, fixed);
    }
}

#[cube(launch_unchecked)]
fn packed_outward_kernel<S: Float, V: Float>(
    x: &Array<Four>,
    ids: &Array<u32>,
    weights: &Array<f32>,
    words: &Array<u32>,
    scales: &Array<S>,
    minima: &Array<S>,
    bias: &Array<V>,
    out: &mut Array<f32>,
    rows: u32,
    blocks: u32,
    n: u32,
    #[comptime] per_token: usize,
    #[comptime] fixed: Fixed,
    #[comptime] layout: Layout,
    #[define(S)] _scale: StorageType,
    #[define(V)] _bias: StorageType,
) {
    let mut shared = SharedMemory::<f32>::new(comptime![partials(fixed)]);
    let (rows, blocks) = (rows as usize, blocks as usize);
    let tiles = rows.div_ceil(TILE);
    let (position, tile) = (CUBE_POS / tiles, CUBE_POS % tiles);
    if position < n as usize {
        clear(&mut shared, fixed, comptime![packed::LANES * TILE]);
        for pick in 0..per_token {
            let at = position * per_token + pick;
            packed::tile::<S>(
                x,
                words,
                scales,
                minima,
                &mut shared,
                at * blocks * 8,
                weights[at],
                ids[at] as usize * tiles + tile,
                blocks,
                1,
                1usize,
                0usize,
                true,
                layout,
            );
        }
        sync_cube();
        summed::<V>(&shared, ids, weights, bias, out, position, tile, rows, per_token, fixed);
    }
}

/// Matrices of all experts, `[experts * rows, width]`; packed ones have whole tiles for each expert. Biases are
/// `[experts * rows]`. `rows` is the number of rows of one expert.
pub type Stack<'a> = Product<'a, &'a Weights>;

/// The outputs of the picked experts for `x` `[n, width]` in float32, summed with their weights: `[n, rows]` in
/// float32. `inward` is the gate and the up matrices, or a single matrix. `None` where there is no kernel for these
/// forms, or the device has too few bindings.
pub fn experts<R: Runtime>(
    device: &Device<R>,
    x: &Buffer,
    choice: &Choice,
    inward: &[Stack<'_>],
    activation: crate::Activation,
    outward: Stack<'_>,
) -> Option<Buffer> {
    let bindings = device.client.properties().hardware.max_bindings as usize;
    if inward.is_empty() || inward.len() > 2 || bindings < 16 {
        return None;
    }
    let inner = match inward[0].weight {
        Weights::Dense(_) => {
            let products = all(inward, Weights::dense)?;
            let one_type = products.iter().all(|product| product.weight.dtype == products[0].weight.dtype);
            one_type.then(|| dense_inward(device, x, choice, &products, activation))?
        }
        Weights::Packed(_) => {
            let products = all(inward, Weights::packed)?;
            let one_type =
                products.iter().all(|product| product.weight.scales.dtype == products[0].weight.scales.dtype);
            one_type.then(|| packed_inward(device, x, choice, &products, activation))?
        }
    };
    Some(match outward.weight {
        Weights::Dense(weight) => dense_outward(device, &inner, choice, of(outward, weight)),
        Weights::Packed(weight) => packed_outward(device, &inner, choice, of(outward, weight)),
    })
}

fn of<'a, W>(map: Stack<'a>, weight: W) -> Product<'a, W> {
    Product { weight, bias: map.bias, rows: map.rows }
}

fn all<'a, W>(
    products: &[Stack<'a>],
    weight: fn(&'a Weights) -> Option<&'a W>,
) -> Option<Vec<Product<'a, &'a W>>> {
    products.iter().map(|&product| Some(of(product, weight(product.weight)?))).collect()
}

fn dense_inward<R: Runtime>(
    device: &Device<R>,
    x: &Buffer,
    choice: &Choice,
    products: &[Product<'_, &Buffer>],
    activation: crate::Activation,
) -> Buffer {
    let (pairs, rows) = (choice.ids.len, products[0].rows);
    let fixed = Fixed::new(1, products, Outcome::Activated(activation), dense::LANES);
    let bindings = Bindings::new(device, pairs, products, fixed);
    let weight = |i: usize| products.get(i).unwrap_or(&products[0]).weight;
    let width = x.len * choice.per_token / pairs;
    let vector = device.vector_width(weight(0).dtype, width).min(4);
    let [bias_0, bias_1, _] = bindings.biases::<R>();
    // SAFETY: rows are clamped to an expert's last one, and cubes past the last pair do nothing.
    unsafe {
        dense_inward_kernel::launch_unchecked::<R>(
            &device.client,
            device.cubes(pairs * rows.div_ceil(TILE)),
            CubeDim::new_1d((dense::LANES * TILE / 2) as u32),
            vector,
            x.vectors(vector),
            choice.ids.numbers(),
            weight(0).vectors(vector),
            weight(1).vectors(vector),
            bias_0,
            bias_1,
            bindings.outs[0].numbers(),
            rows as u32,
            (width / vector) as u32,
            pairs as u32,
            choice.per_token,
            fixed,
            weight(0).dtype,
            bindings.bias_type,
        );
    }
    let [out, ..] = bindings.outs;
    out
}

fn dense_outward<R: Runtime>(
    device: &Device<R>,
    x: &Buffer,
    choice: &Choice,
    map: Product<'_, &Buffer>,
) -> Buffer {
    let (pairs, rows) = (choice.ids.len, map.rows);
    let n = pairs / choice.per_token;
    let fixed = Fixed::new(1, &[map], Outcome::Each, dense::LANES);
    let bindings = Bindings::new(device, n, &[map], fixed);
    let width = x.len / pairs;
    let vector = device.vector_width(map.weight.dtype, width).min(4);
    let [bias, ..] = bindings.biases::<R>();
    // SAFETY: rows are clamped to an expert's last one, and cubes past the last position do nothing.
    unsafe {
        dense_outward_kernel::launch_unchecked::<R>(
            &device.client,
            device.cubes(n * rows.div_ceil(TILE)),
            CubeDim::new_1d((dense::LANES * TILE / 2) as u32),
            vector,
            x.vectors(vector),
            choice.ids.numbers(),
            choice.weights.numbers(),
            map.weight.vectors(vector),
            bias,
            bindings.outs[0].numbers(),
            rows as u32,
            (width / vector) as u32,
            n as u32,
            choice.per_token,
            fixed,
            map.weight.dtype,
            bindings.bias_type,
        );
    }
    let [out, ..] = bindings.outs;
    out
}

fn packed_inward<R: Runtime>(
    device: &Device<R>,
    x: &Buffer,
    choice: &Choice,
    products: &[Product<'_, &PackedBuffer>],
    activation: crate::Activation,
) -> Buffer {
    let (pairs, rows) = (choice.ids.len, products[0].rows);
    let fixed = Fixed::new(1, products, Outcome::Activated(activation), packed::LANES);
    let bindings = Bindings::new(device, pairs, products, fixed);
    let weight = |i: usize| products.get(i).unwrap_or(&products[0]).weight;
    let minima = |i: usize| weight(i).minima.as_ref().unwrap_or(&weight(i).scales).numbers::<R>();
    let [bias_0, bias_1, _] = bindings.biases::<R>();
    // SAFETY: tiles have all their words and scales, and cubes past the last pair do nothing.
    unsafe {
        packed_inward_kernel::launch_unchecked::<R>(
            &device.client,
            device.cubes(pairs * rows.div_ceil(TILE)),
            CubeDim::new_1d((packed::LANES * TILE) as u32),
            x.vectors(4),
            choice.ids.numbers(),
            weight(0).words.numbers(),
            weight(1).words.numbers(),
            weight(0).scales.numbers(),
            weight(1).scales.numbers(),
            minima(0),
            minima(1),
            bias_0,
            bias_1,
            bindings.outs[0].numbers(),
            rows as u32,
            (weight(0).width / BLOCK) as u32,
            pairs as u32,
            choice.per_token,
            fixed,
            [0, 1].map(|i| Layout::new(weight(i).form)),
            weight(0).scales.dtype,
            bindings.bias_type,
        );
    }
    let [out, ..] = bindings.outs;
    out
}

fn packed_outward<R: Runtime>(
    device: &Device<R>,
    x: &Buffer,
    choice: &Choice,
    map: Product<'_, &PackedBuffer>,
) -> Buffer {
    let (rows, weight) = (map.rows, map.weight);
    let n = choice.ids.len / choice.per_token;
    let fixed = Fixed::new(1, &[map], Outcome::Each, packed::LANES);
    let bindings = Bindings::new(device, n, &[map], fixed);
    let [bias, ..] = bindings.biases::<R>();
    // SAFETY: tiles have all their words and scales, and cubes past the last position do nothing.
    unsafe {
        packed_outward_kernel::launch_unchecked::<R>(
            &device.client,
            device.cubes(n * rows.div_ceil(TILE)),
            CubeDim::new_1d((packed::LANES * TILE) as u32),
            x.vectors(4),
            choice.ids.numbers(),
            choice.weights.numbers(),
            weight.words.numbers(),
            weight.scales.numbers(),
            weight.minima.as_ref().unwrap_or(&weight.scales).numbers(),
            bias,
            bindings.outs[0].numbers(),
            rows as u32,
            (weight.width / BLOCK) as u32,
            n as u32,
            choice.per_token,
            fixed,
            Layout::new(weight.form),
            weight.scales.dtype,
            bindings.bias_type,
        );
    }
    let [out, ..] = bindings.outs;
    out
}
