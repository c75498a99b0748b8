//! Operations on one block of keys or values: reading, scoring, and summing values.

use std::ops::Range;

use super::CACHE_BLOCK;
use crate::{
    Float,
    dense::Place,
    isa,
    lanes::{Lanes, dispatch},
};

/// With at least this many queries, the keys and values of a block are widened to float32 once, before they are used;
/// with fewer, they are widened in registers whenever they are loaded.
pub(super) const MIN_WIDENED: usize = 8;

/// Buffer for a block of keys or values in float32.
#[derive(Default)]
pub(super) struct Widened(Vec<f32>);

/// Keys `[head_dim, CACHE_BLOCK]` or values `[CACHE_BLOCK, padded]` of a block: the memory, and the index of the
/// first one in it.
#[derive(Clone, Copy)]
pub(super) struct Block(Place, usize);

impl Widened {
    /// The keys of a head in a block, where they begin at index `at`.
    pub(super) fn read_keys(&mut self, keys: &Float<'_>, at: usize, head_dim: usize, widens: bool) -> Block {
        let (place, len) = (keys.place(), CACHE_BLOCK * head_dim);
        assert!(at + len <= keys.len(), "keys of a block");
        if !widens || matches!(place, Place::F32(_)) {
            return Block(place, at);
        }
        self.0.resize(len, 0.0);
        widen(place, at, &mut self.0);
        Block(Place::F32(self.0.as_ptr()), 0)
    }

    /// The values of a head at the first positions of a block, where they begin at index `at`. They are read in place
    /// if `head_dim` is a multiple of sixteen and they are float32 or used by few queries; else they are copied and
    /// padded.
    pub(super) fn read_values(
        &mut self,
        values: &Float<'_>,
        at: usize,
        positions: usize,
        head_dim: usize,
        widens: bool,
    ) -> Block {
        let (place, len) = (values.place(), positions * head_dim);
        assert!(at + len <= values.len() && positions <= CACHE_BLOCK, "values of a block");
        let padded = head_dim.next_multiple_of(16);
        if padded == head_dim && (!widens || matches!(place, Place::F32(_))) {
            return Block(place, at);
        }
        self.0.resize(CACHE_BLOCK * padded, 0.0);
        if padded == head_dim {
            widen(place, at, &mut self.0[..len]);
        } else {
            for (position, to) in self.0.chunks_mut(padded).take(positions).enumerate() {
                for (i, to) in to[..head_dim].iter_mut().enumerate() {
                    // SAFETY: the index is in bounds, as asserted above.
                    *to = unsafe { place.get(at + position * head_dim + i) };
                }
            }
        }
        Block(Place::F32(self.0.as_ptr()), 0)
    }

