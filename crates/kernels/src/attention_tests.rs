use half::{bf16, f16};

use super::*;

/// Keys and values of one sequence in blocks that lie in two slabs, in no particular order.
struct Cache {
    /// `[positions, kv_heads, head_dim]` each.
    keys: Vec<f32>,
    values: Vec<f32>,
    slabs: [[Vec<f32>; 2]; 2],
    places: Vec<BlockPlace>,
}

fn number(i: usize) -> f32 {
    ((i * 48271 % 65537) as f32 / 32768.0 - 1.0) * 0.7
}

impl Cache {
    fn new(kv_heads: usize, head_dim: usize, positions: usize, seed: usize) -> Self {
        let size = positions * kv_heads * head_dim;
        let keys = (0..size).map(|i| number(5 * i + 2 + seed)).collect();
        let values = (0..size).map(|i| number(11 * i + 7 + seed)).collect();
        Self::of(kv_heads, head_dim, keys, values)
    }

    fn of(kv_heads: usize, head_dim: usize, keys: Vec<f32>, values: Vec<f32>) -> Self {
        let positions = keys.len() / (kv_heads * head_dim);
        let blocks = positions.div_ceil(CACHE_BLOCK);
        let places = (0..blocks).map(|block| BlockPlace { slab: block % 2, index: (blocks - 1 - block) / 2 });
        let per_slab = blocks.div_ceil(2) * CACHE_BLOCK * kv_heads * head_dim;
        // Unused positions of the cache may hold anything, even NaN.
        let slab = || [vec![f32::NAN; per_slab], vec![f32::NAN; per_slab]];
        let mut cache = Self { keys, values, slabs: [slab(), slab()], places: places.collect() };
        for position in 0..positions {
            let place = cache.places[position / CACHE_BLOCK];
            for head in 0..kv_heads {
                for i in 0..head_dim {
                    let from = (position * kv_heads + head) * head_dim + i;
                    let base = (place.index * kv_heads + head) * CACHE_BLOCK * head_dim;
                    let column = position % CACHE_BLOCK;
                    cache.slabs[0][place.slab][base + i * CACHE_BLOCK + column] = cache.keys[from];
                    cache.slabs[1][place.slab][base + column * head_dim + i] = cache.values[from];
                }
            }
        }
        cache
    }

    fn attend(&self, sizes: &AttentionSizes<'_>, q: &[f32], past: usize, visible: &Visible) -> Vec<f32> {
        let cached = CachedBlocks {
            keys: self.slabs[0].iter().map(|slab| Float::F32(slab)).collect(),
            values: self.slabs[1].iter().map(|slab| Float::F32(slab)).collect(),
        };
        attend(sizes, q, &cached, &[self.span(sizes, q, past, visible)])
    }

    fn span<'a>(
        &'a self,
        sizes: &AttentionSizes<'_>,
        q: &[f32],
        past: usize,
        visible: &'a Visible,
    ) -> AttentionSpan<'a> {
        let len = q.len() / (sizes.heads * sizes.head_dim);
        // Blocks before the window need not exist.
        let first_block = sizes.window.map_or(0, |window| (past + 1).saturating_sub(window) / CACHE_BLOCK);
        AttentionSpan { len, past, blocks: &self.places[first_block..], first_block, visible }
    }

    /// Reference: the attention formula in float64.
    fn expected(&self, sizes: &AttentionSizes<'_>, q: &[f32], past: usize, visible: &Visible) -> Vec<f64> {
        let &AttentionSizes { heads, kv_heads, head_dim, softcap, window, sinks } = sizes;
        let mut out = vec![0.0; q.len()];
        for query in 0..q.len() / (heads * head_dim) {
            let path = visible.path(query);
            let position = past + path.len() - 1;
            let new = if *visible == Visible::Full { q.len() / (heads * head_dim) } else { path.len() };
            let real = |p: usize| match p.checked_sub(past) {
                Some(depth) if matches!(visible, Visible::Tree(_)) => past + path[depth],
                _ => p,
            };
            let begin = window.map_or(0, |window| (position + 1).saturating_sub(window));
            let position = if *visible == Visible::Full { past + query } else { position };
            let begin = if *visible == Visible::Full {
                window.map_or(0, |w| (position + 1).saturating_sub(w))
            } else {
                begin
            };
            for h in 0..heads {
                let (at, kv) = ((query * heads + h) * head_dim, h / (heads / kv_heads));
                let place = |p: usize, i: usize| (real(p) * kv_heads + kv) * head_dim + i;
                let score = |p: usize| {
                    let dot: f64 =
                        (0..head_dim).map(|i| f64::from(q[at + i]) * f64::from(self.keys[place(p, i)])).sum();
                    softcap.map_or(dot, |cap| (dot / f64::from(cap)).tanh() * f64::from(cap))
                };
                let scores: Vec<(usize, f64)> = (begin..past + new).map(|p| (p, score(p))).collect();
                let sink = sinks.map(|sinks| f64::from(sinks[h]));
                let max = scores.iter().map(|s| s.1).chain(sink).fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = scores.iter().map(|s| s.1).chain(sink).map(|score| (score - max).exp()).sum();
                for (p, score) in scores {
                    for i in 0..head_dim {
                        out[at + i] += (score - max).exp() / sum * f64::from(self.values[place(p, i)]);
                    }
                }
            }
        }
        out
    }
}

