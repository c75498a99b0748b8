//! A block of keys or values: reading it, scoring it, and adding it up.

use std::ops::Range;

use super::{BLOCK, Cached, FEW};
use crate::{
    dense::Place,
    isa,
    lanes::{Lanes, dispatch},
};

/// A block of keys or values in float32, `[columns, padded]`.
pub(super) struct Widened(pub(super) Vec<f32>);

/// Keys or values `[columns, padded]` of a block, and where they begin.
#[derive(Clone, Copy)]
pub(super) struct Block(Place, usize);

impl Widened {
    /// Some columns of a head: as they are, where they fill their vectors and are float32, or are used once.
    pub(super) fn read(
        &mut self,
        cached: &Cached<'_>,
        offset: usize,
        columns: &Range<usize>,
        head_dim: usize,
        rows: usize,
    ) -> Block {
        let (at, len) = (offset + columns.start * head_dim, columns.len() * head_dim);
        assert!(at + len <= cached.values.len(), "columns of the cache");
        let place = cached.values.place();
        let padded = head_dim.next_multiple_of(16);
        if padded == head_dim && (rows < FEW || matches!(place, Place::F32(_))) {
            return Block(place, at);
        }
        self.0.resize(BLOCK * padded, 0.0);
        if padded == head_dim {
            widen(place, at, &mut self.0[..len]);
        } else {
            for (column, to) in self.0.chunks_mut(padded).take(columns.len()).enumerate() {
                for (i, to) in to[..head_dim].iter_mut().enumerate() {
                    // SAFETY: inside, as asserted above.
                    *to = unsafe { place.get(at + column * head_dim + i) };
                }
            }
        }
        Block(Place::F32(self.0.as_ptr()), 0)
    }
}

/// Does `$body` with `$load` reading sixteen values of a block, the type settled outside of its loops.
macro_rules! each_type {
    ($block:expr, |$load:ident| $body:expr) => {
        match $block {
            Block(Place::F32(from), start) => {
                macro_rules! $load {
                    ($at:expr) => {
                        L::load(from.add(start + $at))
                    };
                }
                $body
            }
            Block(Place::F16(from), start) => {
                macro_rules! $load {
                    ($at:expr) => {
                        L::load_f16(from.add(start + $at))
                    };
                }
                $body
            }
            Block(Place::Bf16(from), start) => {
                macro_rules! $load {
                    ($at:expr) => {
                        L::load_bf16(from.add(start + $at))
                    };
                }
                $body
            }
        }
    };
}

/// Sixteen at a time; all must be there.
fn widen(from: Place, at: usize, out: &mut [f32]) {
    dispatch!(isa(), |from: Place, at: usize, out: &mut [f32]| -> () {
        for (index, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            // SAFETY: the caller has looked; the instruction set is there.
            unsafe { from.load::<L>(at + 16 * index).store(out.as_mut_ptr()) };
        }
    });
}

/// Scores of a few queries: products of each with each key.
pub(super) fn scores(q: &[f32], k: Block, padded: usize, columns: usize, rows: usize, out: &mut [f32]) {
    assert!(q.len() >= rows * padded && out.len() >= rows * BLOCK && columns <= BLOCK);
    dispatch!(isa(), |q: &[f32],
                      k: Block,
                      padded: usize,
                      columns: usize,
                      rows: usize,
                      out: &mut [f32]|
     -> () {
        each_type!(k, |load| {
            for column in (0..columns).step_by(4) {
                // Behind the last key it is computed once more.
                let at = std::array::from_fn::<_, 4, _>(|i| (column + i).min(columns - 1) * padded);
                for row in 0..rows {
                    // SAFETY: the block has these columns; the instruction set is there.
                    unsafe {
                        let mut lanes = [L::splat(0.0); 4];
                        for i in (0..padded).step_by(16) {
                            let query = L::load(q.as_ptr().add(row * padded + i));
                            for (lane, at) in lanes.iter_mut().zip(at) {
                                *lane = load!(at + i).mul_add(query, *lane);
                            }
                        }
                        out[row * BLOCK + column..][..4].copy_from_slice(&L::sums(lanes));
                    }
                }
            }
        });
    });
}