    /// Copies the keys of some positions to consecutive columns.
    pub(super) fn gather_keys(
        &mut self,
        slabs: &[Float<'_>],
        places: impl Iterator<Item = CachedPosition>,
        head_dim: usize,
    ) -> Block {
        self.0.clear();
        self.0.resize(CACHE_BLOCK * head_dim, 0.0);
        for (to, (slab, at, column)) in places.enumerate() {
            assert!(
                at + CACHE_BLOCK * head_dim <= slabs[slab].len() && column < CACHE_BLOCK,
                "keys of a block"
            );
            for i in 0..head_dim {
                // SAFETY: the index is in bounds, as asserted above.
                self.0[i * CACHE_BLOCK + to] =
                    unsafe { slabs[slab].place().get(at + i * CACHE_BLOCK + column) };
            }
        }
        Block(Place::F32(self.0.as_ptr()), 0)
    }

    /// Copies the values of some positions to consecutive rows.
    pub(super) fn gather_values(
        &mut self,
        slabs: &[Float<'_>],
        places: impl Iterator<Item = CachedPosition>,
        head_dim: usize,
    ) -> Block {
        let padded = head_dim.next_multiple_of(16);
        self.0.clear();
        self.0.resize(CACHE_BLOCK * padded, 0.0);
        for (to, (slab, at, column)) in places.enumerate() {
            assert!(at + (column + 1) * head_dim <= slabs[slab].len(), "values of a block");
            for i in 0..head_dim {
                // SAFETY: the index is in bounds, as asserted above.
                self.0[to * padded + i] = unsafe { slabs[slab].place().get(at + column * head_dim + i) };
            }
        }
        Block(Place::F32(self.0.as_ptr()), 0)
    }
}

/// A position in a block: the slab, the index in it where the head's part of the block begins, and the position's
/// index in the block.
pub(super) type CachedPosition = (usize, usize, usize);

/// Expands `$body` for each storage type, with `$load` reading sixteen values, so that the type is matched outside
/// the loops.
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

/// Widens values to float32, sixteen at a time; `from` must hold `out.len()` values from `at` on.
fn widen(from: Place, at: usize, out: &mut [f32]) {
    dispatch!(isa(), |from: Place, at: usize, out: &mut [f32]| -> () {
        for (index, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            // SAFETY: the caller has checked the bounds; the CPU has the instruction set.
            unsafe { from.load::<L>(at + 16 * index).store(out.as_mut_ptr()) };
        }
    });
}

/// Scores of queries `[rows, padded]`: their dot products with all keys of a block, `[rows, CACHE_BLOCK]`. A register
/// holds the scores of sixteen keys, and each dot product is summed value by value, however many queries there are.
pub(super) fn scores(q: &[f32], k: Block, head_dim: usize, padded: usize, rows: usize, out: &mut [f32]) {
    assert!(q.len() >= rows * padded && out.len() >= rows * CACHE_BLOCK && head_dim <= padded);
    dispatch!(isa(), |q: &[f32],
                      k: Block,
                      head_dim: usize,
                      padded: usize,
                      rows: usize,
                      out: &mut [f32]|
     -> () {
        /// Scores `N` queries against all keys, `16 * W` keys at a time.
        #[inline(always)]
        unsafe fn some<L: Lanes, const N: usize, const W: usize>(
            q: &[f32],
            k: Block,
            [head_dim, padded]: [usize; 2],
            out: &mut [f32],
        ) {
            each_type!(k, |load| {
                // SAFETY: the block has these keys; the caller has checked the sizes and has the instruction set.
                unsafe {
                    for first in (0..CACHE_BLOCK).step_by(16 * W) {
                        let mut lanes = [[L::splat(0.0); W]; N];
                        for i in 0..head_dim {
                            let mut keys = [L::splat(0.0); W];
                            for (w, key) in keys.iter_mut().enumerate() {
                                *key = load!(i * CACHE_BLOCK + first + 16 * w);
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
                                lanes.store(out.as_mut_ptr().add(n * CACHE_BLOCK + first + 16 * w));
                            }
                        }
                    }
                }
            });
        }
        let (mut row, sizes) = (0, [head_dim, padded]);
        while row < rows {
            let (q, out) = (&q[row * padded..], &mut out[row * CACHE_BLOCK..]);
            // SAFETY: the sizes were asserted above; the CPU has the instruction set.
            unsafe {
                match rows - row {
                    // Registers: sixteen sums, two of keys and one of a query.
                    8.. if L::REGISTERS >= 20 => {
                        some::<L, 8, 2>(q, k, sizes, out);
                        row += 8;
                    }
                    4.. if L::REGISTERS >= 20 => {
                        some::<L, 4, 4>(q, k, sizes, out);
                        row += 4;
                    }
                    // Six sums, one of keys and one of a query fill the eight sixteen-lane registers of AVX2 and
                    // NEON.
                    6.. => {
                        some::<L, 6, 1>(q, k, sizes, out);
                        row += 6;
                    }
                    3.. if L::REGISTERS >= 20 => {
                        some::<L, 3, 4>(q, k, sizes, out);
                        row += 3;
                    }
                    3.. => {
                        some::<L, 3, 1>(q, k, sizes, out);
                        row += 3;
                    }
                    2.. => {
                        some::<L, 2, 2>(q, k, sizes, out);
                        row += 2;
                    }
                    _ => {
                        some::<L, 1, 4>(q, k, sizes, out);
                        row += 1;
                    }
                }
            }
        }
    });
}

/// A step of the online softmax: turns the scores of the columns in `within` into weights, sets those of other
/// columns to zero, and rescales the sums in the state to the new largest score.
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
        // SAFETY: all loads and stores are inside chunks of sixteen; the CPU has the instruction set.
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
                // The query sees positions, but no score of theirs is a number: the sum becomes NaN, so that the
                // result shows it.
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
    assert!(
        weights.len() >= rows * CACHE_BLOCK && columns <= CACHE_BLOCK && out.len() >= rows * (padded + 2)
    );
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
                                let weight = L::splat(*weights.get_unchecked(n * CACHE_BLOCK + column));
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
            let (weights, out) = (&weights[row * CACHE_BLOCK..], &mut out[row * (padded + 2)..]);
            // SAFETY: the sizes were asserted above; the CPU has the instruction set.
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
