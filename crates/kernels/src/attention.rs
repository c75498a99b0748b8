//! Attention over a cache, keys taken a block at a time (FlashAttention, arXiv 2205.14135), long caches split between
//! threads (Flash-Decoding).

mod block;

use std::ops::Range;

use block::{Widened, add_values, scores, scores_of_many, weigh};

use crate::{
    Float,
    pool::{self, Unwritten},
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
    let tasks = Tasks::of(sizes, keys.columns);
    let (size, splits) = (tasks.size, tasks.splits);
    let (mut partials, mut out) = (Vec::new(), Vec::new());
    let states = Unwritten::new(&mut partials, if splits > 1 { tasks.count * size } else { 0 });
    let sums = Unwritten::new(&mut out, len);
    // Puts together what the tasks of some queries have found, one behind the other.
    let merge_all = |task: &Task, found: &[f32]| {
        for (row, query) in task.queries.clone().enumerate() {
            // SAFETY: each query has its own place in the living vector.
            let out = unsafe { sums.zeroed(task.place(sizes, query), head_dim) };
            let state = tasks.padded + 2;
            merge(found.chunks_exact(size).map(|found| &found[row * state..][..state]), out);
        }
    };
    pool::run(tasks.count, |index| {
        let task = tasks.get(index);
        let mut own = Vec::new();
        let out = match splits {
            1 => {
                own.resize(size, 0.0);
                own.as_mut_slice()
            }
            // SAFETY: each task has its own part of the living vector.
            _ => unsafe { states.zeroed(index * size, size) },
        };
        run_task(sizes, &task, q, keys, values, visible, out);
        if splits == 1 {
            merge_all(&task, out);
        }
    });
    if splits > 1 {
        // SAFETY: all tasks have written their parts.
        unsafe { states.written(&mut partials) };
        for (first, found) in (0..tasks.count).step_by(splits).zip(partials.chunks_exact(splits * size)) {
            merge_all(&tasks.get(first), found);
        }
    }
    // SAFETY: all queries of all heads were merged.
    unsafe { sums.written(&mut out) };
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

/// How the work is cut: by rows of the batch, heads of keys, blocks of queries, and splits of the columns.
struct Tasks {
    kv_heads: usize,
    columns: usize,
    /// That share a head of keys.
    queries: usize,
    blocks: usize,
    /// One behind the other are tasks of the same queries.
    splits: usize,
    /// Columns of a split.
    step: usize,
    count: usize,
    /// Values of a head, filled up to whole registers.
    padded: usize,
    /// Of what a task finds: for each of its queries the values, the largest score, and the sum of exponentials.
    size: usize,
}

impl Tasks {
    fn of(sizes: &Attention, columns: usize) -> Self {
        let &Attention { batch, seq, heads, kv_heads, head_dim, .. } = sizes;
        let queries = seq * (heads / kv_heads);
        let blocks = queries.div_ceil(QUERIES);
        // Few queries leave threads idle unless they share the columns.
        let splits = match batch * kv_heads * blocks {
            tasks if tasks >= 4 * pool::threads() => 1,
            tasks => (4 * pool::threads()).div_ceil(tasks.max(1)).min(columns.div_ceil(SPLIT)).max(1),
        };
        let step = columns.div_ceil(splits).next_multiple_of(BLOCK);
        let padded = head_dim.next_multiple_of(16);
        let size = QUERIES.min(queries.max(1)) * (padded + 2);
        let count = batch * kv_heads * blocks * splits;
        Self { kv_heads, columns, queries, blocks, splits, step, count, padded, size }
    }

    fn get(&self, index: usize) -> Task {
        let (split, rest) = (index % self.splits, index / self.splits);
        let (block, rest) = (rest % self.blocks, rest / self.blocks);
        Task {
            batch: rest / self.kv_heads,
            kv_head: rest % self.kv_heads,
            queries: block * QUERIES..((block + 1) * QUERIES).min(self.queries),
            columns: split * self.step..((split + 1) * self.step).min(self.columns),
        }
    }
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

#[cfg(test)]
#[path = "attention_tests.rs"]
mod tests;
