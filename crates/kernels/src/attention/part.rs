//! The computation of a task: its queries against a part of the positions.

use std::ops::Range;

use super::block::{Block, MIN_WIDENED, Widened, add_values, scores, weigh};
use super::{AttentionSizes, AttentionSpan, BlockPlace, CACHE_BLOCK, CachedBlocks, Task, Visible};
use crate::{isa, lanes::dispatch};

/// Buffers and ranges of a task, reused for all its parts.
pub(super) struct Scratch {
    kv_head: usize,
    /// The queries, `[rows, padded]`.
    q: Vec<f32>,
    /// The positions that each query sees.
    seen: Vec<Range<usize>>,
    /// In a tree, the new positions on the path to the one position whose queries the task has.
    path: Option<Vec<usize>>,
    keys: Widened,
    values: Widened,
    /// The scores of a block, `[rows, CACHE_BLOCK]`.
    scores: Vec<f32>,
}

impl Scratch {
    pub(super) fn new(sizes: &AttentionSizes<'_>, q: &[f32], task: &Task, span: &AttentionSpan<'_>) -> Self {
        let (head_dim, group) = (sizes.head_dim, sizes.heads / sizes.kv_heads);
        let (rows, padded) = (task.queries.len(), head_dim.next_multiple_of(16));
        let mut own = vec![0.0; rows * padded];
        for (row, query) in task.queries.clone().enumerate() {
            own[row * padded..][..head_dim].copy_from_slice(&q[task.place(sizes, query)..][..head_dim]);
        }
        let first = task.queries.start / group;
        Self {
            kv_head: task.kv_head,
            q: own,
            seen: task.queries.clone().map(|query| span.seen(query / group, sizes.window)).collect(),
            path: matches!(span.visible, Visible::Tree(_)).then(|| span.visible.path(first)),
            keys: Widened::default(),
            values: Widened::default(),
            scores: vec![0.0; rows * CACHE_BLOCK],
        }
    }

    /// The keys `[head_dim, CACHE_BLOCK]` and values `[CACHE_BLOCK, padded]` of a block that some of the queries see.
    fn read(
        &mut self,
        sizes: &AttentionSizes<'_>,
        cached: &CachedBlocks<'_>,
        span: &AttentionSpan<'_>,
        block: usize,
        end: usize,
    ) -> [Block; 2] {
        let place = |block: usize| span.blocks[block - span.first_block];
        let at =
            |place: BlockPlace| (place.index * sizes.kv_heads + self.kv_head) * CACHE_BLOCK * sizes.head_dim;
        let positions = block * CACHE_BLOCK..end.min((block + 1) * CACHE_BLOCK);
        if let Some(path) = self.path.as_ref().filter(|_| positions.end > span.past) {
            // The positions on the path to the query are gathered one after another, as if there were no other
            // branches.
            let columns = positions.map(|position| {
                let real = match position.checked_sub(span.past) {
                    Some(depth) => span.past + path[depth],
                    None => position,
                };
                (place(real / CACHE_BLOCK), real % CACHE_BLOCK)
            });
            let columns: Vec<(BlockPlace, usize)> = columns.collect();
            let places = columns.iter().map(|&(place, column)| (place.slab, at(place), column));
            return [
                self.keys.gather_keys(&cached.keys, places.clone(), sizes.head_dim),
                self.values.gather_values(&cached.values, places, sizes.head_dim),
            ];
        }
        let place = place(block);
        let widens = self.seen.len() >= MIN_WIDENED;
        [
            self.keys.read_keys(&cached.keys[place.slab], at(place), sizes.head_dim, widens),
            self.values.read_values(
                &cached.values[place.slab],
                at(place),
                positions.len(),
                sizes.head_dim,
                widens,
            ),
        ]
    }
}

/// The softmax states of a task's queries over a part. The state of a query is its weighted sum of values, the
/// largest score, and the sum of weights.
pub(super) fn run_part(
    sizes: &AttentionSizes<'_>,
    cached: &CachedBlocks<'_>,
    span: &AttentionSpan<'_>,
    part: Range<usize>,
    scratch: &mut Scratch,
    out: &mut [f32],
) {
    let (rows, padded) = (scratch.seen.len(), sizes.head_dim.next_multiple_of(16));
    for state in out.chunks_mut(padded + 2) {
        state.fill(0.0);
        state[padded] = f32::NEG_INFINITY;
    }
    let first = scratch.seen.iter().map(|seen| seen.start.max(part.start)).min().unwrap_or(0);
    for block in first / CACHE_BLOCK..part.end.div_ceil(CACHE_BLOCK) {
        let begin = block * CACHE_BLOCK;
        let [k, v] = scratch.read(sizes, cached, span, block, part.end);
        scores(&scratch.q, k, sizes.head_dim, padded, rows, &mut scratch.scores);
        let mut most = 0;
        for (row, seen) in scratch.seen.iter().enumerate() {
            let scores = &mut scratch.scores[row * CACHE_BLOCK..][..CACHE_BLOCK];
            let within = seen.start.max(begin)..seen.end.min(begin + CACHE_BLOCK).min(part.end);
            if within.is_empty() {
                scores.fill(0.0);
                continue;
            }
            let within = within.start - begin..within.end - begin;
            most = most.max(within.end);
            weigh(scores, within, sizes.softcap, padded, &mut out[row * (padded + 2)..][..padded + 2]);
        }
        add_values(&scratch.scores, v, padded, most, rows, out);
    }
}

/// Merges the softmax states of a part into those of the parts before it, for each query.
pub(super) fn merge(all: &mut Vec<f32>, part: &[f32], state: usize) {
    if all.is_empty() {
        all.extend_from_slice(part);
        return;
    }
    for (all, part) in all.chunks_exact_mut(state).zip(part.chunks_exact(state)) {
        let (before, new) = (all[state - 2], part[state - 2]);
        if new == f32::NEG_INFINITY {
            continue;
        }
        let max = before.max(new);
        let (old, new) = ((before - max).exp(), (new - max).exp());
        dispatch!(isa(), |all: &mut [f32], part: &[f32], old: f32, new: f32| -> () {
            let sums = all.len() - 2;
            // SAFETY: all loads and stores are inside chunks of sixteen; the CPU has the instruction set.
            unsafe {
                for (all, part) in
                    all[..sums].as_chunks_mut::<16>().0.iter_mut().zip(part.as_chunks::<16>().0)
                {
                    let kept = L::load(all.as_ptr()).mul(L::splat(old));
                    L::load(part.as_ptr()).mul_add(L::splat(new), kept).store(all.as_mut_ptr());
                }
            }
            all[sums + 1] = all[sums + 1] * old + part[sums + 1] * new;
        });
        all[state - 2] = max;
    }
}
