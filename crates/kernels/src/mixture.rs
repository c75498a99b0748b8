//! The mean embedding: a weighted sum over a whole vocabulary.

use crate::{
    Dense, Packed,
    dense::Place,
    form::ROWS,
    isa,
    lanes::dispatch,
    pool::{self, Shared},
};

/// The share of all weights that may be left out: with rows whose values are at most `m`, no value of a sum is off by
/// more than this times `m`, about what float32 rounds anyway.
pub(crate) const LEFT_OUT: f64 = 1e-7;

/// Parts of a table that are summed apart: a constant, so that the result does not depend on the threads.
const PARTS: usize = 16;
/// Rows whose values stay near while they are added to several sums.
const GROUP: usize = 16 * ROWS;

/// A table of rows, in any form.
#[derive(Clone, Copy, Debug)]
pub enum Table<'a> {
    /// Floats.
    Dense(Dense<'a>),
    /// Blocks.
    Packed(Packed<'a>),
}

impl Table<'_> {
    fn dims(&self) -> [usize; 2] {
        match self {
            Self::Dense(dense) => dense.dims(),
            Self::Packed(packed) => packed.dims(),
        }
    }
}

/// Weighted sums of all rows: `weights` `[n, rows]` to `[n, columns]`, in float32.
///
/// Rows of the smallest weights, which together have less than 1e-7 of all, are left out: a language model's
/// distribution gives most of its vocabulary nothing to speak of.
pub fn weighted_sums(table: &Table<'_>, weights: &[f32]) -> Vec<f32> {
    let [rows, columns] = table.dims();
    let n = weights.len() / rows.max(1);
    assert!(weights.len() == n * rows, "a weight for each row");
    let cutoffs: Vec<f32> = weights.chunks(rows.max(1)).map(cutoff).collect();
    let groups = rows.div_ceil(GROUP);
    let per_part = groups.div_ceil(PARTS).max(1);
    let parts = groups.div_ceil(per_part);
    let mut partial = vec![0.0f32; parts * n * columns];
    let shared = Shared::new(&mut partial);
    pool::run(parts, |part| {
        // The last rows first: the head, which comes before, has left them in the cache.
        let part = parts - 1 - part;
        // SAFETY: each part has its own sums.
        let sums = unsafe { shared.slice(part * n * columns, n * columns) };
        let own = part * per_part * GROUP..((part + 1) * per_part * GROUP).min(rows);
        for ((weights, sums), &cutoff) in weights.chunks(rows).zip(sums.chunks_mut(columns)).zip(&cutoffs) {
            match table {
                Table::Dense(dense) => sum_dense(dense.place(), columns, own.clone(), weights, cutoff, sums),
                Table::Packed(packed) => sum_packed(packed, own.clone(), weights, cutoff, sums),
            }
        }
    });
    let mut out = vec![0.0f32; n * columns];
    for sums in partial.chunks(out.len().max(1)) {
        out.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum);
    }
    out
}

/// The weight below which all together have less than [`LEFT_OUT`] of the whole: a power of two.
fn cutoff(weights: &[f32]) -> f32 {
    let mut of_exponent = [0.0f64; 256];
    for chunk in weights.chunks(64) {
        for weight in chunk {
            let size = weight.abs();
            of_exponent[(size.to_bits() >> 23) as usize] += f64::from(size);
        }
    }
    let total: f64 = of_exponent.iter().sum();
    let mut below = 0.0;
    for (exponent, sum) in of_exponent.into_iter().enumerate() {
        below += sum;
        if below.is_nan() || below >= LEFT_OUT * total {
            return f32::from_bits((exponent as u32) << 23);
        }
    }
    0.0
}

fn sum_dense(
    table: Place,
    columns: usize,
    rows: std::ops::Range<usize>,
    weights: &[f32],
    cutoff: f32,
    sums: &mut [f32],
) {
    // A weight that is no number counts.
    let kept: Vec<usize> =
        rows.filter(|&row| weights[row].is_nan() || weights[row].abs() >= cutoff).collect();
    let kept = &kept[..];
    dispatch!(isa(), |table: Place,
                      columns: usize,
                      kept: &[usize],
                      weights: &[f32],
                      sums: &mut [f32]|
     -> () {
        for rows in kept.chunks(4) {
            // The last ones are filled up with nothing of the first.
            let row = std::array::from_fn::<_, 4, _>(|i| rows.get(i).copied().unwrap_or(rows[0]) * columns);
            let weight = std::array::from_fn::<_, 4, _>(|i| rows.get(i).map_or(0.0, |&row| weights[row]));
            let (chunks, rest) = sums.as_chunks_mut::<16>();
            for (index, chunk) in chunks.iter_mut().enumerate() {
                // SAFETY: rows of so many columns; the instruction set is there.
                unsafe {
                    let mut sum = L::load(chunk.as_ptr());
                    for (row, weight) in row.iter().zip(weight).take(rows.len()) {
                        sum = table.load::<L>(row + 16 * index).mul_add(L::splat(weight), sum);
                    }
                    sum.store(chunk.as_mut_ptr());
                }
            }
            let done = 16 * chunks.len();
            for (i, sum) in rest.iter_mut().enumerate() {
                for (row, weight) in row.iter().zip(weight).take(rows.len()) {
                    // SAFETY: likewise.
                    *sum += weight * unsafe { table.get(row + done + i) };
                }
            }
        }
    });
}

