//! The mean embedding: a weighted sum over a whole vocabulary.
//!
//! Rows of the table with negligible weights are not read, because reading them costs time. Their total weight is at
//! most a tolerance that the caller sets, and goes to the table's mean row, so that the weights still sum to one.

mod cache;

use std::cell::RefCell;

use crate::{
    Dense, Packed, ROWS,
    dense::Place,
    isa,
    lanes::dispatch,
    pool::{self, Shared},
    softmax::exponentials,
    threshold::{Weighted, kept, threshold},
};
pub use cache::RowCache;

/// The share of the total weight that [`weighted_sums`] may leave out. For weights that sum to one and rows whose
/// values are at most `m`, this changes a value of the sum by at most `LEFT_OUT * m`, about as much as rounding to
/// float32.
const LEFT_OUT: f64 = 1e-7;

/// Maximum number of parts that a sum of rows is divided into: a constant, so that the result does not depend on the
/// number of threads.
const PARTS: usize = 16;
/// Minimum number of rows of a part: fewer are not worth waking a thread.
const LEAST: usize = 16;
/// Number of tiles that are added at a time, while the sums of a block of columns stay in registers.
const GROUP: usize = 16;

/// A table of embedding rows, dense or packed.
#[derive(Clone, Copy, Debug)]
pub enum Table<'a> {
    /// Rows of floats.
    Dense(Dense<'a>),
    /// Rows of quantized blocks.
    Packed(Packed<'a>),
}

impl Table<'_> {
    /// `[rows, columns]`.
    pub fn dims(&self) -> [usize; 2] {
        match self {
            Self::Dense(dense) => dense.dims(),
            Self::Packed(packed) => packed.dims(),
        }
    }
}

/// The rows of which a mean is computed, and their weights.
#[derive(Default)]
struct Choice {
    /// The rows that are read, with their softmax weights before normalization.
    kept: Vec<Weighted>,
    /// One over the sum of all weights; NaN where logits are NaN or infinite.
    inverse: f32,
    /// The normalized weight of the mean row.
    rest: f32,
    /// Entropy of the distribution in nats.
    entropy: f32,
}

impl Choice {
    fn new(logits: &[f32], share: impl Fn(f32) -> f32, tolerance: f32) -> Self {
        thread_local! {
            /// Kept from step to step, because the memory for a large vocabulary would be mapped anew each time.
            static WEIGHTS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
        }
        WEIGHTS.with_borrow_mut(|weights| {
            weights.resize(logits.len(), 0.0);
            let found = exponentials(logits, 1.0, weights);
            if !found.max.is_finite() {
                return Self { inverse: f32::NAN, entropy: f32::NAN, ..Self::default() };
            }
            let entropy = found.entropy();
            let allowed = f64::from(tolerance) / f64::from(share(entropy).abs());
            let cutoff = match allowed {
                // The tolerance allows to leave out all rows: the mean row stands for the whole mean.
                _ if allowed >= 1.0 => f32::INFINITY,
                _ if allowed > 0.0 => threshold(weights, found.sum, allowed),
                _ => f32::MIN_POSITIVE,
            };
            let kept = kept(weights, cutoff);
            let read: f64 = kept.iter().map(|&(_, weight)| f64::from(weight)).sum();
            let rest = ((found.sum - read) / found.sum).max(0.0) as f32;
            Self { kept, inverse: (1.0 / found.sum) as f32, rest, entropy }
        })
    }
}

/// The means of a table's rows under the softmax of `logits` `[n, rows]`: `[n, columns]`, and the entropies of the
/// distributions in nats.
///
/// `share`, called with the index of a row of logits and its entropy, returns the weight that the mean will have in
/// the input. Of the input's weight, which is share times probability, at most `tolerance` goes to `mean_row`
/// `[columns]`, the mean of all rows, instead of to the rows of the least likely tokens. With a tolerance of 0, every
/// row whose weight is not zero in float32 is read. The result is NaN where logits are NaN or infinite.
pub fn mean_rows(
    table: &Table<'_>,
    cache: &mut RowCache,
    mean_row: &[f32],
    logits: &[f32],
    share: &(dyn Fn(usize, f32) -> f32 + Sync),
    tolerance: f32,
) -> (Vec<f32>, Vec<f32>) {
    let [rows, columns] = table.dims();
    let n = logits.len() / rows.max(1);
    assert!(
        logits.len() == n * rows && mean_row.len() == columns,
        "a logit for each row, a mean for each column"
    );
    let mut choices: Vec<Choice> = (0..n).map(|_| Choice::default()).collect();
    let shared = Shared::new(&mut choices);
    // Several rows of logits get a thread each; a single one is computed by all threads.
    pool::run(n, |row| {
        let choice = Choice::new(&logits[row * rows..][..rows], |entropy| share(row, entropy), tolerance);
        // SAFETY: each row has a place of its own.
        unsafe { shared.slice(row, 1)[0] = choice };
    });
    if let Table::Packed(packed) = table {
        cache.fetch(packed, choices.iter().map(|choice| &choice.kept[..]));
    }
    let mut means = vec![0.0; n * columns];
    let shared = Shared::new(&mut means);
    pool::run(n, |row| {
        let Choice { kept, inverse, rest, .. } = &choices[row];
        let sums = sum_of(columns, kept, &|kept, sums| match table {
            Table::Dense(dense) => sum_dense(dense.place(), columns, kept, sums),
            Table::Packed(packed) => cache.add(packed, kept, sums),
        });
        // SAFETY: each row has a mean of its own.
        let mean = unsafe { shared.slice(row * columns, columns) };
        for ((mean, sum), other) in mean.iter_mut().zip(sums).zip(mean_row) {
            *mean = sum * inverse + rest * other;
        }
    });
    (means, choices.iter().map(|choice| choice.entropy).collect())
}

