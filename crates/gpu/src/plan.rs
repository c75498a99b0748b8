//! The attention plan of a forward pass: the cache slots of new positions, and what each of them sees, as kernels
//! read it.

use moi_kernels::{AttentionSpan, CACHE_BLOCK, Visible};

use crate::Buffer;

/// New positions of several sequences, on a device. The words are made by [`plan_words`].
#[derive(Clone, Debug)]
pub struct AttentionPlan {
    /// The words, as in [`PlanWords::words`].
    pub words: Buffer,
    /// Number of new positions.
    pub tokens: usize,
    /// Number of cubes for one key head, if positions are not split.
    pub tiles: usize,
    /// Queries per cube.
    pub queries: usize,
    /// Maximum number of positions that the queries of a cube see.
    pub longest: usize,
}

/// The words of a plan, and the sizes that the host needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanWords {
    /// In this order:
    /// - the cache slot of each new position, `block * CACHE_BLOCK + position in the block`;
    /// - for each new position, the first position that it sees, the end of these, and the index in these words of
    ///   its path through a tree, or 0 if it has none;
    /// - for each cube, its first query, its number of queries, the index in these words of its sequence's block
    ///   table, and which of the sequence's blocks comes first in that table;
    /// - block tables and paths. A path is the number of positions before the tree, then the positions on the path.
    pub words: Vec<u32>,
    /// See [`AttentionPlan::tiles`].
    pub tiles: usize,
    /// See [`AttentionPlan::longest`].
    pub longest: usize,
}

/// The plan of spans whose blocks all lie in one slab, for cubes of `queries` queries.
pub fn plan_words(spans: &[AttentionSpan<'_>], window: Option<usize>, queries: usize) -> PlanWords {
    let tokens: usize = spans.iter().map(|span| span.len).sum();
    let at_once =
        |span: &AttentionSpan<'_>| if matches!(span.visible, Visible::Tree(_)) { 1 } else { queries };
    let tiles: usize = spans.iter().map(|span| span.len.div_ceil(at_once(span))).sum();
    let mut tail_at = 4 * tokens + 4 * tiles;
    let (mut slots, mut seen_words, mut tile_words, mut tail) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut first, mut longest) = (0, 0);
    for span in spans {
        let table = tail_at;
        tail.extend(span.blocks.iter().map(|place| place.index as u32));
        tail_at += span.blocks.len();
        for query in 0..span.len {
            let position = span.past + query;
            let place = span.blocks[position / CACHE_BLOCK - span.first_block];
            slots.push((place.index * CACHE_BLOCK + position % CACHE_BLOCK) as u32);
            let seen = span.seen(query, window);
            let mut path_at = 0;
            if matches!(span.visible, Visible::Tree(_)) {
                let path = span.visible.path(query);
                path_at = tail_at as u32;
                tail.push(span.past as u32);
                tail.extend(path.iter().map(|node| (span.past + node) as u32));
                tail_at += 1 + path.len();
            }
            seen_words.extend([seen.start as u32, seen.end as u32, path_at]);
        }
        for begin in (0..span.len).step_by(at_once(span)) {
            let count = at_once(span).min(span.len - begin);
            tile_words.extend([first + begin, count, table, span.first_block].map(|word| word as u32));
            let (start, end) = (span.seen(begin, window).start, span.seen(begin + count - 1, window).end);
            longest = longest.max(end - start);
        }
        first += span.len;
    }
    let words = [slots, seen_words, tile_words, tail].concat();
    PlanWords { words, tiles, longest }
}

#[cfg(test)]
mod tests {
    use moi_kernels::BlockPlace;

    use super::*;

    #[test]
    fn words_say_where_positions_are_and_what_they_see() {
        let blocks = [7, 3].map(|index| BlockPlace { slab: 0, index });
        let (causal, tree) = (Visible::Causal, Visible::Tree(vec![None, Some(0), Some(0)]));
        let spans = [
            AttentionSpan { len: 3, past: 62, blocks: &blocks, first_block: 0, visible: &causal },
            AttentionSpan { len: 3, past: 130, blocks: &blocks[..1], first_block: 2, visible: &tree },
        ];
        let plan = plan_words(&spans, Some(60), 2);
        let slots = [7 * 64 + 62, 7 * 64 + 63, 3 * 64, 7 * 64 + 2, 7 * 64 + 3, 7 * 64 + 4];
        let (table, other) = (4 * 6 + 4 * 5, 4 * 6 + 4 * 5 + 2);
        let seen = [3, 63, 0, 4, 64, 0, 5, 65, 0, 71, 131, other + 1, 72, 132, other + 3, 72, 132, other + 6];
        let tiles = [0, 2, table, 0, 2, 1, table, 0, 3, 1, other, 2, 4, 1, other, 2, 5, 1, other, 2];
        let tail = [7, 3, 7, 130, 130, 130, 130, 131, 130, 130, 132];
        assert_eq!(plan.words, [&slots[..], &seen, &tiles, &tail].concat());
        assert_eq!((plan.tiles, plan.longest), (5, 61));
    }
}
