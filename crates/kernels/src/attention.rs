//! Attention over a cache of blocks: FlashAttention (arXiv 2205.14135) block by block, long caches split between threads
//! (Flash-Decoding), keys and values found through a table of blocks (PagedAttention, arXiv 2309.06180).
//!
//! A query's result has the same bits whatever else is computed beside it, however many threads there are, and whether its
//! sequence came in one piece or in several: positions are taken in parts of [`PART`] positions that begin at multiples of
//! it, a part block by block, and parts are merged one behind the other. Products of a query and a key are added up value by
//! value, sums over positions position by position.

mod block;
mod part;

use std::ops::Range;

use crate::{
    Float,
    pool::{self, Unwritten},
};
use part::{Scratch, merge, run_part};

/// Positions of a block of the cache.
pub const CACHE_BLOCK: usize = 64;
/// Positions of a part, whose sums are merged with those of others: whole blocks.
const PART: usize = 4 * CACHE_BLOCK;
/// Queries that share the keys they read.
const QUERIES: usize = 48;

/// Sizes and scores.
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a> {
    /// Heads of a query.
    pub heads: usize,
    /// Heads of a key; queries' heads in groups share one.
    pub kv_heads: usize,
    /// Values of a head.
    pub head_dim: usize,
    /// Scores are `cap * tanh(score / cap)`.
    pub softcap: Option<f32>,
    /// A query sees so many positions, up to and with its own; all where `None`.
    pub window: Option<usize>,
    /// A logit of each head, which takes a share of the softmax and gives nothing; not capped.
    pub sinks: Option<&'a [f32]>,
}

/// Where a block of the cache is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockPlace {
    /// Which of the slabs.
    pub slab: usize,
    /// Which block of it.
    pub index: usize,
}

/// Keys and values of a layer, in slabs of blocks. A block of keys is `[kv_heads, head_dim, CACHE_BLOCK]`, one of values
/// `[kv_heads, CACHE_BLOCK, head_dim]`.
#[derive(Clone, Debug)]
pub struct CachedBlocks<'a> {
    /// Keys.
    pub keys: Vec<Float<'a>>,
    /// Values, in slabs of the same sizes.
    pub values: Vec<Float<'a>>,
}

/// What the new positions of a sequence see of each other. All see what came before them, as far as the window goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Visible {
    /// Those before them and themselves.
    #[default]
    Causal,
    /// All.
    Full,
    /// Those on the way to them in a tree: of each new position, the new position that it follows, which comes before it;
    /// `None` where it follows what came before.
    Tree(Vec<Option<usize>>),
}

/// The new positions of a sequence, whose keys and values are in the cache already.
#[derive(Clone, Debug)]
pub struct AttentionSpan<'a> {
    /// How many.
    pub len: usize,
    /// Positions of the sequence before them.
    pub past: usize,
    /// The blocks of the sequence from a position on, and which block of all that is.
    pub blocks: &'a [BlockPlace],
    /// The first of these, among all blocks of the sequence.
    pub first_block: usize,
    /// What they see of each other.
    pub visible: &'a Visible,
}

impl Visible {
    /// The new positions on the way to one of them, itself last.
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

    /// How many new positions come before one of them in its sequence.
    pub fn depth(&self, query: usize) -> usize {
        match self {
            Self::Causal | Self::Full => query,
            Self::Tree(_) => self.path(query).len() - 1,
        }
    }
}

impl AttentionSpan<'_> {
    /// The positions that one of the new ones sees; in a tree, where those on the way to it stand one behind the other.
    pub fn seen(&self, query: usize, window: Option<usize>) -> Range<usize> {
        let position = self.past + self.visible.depth(query);
        let end = match self.visible {
            Visible::Full => self.past + self.len,
            Visible::Causal | Visible::Tree(_) => position + 1,
        };
        window.map_or(0, |window| (position + 1).saturating_sub(window))..end
    }
}

/// softmax(q k^T) v: `q`, scaled already, and the result are `[positions, heads, head_dim]`, the positions of one span
/// behind those of the other.
///
/// # Panics
/// If the slices are shorter than the sizes say, or a span lacks blocks that its positions see.
pub fn attend(
    sizes: &Attention<'_>,
    q: &[f32],
    cached: &CachedBlocks<'_>,
    spans: &[AttentionSpan<'_>],
) -> Vec<f32> {
    let &Attention { heads, kv_heads, head_dim, sinks, .. } = sizes;
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
            // SAFETY: each query of each head has its own place in the living vector.
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
                // SAFETY: each part of each task has its own place in the living vector.
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
    // SAFETY: all parts of all tasks that have places there have written them.
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
    // SAFETY: all queries of all heads were finished.
    unsafe { sums.written(&mut out) };
    out
}

/// The sum of weights, which are relative to the largest score, with a head's sink in it; and the factor that the weighted
/// values have then.
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

/// That every block that is seen is there.
fn check(sizes: &Attention<'_>, cached: &CachedBlocks<'_>, spans: &[AttentionSpan<'_>]) {
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

/// How the work is cut: by spans, heads of keys, queries, and parts of the positions.
struct Tasks {
    /// One behind the other are tasks of the same queries.
    all: Vec<Task>,
    /// Sums of queries that tasks keep until all of the same queries are done.
    states: usize,
}

struct Task {
    span: usize,
    /// Queries of other spans before it.
    first_query: usize,
    kv_head: usize,
    /// Of all that share the head: position after position, the heads of the group together.
    queries: Range<usize>,
    /// What these see, from a multiple of [`PART`] on.
    seen: Range<usize>,
    /// Where its parts are kept, if they are: in sums of a query.
    first_state: Option<usize>,
}

impl Tasks {
    fn of(sizes: &Attention<'_>, spans: &[AttentionSpan<'_>]) -> Self {
        let group = sizes.heads / sizes.kv_heads;
        let (mut whole, mut first_query) = (Vec::new(), 0);
        for (index, span) in spans.iter().enumerate() {
            // Of a tree each position sees others.
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
        // Few queries leave threads idle unless they share the positions.
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
    /// Parts of the positions that are seen.
    fn parts(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let Range { start, end } = self.seen;
        (start..end).step_by(PART).map(move |begin| begin..(begin + PART).min(end))
    }

    fn is_of_the_same(&self, other: &Self) -> bool {
        (self.span, self.kv_head, &self.queries) == (other.span, other.kv_head, &other.queries)
    }

    /// Where a query begins.
    fn place(&self, sizes: &Attention<'_>, query: usize) -> usize {
        let group = sizes.heads / sizes.kv_heads;
        let (position, member) = (query / group, query % group);
        ((self.first_query + position) * sizes.heads + self.kv_head * group + member) * sizes.head_dim
    }
}

#[cfg(test)]
#[path = "attention_tests.rs"]
mod tests;
