//! Products with packed weights, and unpacking of weights.
//!
//! [`PackedForm`] documents the memory layout of a tile of 16 rows: the 16 words that 16 units read are consecutive.

use cubecl::prelude::*;
use moi_kernels::{BLOCK, PackedForm};

use crate::{
    Buffer, Device,
    outcome::{Bindings, Fixed, Outcome, Product, TILE, finish, partials},
};

/// Units that share a row of weights.
pub(crate) const LANES: usize = 16;

/// Four numbers.
pub(crate) type Four = Vector<f32, Const<4>>;

/// A packed matrix `[rows, width]`.
#[derive(Clone, Debug)]
pub struct PackedBuffer {
    /// The packed form.
    pub form: PackedForm,
    /// Quants and small scales, in 32-bit words.
    pub words: Buffer,
    /// Block scales, of any float type.
    pub scales: Buffer,
    /// Block minima, of the same type.
    pub minima: Option<Buffer>,
    /// Number of columns.
    pub width: usize,
}

/// A form's constants, which kernels are compiled with.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub(crate) struct Layout {
    bits: usize,
    block_words: usize,
    offset: i32,
    is_k: bool,
    has_minima: bool,
    /// Blocks that share a scale.
    blocks_per_scale: usize,
}

impl Layout {
    pub(crate) fn new(form: PackedForm) -> Self {
        Self {
            bits: form.bits(),
            block_words: form.block_bytes() / 4,
            offset: form.offset(),
            is_k: form.is_k(),
            has_minima: form.has_minima(),
            blocks_per_scale: form.span() / BLOCK,
        }
    }

    pub(crate) fn blocks_per_scale(self) -> usize {
        self.blocks_per_scale
    }

    pub(crate) fn block_words(self) -> usize {
        self.block_words
    }

    /// Groups of four columns whose quants are in one word.
    pub(crate) fn groups_per_word(self) -> usize {
        if self.bits == 8 { 1 } else { 2 }
    }

    /// Words of a row in a block, without the planes of high bits.
    pub(crate) fn words_per_row(self) -> usize {
        8 / self.groups_per_word()
    }
}

/// Four quants of a row, from column `4 * group` on, of the block whose words begin at `base`.
#[cube]
pub(crate) fn quants(
    words: &Array<u32>,
    base: usize,
    group: usize,
    row: usize,
    #[comptime] layout: Layout,
) -> Four {
    let mut out = Four::empty();
    let offset = comptime![layout.offset as f32];
    if comptime![layout.bits == 8] {
        let word = words[base + group * TILE + row];
        #[unroll]
        for i in 0..4usize {
            out[i] = f32::cast_from((word >> (8 * i as u32)) & 255) - offset;
        }
    } else {
        let word = words[base + (group / 2) * TILE + row] >> ((group as u32 % 2) * 4);
        #[unroll]
        for i in 0..4usize {
            let mut quant = (word >> (8 * i as u32)) & 15;
            #[unroll]
            for plane in 0..comptime![layout.bits - 4] {
                let high = words[base + 64 + plane * TILE + 2 * group + row / 8];
                quant += ((high >> ((row as u32 % 8) * 4 + i as u32)) & 1) << comptime![4 + plane as u32];
            }
            out[i] = f32::cast_from(quant) - offset;
        }
    }
    out
}

#[cube]
fn small_scale(words: &Array<u32>, base: usize, at: usize, #[comptime] layout: Layout) -> u32 {
    let word = words[base + comptime![layout.block_words - 8] + at / 4];
    (word >> ((at as u32 % 4) * 8)) & 255
}

/// The scale of four quants, and the minimum that is added to each of them.
#[cube]
pub(crate) fn factors<S: Float>(
    words: &Array<u32>,
    scales: &Array<S>,
    minima: &Array<S>,
    base: usize,
    first_scale: usize,
    block: usize,
    group: usize,
    row: usize,
    #[comptime] layout: Layout,
) -> (f32, f32) {
    let at = first_scale + block / comptime![layout.blocks_per_scale] * TILE + row;
    let mut scale = f32::cast_from(scales[at]);
    let mut minimum = 0.0f32;
    if comptime![layout.is_k && layout.has_minima] {
        scale *= f32::cast_from(small_scale(words, base, row, layout));
        minimum =
            -(f32::cast_from(minima[at]) * f32::cast_from(small_scale(words, base, TILE + row, layout)));
    } else if comptime![layout.is_k] {
        let small = small_scale(words, base, (group / 4) * TILE + row, layout);
        scale *= f32::cast_from(small) - select(small > 127, 256.0f32, 0.0f32);
    } else if comptime![layout.has_minima] {
        minimum = f32::cast_from(minima[at]);
    }
    (scale, minimum)
}

