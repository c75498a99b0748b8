//! Attention over a cache, keys taken a block at a time (FlashAttention, arXiv 2205.14135), long caches split between
//! threads (Flash-Decoding).

use std::ops::Range;

use crate::{
    Float,
    dense::Place,
    isa,
    lanes::{Lanes, dispatch},
    pool::{self, Shared},
};

/// Sizes and scores.
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    /// Rows of the batch.
    pub batch: usize,
    /// Queries of each.
    pub seq: usize,
    /// Heads of a query.
    pub heads: usize,
    /// Heads of a key; queries' heads in groups share one.
    pub kv_heads: usize,
    /// Values of a head.
    pub head_dim: usize,
    /// Scores are `cap * tanh(score / cap)`.
    pub softcap: Option<f32>,
}

/// Keys or values, of which column c of head h of row b begins at `start + b * batch_stride + h * head_stride + c * head_dim`.
#[derive(Clone, Copy, Debug)]
pub struct Cached<'a> {
    /// All of them.
    pub values: Float<'a>,
    /// The first that belongs to it.
    pub start: usize,
    /// Between rows of the batch.
    pub batch_stride: usize,
    /// Between heads.
    pub head_stride: usize,
    /// How many columns there are.
    pub columns: usize,
}

/// Which columns the query at a position of a row sees.
pub trait Visible: Sync {
    /// For row `batch`, query `position` of the step.
    fn columns(&self, batch: usize, position: usize) -> Range<usize>;
}

impl<F: Fn(usize, usize) -> Range<usize> + Sync> Visible for F {
    fn columns(&self, batch: usize, position: usize) -> Range<usize> {
        self(batch, position)
    }
}

/// Columns whose scores are computed at a time.
const BLOCK: usize = 64;
/// Queries that share the keys they read.
const QUERIES: usize = 48;
/// Below so many queries keys and values are read as they are stored, and used at once; else they are widened first.
const FEW: usize = 8;
/// Columns that are worth a part of their own.
const SPLIT: usize = 128;

/// softmax(q k^T) v: `q`, scaled already, and the result are `[batch, seq, heads, head_dim]`. A query that sees nothing
/// gets zeros.
///
/// # Panics
/// If the slices are shorter than the sizes say.
pub fn attend(
    sizes: &Attention,
    q: &[f32],
    keys: &Cached<'_>,
    values: &Cached<'_>,
    visible: &dyn Visible,
) -> Vec<f32> {
    let &Attention { batch, seq, heads, kv_heads, head_dim, .. } = sizes;
    let len = batch * seq * heads * head_dim;
    assert!(q.len() == len && heads.is_multiple_of(kv_heads.max(1)), "queries of all heads");
    for cached in [keys, values] {
        let last = cached.start
            + batch.saturating_sub(1) * cached.batch_stride
            + kv_heads.saturating_sub(1) * cached.head_stride
            + cached.columns * head_dim;
        assert!(last <= cached.values.len() && cached.columns == keys.columns, "a cache of these sizes");
    }
    let queries = seq * (heads / kv_heads);
    let blocks = queries.div_ceil(QUERIES);
    // Few queries leave threads idle unless they share the columns.
    let splits = match batch * kv_heads * blocks {
        tasks if tasks >= 4 * pool::threads() => 1,
        tasks => (4 * pool::threads()).div_ceil(tasks.max(1)).min(keys.columns.div_ceil(SPLIT)).max(1),
    };
    let step = keys.columns.div_ceil(splits).next_multiple_of(BLOCK);
    let tasks = batch * kv_heads * blocks * splits;
    let padded = head_dim.next_multiple_of(16);
    let mut partials = vec![0.0; tasks * QUERIES.min(queries) * (padded + 2)];
    let shared = Shared::new(&mut partials);
    let size = QUERIES.min(queries) * (padded + 2);
    let task = |index: usize| {
        let (split, rest) = (index % splits, index / splits);
        let (block, rest) = (rest % blocks, rest / blocks);
        Task {
            batch: rest / kv_heads,
            kv_head: rest % kv_heads,
            queries: block * QUERIES..((block + 1) * QUERIES).min(queries),
            columns: split * step..((split + 1) * step).min(keys.columns),
        }
    };
    pool::run(tasks, |index| {
        // SAFETY: each task has its own part.
        let out = unsafe { shared.slice(index * size, size) };
        run_task(sizes, &task(index), q, keys, values, visible, out);
    });
    let mut out = vec![0.0; len];
    for first in (0..tasks).step_by(splits) {
        let task = task(first);
        for (row, query) in task.queries.clone().enumerate() {
            let place = task.place(sizes, query);
            let out = &mut out[place..place + head_dim];
            let part = |split: usize| &partials[(first + split) * size + row * (padded + 2)..][..padded + 2];
            merge((0..splits).map(part), out);
        }
    }
    out
}

