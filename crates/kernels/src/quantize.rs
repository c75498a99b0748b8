//! Quantization of activations to 8-bit blocks.

use crate::{
    BLOCK, isa,
    lanes::dispatch,
    pool::{self, Unwritten},
};

/// The precision to which activations are rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// To 8 bits: `x = scale * q`, q from -127 to 127.
    Int8,
    /// To about 16 bits: the remainder of the 8-bit rounding is rounded to 8 bits again, `x = scale * (q + r / 254)`.
    /// Where memory bandwidth is the limit, the second product costs nothing.
    Int16,
}

/// A step of `q` is this many steps of `r`. The kernels rely on it being 256 - 2.
const FINER: f32 = 254.0;

/// Quantized rows of activations, in which blocks of 32 values share a scale. With [`Rounding::Int16`], each row of
/// activations is two consecutive rows of quants, whose products are added.
#[derive(Clone, Debug)]
pub struct QuantizedRows {
    pub(crate) rows: usize,
    pub(crate) rounding: Rounding,
    pub(crate) columns: usize,
    /// Quants, `[rows of quants, columns]`.
    pub(crate) quants: Vec<i8>,
    /// Scales, `[rows of quants, columns / 32]`.
    pub(crate) scales: Vec<f32>,
    /// Sums of the quants of each half of a block, `[rows of quants, columns / 16]`.
    pub(crate) sums: Vec<i32>,
    /// Sums of the dequantized values of each block, which minima are multiplied with,
    /// `[rows of quants, columns / 32]`.
    pub(crate) scaled_sums: Vec<f32>,
}

impl QuantizedRows {
    /// Quantizes rows of `columns` values, a multiple of 32. A block with a value that is not finite gets a NaN
    /// scale, so that its products are NaN too.
    pub fn new(x: &[f32], columns: usize, rounding: Rounding) -> Self {
        let rows = x.len() / columns.max(1);
        let blocks = columns / BLOCK;
        assert!(columns.is_multiple_of(BLOCK) && x.len() == rows * columns, "rows of whole blocks");
        let times = rounding.rows();
        let mut new = Self {
            rows,
            rounding,
            columns,
            quants: Vec::new(),
            scales: Vec::new(),
            sums: Vec::new(),
            scaled_sums: Vec::new(),
        };
        let all_blocks = times * rows * blocks;
        let quants = Unwritten::new(&mut new.quants, all_blocks * BLOCK);
        let scales = Unwritten::new(&mut new.scales, all_blocks);
        let sums = Unwritten::new(&mut new.sums, 2 * all_blocks);
        let scaled_sums = Unwritten::new(&mut new.scaled_sums, all_blocks);
        pool::run_ranges(rows, (1 << 15) / columns.max(1), |start, end| {
            for row in start..end {
                let (first, count) = (times * row * blocks, times * blocks);
                // SAFETY: each row has its own part of each of the vectors, which are alive.
                let (quants, scales, sums, scaled_sums) = unsafe {
                    (
                        quants.zeroed(first * BLOCK, count * BLOCK),
                        scales.zeroed(first, count),
                        sums.zeroed(2 * first, 2 * count),
                        scaled_sums.zeroed(first, count),
                    )
                };
                quantize(&x[row * columns..][..columns], quants, scales, sums);
                for ((scaled, scale), [first, second]) in
                    scaled_sums.iter_mut().zip(&*scales).zip(sums.as_chunks::<2>().0)
                {
                    *scaled = scale * (first + second) as f32;
                }
            }
        });
        // SAFETY: all rows were written.
        unsafe {
            quants.written(&mut new.quants);
            scales.written(&mut new.scales);
            sums.written(&mut new.sums);
            scaled_sums.written(&mut new.scaled_sums);
        }
        new
    }

    /// Number of rows of activations.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The dequantized values, `[rows, columns]`.
    pub fn values(&self) -> Vec<f32> {
        let value = |index: usize| f32::from(self.quants[index]) * self.scales[index / BLOCK];
        let (columns, times) = (self.columns, self.rounding.rows());
        (0..self.rows * columns)
            .map(|index| {
                let first = index / columns * times * columns + index % columns;
                (0..times).map(|part| value(first + part * columns)).sum()
            })
            .collect()
    }
}

