//! Iterates over the tiles of matrices, and addresses their columns of the products.

use super::{Packed, Rows, Tile, with_form};
use crate::{
    Isa, PackedForm, ROWS,
    pool::{self, Unwritten},
};

/// The place for the products with a tile: some columns of each row of a matrix `[n, stride]`.
#[derive(Clone, Copy)]
pub(super) struct Columns {
    first: *mut f32,
    stride: usize,
    /// Number of columns: 16, or fewer for a last tile.
    len: usize,
}

impl Columns {
    /// Writes the products of rows of quants from row `row` on; each `times` rows of quants are summed to one row.
    ///
    /// # Safety
    /// The matrix must have these rows, and no other thread may write these columns.
    #[inline]
    pub(super) unsafe fn put(self, row: usize, products: &[[f32; ROWS]], times: usize) {
        for (index, products) in products.chunks_exact(times).enumerate() {
            let mut sums = products[0];
            for more in &products[1..] {
                sums.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
            }
            // SAFETY: the caller upholds this function's contract.
            unsafe {
                let to = self.first.add((row + index) * self.stride);
                // With a constant length, this copy is a few moves instead of a call.
                match self.len {
                    ROWS => to.cast::<[f32; ROWS]>().write_unaligned(sums),
                    len => to.copy_from_nonoverlapping(sums.as_ptr(), len),
                }
            }
        }
    }
}

/// Runs `compute` for every tile of every matrix. It must write the tile's columns of all `n` rows of the products.
pub(super) fn each_tile<'a>(
    matrices: &[Packed<'a>],
    n: usize,
    out: &mut [Vec<f32>],
    compute: impl Fn(&Packed<'a>, usize, Columns) + Sync,
) {
    assert!(matrices.len() == out.len(), "a place for each matrix");
    let mut all = Vec::with_capacity(matrices.len());
    for (matrix, out) in matrices.iter().zip(out.iter_mut()) {
        all.push((matrix, Unwritten::new(out, n * matrix.rows)));
    }
    let tiles: usize = matrices.iter().map(Packed::tiles).sum();
    let tiles = if n == 0 { 0 } else { tiles };
    pool::run_ranges(tiles, 1, |start, end| {
        let mut first = 0;
        for &(matrix, memory) in &all {
            let own = first..first + matrix.tiles();
            for tile in start.max(own.start)..end.min(own.end) {
                let (tile, stride) = (tile - own.start, matrix.rows);
                let (column, len) = (tile * ROWS, ROWS.min(stride - tile * ROWS));
                let first = memory.at(column, (n - 1) * stride + len);
                compute(matrix, tile, Columns { first, stride, len });
            }
            first = own.end;
        }
    });
    for ((_, memory), out) in all.into_iter().zip(out) {
        // SAFETY: all tiles have written their columns of all rows.
        unsafe { memory.written(out) };
    }
}

/// Products of a tile with `n` rows of activations, each of which is stored as `times` rows of quants.
///
/// # Safety
/// The tile and the rows must be whole and have equally many blocks, and `columns` must be those of `n` rows.
pub(super) unsafe fn tile_int8(
    isa: Isa,
    form: PackedForm,
    tile: Tile,
    x: Rows,
    [n, times]: [usize; 2],
    columns: Columns,
) {
    // For kernels that themselves sum the products of all rows of quants of a row of activations.
    #[cfg(target_arch = "x86_64")]
    macro_rules! added {
        ($module:ident, $first:expr) => {{
            use super::$module::products;
            macro_rules! some {
                ($row:ident, $rows:literal) => {{
                    let mut sums = [[0.0; ROWS]; $rows];
                    let to = sums.as_mut_ptr();
                    match times {
                        1 => with_form!(form, products::<_, $rows, 1>(tile, x, $row, to)),
                        _ => with_form!(form, products::<_, $rows, 2>(tile, x, $row, to)),
                    }
                    columns.put($row, &sums, 1);
                    $row += $rows;
                }};
            }
            let mut row = 0;
            while row < n {
                // SAFETY: the caller upholds the contract above; the CPU has the instruction set; the rows exist.
                unsafe {
                    match n - row {
                        16.. if $first >= 16 => some!(row, 16),
                        8.. if $first >= 8 => some!(row, 8),
                        4.. => some!(row, 4),
                        2.. => some!(row, 2),
                        _ => some!(row, 1),
                    }
                }
            }
        }};
    }
    // For kernels that return the products of each row of quants, which `put` sums.
    macro_rules! apart {
        ($module:ident) => {{
            use super::$module::products;
            macro_rules! some {
                ($row:ident, $rows:literal) => {{
                    let mut sums = [[0.0; ROWS]; $rows];
                    with_form!(form, products::<_, $rows>(tile, x, $row, sums.as_mut_ptr()));
                    columns.put($row / times, &sums, times);
                    $row += $rows;
                }};
            }
            let mut row = 0;
            while row < n * times {
                // SAFETY: the caller upholds the contract above; the CPU has the instruction set; the rows exist.
                unsafe {
                    match n * times - row {
                        4.. => some!(row, 4),
                        2.. => some!(row, 2),
                        _ => some!(row, 1),
                    }
                }
            }
        }};
    }
    match isa {
        #[cfg(target_arch = "x86_64")]
        // More rows at once are a loop whose sums the compiler keeps in memory: a prompt takes 1.12 times as long.
        Isa::Avx512 => added!(avx512_vnni, 4),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Bw => added!(avx512, 16),
        #[cfg(all(test, target_arch = "x86_64"))]
        Isa::AvxVnni if !is_x86_feature_detected!("avxvnni") => added!(as_avx512, 8),
        #[cfg(target_arch = "x86_64")]
        Isa::AvxVnni => added!(avx_vnni, 8),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => added!(avx2, 8),
        #[cfg(target_arch = "aarch64")]
        Isa::NeonDot => apart!(neon_dot),
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => apart!(neon),
        _ => apart!(portable),
    }
}