fn queries(sizes: &AttentionSizes<'_>, count: usize) -> Vec<f32> {
    (0..count * sizes.heads * sizes.head_dim).map(|i| number(3 * i + 1)).collect()
}

/// heads, kv_heads, head_dim, past, new positions, window, softcap
type Case = (usize, usize, usize, usize, usize, Option<usize>, Option<f32>);

const CASES: &[Case] = &[
    (1, 1, 8, 0, 1, None, None),
    (9, 3, 64, 575, 1, None, None),
    (4, 1, 16, 1300, 1, Some(700), None),
    (6, 2, 24, 9, 70, None, None),
    (4, 4, 32, 100, 33, Some(40), Some(5.0)),
    (32, 1, 12, 3, 5, Some(2), None),
    (1, 1, 40, 5, 13, None, None),
    (3, 3, 80, 700, 90, Some(300), None),
];

/// Sinks of up to 32 heads: below all scores, among them and above.
const SINKS: [f32; 32] = {
    let mut sinks = [0.0; 32];
    let mut head = 0;
    while head < 32 {
        sinks[head] = [-30.0, 0.3, 1.5, 12.0, -2.0][head % 5];
        head += 1;
    }
    sinks
};

fn sizes(case: &Case) -> AttentionSizes<'static> {
    let &(heads, kv_heads, head_dim, past, _, window, softcap) = case;
    let sinks = (past % 2 == 1).then_some(&SINKS[..heads]);
    AttentionSizes { heads, kv_heads, head_dim, softcap, window, sinks }
}

#[test]
fn agrees_with_the_formula_whatever_the_sizes() {
    for case in CASES {
        let (sizes, past, len) = (sizes(case), case.3, case.4);
        let cache = Cache::new(sizes.kv_heads, sizes.head_dim, past + len, 0);
        let q = queries(&sizes, len);
        // The tree has two chains behind the root, and a fork in one of them.
        let parents = (0..len).map(|node| [None, None, Some(node.saturating_sub(2))][node.min(2)]);
        for visible in [Visible::Causal, Visible::Full, Visible::Tree(parents.collect())] {
            let found = cache.attend(&sizes, &q, past, &visible);
            let expected = cache.expected(&sizes, &q, past, &visible);
            for (found, expected) in found.iter().zip(expected) {
                assert!(
                    (f64::from(*found) - expected).abs() < 2e-6,
                    "{sizes:?}, {past}, {visible:?}: {found} {expected}"
                );
            }
        }
    }
}

#[test]
fn halves_give_what_their_values_give() {
    fn in_type<T>(slabs: &[Vec<f32>; 2], round: fn(f32) -> T) -> [Vec<T>; 2] {
        slabs.each_ref().map(|slab| slab.iter().map(|&x| round(x)).collect())
    }
    for case in CASES {
        let (sizes, past, len) = (sizes(case), case.3, case.4);
        let mut cache = Cache::new(sizes.kv_heads, sizes.head_dim, past + len, 0);
        let q = queries(&sizes, len);
        let [keys, values] = cache.slabs.clone();
        let halves = [&keys, &values].map(|slabs| in_type(slabs, f16::from_f32));
        let shorts = [&keys, &values].map(|slabs| in_type(slabs, bf16::from_f32));
        let of = |cache: &Cache, keys, values| {
            let span = cache.span(&sizes, &q, past, &Visible::Causal);
            attend(&sizes, &q, &CachedBlocks { keys, values }, &[span])
        };
        let [k, v] = halves.each_ref().map(|slabs| slabs.iter().map(|slab| Float::F16(slab)).collect());
        let of_halves = of(&cache, k, v);
        let [k, v] = shorts.each_ref().map(|slabs| slabs.iter().map(|slab| Float::Bf16(slab)).collect());
        let of_shorts = of(&cache, k, v);
        cache.slabs = [&keys, &values].map(|slabs| in_type(slabs, |x| f16::from_f32(x).to_f32()));
        assert_eq!(of_halves, cache.attend(&sizes, &q, past, &Visible::Causal), "{sizes:?}");
        cache.slabs = [&keys, &values].map(|slabs| in_type(slabs, |x| bf16::from_f32(x).to_f32()));
        assert_eq!(of_shorts, cache.attend(&sizes, &q, past, &Visible::Causal), "{sizes:?}");
    }
}

