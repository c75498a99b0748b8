//! Draft trees from the distributions of a draft model.
//!
//! Each function asks `rows` for the draft model's distribution `[vocab]` behind a node of the tree so far, once for
//! each node that gets children.

use std::{cmp::Ordering, collections::BinaryHeap};

use crate::{Chance, DraftTree, greedy_split, verify::largest};

/// A probability below which what is left of a distribution counts as nothing.
const NOTHING: f64 = 1e-12;

/// How far a tree grows.
///
/// # Examples
/// ```
/// use moi_speculation::{Growth, likeliest_tree};
///
/// let growth = Growth { nodes: 3, ..Growth::default() };
/// let (tree, _) = likeliest_tree(&growth, |_, _| Ok::<_, ()>(vec![0.75, 0.25]))?;
/// // Behind the likeliest token the likeliest again: 0.75, 0.56, 0.42; all above 0.25.
/// assert_eq!((tree.tokens(), tree.is_chain()), (vec![0, 0, 0], true));
/// # Ok::<(), ()>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Growth {
    /// The most nodes that are drafted.
    pub nodes: usize,
    /// The most tokens behind each other.
    pub depth: usize,
    /// A draft is added only behind nodes to which the walk comes with at least this probability, as the drafter
    /// estimates it.
    pub threshold: f64,
    /// Behind a node nothing is drafted if no token there has at least this probability.
    pub min_p: f64,
}

impl Default for Growth {
    fn default() -> Self {
        Self { nodes: usize::MAX, depth: usize::MAX, threshold: 0.0, min_p: 0.0 }
    }
}

/// A place where a draft could be added: behind `node`, from what is left of its distribution.
struct Place {
    value: f64,
    arrival: usize,
    node: usize,
    /// What is left of the node's distribution; `None` if it was not asked for yet.
    row: Option<Vec<f64>>,
}

impl Ord for Place {
    fn cmp(&self, other: &Self) -> Ordering {
        self.value.total_cmp(&other.value).then(other.arrival.cmp(&self.arrival))
    }
}