/// Computes the partial sums of a tile's rows for the inputs from vector `input` on. If `added`, they are multiplied
/// with `factor` and added to `shared`; else they overwrite it.
#[cube]
pub(crate) fn tile<S: Float>(
    x: &Array<Four>,
    words: &Array<u32>,
    scales: &Array<S>,
    minima: &Array<S>,
    shared: &mut SharedMemory<f32>,
    input: usize,
    factor: f32,
    tile: usize,
    blocks: usize,
    n: usize,
    #[comptime] batch: usize,
    #[comptime] offset: usize,
    #[comptime] added: bool,
    #[comptime] layout: Layout,
) {
    let row = UNIT_POS as usize % TILE;
    let lane = UNIT_POS as usize / TILE;
    let of_row = comptime![layout.words_per_row()];
    let first_scale = tile * (blocks / comptime![layout.blocks_per_scale]) * TILE;
    let mut sums = Array::<f32>::new(batch);
    #[unroll]
    for b in 0..batch {
        sums[b] = 0.0f32;
    }
    for block in range_stepped(lane / of_row, blocks, comptime![LANES / layout.words_per_row()]) {
        let base = (tile * blocks + block) * comptime![layout.block_words];
        #[unroll]
        for half in 0..comptime![layout.groups_per_word()] {
            let group = (lane % of_row) * comptime![layout.groups_per_word()] + half;
            let four = quants(words, base, group, row, layout);
            let (scale, minimum) =
                factors::<S>(words, scales, minima, base, first_scale, block, group, row, layout);
            #[unroll]
            for b in 0..batch {
                let input = x[input + (min(b, n - 1) * blocks + block) * 8 + group];
                let product = four * input;
                let mut sum = (product[0] + product[1] + product[2] + product[3]) * scale;
                if comptime![layout.has_minima] {
                    sum += (input[0] + input[1] + input[2] + input[3]) * minimum;
                }
                sums[b] += sum;
            }
        }
    }
    #[unroll]
    for b in 0..batch {
        let at = offset + (lane * batch + b) * TILE + row;
        if comptime![added] {
            shared[at] += sums[b] * factor;
        } else {
            shared[at] = sums[b];
        }
    }
}

#[cube(launch_unchecked)]
fn packed_products_kernel<S: Float, V: Float>(
    x: &Array<Four>,
    words_0: &Array<u32>,
    words_1: &Array<u32>,
    words_2: &Array<u32>,
    scales_0: &Array<S>,
    scales_1: &Array<S>,
    scales_2: &Array<S>,
    minima_0: &Array<S>,
    minima_1: &Array<S>,
    minima_2: &Array<S>,
    bias_0: &Array<V>,
    bias_1: &Array<V>,
    bias_2: &Array<V>,
    out_0: &mut Array<f32>,
    out_1: &mut Array<f32>,
    out_2: &mut Array<f32>,
    rows_0: u32,
    rows_1: u32,
    rows_2: u32,
    blocks: u32,
    n: u32,
    #[comptime] fixed: Fixed,
    #[comptime] layouts: [Layout; 3],
    #[define(S)] _scale: StorageType,
    #[define(V)] _bias: StorageType,
) {
    let batch = comptime![fixed.batch];
    let mut shared = SharedMemory::<f32>::new(comptime![partials(fixed)]);
    let (blocks, n) = (blocks as usize, n as usize);
    let (rows_0, rows_1, rows_2) = (rows_0 as usize, rows_1 as usize, rows_2 as usize);
    let (layout_0, layout_1, layout_2) = comptime![(layouts[0], layouts[1], layouts[2])];
    let tiles_0 = rows_0.div_ceil(TILE);
    let cube = CUBE_POS;
    if cube < tiles_0 {
        tile::<S>(
            x,
            words_0,
            scales_0,
            minima_0,
            &mut shared,
            0usize,
            1.0f32,
            cube,
            blocks,
            n,
            batch,
            0usize,
            false,
            layout_0,
        );
        if comptime![fixed.gated()] {
            let offset = comptime![partials(fixed) / 2];
            tile::<S>(
                x,
                words_1,
                scales_1,
                minima_1,
                &mut shared,
                0usize,
                1.0f32,
                cube,
                blocks,
                n,
                batch,
                offset,
                false,
                layout_1,
            );
        }
        sync_cube();
        finish::<V>(&shared, bias_0, bias_1, out_0, 0usize, 0usize, cube, rows_0, n, fixed);
    } else if comptime![fixed.count > 1 && !fixed.gated()] {
        let cube = cube - tiles_0;
        let tiles_1 = rows_1.div_ceil(TILE);
        if cube < tiles_1 {
            tile::<S>(
                x,
                words_1,
                scales_1,
                minima_1,
                &mut shared,
                0usize,
                1.0f32,
                cube,
                blocks,
                n,
                batch,
                0usize,
                false,
                layout_1,
            );
            sync_cube();
            finish::<V>(&shared, bias_1, bias_1, out_1, 0usize, 0usize, cube, rows_1, n, fixed);
        } else if comptime![fixed.count > 2] {
            let cube = cube - tiles_1;
            if cube < rows_2.div_ceil(TILE) {
                tile::<S>(
                    x,
                    words_2,
                    scales_2,
                    minima_2,
                    &mut shared,
                    0usize,
                    1.0f32,
                    cube,
                    blocks,
                    n,
                    batch,
                    0usize,
                    false,
                    layout_2,
                );
                sync_cube();
                finish::<V>(&shared, bias_2, bias_2, out_2, 0usize, 0usize, cube, rows_2, n, fixed);
            }
        }
    }
}

