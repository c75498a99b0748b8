//! The mean embedding: a weighted sum over a whole vocabulary.
//!
//! A row of a table is worth reading only if its weight is. What the rows that are not read would have added is at most
//! a bound that the caller sets, and the table's mean row stands for them, so that weights still sum to one.

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

/// The share of all weights that may be left out of [`weighted_sums`]: with rows whose values are at most `m`, no value
/// of a sum is off by more than this times `m`, about what float32 rounds anyway.
const LEFT_OUT: f64 = 1e-7;

/// Parts of a list of rows that are summed apart: a constant, so that the result does not depend on the threads.
const PARTS: usize = 16;
/// Rows below which a part is not worth a thread's while.
const LEAST: usize = 16;
/// Tiles whose sums stay near while they are read.
const GROUP: usize = 16;

/// A table of rows, in any form.
#[derive(Clone, Copy, Debug)]
pub enum Table<'a> {
    /// Floats.
    Dense(Dense<'a>),
    /// Blocks.
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

/// What a row's mean is made of.
#[derive(Default)]
struct Choice {
    /// Rows that are read, with weights that are not yet divided by their sum.
    kept: Vec<Weighted>,
    /// One over the sum of all weights; NaN where logits are not numbers.
    inverse: f32,
    /// The share of the mean row.
    rest: f32,
    /// In nats.
    entropy: f32,
}

impl Choice {
    fn new(logits: &[f32], share: impl Fn(f32) -> f32, tolerance: f32) -> Self {
        thread_local! {
            /// Kept from step to step: that of a large vocabulary would be mapped anew each time.
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
                // Not a bit of the mean will be in the input.
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

/// The means of a table's rows by the softmax of `logits` `[n, rows]`: `[n, columns]`, and the distributions' entropies
/// in nats.
///
/// `share` says how much of a row's input the mean will be, given the row and its entropy. Of the input's weight at most
/// `tolerance`, share times probability, goes to `mean_row` `[columns]`, the mean of all rows, in the place of the rows of
/// the least likely tokens themselves. With a tolerance of 0 every row counts that has a weight in float32. NaN where
/// logits are not numbers.
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
    // Of several rows each has a thread of its own; of one all threads take part.
    pool::run(n, |row| {
        let choice = Choice::new(&logits[row * rows..][..rows], |entropy| share(row, entropy), tolerance);
        // SAFETY: each row has its own place.
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
        // SAFETY: each row has its own mean.
        let mean = unsafe { shared.slice(row * columns, columns) };
        for ((mean, sum), other) in mean.iter_mut().zip(sums).zip(mean_row) {
            *mean = sum * inverse + rest * other;
        }
    });
    (means, choices.iter().map(|choice| choice.entropy).collect())
}

/// Weighted sums of all rows: `weights` `[n, rows]` to `[n, columns]`, in float32.
///
/// Rows of the smallest weights, which together have less than 1e-7 of all, are left out: a language model's
/// distribution gives most of its vocabulary nothing to speak of.
pub fn weighted_sums(table: &Table<'_>, weights: &[f32]) -> Vec<f32> {
    let [rows, columns] = table.dims();
    let n = weights.len() / rows.max(1);
    assert!(weights.len() == n * rows, "a weight for each row");
    let mut out = Vec::with_capacity(n * columns);
    for weights in weights.chunks(rows.max(1)) {
        let cutoff = cutoff(weights);
        // A weight that is no number counts.
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

/// The weighted sum of some rows `[columns]`, of which `add` adds a part to sums of its own.
fn sum_of(columns: usize, kept: &[Weighted], add: &(dyn Fn(&[Weighted], &mut [f32]) + Sync)) -> Vec<f32> {
    let per_part = kept.len().div_ceil(PARTS).max(LEAST);
    let parts: Vec<&[Weighted]> = kept.chunks(per_part).collect();
    let mut partial = vec![0.0f32; parts.len().max(1) * columns];
    let shared = Shared::new(&mut partial);
    pool::run(parts.len(), |part| {
        // The last rows first: the head, which comes before, has left them in the cache.
        let part = parts.len() - 1 - part;
        // SAFETY: each part has its own sums.
        add(parts[part], unsafe { shared.slice(part * columns, columns) });
    });
    let (sums, others) = partial.split_at_mut(columns);
    for other in others.chunks(columns.max(1)) {
        sums.iter_mut().zip(other).for_each(|(sum, other)| *sum += other);
    }
    partial.truncate(columns);
    partial
}

/// The weight below which all together have less than [`LEFT_OUT`] of the whole: a power of two.
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
            // Rows lie anywhere, so that the processor cannot foresee the next ones.
            let next = kept.get(4 * (group + 1)..).unwrap_or_default();
            // The last ones are filled up with nothing of the first.
            let row =
                std::array::from_fn::<_, 4, _>(|i| rows.get(i).unwrap_or(&rows[0]).0 as usize * columns);
            let weight = std::array::from_fn::<_, 4, _>(|i| rows.get(i).map_or(0.0, |row| row.1));
            let (chunks, rest) = sums.as_chunks_mut::<16>();
            for (index, chunk) in chunks.iter_mut().enumerate() {
                // SAFETY: rows of so many columns; the instruction set is there.
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
                    // SAFETY: likewise.
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
