//! Products with packed weights, computed without unpacking whole matrices.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx512_vnni;
#[cfg(target_arch = "x86_64")]
mod avx_vnni;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "aarch64")]
mod neon_dot;
mod portable;
mod row;
mod tiles;

#[cfg(all(test, target_arch = "x86_64"))]
use avx_vnni::as_avx512;
use half::f16;
pub(crate) use row::RowLayout;
use tiles::{each_tile, tile_int8};

use crate::{BLOCK, Isa, PackedForm, QuantizedRows, ROWS, isa, lanes::dispatch};

/// A packed matrix `[rows, columns]`; [`PackedForm`] documents its layout.
#[derive(Clone, Copy, Debug)]
pub struct Packed<'a> {
    form: PackedForm,
    rows: usize,
    columns: usize,
    words: &'a [i32],
    scales: &'a [f16],
    minima: &'a [f16],
}

/// Pointers to rows of activations in 8 bits, for kernels.
#[derive(Clone, Copy)]
struct Rows {
    quants: *const i8,
    scales: *const f32,
    sums: *const i32,
    scaled_sums: *const f32,
    blocks: usize,
}

/// Pointers to a tile of a matrix, for kernels.
#[derive(Clone, Copy)]
struct Tile {
    words: *const i32,
    scales: *const f16,
    minima: *const f16,
    blocks: usize,
}

// SAFETY: the pointers are into slices that outlive the kernels, and are only read through.
unsafe impl Sync for Rows {}
// SAFETY: likewise.
unsafe impl Sync for Tile {}

/// How far ahead of the products weights are fetched, in bytes. The hardware alone does not fetch far enough ahead for
/// the time that memory takes to answer. Measured on an Intel Xeon (Sapphire Rapids, two cores) with SmolLM2 in Q4_1:
/// 296 tokens/s without, 341 at 1,024, 366 at 4,096, 370 at 8,192, 356 at 16,384.
#[cfg(target_arch = "x86_64")]
const AHEAD: usize = 6144;

/// Fetches a block that is [`AHEAD`] of one at `bytes`.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn prefetch_ahead(bytes: *const u8, len: usize) {
    for line in (0..len).step_by(64) {
        crate::lanes::prefetch(bytes.wrapping_add(AHEAD + line));
    }
}

/// Calls a kernel whose first const parameter is the index of a form in [`PackedForm::ALL`], for the form `$form`.
macro_rules! with_form {
    ($form:expr, $kernel:ident::<_ $(, $more:tt)*>($($arg:expr),*)) => {
        match $form {
            PackedForm::Q8_0 => $kernel::<0 $(, $more)*>($($arg),*),
            PackedForm::Q4_0 => $kernel::<1 $(, $more)*>($($arg),*),
            PackedForm::Q4_1 => $kernel::<2 $(, $more)*>($($arg),*),
            PackedForm::Q5_0 => $kernel::<3 $(, $more)*>($($arg),*),
            PackedForm::Q5_1 => $kernel::<4 $(, $more)*>($($arg),*),
            PackedForm::Q4_K => $kernel::<5 $(, $more)*>($($arg),*),
            PackedForm::Q5_K => $kernel::<6 $(, $more)*>($($arg),*),
            PackedForm::Q6_K => $kernel::<7 $(, $more)*>($($arg),*),
        }
    };
}

use with_form;

impl<'a> Packed<'a> {
    /// A matrix of these parts. Returns `None` if their lengths do not match the shape.
    pub fn new(
        form: PackedForm,
        [rows, columns]: [usize; 2],
        words: &'a [i32],
        scales: &'a [f16],
        minima: &'a [f16],
    ) -> Option<Self> {
        let num_scales = form.num_scales(rows, columns);
        let fits = columns.is_multiple_of(form.span())
            && words.len() * 4 == form.quant_bytes(rows, columns)
            && scales.len() == num_scales
            && minima.len() == if form.has_minima() { num_scales } else { 0 };
        fits.then_some(Self { form, rows, columns, words, scales, minima })
    }

    /// `[rows, columns]`.
    pub fn dims(&self) -> [usize; 2] {
        [self.rows, self.columns]
    }

    /// The packed form.
    pub fn form(&self) -> PackedForm {
        self.form
    }

    pub(crate) fn tiles(&self) -> usize {
        self.rows.div_ceil(ROWS)
    }

