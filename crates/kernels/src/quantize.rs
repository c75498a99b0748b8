//! Activations in 8 bits.

use crate::{
    form::BLOCK,
    isa,
    lanes::dispatch,
    pool::{self, Shared},
};

/// Rows of activations, 32 of them sharing a scale: `x = scale * q`, q from -127 to 127.
#[derive(Clone, Debug, Default)]
pub struct QuantizedRows {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    /// `[rows, columns]`.
    pub(crate) quants: Vec<i8>,
    /// `[rows, columns / 32]`.
    pub(crate) scales: Vec<f32>,
    /// Of the quants of each half of a block, `[rows, columns / 16]`.
    pub(crate) sums: Vec<i32>,
}

impl QuantizedRows {
    /// Rounds rows of `columns` values, a multiple of 32, each. A block with a value that is not finite gets a scale
    /// that is none, so that products with it are none either.
    pub fn new(x: &[f32], columns: usize) -> Self {
        let rows = x.len() / columns.max(1);
        let blocks = columns / BLOCK;
        assert!(columns.is_multiple_of(BLOCK) && x.len() == rows * columns, "rows of whole blocks");
        let mut new = Self {
            rows,
            columns,
            quants: vec![0; x.len()],
            scales: vec![0.0; rows * blocks],
            sums: vec![0; 2 * rows * blocks],
        };
        let (quants, scales) = (Shared::new(&mut new.quants), Shared::new(&mut new.scales));
        let sums = Shared::new(&mut new.sums);
        pool::run_ranges(rows * blocks, (1 << 15) / BLOCK, |start, end| {
            let len = end - start;
            // SAFETY: each range of blocks has its own part of each.
            let (quants, scales, sums) = unsafe {
                (
                    quants.slice(start * BLOCK, len * BLOCK),
                    scales.slice(start, len),
                    sums.slice(2 * start, 2 * len),
                )
            };
            quantize(&x[start * BLOCK..end * BLOCK], quants, scales, sums);
        });
        new
    }

    /// How many rows there are.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The values that the quants stand for.
    pub fn values(&self) -> Vec<f32> {
        let scale = |index: usize| self.scales[index / BLOCK];
        self.quants.iter().enumerate().map(|(i, &q)| f32::from(q) * scale(i)).collect()
    }
}

fn quantize(x: &[f32], quants: &mut [i8], scales: &mut [f32], sums: &mut [i32]) {
    dispatch!(isa(), |x: &[f32], quants: &mut [i8], scales: &mut [f32], sums: &mut [i32]| -> () {
        let blocks = x.as_chunks::<BLOCK>().0.iter().zip(quants.as_chunks_mut::<BLOCK>().0);
        for ((x, quants), (scale, sums)) in blocks.zip(scales.iter_mut().zip(sums.as_chunks_mut::<2>().0)) {
            // SAFETY: a block has 32 values, and the instruction set is there.
            unsafe {
                let halves = [L::load(x.as_ptr()), L::load(x.as_ptr().add(16))];
                let zero = L::splat(0.0);
                let size = |half: L| half.max(zero.sub(half));
                // A NaN may be lost in a maximum, but not in a sum.
                let broken = halves[0].add(halves[1]).mul(zero).sum();
                let largest = size(halves[0]).max(size(halves[1])).largest() + broken;
                *scale = largest / 127.0;
                let inverse =
                    L::splat(if largest > 0.0 && largest.is_finite() { 127.0 / largest } else { 0.0 });
                for (half, sum) in sums.iter_mut().enumerate() {
                    let rounded = halves[half].mul(inverse).round();
                    *sum = rounded.sum() as i32;
                    rounded.store_i8(quants.as_mut_ptr().add(16 * half));
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
        let x: Vec<f32> = (0..96).map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.03).collect();
        let rows = QuantizedRows::new(&x, 32);
        assert_eq!(rows.rows(), 3);
        for (index, (value, x)) in rows.values().iter().zip(&x).enumerate() {
            assert!((value - x).abs() <= 0.5001 * rows.scales[index / 32]);
        }
        for (index, sum) in rows.sums.iter().enumerate() {
            assert_eq!(
                *sum,
                rows.quants[16 * index..16 * (index + 1)].iter().map(|&q| i32::from(q)).sum::<i32>()
            );
        }
    }

    #[test]
    fn zeros_stay_zeros_and_what_is_no_number_shows() {
        assert!(QuantizedRows::new(&[0.0; 32], 32).values().iter().all(|&value| value == 0.0));
        for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = [1.0; 32];
            x[17] = wrong;
            assert!(!QuantizedRows::new(&x, 32).scales[0].is_finite());
        }
    }
}
