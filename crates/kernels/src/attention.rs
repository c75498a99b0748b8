//! Attention over a KV cache of blocks: FlashAttention (arXiv 2205.14135) block by block, long caches split between
//! threads (Flash-Decoding), keys and values found through a block table (PagedAttention, arXiv 2309.06180).
//!
//! A query's result has the same bits whatever else is in the batch, however many threads there are, and whether its
//! sequence was prefilled in one piece or in several. For this, positions are processed in parts of [`PART`]
//! positions that begin at multiples of it, each part block by block, and the parts are merged in order. The dot
//! product of a query and a key is summed value by value, and sums over positions position by position.

mod block;
mod part;

use std::ops::Range;

use crate::{
    Float,
    pool::{self, Unwritten},
};
use part::{Scratch, merge, run_part};

/// Positions in a block of the KV cache.
pub const CACHE_BLOCK: usize = 64;
/// Positions in a part, a whole number of blocks. Each part has its own softmax state, and the states are merged.
const PART: usize = 4 * CACHE_BLOCK;
/// Maximum number of queries of a task, which share the keys that it reads.
const QUERIES: usize = 48;

/// Sizes and score options of an attention layer.
#[derive(Clone, Copy, Debug)]
pub struct AttentionSizes<'a> {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; each is shared by a group of `heads / kv_heads` query heads.
    pub kv_heads: usize,
    /// Values per head.
    pub head_dim: usize,
    /// Logit soft cap: scores become `cap * tanh(score / cap)`.
    pub softcap: Option<f32>,
    /// Sliding window: a query sees this many positions, up to and including its own; all where `None`.
    pub window: Option<usize>,
    /// Attention sinks: a logit per query head that adds to the softmax denominator but has no value; it is not
    /// soft-capped.
    pub sinks: Option<&'a [f32]>,
}

/// The place of a block in the KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockPlace {
    /// Index of the slab.
    pub slab: usize,
    /// Index of the block in the slab.
    pub index: usize,
}

/// Keys and values of a layer, in slabs of blocks. A block of keys is `[kv_heads, head_dim, CACHE_BLOCK]`, a block of
/// values `[kv_heads, CACHE_BLOCK, head_dim]`.
#[derive(Clone, Debug)]
pub struct CachedBlocks<'a> {
    /// Keys.
    pub keys: Vec<Float<'a>>,
    /// Values, in slabs of the same sizes.
    pub values: Vec<Float<'a>>,
}

/// The attention mask among the new positions of a sequence. All of them see the earlier positions, within the
/// window.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Visible {
    /// Each new position sees those before it and itself.
    #[default]
    Causal,
    /// Each new position sees all of them.
    Full,
    /// The new positions form a tree, and each sees its ancestors and itself. The vector holds the index of each new
    /// position's parent, which comes before it; `None` where it follows the earlier positions directly.
    Tree(Vec<Option<usize>>),
}

/// The new positions of a sequence. Their keys and values are in the cache already.
#[derive(Clone, Debug)]
pub struct AttentionSpan<'a> {
    /// Number of new positions.
    pub len: usize,
    /// Number of earlier positions of the sequence.
    pub past: usize,
    /// The block table of the sequence from block `first_block` on.
    pub blocks: &'a [BlockPlace],
    /// Index of the first of these blocks among all blocks of the sequence.
    pub first_block: usize,
    /// The attention mask among the new positions.
    pub visible: &'a Visible,
}

impl Visible {
    /// The new positions on the path to one of them, which is the last.
    pub fn path(&self, query: usize) -> Vec<usize> {
        match self {
            Self::Causal | Self::Full => (0..=query).collect(),
            Self::Tree(parents) => {
                let mut path = vec![query];
                while let Some(parent) = path.last().and_then(|&node| parents[node]) {
                    path.push(parent);
                }
                path.reverse();
                path
            }
        }
    }

    /// Number of new positions that precede one of them in its sequence.
    pub fn depth(&self, query: usize) -> usize {
        match self {
            Self::Causal | Self::Full => query,
            Self::Tree(_) => self.path(query).len() - 1,
        }
    }
}

impl AttentionSpan<'_> {
    /// The range of positions that a new position sees. In a tree, positions are numbered along the path to it.
    pub fn seen(&self, query: usize, window: Option<usize>) -> Range<usize> {
        let position = self.past + self.visible.depth(query);
        let end = match self.visible {
            Visible::Full => self.past + self.len,
            Visible::Causal | Visible::Tree(_) => position + 1,
        };
        window.map_or(0, |window| (position + 1).saturating_sub(window))..end
    }
}