/// A query has the same bits alone, in pieces, and beside other sequences.
#[test]
fn a_query_has_the_same_bits_in_any_company() {
    for case in CASES {
        let (sizes, past, len) = (sizes(case), case.3, case.4);
        let cache = Cache::new(sizes.kv_heads, sizes.head_dim, past + len, 0);
        let other = Cache::new(sizes.kv_heads, sizes.head_dim, 333, 40);
        let q = queries(&sizes, len);
        let width = sizes.heads * sizes.head_dim;
        let whole = cache.attend(&sizes, &q, past, &Visible::Causal);
        for step in [1, 3, 8, 50] {
            let pieces = q.chunks(step * width).enumerate();
            let pieces: Vec<f32> = pieces
                .flat_map(|(at, q)| cache.attend(&sizes, q, past + at * step, &Visible::Causal))
                .collect();
            assert_eq!(pieces, whole, "{sizes:?}: pieces of {step}");
        }
        // Beside another sequence, whose slabs follow.
        let other_q = queries(&sizes, 20);
        let slabs = |of: usize| {
            cache.slabs[of].iter().chain(&other.slabs[of]).map(|slab| Float::F32(slab)).collect::<Vec<_>>()
        };
        let cached = CachedBlocks { keys: slabs(0), values: slabs(1) };
        let behind: Vec<BlockPlace> =
            other.places.iter().map(|place| BlockPlace { slab: place.slab + 2, ..*place }).collect();
        let causal = Visible::Causal;
        let theirs = AttentionSpan { len: 20, past: 313, blocks: &behind, first_block: 0, visible: &causal };
        let spans = [theirs, cache.span(&sizes, &q, past, &causal)];
        let both = attend(&sizes, &[other_q.clone(), q.clone()].concat(), &cached, &spans);
        assert_eq!(both[20 * width..], whole, "{sizes:?}");
        assert_eq!(both[..20 * width], other.attend(&sizes, &other_q, 313, &causal), "{sizes:?}");
    }
}

/// Each position of a tree has the result that it has when only the positions on its path are computed.
#[test]
fn a_tree_is_its_paths() {
    for case in CASES {
        let (sizes, past) = (sizes(case), case.3);
        // Positions around the end of a block are tested too.
        for past in [past, past.next_multiple_of(CACHE_BLOCK) + CACHE_BLOCK - 3] {
            let parents = vec![None, None, Some(0), Some(2), Some(1), Some(2), Some(5), None, Some(6)];
            let cache = Cache::new(sizes.kv_heads, sizes.head_dim, past + parents.len(), 0);
            let width = sizes.kv_heads * sizes.head_dim;
            let q = queries(&sizes, parents.len());
            let tree = Visible::Tree(parents);
            let found = cache.attend(&sizes, &q, past, &tree);
            let of_query = |x: &[f32], query: usize| {
                x[query * sizes.heads * sizes.head_dim..][..sizes.heads * sizes.head_dim].to_vec()
            };
            for query in 0..9 {
                let path = tree.path(query);
                let mut alone = Cache::new(sizes.kv_heads, sizes.head_dim, past + path.len(), 0);
                for (depth, &node) in path.iter().enumerate() {
                    for (to, from) in [(&mut alone.keys, &cache.keys), (&mut alone.values, &cache.values)] {
                        to[(past + depth) * width..][..width]
                            .copy_from_slice(&from[(past + node) * width..][..width]);
                    }
                }
                let alone = Cache::of(sizes.kv_heads, sizes.head_dim, alone.keys, alone.values);
                let expected =
                    alone.attend(&sizes, &of_query(&q, query), past + path.len() - 1, &Visible::Causal);
                assert_eq!(of_query(&found, query), expected, "{sizes:?}: {query} of the tree behind {past}");
            }
        }
    }
}

#[test]
fn broken_queries_show() {
    let sizes =
        AttentionSizes { heads: 1, kv_heads: 1, head_dim: 16, softcap: None, window: None, sinks: None };
    let cache = Cache::new(1, 16, 4, 0);
    let found = cache.attend(&sizes, &[f32::NAN; 16], 3, &Visible::Causal);
    assert!(found.iter().all(|value| value.is_nan()));
}

#[test]
#[should_panic(expected = "the blocks of a sequence")]
fn blocks_that_are_not_there_are_refused() {
    let sizes =
        AttentionSizes { heads: 1, kv_heads: 1, head_dim: 16, softcap: None, window: None, sinks: None };
    Cache::new(1, 16, 64, 0).attend(&sizes, &[0.0; 16], 64, &Visible::Causal);
}