impl PartialOrd for Place {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Place {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Place {}

/// Grows a tree where a draft is likeliest to be accepted. `pick` takes a token of what is left of a distribution.
/// Returns the tree and the value of each draft: that of the place where it was added if rows are kept, or the
/// probability that the walk comes to it.
fn grow<E>(
    growth: &Growth,
    mut rows: impl FnMut(&DraftTree, usize) -> Result<Vec<f64>, E>,
    mut pick: impl FnMut(&[f64]) -> Option<u32>,
    keeps_rows: bool,
) -> Result<(DraftTree, Vec<f64>), E> {
    let (mut tree, mut values, mut arrival) = (DraftTree::default(), Vec::new(), 0);
    let mut heap = BinaryHeap::from([Place { value: 1.0, arrival, node: 0, row: None }]);
    while values.len() < growth.nodes && growth.depth > 0 {
        let Some(Place { value, node, row, .. }) = heap.pop() else { break };
        if value < growth.threshold || value <= 0.0 {
            break;
        }
        let mut row = match row {
            Some(row) => row,
            None => {
                let row = rows(&tree, node)?;
                if row.iter().all(|&chance| chance < growth.min_p) {
                    continue;
                }
                if keeps_rows {
                    tree.set_row(node, row.clone());
                }
                row
            }
        };
        let Some(token) = pick(&row) else { continue };
        let new = tree.add(node, token);
        let chance = std::mem::take(&mut row[token as usize]);
        values.push(if keeps_rows { value } else { value * chance });
        let left: f64 = row.iter().sum();
        if left > NOTHING {
            row.iter_mut().for_each(|value| *value /= left);
            arrival += 1;
            heap.push(Place { value: value * (1.0 - chance), arrival, node, row: Some(row) });
        }
        if tree.depth(new) < growth.depth {
            arrival += 1;
            heap.push(Place { value: value * chance, arrival, node: new, row: None });
        }
    }
    Ok((tree, values))
}

/// Draws a tree within a budget, always where the draft is likeliest to be accepted (DySpec, arXiv 2410.11744), for
/// [`crate::Verifier::WithoutReplacement`]. Whether a node is added depends on values, never on the token that is
/// drawn there, so verifying is exact. Returns the tree and the value of each draft, in order.
///
/// # Errors
/// As `rows`.
///
/// # Examples
/// ```
/// use moi_speculation::{Growth, draft_dynamic};
///
/// let growth = Growth { nodes: 2, ..Growth::default() };
/// let rows = |_: &_, _| Ok::<_, ()>(vec![0.5, 0.5]);
/// let (tree, values) = draft_dynamic(&growth, rows, &mut || 0.0)?;
/// // The second draft is behind the same node: as likely as behind the first, and it was there earlier.
/// assert_eq!((tree.tokens(), tree.parents(), values), (vec![0, 1], vec![None, Some(0), Some(0)], vec![1.0, 0.5]));
/// # Ok::<(), ()>(())
/// ```
pub fn draft_dynamic<E>(
    growth: &Growth,
    rows: impl FnMut(&DraftTree, usize) -> Result<Vec<f64>, E>,
    source: &mut dyn Chance,
) -> Result<(DraftTree, Vec<f64>), E> {
    grow(growth, rows, |row| source.draw(row).map(|token| token as u32), true)
}

/// The tree of the nodes with the largest products of probabilities, for [`crate::Verifier::Match`]: as
/// [`draft_dynamic`], with the likeliest token that is left in place of a drawn one. Returns the tree and, for each
/// draft, the drafter's probability that the walk comes to it.
///
/// # Errors
/// As `rows`.
///
/// # Examples
/// ```
/// use moi_speculation::{Growth, likeliest_tree};
///
/// let growth = Growth { nodes: 3, depth: 2, ..Growth::default() };
/// let (tree, values) = likeliest_tree(&growth, |_, _| Ok::<_, ()>(vec![0.625, 0.375]))?;
/// // Behind the root both tokens; behind the likelier one the likelier one.
/// assert_eq!((tree.tokens(), values), (vec![0, 0, 1], vec![0.625, 0.390625, 0.375]));
/// # Ok::<(), ()>(())
/// ```
pub fn likeliest_tree<E>(
    growth: &Growth,
    rows: impl FnMut(&DraftTree, usize) -> Result<Vec<f64>, E>,
) -> Result<(DraftTree, Vec<f64>), E> {
    let likeliest = |row: &[f64]| largest(row, 1).first().copied().filter(|&token| row[token as usize] > 0.0);
    grow(growth, rows, likeliest, false)
}

/// Draws `paths` independent chains of `length` tokens, for [`crate::Verifier::KSeq`] and
/// [`crate::Verifier::WithReplacement`]; one path is the classic chain.
///
/// # Errors
/// As `rows`.
///
/// # Examples
/// ```
/// use moi_speculation::draft_paths;
///
/// let tree = draft_paths(2, 1, |_, _| Ok::<_, ()>(vec![0.5, 0.5]), &mut || 0.0).unwrap();
/// // The same token twice: one node, two drafts.
/// assert_eq!((tree.drafted(), tree.drafts(0)), (1, &[0, 0][..]));
/// ```
pub fn draft_paths<E>(
    paths: usize,
    length: usize,
    mut rows: impl FnMut(&DraftTree, usize) -> Result<Vec<f64>, E>,
    source: &mut dyn Chance,
) -> Result<DraftTree, E> {
    let mut tree = DraftTree::default();
    for _ in 0..paths {
        let mut node = 0;
        for _ in 0..length {
            if tree.row(node).is_none() {
                let row = rows(&tree, node)?;
                tree.set_row(node, row);
            }
            let Some(token) = tree.row(node).and_then(|row| source.draw(row)) else { break };
            node = tree.add(node, token as u32);
        }
    }
    Ok(tree)
}

/// Draws `branching[depth]` tokens without replacement behind each node of that depth, for
/// [`crate::Verifier::WithoutReplacement`].
///
/// # Errors
/// As `rows`.
///
/// # Examples
/// ```
/// use moi_speculation::draft_without_replacement;
///
/// let tree = draft_without_replacement(&[2], |_, _| Ok::<_, ()>(vec![0.5, 0.5]), &mut || 0.0).unwrap();
/// assert_eq!(tree.drafts(0), [0, 1]);
/// ```
pub fn draft_without_replacement<E>(
    branching: &[usize],
    mut rows: impl FnMut(&DraftTree, usize) -> Result<Vec<f64>, E>,
    source: &mut dyn Chance,
) -> Result<DraftTree, E> {
    in_layers(branching, |tree, node, width| {
        let mut left = rows(tree, node)?;
        tree.set_row(node, left.clone());
        let mut tokens = Vec::with_capacity(width);
        while tokens.len() < width && left.iter().sum::<f64>() > NOTHING {
            let Some(token) = source.draw(&left) else { break };
            left[token] = 0.0;
            tokens.push(token as u32);
        }
        Ok(tokens)
    })
}

/// Takes, behind each node of a depth, `branching[depth]` tokens from [`greedy_split`], the last of them drawn, for
/// [`crate::Verifier::Greedy`].
///
/// # Errors
/// As `rows`.
///
/// # Examples
/// ```
/// use moi_speculation::draft_greedy;
///
/// let tree = draft_greedy(&[2], |_, _| Ok::<_, ()>(vec![0.5, 0.25, 0.25]), &mut || 0.9).unwrap();
/// assert_eq!(tree.drafts(0), [0, 2]);
/// ```
pub fn draft_greedy<E>(
    branching: &[usize],
    mut rows: impl FnMut(&DraftTree, usize) -> Result<Vec<f64>, E>,
    source: &mut dyn Chance,
) -> Result<DraftTree, E> {
    in_layers(branching, |tree, node, width| {
        let row = rows(tree, node)?;
        let (mut tokens, rest) = greedy_split(&row, width);
        tree.set_row(node, row);
        match rest.and_then(|rest| source.draw(&rest)) {
            Some(token) => tokens.push(token as u32),
            // All that the drafter gives is among the likeliest ones, so nothing is left to draw the last one from.
            None => tokens.clear(),
        }
        Ok(tokens)
    })
}

/// Grows a tree layer by layer: `drafts` gives the tokens behind a node.
fn in_layers<E>(
    branching: &[usize],
    mut drafts: impl FnMut(&mut DraftTree, usize, usize) -> Result<Vec<u32>, E>,
) -> Result<DraftTree, E> {
    let (mut tree, mut layer) = (DraftTree::default(), vec![0]);
    for &width in branching {
        let mut next = Vec::new();
        for node in layer {
            let tokens = drafts(&mut tree, node, width)?;
            next.extend(tokens.into_iter().map(|token| tree.add(node, token)));
        }
        layer = next;
    }
    Ok(tree)
}
