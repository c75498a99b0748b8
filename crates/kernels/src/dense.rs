//! Products with weights that are stored as floats; half-precision weights are widened in registers.

use std::ops::Range;

use half::{bf16, f16};

use crate::{
    Isa, isa,
    lanes::{DotLanes, Lanes, prefetch},
    pool::{self, Unwritten},
};

/// Floats in their storage type.
#[derive(Clone, Copy, Debug)]
pub enum Float<'a> {
    /// Single precision.
    F32(&'a [f32]),
    /// Half precision.
    F16(&'a [f16]),
    /// bfloat16: the upper half of a float32.
    Bf16(&'a [bf16]),
}

impl Float<'_> {
    /// Number of values.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::F16(values) => values.len(),
            Self::Bf16(values) => values.len(),
        }
    }

    /// Whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A pointer to the values, with their type.
    pub(crate) fn place(&self) -> Place {
        match self {
            Self::F32(values) => Place::F32(values.as_ptr()),
            Self::F16(values) => Place::F16(values.as_ptr().cast()),
            Self::Bf16(values) => Place::Bf16(values.as_ptr().cast()),
        }
    }
}

/// A pointer to floats for kernels.
#[derive(Clone, Copy)]
pub(crate) enum Place {
    F32(*const f32),
    F16(*const u16),
    Bf16(*const u16),
}

// SAFETY: it points into a slice that outlives the kernels, and is only read through.
unsafe impl Sync for Place {}

impl Place {
    /// Loads sixteen values from index `at` on, widened to float32.
    ///
    /// # Safety
    /// The values must exist, and the CPU must have the instruction set.
    #[inline(always)]
    pub(crate) unsafe fn load<L: Lanes>(self, at: usize) -> L {
        // SAFETY: the caller upholds the contract above.
        unsafe {
            match self {
                Self::F32(from) => L::load(from.add(at)),
                Self::F16(from) => L::load_f16(from.add(at)),
                Self::Bf16(from) => L::load_bf16(from.add(at)),
            }
        }
    }

    /// Prefetches the cache line of the value at index `at`.
    #[inline(always)]
    pub(crate) fn prefetch(self, at: usize) {
        match self {
            Self::F32(from) => prefetch(from.wrapping_add(at)),
            Self::F16(from) | Self::Bf16(from) => prefetch(from.wrapping_add(at)),
        }
    }

    /// The value at index `at` in float32.
    ///
    /// # Safety
    /// The value must exist.
    #[inline(always)]
    pub(crate) unsafe fn get(self, at: usize) -> f32 {
        // SAFETY: the caller upholds the contract above.
        unsafe {
            match self {
                Self::F32(from) => *from.add(at),
                Self::F16(from) => f16::from_bits(*from.add(at)).to_f32(),
                Self::Bf16(from) => f32::from_bits(u32::from(*from.add(at)) << 16),
            }
        }
    }
}

/// A weight matrix `[rows, columns]` in row-major order.
#[derive(Clone, Copy, Debug)]
pub struct Dense<'a> {
    values: Float<'a>,
    rows: usize,
    columns: usize,
}

impl<'a> Dense<'a> {
    /// Returns `None` if the number of values does not match the shape.
    pub fn new(values: Float<'a>, [rows, columns]: [usize; 2]) -> Option<Self> {
        (values.len() == rows * columns).then_some(Self { values, rows, columns })
    }

    /// `[rows, columns]`.
    pub fn dims(&self) -> [usize; 2] {
        [self.rows, self.columns]
    }

    pub(crate) fn place(&self) -> Place {
        self.values.place()
    }
}

/// Rows of activations in a strip, which stays in cache while all weights are read.
const STRIP: usize = 64;
/// Maximum number of rows of weights, and of activations, in a tile whose products are summed at a time.
const SIDE: usize = 4;
/// Up to this many rows of activations, weights are read one row after another, because memory delivers a single
/// stream up to twice as fast as several side by side.
const MAX_ROWS_AT_ONCE: usize = 8;