    fn tile(&self, index: usize) -> Tile {
        let scales = self.form.num_scales(ROWS, self.columns);
        let words = self.form.quant_bytes(ROWS, self.columns) / 4;
        let minima = match self.minima {
            [] => self.minima.as_ptr(),
            minima => minima[index * scales..].as_ptr(),
        };
        Tile {
            words: self.words[index * words..].as_ptr(),
            scales: self.scales[index * scales..].as_ptr(),
            minima,
            blocks: self.columns / BLOCK,
        }
    }

    /// Multiplies rows of 8-bit activations with the transposes of several matrices of equal columns: `[n, rows]`
    /// each.
    pub fn products_int8(matrices: &[Self], x: &QuantizedRows, out: &mut [Vec<f32>]) {
        Self::products_int8_on(isa(), matrices, x, out);
    }

    fn products_int8_on(isa: Isa, matrices: &[Self], x: &QuantizedRows, out: &mut [Vec<f32>]) {
        assert!(matrices.iter().all(|matrix| matrix.columns == x.columns), "columns as in the activations");
        let rows = Rows {
            quants: x.quants.as_ptr(),
            scales: x.scales.as_ptr(),
            sums: x.sums.as_ptr(),
            scaled_sums: x.scaled_sums.as_ptr(),
            blocks: x.columns / BLOCK,
        };
        let times = x.rounding.rows();
        each_tile(matrices, x.rows, out, |matrix, tile, columns| {
            let rows = &rows;
            // SAFETY: the activations have as many columns as the matrix, the tile is whole, and the products have a
            // row for each row of activations.
            unsafe { tile_int8(isa, matrix.form, matrix.tile(tile), *rows, [x.rows, times], columns) };
        });
    }

    /// Multiplies `x` `[n, columns]` with the transposes of several matrices of equal columns, in float32:
    /// `[n, rows]` each.
    pub fn products_f32(matrices: &[Self], x: &[f32], out: &mut [Vec<f32>]) {
        Self::products_f32_on(isa(), matrices, x, out);
    }

    fn products_f32_on(isa: Isa, matrices: &[Self], x: &[f32], out: &mut [Vec<f32>]) {
        let Some(columns) = matrices.first().map(|matrix| matrix.columns) else { return };
        assert!(matrices.iter().all(|matrix| matrix.columns == columns), "matrices of equal columns");
        let rows = x.len() / columns.max(1);
        assert!(x.len() == rows * columns, "columns as in the activations");
        each_tile(matrices, rows, out, |matrix, tile, place| {
            let mut wide = [[0.0f32; ROWS]; 256];
            let mut sums = vec![[0.0f32; ROWS]; rows];
            for first in (0..columns).step_by(256) {
                let len = (columns - first).min(256);
                matrix.unpack_on(isa, tile, first / BLOCK, &mut wide[..len]);
                times_tile(isa, &wide[..len], x, columns, first, &mut sums);
            }
            // SAFETY: the products have a row for each row of activations.
            unsafe { place.put(0, &sums, 1) };
        });
    }

    /// Adds the weighted sum of the rows of some tiles to `sums` `[columns]`.
    pub(crate) fn add_weighted(&self, isa: Isa, tiles: &[(usize, [f32; ROWS])], sums: &mut [f32]) {
        assert!(sums.len() == self.columns, "a sum for each column");
        #[cfg(target_arch = "x86_64")]
        if matches!(isa, Isa::Avx512 | Isa::Avx512Bw) {
            use avx512::weighted;
            let tiles: Vec<(Tile, [f32; ROWS])> =
                tiles.iter().map(|(tile, weights)| (self.tile(*tile), *weights)).collect();
            for (block, sums) in sums.as_chunks_mut::<BLOCK>().0.iter_mut().enumerate() {
                // SAFETY: the block is one of the tiles'; the CPU has the instruction set.
                unsafe { with_form!(self.form, weighted::<_>(&tiles, block, sums)) };
            }
            return;
        }
        let layout = RowLayout::of(self);
        let mut copy = vec![0.0; layout.words()];
        for (tile, weights) in tiles {
            for (row, weight) in weights.iter().enumerate().filter(|(_, weight)| **weight != 0.0) {
                self.copy_row(isa, tile * ROWS + row, &mut copy);
                layout.add(isa, &[(&copy, *weight)], sums);
            }
        }
    }