impl Rounding {
    /// Number of rows of quants for a row of activations.
    pub(crate) fn rows(self) -> usize {
        match self {
            Self::Int8 => 1,
            Self::Int16 => 2,
        }
    }
}

/// Quantizes a row. The remainders are quantized to a second row, if there is a place for it.
fn quantize(x: &[f32], quants: &mut [i8], scales: &mut [f32], sums: &mut [i32]) {
    dispatch!(isa(), |x: &[f32], quants: &mut [i8], scales: &mut [f32], sums: &mut [i32]| -> () {
        let (quants, finer) = quants.split_at_mut(x.len());
        let (scales, finer_scales) = scales.split_at_mut(x.len() / BLOCK);
        let (sums, finer_sums) = sums.split_at_mut(2 * scales.len());
        for (block, x) in x.as_chunks::<BLOCK>().0.iter().enumerate() {
            let (quants, scale) = (&mut quants[block * BLOCK..][..BLOCK], &mut scales[block]);
            // SAFETY: a block has 32 values, and the CPU has the instruction set.
            unsafe {
                let halves = [L::load(x.as_ptr()), L::load(x.as_ptr().add(16))];
                let zero = L::splat(0.0);
                let size = |half: L| half.max(zero.sub(half));
                // A maximum may lose a NaN, but a sum does not.
                let broken = halves[0].add(halves[1]).mul(zero).sum();
                let largest = size(halves[0]).max(size(halves[1])).largest() + broken;
                *scale = largest / 127.0;
                // The inverse is not finite if all values are zero or tiny, or if one is not finite.
                let inverse = 127.0 / largest;
                let inverse =
                    L::splat(if inverse.is_finite() && largest.is_finite() { inverse } else { 0.0 });
                for (half, values) in halves.into_iter().enumerate() {
                    let scaled = values.mul(inverse);
                    let rounded = scaled.round();
                    sums[2 * block + half] = rounded.sum() as i32;
                    rounded.store_i8(quants.as_mut_ptr().add(16 * half));
                    if let Some(finer_scale) = finer_scales.get_mut(block) {
                        let left = scaled.sub(rounded).mul(L::splat(FINER)).round();
                        *finer_scale = *scale / FINER;
                        finer_sums[2 * block + half] = left.sum() as i32;
                        left.store_i8(finer[block * BLOCK + 16 * half..][..16].as_mut_ptr());
                    }
                }
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_within_half_a_step() {
        let x: Vec<f32> = (0..192).map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.03).collect();
        for (rounding, finer) in [(Rounding::Int8, 1.0), (Rounding::Int16, 254.0)] {
            let rows = QuantizedRows::new(&x, 64, rounding);
            assert_eq!(rows.rows(), 3);
            for (index, (value, x)) in rows.values().iter().zip(&x).enumerate() {
                let scale = rows.scales[index / 64 * 2 * rounding.rows() + index % 64 / 32];
                assert!((value - x).abs() <= 0.5001 * scale / finer + 1e-7, "{value} {x}");
            }
            for (index, sum) in rows.sums.iter().enumerate() {
                let quants = &rows.quants[16 * index..16 * (index + 1)];
                assert_eq!(*sum, quants.iter().map(|&q| i32::from(q)).sum::<i32>());
            }
        }
    }

    #[test]
    fn zeros_stay_zeros_and_what_is_no_number_shows() {
        let smallest = QuantizedRows::new(&[f32::MIN_POSITIVE / 8.0; 32], 32, Rounding::Int16);
        assert!(smallest.values().iter().all(|&value| value == 0.0));
        assert!(
            QuantizedRows::new(&[0.0; 32], 32, Rounding::Int16).values().iter().all(|&value| value == 0.0)
        );
        for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = [1.0; 32];
            x[17] = wrong;
            for rounding in [Rounding::Int8, Rounding::Int16] {
                let rows = QuantizedRows::new(&x, 32, rounding);
                assert!(rows.scales.iter().all(|scale| !scale.is_finite()), "{rounding:?}, {wrong}");
            }
        }
    }
}