/// Scores of many queries: the keys are turned, so that a register holds the scores of sixteen.
pub(super) fn scores_of_many(
    q: &[f32],
    Block(k, start): Block,
    padded: usize,
    columns: usize,
    rows: usize,
    turned: &mut [f32],
    out: &mut [f32],
) {
    assert!(q.len() >= rows * padded && out.len() >= rows * BLOCK && turned.len() >= padded * BLOCK);
    turn((k, start), padded, columns, turned);
    dispatch!(isa(), |q: &[f32], turned: &[f32], padded: usize, rows: usize, out: &mut [f32]| -> () {
        /// `N` queries with all keys, `W` times sixteen of them at a time.
        #[inline(always)]
        unsafe fn some<L: Lanes, const N: usize, const W: usize>(
            q: &[f32],
            turned: &[f32],
            padded: usize,
            out: &mut [f32],
        ) {
            // SAFETY: the sizes were looked at; the caller has the instruction set.
            unsafe {
                for first in (0..BLOCK).step_by(16 * W) {
                    let mut lanes = [[L::splat(0.0); W]; N];
                    for i in 0..padded {
                        let mut keys = [L::splat(0.0); W];
                        for (w, key) in keys.iter_mut().enumerate() {
                            *key = L::load(turned.as_ptr().add(i * BLOCK + first + 16 * w));
                        }
                        for (n, lanes) in lanes.iter_mut().enumerate() {
                            let query = L::splat(*q.get_unchecked(n * padded + i));
                            for (lane, key) in lanes.iter_mut().zip(keys) {
                                *lane = key.mul_add(query, *lane);
                            }
                        }
                    }
                    for (n, lanes) in lanes.iter().enumerate() {
                        for (w, lanes) in lanes.iter().enumerate() {
                            lanes.store(out.as_mut_ptr().add(n * BLOCK + first + 16 * w));
                        }
                    }
                }
            }
        }
        let mut row = 0;
        while row < rows {
            let (q, out) = (&q[row * padded..], &mut out[row * BLOCK..]);
            // SAFETY: likewise.
            unsafe {
                match rows - row {
                    // Sixteen sums, two of keys and a query.
                    8.. if L::REGISTERS >= 20 => {
                        some::<L, 8, 2>(q, turned, padded, out);
                        row += 8;
                    }
                    // Six sums, the keys and a query in the eight registers of sixteen lanes that AVX2 and NEON have room for.
                    6.. => {
                        some::<L, 6, 1>(q, turned, padded, out);
                        row += 6;
                    }
                    3.. => {
                        some::<L, 3, 1>(q, turned, padded, out);
                        row += 3;
                    }
                    _ => {
                        some::<L, 1, 1>(q, turned, padded, out);
                        row += 1;
                    }
                }
            }
        }
    });
}

/// Writes columns of `padded` values, a multiple of 16, beside each other: `[padded][BLOCK]`. All must be there.
fn turn((k, start): (Place, usize), padded: usize, columns: usize, turned: &mut [f32]) {
    for first in (0..columns).step_by(4) {
        if let (Place::F32(k), true) = (k, first + 4 <= columns) {
            // SAFETY: the block has these columns, each of `padded` values, a multiple of 16.
            unsafe { turn_four(k.add(start + first * padded), padded, &mut turned[first..]) };
            continue;
        }
        for column in first..columns.min(first + 4) {
            for i in 0..padded {
                // SAFETY: likewise.
                turned[i * BLOCK + column] = unsafe { k.get(start + column * padded + i) };
            }
        }
    }
}

/// Writes four columns of `padded` values, a multiple of four, beside each other: `[padded][BLOCK]`, the first four of
/// each.
///
/// # Safety
/// The columns must be there.
unsafe fn turn_four(columns: *const f32, padded: usize, turned: &mut [f32]) {
    for i in (0..padded).step_by(4) {
        let mut four = [[0.0f32; 4]; 4];
        for (column, four) in four.iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            *four = unsafe { columns.add(column * padded + i).cast::<[f32; 4]>().read_unaligned() };
        }
        let [a, b, c, d] = four;
        for k in 0..4 {
            turned[(i + k) * BLOCK..][..4].copy_from_slice(&[a[k], b[k], c[k], d[k]]);
        }
    }
}