fn sum_packed(
    table: &Packed<'_>,
    rows: std::ops::Range<usize>,
    weights: &[f32],
    cutoff: f32,
    sums: &mut [f32],
) {
    let mut start = rows.start;
    while start < rows.end {
        let end = (start + GROUP).min(rows.end);
        let mut tiles = Vec::with_capacity(GROUP / ROWS);
        for tile in (start..end).step_by(ROWS) {
            let mut own = [0.0; ROWS];
            let len = ROWS.min(end - tile);
            own[..len].copy_from_slice(&weights[tile..tile + len]);
            own.iter_mut().filter(|weight| weight.abs() < cutoff).for_each(|weight| *weight = 0.0);
            if own.iter().any(|&weight| weight != 0.0) {
                tiles.push((tile / ROWS, own));
            }
        }
        table.add_weighted(isa(), &tiles, sums);
        start = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Float, PackedForm, pack};

    fn softmax(vocab: usize, spread: f32) -> Vec<f32> {
        let logit = |i: usize| -((i * 7919 % vocab) as f32 / vocab as f32) * spread;
        let sum: f64 = (0..vocab).map(|i| f64::from(logit(i)).exp()).sum();
        (0..vocab).map(|i| (f64::from(logit(i)).exp() / sum) as f32).collect()
    }

    #[test]
    fn what_is_left_out_is_less_than_the_bound() {
        let mut left = 0;
        for spread in [0.0, 5.0, 20.0, 40.0, 90.0] {
            let weights = softmax(5000, spread);
            let cutoff = cutoff(&weights);
            let below: f64 = weights.iter().filter(|w| **w < cutoff).map(|&w| f64::from(w)).sum();
            assert!(below < LEFT_OUT);
            // The next power of two would leave out too much.
            let more: f64 = weights.iter().filter(|w| **w < 2.0 * cutoff).map(|&w| f64::from(w)).sum();
            assert!(more >= LEFT_OUT);
            left += weights.iter().filter(|w| **w < cutoff).count();
        }
        assert!(left > 5000, "much is left out where much is small: {left}");
        let broken = Table::Dense(Dense::new(Float::F32(&[1.0, 2.0]), [2, 1]).unwrap());
        assert!(weighted_sums(&broken, &[f32::NAN, 1.0])[0].is_nan());
    }

    #[test]
    fn sums_are_within_a_millionth_of_float64() {
        let (vocab, columns) = (3000, 96);
        let value = |i: usize| ((i * 48271 % 65537) as f32 / 32768.0 - 1.0) * 0.2;
        let table: Vec<f32> = (0..vocab * columns).map(value).collect();
        let largest = table.iter().fold(0.0f32, |a, b| a.max(b.abs()));
        for spread in [0.0, 8.0, 30.0, 90.0] {
            let weights: Vec<f32> = [softmax(vocab, spread), softmax(vocab, spread / 2.0)].concat();
            let dense = Table::Dense(Dense::new(Float::F32(&table), [vocab, columns]).unwrap());
            let found = weighted_sums(&dense, &weights);
            for (n, found) in found.chunks(columns).enumerate() {
                for (column, found) in found.iter().enumerate() {
                    let terms = (0..vocab).map(|row| {
                        f64::from(weights[n * vocab + row]) * f64::from(table[row * columns + column])
                    });
                    let expected: f64 = terms.sum();
                    let off = (f64::from(*found) - expected).abs();
                    assert!(off <= 1e-6 * f64::from(largest), "off by {off}");
                }
            }
        }
    }

    #[test]
    fn packed_rows_sum_as_their_values_do() {
        let (vocab, columns) = (1000, 64);
        let blocks: Vec<u8> = (0..vocab * columns / 32)
            .flat_map(|block| {
                let scale = half::f16::from_f32(0.01 + (block % 7) as f32 * 0.001).to_le_bytes();
                scale.into_iter().chain((0..32).map(move |i| (block * 31 + i * 17) as u8))
            })
            .collect();
        let parts = pack(PackedForm::Q8_0, &blocks, vocab, columns).unwrap();
        let packed =
            Packed::new(PackedForm::Q8_0, [vocab, columns], &parts.words, &parts.scales, &parts.minima)
                .unwrap();
        let mut values = Vec::new();
        packed.rows(&(0..vocab).collect::<Vec<_>>(), &mut values);
        let weights = softmax(vocab, 12.0);
        let sums = weighted_sums(&Table::Packed(packed), &weights);
        for (column, sum) in sums.iter().enumerate() {
            let terms =
                (0..vocab).map(|row| f64::from(weights[row]) * f64::from(values[row * columns + column]));
            assert!((f64::from(*sum) - terms.sum::<f64>()).abs() < 1.5e-6);
        }
    }
}