/// Multiplies `x` `[n, columns]` with the transposes of several matrices of equal columns: `[n, rows]` each. Products
/// are in float32, without quantizing the activations.
pub fn dense_products(matrices: &[Dense<'_>], x: &[f32], out: &mut [Vec<f32>]) {
    dense_products_on(isa(), matrices, x, out);
}

fn dense_products_on(isa: Isa, matrices: &[Dense<'_>], x: &[f32], out: &mut [Vec<f32>]) {
    let Some(columns) = matrices.first().map(|matrix| matrix.columns) else { return };
    assert!(matrices.len() == out.len(), "a place for each matrix");
    let n = x.len() / columns.max(1);
    let fits = matrices.iter().all(|matrix| matrix.columns == columns) && x.len() == n * columns;
    assert!(fits, "matrices and activations of equal columns");
    let mut all = Vec::with_capacity(matrices.len());
    for (matrix, out) in matrices.iter().zip(out.iter_mut()) {
        all.push((matrix, Unwritten::new(out, n * matrix.rows)));
    }
    let quads = matrices.iter().map(|matrix| matrix.rows.div_ceil(SIDE)).sum();
    let quads = if n == 0 { 0 } else { quads };
    pool::run_ranges(quads, 4, |start, end| {
        let mut first = 0;
        for &(matrix, out) in &all {
            let own = first..first + matrix.rows.div_ceil(SIDE);
            first = own.end;
            let (from, to) = (start.max(own.start), end.min(own.end));
            if from >= to {
                continue;
            }
            let rows = (from - own.start) * SIDE..((to - own.start) * SIDE).min(matrix.rows);
            for strip in (0..n).step_by(STRIP) {
                let len = STRIP.min(n - strip);
                let x = &x[strip * columns..(strip + len) * columns];
                let strip =
                    Strip { weights: matrix.place(), columns, rows: matrix.rows, x, first: strip, out };
                strip_products(isa, strip, rows.clone());
            }
        }
    });
    for ((_, memory), out) in all.into_iter().zip(out) {
        // SAFETY: all rows of weights were multiplied with all strips.
        unsafe { memory.written(out) };
    }
}

/// A strip of activations, and the matrix it is multiplied with.
#[derive(Clone, Copy)]
struct Strip<'a> {
    weights: Place,
    columns: usize,
    /// Rows of the matrix.
    rows: usize,
    x: &'a [f32],
    /// Index of the strip's first row among all rows of activations.
    first: usize,
    out: Unwritten<f32>,
}

/// Computes the products of some rows of weights with a strip.
fn strip_products(isa: Isa, strip: Strip<'_>, rows: Range<usize>) {
    match isa {
        // SAFETY: the CPU has the instruction set.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Avx512Bw => unsafe { avx512(strip, rows) },
        // SAFETY: likewise.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 | Isa::AvxVnni => unsafe { avx2(strip, rows) },
        // SAFETY: NEON is part of the baseline.
        #[cfg(target_arch = "aarch64")]
        Isa::Neon | Isa::NeonDot => unsafe { strip_by::<crate::lanes::QuarterNeon, 4>(strip, rows) },
        // SAFETY: the baseline is always there.
        _ => unsafe { strip_by::<crate::lanes::Portable, 4>(strip, rows) },
    }
}

/// Sixteen of the 32 registers hold the sums of a tile of 4 x 4. With a larger tile, the compiler keeps some in
/// memory.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx2,fma,f16c")]
unsafe fn avx512(strip: Strip<'_>, rows: Range<usize>) {
    // SAFETY: the caller ensures that the CPU has the instruction set.
    unsafe { strip_by::<crate::lanes::Avx512, 4>(strip, rows) }
}

/// The sixteen registers hold the sums of a tile of 4 x 3, of eight lanes each, and the operands.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn avx2(strip: Strip<'_>, rows: Range<usize>) {
    // SAFETY: the caller ensures that the CPU has the instruction set.
    unsafe { strip_by::<crate::lanes::HalfAvx2, 3>(strip, rows) }
}

/// Works in tiles of four rows of weights and `W` rows of activations; of one row of weights for few rows of
/// activations.
///
/// # Safety
/// The CPU must have the instruction set.
#[inline(always)]
unsafe fn strip_by<L: DotLanes, const W: usize>(strip: Strip<'_>, rows: Range<usize>) {
    let Strip { weights, columns, rows: all_rows, x, first, out } = strip;
    let n = x.len() / columns;
    let height_at_most = if n <= MAX_ROWS_AT_ONCE { 1 } else { SIDE };
    let mut row = rows.start;
    while row < rows.end {
        let height = height_at_most.min(rows.end - row);
        let mut column = 0;
        while column < n {
            let width = W.min(n - column);
            let x = &x[column * columns..];
            let at = row * columns;
            let mut sums = [[0.0; SIDE]; SIDE];
            // SAFETY: rows and columns are in bounds; the CPU has the instruction set.
            unsafe {
                match (height, width) {
                    (4, width) if width == W => sums = square::<L, 4, W>(weights, at, x, columns),
                    (4, 3) => sums = square::<L, 4, 3>(weights, at, x, columns),
                    (4, 2) => sums = square::<L, 4, 2>(weights, at, x, columns),
                    (4, 1) => sums = square::<L, 4, 1>(weights, at, x, columns),
                    (3, width) if width == W => sums = square::<L, 3, W>(weights, at, x, columns),
                    (2, width) if width == W => sums = square::<L, 2, W>(weights, at, x, columns),
                    (1, width) if width == W => sums = square::<L, 1, W>(weights, at, x, columns),
                    _ => {
                        for (h, sums) in sums.iter_mut().enumerate().take(height) {
                            for (w, sum) in sums.iter_mut().enumerate().take(width) {
                                let at = (row + h) * columns;
                                *sum = square::<L, 1, 1>(weights, at, &x[w * columns..], columns)[0][0];
                            }
                        }
                    }
                }
            }
            for (w, at) in (column..column + width).enumerate() {
                let out = out.at((first + at) * all_rows + row, height);
                for (h, sums) in sums.iter().enumerate().take(height) {
                    // SAFETY: the index is in bounds, and no other task writes the products of these rows of weights.
                    unsafe { out.add(h).write(sums[w]) };
                }
            }
            column += width;
        }
        row += height;
    }
}