/// Turns the scores of the columns within into weights, those of others into zeros, and takes what the state held down
/// to the new largest score.
pub(super) fn weigh(
    scores: &mut [f32],
    within: Range<usize>,
    softcap: Option<f32>,
    padded: usize,
    state: &mut [f32],
) {
    if let Some(cap) = softcap {
        scores[within.clone()].iter_mut().for_each(|score| *score = (*score / cap).tanh() * cap);
    }
    scores[..within.start].fill(f32::NEG_INFINITY);
    scores[within.end..].fill(f32::NEG_INFINITY);
    dispatch!(isa(), |scores: &mut [f32], padded: usize, state: &mut [f32]| -> () {
        // SAFETY: chunks of sixteen; the instruction set is there.
        unsafe {
            let mut largest = L::splat(f32::NEG_INFINITY);
            for chunk in scores.as_chunks::<16>().0 {
                largest = largest.max(L::load(chunk.as_ptr()));
            }
            let max = largest.largest().max(state[padded]);
            let factor = if max == f32::NEG_INFINITY { 1.0 } else { (state[padded] - max).exp() };
            let mut sum = L::splat(0.0);
            for chunk in scores.as_chunks_mut::<16>().0 {
                let weight = L::load(chunk.as_ptr()).sub(L::splat(max)).exp();
                sum = sum.add(weight);
                weight.store(chunk.as_mut_ptr());
            }
            state[padded + 1] = state[padded + 1] * factor + sum.sum();
            state[padded] = max;
            if max == f32::NEG_INFINITY {
                // Something is seen, and no score of it is a number: that must show.
                (state[padded], state[padded + 1]) = (0.0, f32::NAN);
            }
            if factor != 1.0 {
                for chunk in state[..padded].as_chunks_mut::<16>().0 {
                    L::load(chunk.as_ptr()).mul(L::splat(factor)).store(chunk.as_mut_ptr());
                }
            }
        }
    });
}

/// Adds weighted values `[columns, padded]` to the states of all rows.
pub(super) fn add_values(
    weights: &[f32],
    v: Block,
    padded: usize,
    columns: usize,
    rows: usize,
    out: &mut [f32],
) {
    assert!(weights.len() >= rows * BLOCK && columns <= BLOCK && out.len() >= rows * (padded + 2));
    dispatch!(isa(), |weights: &[f32],
                      v: Block,
                      padded: usize,
                      columns: usize,
                      rows: usize,
                      out: &mut [f32]|
     -> () {
        #[inline(always)]
        unsafe fn some<L: Lanes, const N: usize>(
            weights: &[f32],
            v: Block,
            padded: usize,
            columns: usize,
            out: &mut [f32],
        ) {
            let place = |n: usize, i: usize| n * (padded + 2) + i;
            each_type!(v, |load| {
                for i in (0..padded).step_by(16) {
                    // SAFETY: the block has these columns; the caller has the instruction set.
                    unsafe {
                        let mut sums = [L::splat(0.0); N];
                        for (n, sum) in sums.iter_mut().enumerate() {
                            *sum = L::load(out.as_ptr().add(place(n, i)));
                        }
                        for column in 0..columns {
                            let value = load!(column * padded + i);
                            for (n, sum) in sums.iter_mut().enumerate() {
                                let weight = L::splat(*weights.get_unchecked(n * BLOCK + column));
                                *sum = value.mul_add(weight, *sum);
                            }
                        }
                        for (n, sum) in sums.iter().enumerate() {
                            sum.store(out.as_mut_ptr().add(place(n, i)));
                        }
                    }
                }
            });
        }
        let mut row = 0;
        while row < rows {
            let (weights, out) = (&weights[row * BLOCK..], &mut out[row * (padded + 2)..]);
            // SAFETY: likewise.
            unsafe {
                match rows - row {
                    8.. if L::REGISTERS >= 20 => {
                        some::<L, 8>(weights, v, padded, columns, out);
                        row += 8;
                    }
                    6.. => {
                        some::<L, 6>(weights, v, padded, columns, out);
                        row += 6;
                    }
                    3.. => {
                        some::<L, 3>(weights, v, padded, columns, out);
                        row += 3;
                    }
                    _ => {
                        some::<L, 1>(weights, v, padded, columns, out);
                        row += 1;
                    }
                }
            }
        }
    });
}
