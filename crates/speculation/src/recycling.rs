//! Token Recycling (arXiv 2408.08696): the likeliest successors that were seen last are the drafts.

use std::{cmp::Ordering, collections::BinaryHeap};

use crate::DraftTree;

/// How often the successor of a rank was right: defaults for [`template`].
pub const SUCCESSOR_RATES: [f64; 8] = [0.5, 0.14, 0.08, 0.05, 0.035, 0.025, 0.02, 0.015];

/// Marks a place without a token.
const NONE: u32 = u32::MAX;

/// For each token, its likeliest successors when it last ran through the model.
///
/// # Examples
/// ```
/// use moi_speculation::{RecyclingTable, template};
///
/// let mut table = RecyclingTable::new(10, 2);
/// table.learn(3, &[4, 5]);
/// table.learn(4, &[6]);
/// let tree = table.draft(3, &template(3, &[0.6, 0.3], 2));
/// // Behind 3 come 4 and 5; behind 4 comes 6.
/// assert_eq!((tree.tokens(), tree.parents()), (vec![4, 5, 6], vec![None, Some(0), Some(0), Some(1)]));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecyclingTable {
    /// `[vocab, width]`.
    successors: Vec<u32>,
    width: usize,
}

impl RecyclingTable {
    /// A table of a vocabulary, in which nothing was seen, with `width` successors for each token.
    pub fn new(vocab: usize, width: usize) -> Self {
        Self { successors: vec![NONE; vocab * width], width }
    }

    /// Number of successors that are kept for each token.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The successors of a token, the likeliest first; empty for a token that was not seen.
    pub fn successors(&self, token: u32) -> &[u32] {
        let first = token as usize * self.width;
        let all = self.successors.get(first..first + self.width).unwrap_or_default();
        &all[..all.iter().position(|&id| id == NONE).unwrap_or(all.len())]
    }

    /// Sets the likeliest successors of a token, the likeliest first. More than the table's width are left out.
    pub fn learn(&mut self, token: u32, successors: &[u32]) {
        let first = token as usize * self.width;
        if let Some(own) = self.successors.get_mut(first..first + self.width) {
            own.fill(NONE);
            own.iter_mut().zip(successors).for_each(|(own, &token)| *own = token);
        }
    }

    /// Drafts behind a token along paths of ranks. A path comes behind its beginning; a path without one, or to a
    /// successor that was never seen, is left out.
    pub fn draft(&self, last: u32, paths: &[Vec<usize>]) -> DraftTree {
        let mut tree = DraftTree::default();
        let mut nodes: Vec<(&[usize], usize)> = vec![(&[], 0)];
        for path in paths {
            let Some((&rank, before)) = path.split_last() else { continue };
            let Some(&(_, parent)) = nodes.iter().find(|(path, _)| *path == before) else { continue };
            let token = tree.token(parent).unwrap_or(last);
            if let Some(&successor) = self.successors(token).get(rank) {
                nodes.push((path, tree.add(parent, successor)));
            }
        }
        tree
    }

    /// The table as bytes, for a file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let width = self.width as u32;
        std::iter::once(&width).chain(&self.successors).flat_map(|id| id.to_le_bytes()).collect()
    }

    /// The table of a vocabulary from what [`Self::to_bytes`] gave; `None` if it is of another one, or broken.
    pub fn from_bytes(bytes: &[u8], vocab: usize) -> Option<Self> {
        let (words, rest) = bytes.as_chunks::<4>();
        let mut words = words.iter().map(|word| u32::from_le_bytes(*word));
        let width = words.next()? as usize;
        let successors: Vec<u32> = words.collect();
        let fits = rest.is_empty() && width > 0 && Some(successors.len()) == vocab.checked_mul(width);
        let known = successors.iter().all(|&id| id == NONE || (id as usize) < vocab);
        (fits && known).then_some(Self { successors, width })
    }
}

/// As [`likeliest`], for many.
fn likeliest_of_many(logits: &[f32], count: usize) -> Vec<u32> {
    // Equal zeros of different signs are ties.
    let order = |&a: &u32, &b: &u32| {
        let [first, second] = [a, b].map(|id| logits[id as usize] + 0.0);
        second.total_cmp(&first).then(a.cmp(&b))
    };
    let mut ids: Vec<u32> = (0..logits.len() as u32).filter(|&id| !logits[id as usize].is_nan()).collect();
    if count < ids.len() {
        ids.select_nth_unstable_by(count - 1, order);
        ids.truncate(count);
    }
    ids.sort_unstable_by(order);
    ids
}