    fn unpack_on(&self, isa: Isa, tile: usize, block: usize, out: &mut [[f32; ROWS]]) {
        let tile = self.tile(tile);
        for (block, out) in (block..).zip(out.as_chunks_mut::<BLOCK>().0) {
            assert!(block < tile.blocks, "a block of the tile");
            // SAFETY: the block is one of the tile's.
            unsafe { unpack_block(isa, self.form, tile, block, out) };
        }
    }

    /// Unpacks some rows to float32: appends `[ids, columns]` to `out`.
    pub fn rows(&self, ids: &[usize], out: &mut Vec<f32>) {
        for &id in ids {
            assert!(id < self.rows, "row {id} of {}", self.rows);
            let tile = self.tile(id / ROWS);
            for block in 0..tile.blocks {
                // SAFETY: the block is one of the tile's.
                let values = unsafe { portable::row_of_block(self.form, tile, block, id % ROWS) };
                out.extend_from_slice(&values);
            }
        }
    }
}

/// # Safety
/// The block must be one of the tile's.
unsafe fn unpack_block(isa: Isa, form: PackedForm, tile: Tile, block: usize, out: &mut [[f32; ROWS]; BLOCK]) {
    // SAFETY: the caller upholds this function's contract; the CPU has the instruction set.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx512Bw => {
                use avx512::unpack;
                with_form!(form, unpack::<_>(tile, block, out))
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 | Isa::AvxVnni => {
                use avx2::unpack;
                with_form!(form, unpack::<_>(tile, block, out))
            }
            #[cfg(target_arch = "aarch64")]
            Isa::Neon | Isa::NeonDot => {
                use neon::unpack;
                with_form!(form, unpack::<_>(tile, block, out))
            }
            _ => portable::unpack(form, tile, block, out),
        }
    }
}

/// Adds the products of an unpacked tile `[columns of the tile][16]` with `x` `[n, columns]`, whose columns count
/// from `first` on.
fn times_tile(
    isa: Isa,
    tile: &[[f32; ROWS]],
    x: &[f32],
    columns: usize,
    first: usize,
    out: &mut [[f32; ROWS]],
) {
    dispatch!(isa, |tile: &[[f32; ROWS]],
                    x: &[f32],
                    columns: usize,
                    first: usize,
                    out: &mut [[f32; ROWS]]|
     -> () {
        #[inline(always)]
        unsafe fn rows<L: crate::lanes::Lanes, const N: usize>(
            tile: &[[f32; ROWS]],
            x: [&[f32]; N],
            out: &mut [[f32; ROWS]],
        ) {
            // SAFETY: each load and store has sixteen values; the caller has the instruction set.
            unsafe {
                let zero = L::splat(0.0);
                // Two sums for each row, so that an addition need not wait for the one before it.
                let (mut even, mut odd) = ([zero; N], [zero; N]);
                let (pairs, rest) = tile.as_chunks::<2>();
                for (index, [a, b]) in pairs.iter().enumerate() {
                    let (a, b) = (L::load(a.as_ptr()), L::load(b.as_ptr()));
                    for n in 0..N {
                        even[n] = a.mul_add(L::splat(*x[n].get_unchecked(2 * index)), even[n]);
                        odd[n] = b.mul_add(L::splat(*x[n].get_unchecked(2 * index + 1)), odd[n]);
                    }
                }
                for (offset, a) in rest.iter().enumerate() {
                    for n in 0..N {
                        let x = L::splat(x[n][2 * pairs.len() + offset]);
                        even[n] = L::load(a.as_ptr()).mul_add(x, even[n]);
                    }
                }
                for n in 0..N {
                    let sum = L::load(out[n].as_ptr()).add(even[n].add(odd[n]));
                    sum.store(out[n].as_mut_ptr());
                }
            }
        }
        let row = |n: usize| &x[n * columns + first..][..tile.len()];
        let mut n = 0;
        while n + 4 <= out.len() {
            // SAFETY: the CPU has the instruction set.
            unsafe {
                rows::<L, 4>(tile, [row(n), row(n + 1), row(n + 2), row(n + 3)], &mut out[n..]);
            }
            n += 4;
        }
        while n < out.len() {
            // SAFETY: likewise.
            unsafe { rows::<L, 1>(tile, [row(n)], &mut out[n..]) };
            n += 1;
        }
    });
}

#[cfg(test)]
#[path = "packed/tests.rs"]
mod tests;