/// Computes softmax(q k^T) v. `q`, which is scaled already, and the result are `[positions, heads, head_dim]`; the
/// positions of the spans follow one another.
///
/// # Panics
/// If the slices are shorter than the sizes require, or a span lacks blocks that its positions see.
pub fn attend(
    sizes: &AttentionSizes<'_>,
    q: &[f32],
    cached: &CachedBlocks<'_>,
    spans: &[AttentionSpan<'_>],
) -> Vec<f32> {
    let &AttentionSizes { heads, kv_heads, head_dim, sinks, .. } = sizes;
    let positions: usize = spans.iter().map(|span| span.len).sum();
    let len = positions * heads * head_dim;
    assert!(q.len() == len && heads.is_multiple_of(kv_heads.max(1)), "queries of all heads");
    assert!(sinks.is_none_or(|sinks| sinks.len() == heads), "a sink of each head");
    check(sizes, cached, spans);
    let state = head_dim.next_multiple_of(16) + 2;
    let tasks = Tasks::of(sizes, spans);
    let mut out = Vec::new();
    let sums = Unwritten::new(&mut out, len);
    let mut partials = Vec::new();
    let states = Unwritten::new(&mut partials, tasks.states * state);
    let finish = |task: &Task, found: &[f32]| {
        for (row, query) in task.queries.clone().enumerate() {
            // SAFETY: each query of each head has a place of its own in `out`, which outlives the tasks.
            let out = unsafe { sums.zeroed(task.place(sizes, query), head_dim) };
            let (values, state) = found[row * state..][..state].split_at(state - 2);
            let sink = sizes.sinks.map(|sinks| sinks[task.place(sizes, query) / head_dim % heads]);
            if state[0] > f32::NEG_INFINITY {
                let [factor, sum] = with_sink([state[0], state[1]], sink);
                out.iter_mut().zip(values).for_each(|(out, value)| *out = value * factor / sum);
            }
        }
    };
    pool::run(tasks.all.len(), |index| {
        let task = &tasks.all[index];
        let mut scratch = Scratch::new(sizes, q, task, &spans[task.span]);
        let size = task.queries.len() * state;
        if let Some(first) = task.first_state {
            for (part, positions) in task.parts().enumerate() {
                // SAFETY: each part of each task has a place of its own in `partials`, which outlives the tasks.
                let out = unsafe { states.zeroed(first * state + part * size, size) };
                run_part(sizes, cached, &spans[task.span], positions, &mut scratch, out);
            }
            return;
        }
        let (mut all, mut part) = (Vec::new(), vec![0.0; size]);
        for positions in task.parts() {
            run_part(sizes, cached, &spans[task.span], positions, &mut scratch, &mut part);
            merge(&mut all, &part, state);
        }
        finish(task, &all);
    });
    // SAFETY: all parts of all tasks that have a place in `partials` have written it.
    unsafe { states.written(&mut partials) };
    for same in tasks.all.chunk_by(|a, b| a.is_of_the_same(b)) {
        let Some(first) = same[0].first_state else { continue };
        let (mut all, size) = (Vec::new(), same[0].queries.len() * state);
        let parts: usize = same.iter().map(|task| task.parts().count()).sum();
        for part in partials[first * state..][..parts * size].chunks_exact(size) {
            merge(&mut all, part, state);
        }
        finish(&same[0], &all);
    }
    // SAFETY: `finish` has run for all queries of all heads.
    unsafe { sums.written(&mut out) };
    out
}

/// Adds a head's sink to the softmax denominator. Takes the largest score and the sum of the weights relative to it;
/// returns the factor by which the weighted values change, and the new sum.
fn with_sink([largest, sum]: [f32; 2], sink: Option<f32>) -> [f32; 2] {
    match sink {
        None => [1.0, sum],
        Some(sink) => {
            let both = largest.max(sink);
            let factor = (largest - both).exp();
            [factor, sum * factor + (sink - both).exp()]
        }
    }
}

/// Asserts that every block that is read exists.
fn check(sizes: &AttentionSizes<'_>, cached: &CachedBlocks<'_>, spans: &[AttentionSpan<'_>]) {
    let size = sizes.kv_heads * CACHE_BLOCK * sizes.head_dim;
    assert!(cached.keys.len() == cached.values.len(), "keys and values in as many slabs");
    for span in spans {
        let begin = (0..span.len).map(|query| span.seen(query, sizes.window).start).min().unwrap_or(0);
        let all = span.first_block..span.first_block + span.blocks.len();
        assert!(begin / CACHE_BLOCK >= all.start, "the blocks of a window");
        assert!((span.past + span.len).div_ceil(CACHE_BLOCK) <= all.end, "the blocks of a sequence");
        if let Visible::Tree(parents) = span.visible {
            let before = |(node, parent): (usize, &Option<usize>)| parent.is_none_or(|parent| parent < node);
            assert!(
                parents.len() == span.len && parents.iter().enumerate().all(before),
                "parents come first"
            );
        }
        for place in span.blocks {
            let end = (place.index + 1) * size;
            let (keys, values) = (&cached.keys[place.slab], &cached.values[place.slab]);
            assert!(end <= keys.len() && end <= values.len(), "a block of a slab");
        }
    }
}

/// The division of the work by spans, key heads, queries, and parts of the positions.
struct Tasks {
    /// Tasks of the same queries are adjacent.
    all: Vec<Task>,
    /// Number of softmax states, one per query and part, that are kept until all tasks of the same queries are done.
    states: usize,
}

struct Task {
    span: usize,
    /// Number of new positions in earlier spans.
    first_query: usize,
    kv_head: usize,
    /// Range among the queries that share the key head, ordered by position, then by head of the group.
    queries: Range<usize>,
    /// The positions that these queries see, extended down to a multiple of [`PART`].
    seen: Range<usize>,
    /// Index of the first softmax state kept for this task; `None` if the task finishes its queries itself.
    first_state: Option<usize>,
}

impl Tasks {
    fn of(sizes: &AttentionSizes<'_>, spans: &[AttentionSpan<'_>]) -> Self {
        let group = sizes.heads / sizes.kv_heads;
        let (mut whole, mut first_query) = (Vec::new(), 0);
        for (index, span) in spans.iter().enumerate() {
            // In a tree each position sees different ones, so a task has the queries of a single position.
            let at_once = if matches!(span.visible, Visible::Tree(_)) { group } else { QUERIES };
            let queries = span.len * group;
            for kv_head in 0..sizes.kv_heads {
                for begin in (0..queries).step_by(at_once) {
                    let queries = begin..(begin + at_once).min(queries);
                    let seen = (queries.start / group..=(queries.end - 1) / group)
                        .map(|query| span.seen(query, sizes.window))
                        .reduce(|a, b| a.start.min(b.start)..a.end.max(b.end));
                    let Some(seen) = seen else { continue };
                    let seen = seen.start / PART * PART..seen.end;
                    whole.push(Task { span: index, first_query, kv_head, queries, seen, first_state: None });
                }
            }
            first_query += span.len;
        }
        // Few tasks would leave threads idle, so they are divided further, by parts of the positions.
        let wanted = 4 * pool::threads();
        if whole.len() >= wanted || pool::threads() == 1 {
            return Self { all: whole, states: 0 };
        }
        let pieces = wanted.div_ceil(whole.len().max(1));
        let (mut all, mut states) = (Vec::new(), 0);
        for task in whole {
            let parts = task.parts().count();
            let step = parts.div_ceil(pieces);
            if step == parts {
                all.push(task);
                continue;
            }
            for first in (0..parts).step_by(step) {
                let begin = task.seen.start + first * PART;
                let seen = begin..(begin + step * PART).min(task.seen.end);
                let queries = task.queries.clone();
                let piece = Task { seen, queries, first_state: Some(states), ..task };
                states += piece.parts().count() * piece.queries.len();
                all.push(piece);
            }
        }
        Self { all, states }
    }
}

impl Task {
    /// The positions that are seen, in parts.
    fn parts(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let Range { start, end } = self.seen;
        (start..end).step_by(PART).map(move |begin| begin..(begin + PART).min(end))
    }

    fn is_of_the_same(&self, other: &Self) -> bool {
        (self.span, self.kv_head, &self.queries) == (other.span, other.kv_head, &other.queries)
    }

    /// Index of the first value of a query in `q` and the result.
    fn place(&self, sizes: &AttentionSizes<'_>, query: usize) -> usize {
        let group = sizes.heads / sizes.kv_heads;
        let (position, member) = (query / group, query % group);
        ((self.first_query + position) * sizes.heads + self.kv_head * group + member) * sizes.head_dim
    }
}

#[cfg(test)]
#[path = "attention_tests.rs"]
mod tests;