/// The products of `H` rows of weights, from index `at` on, with the first `W` rows of `x`.
///
/// # Safety
/// The rows must exist, and the CPU must have the instruction set.
#[inline(always)]
unsafe fn square<L: DotLanes, const H: usize, const W: usize>(
    weights: Place,
    at: usize,
    x: &[f32],
    columns: usize,
) -> [[f32; SIDE]; SIDE] {
    // The storage type is matched outside the loop.
    // SAFETY: the caller upholds the contract above.
    unsafe {
        match weights {
            Place::F32(from) => sums::<L, H, W>(|at| L::load(from.add(at)), weights, at, x, columns),
            Place::F16(from) => sums::<L, H, W>(|at| L::load_f16(from.add(at)), weights, at, x, columns),
            Place::Bf16(from) => sums::<L, H, W>(|at| L::load_bf16(from.add(at)), weights, at, x, columns),
        }
    }
}

/// # Safety
/// As for [`square`].
#[inline(always)]
unsafe fn sums<L: DotLanes, const H: usize, const W: usize>(
    load: impl Fn(usize) -> L,
    weights: Place,
    at: usize,
    x: &[f32],
    columns: usize,
) -> [[f32; SIDE]; SIDE] {
    let mut out = [[0.0; SIDE]; SIDE];
    // SAFETY: the caller upholds the contract above.
    unsafe {
        let mut lanes = [[L::splat(0.0); W]; H];
        let vectors = columns / L::WIDTH * L::WIDTH;
        let mut k = 0;
        while k < vectors {
            let mut inputs = [L::splat(0.0); W];
            for (w, input) in inputs.iter_mut().enumerate() {
                *input = L::load(x.as_ptr().add(w * columns + k));
            }
            for (h, lanes) in lanes.iter_mut().enumerate() {
                let weight = load(at + h * columns + k);
                for (lane, input) in lanes.iter_mut().zip(inputs) {
                    *lane = weight.mul_add(input, *lane);
                }
            }
            k += L::WIDTH;
        }
        for h in 0..H {
            let mut four = [L::splat(0.0); 4];
            four[..W].copy_from_slice(&lanes[h]);
            let sums = L::sums(four);
            for w in 0..W {
                let mut sum = sums[w];
                for k in vectors..columns {
                    sum += weights.get(at + h * columns + k) * x[w * columns + k];
                }
                out[h][w] = sum;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_agree_with_float64_in_every_type_and_shape() {
        let number = |i: usize| ((i * 7919 % 2003) as f32 - 1000.0) * 1e-3;
        for (rows, columns, n) in [(1, 1, 1), (5, 7, 3), (16, 64, 1), (9, 33, 5), (70, 48, 67), (4, 16, 4)] {
            let weights: Vec<f32> = (0..rows * columns).map(number).collect();
            let x: Vec<f32> = (0..n * columns).map(|i| number(3 * i + 1)).collect();
            let halves: Vec<f16> = weights.iter().map(|&w| f16::from_f32(w)).collect();
            let shorts: Vec<bf16> = weights.iter().map(|&w| bf16::from_f32(w)).collect();
            let stored = [
                (Float::F32(&weights), weights.clone()),
                (Float::F16(&halves), halves.iter().map(|w| w.to_f32()).collect()),
                (Float::Bf16(&shorts), shorts.iter().map(|w| w.to_f32()).collect()),
            ];
            for (values, weights) in stored {
                let matrix = Dense::new(values, [rows, columns]).unwrap();
                for isa in Isa::available() {
                    let mut out = vec![Vec::new(); 2];
                    dense_products_on(isa, &[matrix, matrix], &x, &mut out);
                    assert_eq!(out[0], out[1]);
                    for (index, &found) in out[0].iter().enumerate() {
                        let (at, row) = (index / rows, index % rows);
                        let pairs = x[at * columns..].iter().zip(&weights[row * columns..]).take(columns);
                        let (sum, size) = pairs.fold((0.0, 1e-9), |(sum, size), (&x, &w)| {
                            let product = f64::from(x) * f64::from(w);
                            (sum + product, size + product.abs())
                        });
                        assert!((f64::from(found) - sum).abs() <= 1e-6 * size, "{isa:?}: {found} {sum}");
                    }
                    for (x, together) in x.chunks(columns).zip(out[0].chunks(rows)) {
                        let mut alone = vec![Vec::new()];
                        dense_products_on(isa, &[matrix], x, &mut alone);
                        assert_eq!(alone[0], together, "{isa:?}: a row alone is the same");
                    }
                }
            }
        }
    }
}