/// Puts partial sums together: each has its values, the largest score, and the sum of exponentials last.
fn merge<'a>(parts: impl Iterator<Item = &'a [f32]> + Clone, out: &mut [f32]) {
    let max = parts.clone().map(|part| part[part.len() - 2]).fold(f32::NEG_INFINITY, f32::max);
    if max == f32::NEG_INFINITY {
        return;
    }
    let mut total = 0.0;
    for part in parts {
        let (values, state) = part.split_at(part.len() - 2);
        let factor = (state[0] - max).exp();
        total += factor * state[1];
        out.iter_mut().zip(values).for_each(|(out, value)| *out += factor * value);
    }
    out.iter_mut().for_each(|out| *out /= total);
}

struct Task {
    batch: usize,
    kv_head: usize,
    /// Of all that share the head: position after position, the heads of the group together.
    queries: Range<usize>,
    columns: Range<usize>,
}

impl Task {
    /// Where a query begins.
    fn place(&self, sizes: &Attention, query: usize) -> usize {
        let group = sizes.heads / sizes.kv_heads;
        let (position, member) = (query / group, query % group);
        ((self.batch * sizes.seq + position) * sizes.heads + self.kv_head * group + member) * sizes.head_dim
    }
}

fn run_task(
    sizes: &Attention,
    task: &Task,
    q: &[f32],
    keys: &Cached<'_>,
    values: &Cached<'_>,
    visible: &dyn Visible,
    out: &mut [f32],
) {
    let (head_dim, group) = (sizes.head_dim, sizes.heads / sizes.kv_heads);
    let padded = head_dim.next_multiple_of(16);
    let rows = task.queries.len();
    let mut scratch = Scratch::new(rows, padded);
    for (row, query) in task.queries.clone().enumerate() {
        scratch.q[row * padded..][..head_dim].copy_from_slice(&q[task.place(sizes, query)..][..head_dim]);
    }
    let seen: Vec<Range<usize>> = task
        .queries
        .clone()
        .map(|query| {
            let seen = visible.columns(task.batch, query / group);
            seen.start.max(task.columns.start)..seen.end.min(task.columns.end)
        })
        .collect();
    for state in out.chunks_mut(padded + 2) {
        state.fill(0.0);
        state[padded] = f32::NEG_INFINITY;
    }
    let first = seen.iter().filter(|seen| !seen.is_empty()).map(|seen| seen.start).min().unwrap_or(0);
    let last = seen.iter().map(|seen| seen.end).max().unwrap_or(0);
    let offset = |cached: &Cached<'_>| {
        cached.start + task.batch * cached.batch_stride + task.kv_head * cached.head_stride
    };
    for block in (first..last.max(first)).step_by(BLOCK) {
        let columns = block..(block + BLOCK).min(last);
        let k = scratch.keys.read(keys, offset(keys), &columns, head_dim, rows);
        if rows < FEW {
            scores(&scratch.q, k, padded, columns.len(), rows, &mut scratch.scores);
        } else {
            scores_of_many(
                &scratch.q,
                k,
                padded,
                columns.len(),
                rows,
                &mut scratch.turned,
                &mut scratch.scores,
            );
        }
        for (row, seen) in seen.iter().enumerate() {
            let scores = &mut scratch.scores[row * BLOCK..][..BLOCK];
            let within = seen.start.max(columns.start)..seen.end.min(columns.end);
            if within.is_empty() {
                scores.fill(0.0);
                continue;
            }
            let within = within.start - columns.start..within.end - columns.start;
            weigh(scores, within, sizes.softcap, padded, &mut out[row * (padded + 2)..][..padded + 2]);
        }
        let v = scratch.values.read(values, offset(values), &columns, head_dim, rows);
        add_values(&scratch.scores, v, padded, columns.len(), rows, out);
    }
}

