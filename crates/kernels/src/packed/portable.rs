//! The reference that all other kernels are tested against, in plain loops over sixteen rows.

use super::{Rows, Tile};
use crate::{BLOCK, PackedForm, ROWS};

/// The quants of a block, `[32 columns][16 rows]`, minus the form's offset.
///
/// # Safety
/// The block must be one of the tile's.
#[inline(always)]
unsafe fn quants(form: PackedForm, tile: Tile, block: usize) -> [[i32; ROWS]; BLOCK] {
    // SAFETY: the caller upholds this function's contract.
    let words = unsafe { words(form, tile, block) };
    let mut out = [[0; ROWS]; BLOCK];
    for (group, out) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        for row in 0..ROWS {
            let bytes = match form.bits() {
                8 => words[ROWS * group + row] as u32,
                _ => words[ROWS * (group / 2) + row] as u32 >> (4 * (group % 2)) & 0x0f0f_0f0f,
            };
            for (i, out) in out.iter_mut().enumerate() {
                let mut quant = bytes >> (8 * i) & 255;
                for plane in 0..form.planes() {
                    let bits = words[64 + ROWS * plane + 2 * group + row / 8] as u32;
                    quant |= (bits >> (4 * (row % 8) + i) & 1) << (4 + plane);
                }
                out[row] = quant as i32 - form.offset();
            }
        }
    }
    out
}

/// # Safety
/// The block must be one of the tile's.
#[inline(always)]
unsafe fn words<'a>(form: PackedForm, tile: Tile, block: usize) -> &'a [i32] {
    let len = form.block_bytes() / 4;
    // SAFETY: the caller upholds this function's contract.
    unsafe { std::slice::from_raw_parts(tile.words.add(block * len), len) }
}

/// The quants of one row of a block, minus the form's offset.
///
/// # Safety
/// The block must be one of the tile's, the row below 16.
pub(super) unsafe fn quants_of_row(form: PackedForm, tile: Tile, block: usize, row: usize) -> [i8; BLOCK] {
    // SAFETY: the caller upholds this function's contract.
    let words = unsafe { words(form, tile, block) };
    std::array::from_fn(|column| {
        let (group, i) = (column / 4, column % 4);
        let mut quant = match form.bits() {
            8 => words[ROWS * group + row] as u32 >> (8 * i) & 255,
            _ => words[ROWS * (group / 2) + row] as u32 >> (4 * (group % 2) + 8 * i) & 15,
        };
        for plane in 0..form.planes() {
            let bits = words[64 + ROWS * plane + 2 * group + row / 8] as u32;
            quant |= (bits >> (4 * (row % 8) + i) & 1) << (4 + plane);
        }
        (quant as i32 - form.offset()) as i8
    })
}

/// Scale and minimum of one half of a block for a row. The minimum is to be added.
///
/// # Safety
/// The block must be one of the tile's.
#[inline(always)]
pub(super) unsafe fn scale_and_minimum(
    form: PackedForm,
    tile: Tile,
    block: usize,
    half: usize,
    row: usize,
) -> (f32, f32) {
    let at = block * BLOCK / form.span() * ROWS + row;
    // SAFETY: the caller upholds this function's contract.
    let (number, words) = unsafe { ((*tile.scales.add(at)).to_f32(), words(form, tile, block)) };
    let small = |which: usize| {
        let word = words[form.small_scales() / 4 + 4 * which + row / 4] as u32;
        (word >> (8 * (row % 4))) as u8
    };
    // SAFETY: likewise; `minimum` is only called for forms that have minima.
    let minimum = || unsafe { (*tile.minima.add(at)).to_f32() };
    match form {
        PackedForm::Q6_K => (number * f32::from(small(half) as i8), 0.0),
        PackedForm::Q4_K | PackedForm::Q5_K => {
            (number * f32::from(small(0)), -(minimum() * f32::from(small(1))))
        }
        _ if form.has_minima() => (number, minimum()),
        _ => (number, 0.0),
    }
}

/// Unpacks a block to float32, `[32 columns][16 rows]`, as ggml defines its values.
///
/// # Safety
/// The block must be one of the tile's.
pub(super) unsafe fn unpack(form: PackedForm, tile: Tile, block: usize, out: &mut [[f32; ROWS]; BLOCK]) {
    // SAFETY: the caller upholds this function's contract.
    let quants = unsafe { quants(form, tile, block) };
    for half in 0..2 {
        let mut scales = [(0.0, 0.0); ROWS];
        for (row, scale) in scales.iter_mut().enumerate() {
            // SAFETY: likewise.
            *scale = unsafe { scale_and_minimum(form, tile, block, half, row) };
        }
        for column in 16 * half..16 * (half + 1) {
            for row in 0..ROWS {
                let (scale, minimum) = scales[row];
                let value = scale * quants[column][row] as f32;
                out[column][row] = if form.has_minima() { value + minimum } else { value };
            }
        }
    }
}

/// Unpacks one row of a block to float32.
///
/// # Safety
/// The block must be one of the tile's, the row below 16.
pub(super) unsafe fn row_of_block(form: PackedForm, tile: Tile, block: usize, row: usize) -> [f32; BLOCK] {
    // SAFETY: the caller upholds this function's contract.
    let (quants, scales) = unsafe {
        let scales = [0, 1].map(|half| scale_and_minimum(form, tile, block, half, row));
        (quants_of_row(form, tile, block, row), scales)
    };
    std::array::from_fn(|column| {
        let (scale, minimum) = scales[column / 16];
        let value = scale * f32::from(quants[column]);
        if form.has_minima() { value + minimum } else { value }
    })
}

/// Products of a tile with `N` rows of activations from `row` on.
///
/// # Safety
/// The tile and the rows must be whole and have equally many blocks; `out` must have a place for each row.
pub(super) unsafe fn products<const FORM: usize, const N: usize>(
    tile: Tile,
    x: Rows,
    row: usize,
    out: *mut [f32; ROWS],
) {
    let form = PackedForm::ALL[FORM];
    let mut sums = [[0.0f32; ROWS]; N];
    for block in 0..tile.blocks {
        // SAFETY: the caller upholds this function's contract.
        let (weights, scales) = unsafe {
            let scale = |half| {
                let mut all = [(0.0, 0.0); ROWS];
                for (row, scale) in all.iter_mut().enumerate() {
                    *scale = scale_and_minimum(form, tile, block, half, row);
                }
                all
            };
            (quants(form, tile, block), [scale(0), scale(1)])
        };
        for (n, sums) in sums.iter_mut().enumerate() {
            let at = (row + n) * x.blocks + block;
            // SAFETY: likewise.
            let (quants, scale, both) = unsafe {
                let quants = std::slice::from_raw_parts(x.quants.add(at * BLOCK), BLOCK);
                (quants, *x.scales.add(at), std::slice::from_raw_parts(x.sums.add(2 * at), 2))
            };
            for half in 0..2 {
                let mut dots = [0i32; ROWS];
                for column in 16 * half..16 * (half + 1) {
                    for (dot, weight) in dots.iter_mut().zip(&weights[column]) {
                        *dot += weight * i32::from(quants[column]);
                    }
                }
                for (sum, (dot, (d, m))) in sums.iter_mut().zip(dots.iter().zip(&scales[half])) {
                    *sum += scale * (*dot as f32 * d + both[half] as f32 * m);
                }
            }
        }
    }
    // SAFETY: likewise.
    sums.iter().enumerate().for_each(|(n, sums)| unsafe { *out.add(n) = *sums });
}