/// Weighted sums of all rows in float32: `weights` `[n, rows]` to `[n, columns]`.
///
/// Rows of the smallest weights are left out, which together have less than 1e-7 of the total weight: a language
/// model's distribution gives most of its vocabulary a negligible probability.
pub fn weighted_sums(table: &Table<'_>, weights: &[f32]) -> Vec<f32> {
    let [rows, columns] = table.dims();
    let n = weights.len() / rows.max(1);
    assert!(weights.len() == n * rows, "a weight for each row");
    let mut out = Vec::with_capacity(n * columns);
    for weights in weights.chunks(rows.max(1)) {
        let cutoff = cutoff(weights);
        // A NaN weight is kept, so that the result shows it.
        let counts = |weight: f32| weight.is_nan() || weight.abs() >= cutoff && weight != 0.0;
        let kept: Vec<Weighted> =
            (0..).zip(weights.iter().copied()).filter(|&(_, weight)| counts(weight)).collect();
        out.append(&mut sum_of(columns, &kept, &|kept, sums| match table {
            Table::Dense(dense) => sum_dense(dense.place(), columns, kept, sums),
            Table::Packed(packed) => sum_packed(packed, kept, sums),
        }));
    }
    out
}

/// The weighted sum of some rows, `[columns]`. It is computed in parts; `add` adds the rows of one part to its sums.
fn sum_of(columns: usize, kept: &[Weighted], add: &(dyn Fn(&[Weighted], &mut [f32]) + Sync)) -> Vec<f32> {
    let per_part = kept.len().div_ceil(PARTS).max(LEAST);
    let parts: Vec<&[Weighted]> = kept.chunks(per_part).collect();
    let mut partial = vec![0.0f32; parts.len().max(1) * columns];
    let shared = Shared::new(&mut partial);
    pool::run(parts.len(), |part| {
        // The last rows come first, because the LM head, which ran before, has left them in the CPU's cache.
        let part = parts.len() - 1 - part;
        // SAFETY: each part has sums of its own.
        add(parts[part], unsafe { shared.slice(part * columns, columns) });
    });
    let (sums, others) = partial.split_at_mut(columns);
    for other in others.chunks(columns.max(1)) {
        sums.iter_mut().zip(other).for_each(|(sum, other)| *sum += other);
    }
    partial.truncate(columns);
    partial
}

/// The largest power of two such that all weights below it together have less than [`LEFT_OUT`] of the total weight.
fn cutoff(weights: &[f32]) -> f32 {
    let mut of_exponent = [0.0f64; 256];
    for weight in weights {
        let size = weight.abs();
        of_exponent[(size.to_bits() >> 23) as usize] += f64::from(size);
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

fn sum_dense(table: Place, columns: usize, kept: &[Weighted], sums: &mut [f32]) {
    dispatch!(isa(), |table: Place, columns: usize, kept: &[Weighted], sums: &mut [f32]| -> () {
        for (group, rows) in kept.chunks(4).enumerate() {
            // The next rows are prefetched, because the CPU cannot predict where they are.
            let next = kept.get(4 * (group + 1)..).unwrap_or_default();
            // The last group is filled up with its first row at weight 0.
            let row =
                std::array::from_fn::<_, 4, _>(|i| rows.get(i).unwrap_or(&rows[0]).0 as usize * columns);
            let weight = std::array::from_fn::<_, 4, _>(|i| rows.get(i).map_or(0.0, |row| row.1));
            let (chunks, rest) = sums.as_chunks_mut::<16>();
            for (index, chunk) in chunks.iter_mut().enumerate() {
                // SAFETY: all rows have this many columns; the CPU has the instruction set.
                unsafe {
                    for row in next.iter().take(4) {
                        table.prefetch(row.0 as usize * columns + 16 * index);
                    }
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
                    // SAFETY: all rows have this many columns.
                    *sum += weight * unsafe { table.get(row + done + i) };
                }
            }
        }
    });
}

fn sum_packed(table: &Packed<'_>, kept: &[Weighted], sums: &mut [f32]) {
    let mut tiles: Vec<(usize, [f32; ROWS])> = Vec::new();
    for &(row, weight) in kept {
        let (tile, row) = (row as usize / ROWS, row as usize % ROWS);
        if tiles.last().is_none_or(|last| last.0 != tile) {
            tiles.push((tile, [0.0; ROWS]));
        }
        if let Some((_, weights)) = tiles.last_mut() {
            weights[row] = weight;
        }
    }
    tiles.chunks(GROUP).for_each(|tiles| table.add_weighted(isa(), tiles, sums));
}

#[cfg(test)]
#[path = "mixture/tests.rs"]
mod tests;