/// What a task needs in passing.
struct Scratch {
    /// `[rows, padded]`.
    q: Vec<f32>,
    keys: Widened,
    values: Widened,
    /// Keys, `[padded][BLOCK]`.
    turned: Vec<f32>,
    /// `[rows, BLOCK]`.
    scores: Vec<f32>,
}

impl Scratch {
    fn new(rows: usize, padded: usize) -> Self {
        Self {
            q: vec![0.0; rows * padded],
            keys: Widened(Vec::new()),
            values: Widened(Vec::new()),
            turned: if rows < FEW { Vec::new() } else { vec![0.0; BLOCK * padded] },
            scores: vec![0.0; rows * BLOCK],
        }
    }
}

/// A block of keys or values in float32, `[columns, padded]`.
struct Widened(Vec<f32>);

/// Keys or values `[columns, padded]` of a block, and where they begin.
#[derive(Clone, Copy)]
struct Block(Place, usize);

impl Widened {
    /// Some columns of a head: as they are, where they fill their vectors and are float32, or are used once.
    fn read(
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
fn scores(q: &[f32], k: Block, padded: usize, columns: usize, rows: usize, out: &mut [f32]) {
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
fn scores_of_many(
    q: &[f32],
    Block(k, start): Block,
    padded: usize,
    columns: usize,
    rows: usize,
    turned: &mut [f32],
    out: &mut [f32],
) {
    assert!(q.len() >= rows * padded && out.len() >= rows * BLOCK && turned.len() >= padded * BLOCK);
    for i in 0..padded {
        for (column, turned) in turned[i * BLOCK..][..columns].iter_mut().enumerate() {
            // SAFETY: the block has these columns.
            *turned = unsafe { k.get(start + column * padded + i) };
        }
    }
    dispatch!(isa(), |q: &[f32], turned: &[f32], padded: usize, rows: usize, out: &mut [f32]| -> () {
        #[inline(always)]
        unsafe fn some<L: Lanes, const N: usize>(q: &[f32], turned: &[f32], padded: usize, out: &mut [f32]) {
            // SAFETY: the sizes were looked at; the caller has the instruction set.
            unsafe {
                for half in [0, 32] {
                    let mut lanes = [[L::splat(0.0); 2]; N];
                    for i in 0..padded {
                        let keys = [0, 16].map(|at| L::load(turned.as_ptr().add(i * BLOCK + half + at)));
                        for (n, lanes) in lanes.iter_mut().enumerate() {
                            let query = L::splat(*q.get_unchecked(n * padded + i));
                            lanes[0] = keys[0].mul_add(query, lanes[0]);
                            lanes[1] = keys[1].mul_add(query, lanes[1]);
                        }
                    }
                    for (n, lanes) in lanes.iter().enumerate() {
                        lanes[0].store(out.as_mut_ptr().add(n * BLOCK + half));
                        lanes[1].store(out.as_mut_ptr().add(n * BLOCK + half + 16));
                    }
                }
            }
        }
        let mut row = 0;
        while row < rows {
            let (q, out) = (&q[row * padded..], &mut out[row * BLOCK..]);
            // SAFETY: likewise.
            unsafe {
                if rows - row >= 8 {
                    some::<L, 8>(q, turned, padded, out);
                    row += 8;
                } else {
                    some::<L, 1>(q, turned, padded, out);
                    row += 1;
                }
            }
        }
    });
}

/// Turns the scores of the columns within into weights, those of others into zeros, and takes what the state held down
/// to the new largest score.
fn weigh(scores: &mut [f32], within: Range<usize>, softcap: Option<f32>, padded: usize, state: &mut [f32]) {
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
fn add_values(weights: &[f32], v: Block, padded: usize, columns: usize, rows: usize, out: &mut [f32]) {
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
                    8.. => {
                        some::<L, 8>(weights, v, padded, columns, out);
                        row += 8;
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

#[cfg(test)]
#[path = "attention_tests.rs"]
mod tests;