/// Launches the products of [`dense`](crate::dense) for packed matrices, whose scales must be of one type.
pub(crate) fn launch<R: Runtime>(
    device: &Device<R>,
    x: &Buffer,
    n: usize,
    products: &[Product<'_, &PackedBuffer>],
    outcome: Outcome,
) -> Vec<Buffer> {
    let fixed = Fixed::new(n, products, outcome, LANES);
    let bindings = Bindings::new(device, n, products, fixed);
    let weight = |i: usize| products.get(i).unwrap_or(&products[0]).weight;
    let [words_0, words_1, words_2] = [0, 1, 2].map(|i| weight(i).words.numbers::<R>());
    let [scales_0, scales_1, scales_2] = [0, 1, 2].map(|i| weight(i).scales.numbers::<R>());
    let minima = |i: usize| weight(i).minima.as_ref().unwrap_or(&weight(i).scales).numbers::<R>();
    let [bias_0, bias_1, bias_2] = bindings.biases::<R>();
    let [out_0, out_1, out_2] = bindings.outs.each_ref().map(Buffer::numbers::<R>);
    let [rows_0, rows_1, rows_2] = bindings.rows;
    // SAFETY: tiles have all their words and scales, even if their last rows are padding.
    unsafe {
        packed_products_kernel::launch_unchecked::<R>(
            &device.client,
            device.cubes(bindings.cubes),
            CubeDim::new_1d((LANES * TILE) as u32),
            x.vectors(4),
            words_0,
            words_1,
            words_2,
            scales_0,
            scales_1,
            scales_2,
            minima(0),
            minima(1),
            minima(2),
            bias_0,
            bias_1,
            bias_2,
            out_0,
            out_1,
            out_2,
            rows_0,
            rows_1,
            rows_2,
            (weight(0).width / BLOCK) as u32,
            n as u32,
            fixed,
            [0, 1, 2].map(|i| Layout::new(weight(i).form)),
            weight(0).scales.dtype,
            bindings.bias_type,
        );
    }
    bindings.outs.into_iter().take(fixed.outputs()).collect()
}

#[cube(launch_unchecked)]
fn unpack_kernel<S: Float>(
    words: &Array<u32>,
    scales: &Array<S>,
    minima: &Array<S>,
    ids: &Array<i32>,
    out: &mut Array<Four>,
    first: u32,
    rows: u32,
    blocks: u32,
    #[comptime] picked: bool,
    #[comptime] layout: Layout,
    #[define(S)] _scale: StorageType,
) {
    // One unit unpacks four columns of a row.
    let blocks = blocks as usize;
    let group = ABSOLUTE_POS % 8;
    let block = ABSOLUTE_POS / 8 % blocks;
    let at = ABSOLUTE_POS / 8 / blocks;
    if at < rows as usize {
        let mut from = first as usize + at;
        if comptime![picked] {
            from = ids[at] as usize;
        }
        let (tile, row) = (from / TILE, from % TILE);
        let base = (tile * blocks + block) * comptime![layout.block_words];
        let first_scale = tile * (blocks / comptime![layout.blocks_per_scale]) * TILE;
        let four = quants(words, base, group, row, layout);
        let (scale, minimum) =
            factors::<S>(words, scales, minima, base, first_scale, block, group, row, layout);
        out[ABSOLUTE_POS] = four * Four::new(scale) + Four::new(minimum);
    }
}

/// The rows to unpack.
#[derive(Clone, Copy, Debug)]
pub enum Picked<'a> {
    /// A range of rows: the first one, and their number.
    From(usize, usize),
    /// The rows with these 32-bit ids, which must be below the number of rows.
    Ids(&'a Buffer),
}

/// Unpacks rows to float32, `[rows, width]`.
pub fn unpack<R: Runtime>(device: &Device<R>, matrix: &PackedBuffer, picked: Picked<'_>) -> Buffer {
    const UNITS: usize = 256;
    let (first, rows, ids) = match picked {
        Picked::From(first, rows) => (first, rows, None),
        Picked::Ids(ids) => (0, ids.len, Some(ids)),
    };
    let out = device.floats(rows * matrix.width);
    // SAFETY: units past the last row do nothing.
    unsafe {
        unpack_kernel::launch_unchecked::<R>(
            &device.client,
            device.cubes((out.len / 4).div_ceil(UNITS)),
            CubeDim::new_1d(UNITS as u32),
            matrix.words.numbers(),
            matrix.scales.numbers(),
            matrix.minima.as_ref().unwrap_or(&matrix.scales).numbers(),
            ids.unwrap_or(&matrix.words).numbers(),
            out.vectors(4),
            first as u32,
            rows as u32,
            (matrix.width / BLOCK) as u32,
            ids.is_some(),
            Layout::new(matrix.form),
            matrix.scales.dtype,
        );
    }
    out
}