/// The indices of the largest logits, the largest first, ties by the lower id; NaN comes last.
///
/// # Examples
/// ```
/// use moi_speculation::likeliest;
///
/// assert_eq!(likeliest(&[0.5, 2.0, f32::NAN, 2.0, 1.0], 3), [1, 3, 4]);
/// ```
pub fn likeliest(logits: &[f32], count: usize) -> Vec<u32> {
    const CHUNK: usize = 64;
    /// For more, a list that is kept in order is slower than a sort.
    const MAX_ORDERED: usize = 128;
    if count == 0 {
        return Vec::new();
    }
    if count > MAX_ORDERED {
        return likeliest_of_many(logits, count);
    }
    let mut best: Vec<(f32, u32)> = Vec::with_capacity(count.min(logits.len()) + 1);
    for (chunk, values) in logits.chunks(CHUNK).enumerate() {
        // Most chunks hold nothing that is large enough, which their maximum tells without a branch per value.
        let least = if best.len() < count { f32::NEG_INFINITY } else { best[count - 1].0 };
        if best.len() == count && largest(values) <= least {
            continue;
        }
        for (index, &value) in values.iter().enumerate() {
            if value.is_nan() || (best.len() == count && value <= best[count - 1].0) {
                continue;
            }
            let at = best.partition_point(|(other, _)| *other >= value);
            best.insert(at, (value, (chunk * CHUNK + index) as u32));
            best.truncate(count);
        }
    }
    best.into_iter().map(|(_, id)| id).collect()
}

/// The largest value, NaN left out. Sixteen are compared at a time, which `f32::max` in a row cannot be.
fn largest(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 16];
    let (chunks, rest) = values.as_chunks::<16>();
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane = if value > *lane { value } else { *lane };
        }
    }
    let all = lanes.iter().chain(rest);
    all.fold(f32::NEG_INFINITY, |largest, &value| if value > largest { value } else { largest })
}

/// A path of ranks and the product of their rates.
struct Path {
    value: f64,
    ranks: Vec<usize>,
}

impl Ord for Path {
    fn cmp(&self, other: &Self) -> Ordering {
        let shorter = other.ranks.len().cmp(&self.ranks.len());
        self.value.total_cmp(&other.value).then(shorter).then_with(|| other.ranks.cmp(&self.ranks))
    }
}

impl PartialOrd for Path {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Path {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Path {}

/// The `budget` paths of ranks with the largest products of `rates[rank]`, up to `max_depth` ranks each; ties go to
/// the shorter, then to the lower ranks. Sorted by length, then by ranks, so that a path comes behind its beginning.
///
/// # Examples
/// ```
/// use moi_speculation::template;
///
/// // By products: [0] 0.5, [0, 0] 0.25, [1] 0.2.
/// assert_eq!(template(3, &[0.5, 0.2], 4), [vec![0], vec![1], vec![0, 0]]);
/// ```
pub fn template(budget: usize, rates: &[f64], max_depth: usize) -> Vec<Vec<usize>> {
    let first = rates.iter().enumerate().map(|(rank, &value)| Path { value, ranks: vec![rank] });
    let mut heap: BinaryHeap<Path> = first.filter(|_| max_depth > 0).collect();
    let mut paths = Vec::new();
    while paths.len() < budget {
        let Some(Path { value, ranks }) = heap.pop() else { break };
        if ranks.len() < max_depth {
            heap.extend(rates.iter().enumerate().map(|(rank, rate)| {
                let ranks = ranks.iter().copied().chain([rank]).collect();
                Path { value: value * rate, ranks }
            }));
        }
        paths.push(ranks);
    }
    paths.sort_by(|a, b| a.len().cmp(&b.len()).then_with(|| a.cmp(b)));
    paths
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_table_is_written_and_read() {
        let mut table = RecyclingTable::new(5, 3);
        table.learn(2, &[4, 1]);
        table.learn(9, &[1]);
        assert_eq!(
            (table.successors(2), table.successors(3), table.successors(9)),
            (&[4, 1][..], &[][..], &[][..])
        );
        let bytes = table.to_bytes();
        assert_eq!(RecyclingTable::from_bytes(&bytes, 5), Some(table));
        assert_eq!(RecyclingTable::from_bytes(&bytes, 4), None);
        assert_eq!(RecyclingTable::from_bytes(&bytes[..bytes.len() - 1], 5), None);
        let mut broken = bytes.clone();
        broken[4..8].copy_from_slice(&77u32.to_le_bytes());
        assert_eq!(RecyclingTable::from_bytes(&broken, 5), None);
        assert_eq!(RecyclingTable::from_bytes(&[], 5), None);
    }

    #[test]
    fn many_are_in_the_order_of_few() {
        let logits: Vec<f32> = (0..400)
            .map(|id| match id % 7 {
                0 => -0.0,
                1 => 0.0,
                2 => f32::NAN,
                3 => f32::NEG_INFINITY,
                rest => (id * 31 % 17) as f32 - rest as f32,
            })
            .collect();
        let all = likeliest(&logits, 400);
        assert_eq!(all.len(), 400 - 57);
        for count in [1, 3, 100, 128, 129, 200] {
            assert_eq!(likeliest(&logits, count), all[..count], "{count}");
        }
    }

    proptest! {
        #[test]
        fn the_likeliest_are_those_of_a_sort(
            logits in prop::collection::vec(prop_oneof![-4i8..4, -100i8..100], 0..300),
            count in 0usize..12,
        ) {
            let logits: Vec<f32> = logits.into_iter().map(f32::from).collect();
            let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
            ids.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b)));
            ids.truncate(count);
            prop_assert_eq!(likeliest(&logits, count), ids);
        }
    }
}
