//! Drafted tokens behind the last token of a text.

/// Drafted tokens as a tree. Node 0 is the last token of the text, which has not run through the model yet; each
/// other node is a drafted token behind its parent, and comes after it in order. A chain is a tree, too.
///
/// Equal drafts behind the same parent are one node, but are listed as often as they were drafted, because verifiers
/// count them.
///
/// # Examples
/// ```
/// use moi_speculation::DraftTree;
///
/// let mut tree = DraftTree::default();
/// let a = tree.add(0, 7);
/// let b = tree.add(0, 9);
/// let c = tree.add(a, 8);
/// assert_eq!((tree.len(), tree.drafted(), tree.max_depth()), (4, 3, 2));
/// assert_eq!(tree.parents(), [None, Some(0), Some(0), Some(1)]);
/// assert_eq!((tree.path(c), tree.token(b)), (vec![7, 8], Some(9)));
/// assert!(!tree.is_chain());
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DraftTree {
    /// The nodes behind the first one.
    nodes: Vec<Node>,
    /// The drafts behind each node, in the order in which they were drafted.
    drafts: Vec<Vec<u32>>,
    /// The distribution from which the drafts behind a node were drawn, where that is known.
    rows: Vec<Option<Vec<f64>>>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Node {
    token: u32,
    parent: usize,
    depth: usize,
}

impl DraftTree {
    /// A chain: each token behind the one before it.
    pub fn chain(tokens: &[u32]) -> Self {
        let mut tree = Self::default();
        tokens.iter().fold(0, |node, &token| tree.add(node, token));
        tree
    }

    /// Adds a draft behind a node. Returns its node.
    ///
    /// # Panics
    /// If there is no such parent.
    pub fn add(&mut self, parent: usize, token: u32) -> usize {
        assert!(parent < self.len(), "a node of the tree");
        self.of(parent).push(token);
        self.child(parent, token).unwrap_or_else(|| {
            self.nodes.push(Node { token, parent, depth: self.depth(parent) + 1 });
            self.nodes.len()
        })
    }

    fn of(&mut self, node: usize) -> &mut Vec<u32> {
        if self.drafts.len() <= node {
            self.drafts.resize(node + 1, Vec::new());
        }
        &mut self.drafts[node]
    }

    /// Sets the distribution `[vocab]` from which the drafts behind a node are drawn.
    pub fn set_row(&mut self, node: usize, row: Vec<f64>) {
        if self.rows.len() <= node {
            self.rows.resize(node + 1, None);
        }
        self.rows[node] = Some(row);
    }

    /// The distribution from which the drafts behind a node were drawn, if it is known.
    pub fn row(&self, node: usize) -> Option<&[f64]> {
        self.rows.get(node)?.as_deref()
    }

    /// Number of nodes, the first one included.
    pub fn len(&self) -> usize {
        self.nodes.len() + 1
    }

    /// Whether nothing was drafted.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Number of drafted nodes.
    pub fn drafted(&self) -> usize {
        self.nodes.len()
    }

    /// The drafted tokens, in the order of their nodes from node 1 on.
    pub fn tokens(&self) -> Vec<u32> {
        self.nodes.iter().map(|node| node.token).collect()
    }

    /// The token of a drafted node; `None` for node 0.
    pub fn token(&self, node: usize) -> Option<u32> {
        Some(self.nodes.get(node.checked_sub(1)?)?.token)
    }

    /// The node before a node; `None` for node 0.
    pub fn parent(&self, node: usize) -> Option<usize> {
        Some(self.nodes.get(node.checked_sub(1)?)?.parent)
    }

    /// The parents of all nodes.
    pub fn parents(&self) -> Vec<Option<usize>> {
        std::iter::once(None).chain(self.nodes.iter().map(|node| Some(node.parent))).collect()
    }

    /// Number of drafted tokens up to and with a node.
    pub fn depth(&self, node: usize) -> usize {
        node.checked_sub(1).map_or(0, |node| self.nodes[node].depth)
    }

    /// Depth of the deepest node.
    pub fn max_depth(&self) -> usize {
        self.nodes.iter().map(|node| node.depth).max().unwrap_or(0)
    }

    /// Whether each node has one child at most.
    pub fn is_chain(&self) -> bool {
        self.nodes.iter().enumerate().all(|(index, node)| node.parent == index)
    }

    /// The drafts behind a node, in the order in which they were drafted.
    pub fn drafts(&self, node: usize) -> &[u32] {
        self.drafts.get(node).map_or(&[], Vec::as_slice)
    }

    /// The node of a token behind a node, if it was drafted there.
    pub fn child(&self, parent: usize, token: u32) -> Option<usize> {
        let later = self.nodes.get(parent..)?.iter().zip(parent + 1..);
        let mut children = later.filter(|(node, _)| node.parent == parent && node.token == token);
        children.next().map(|(_, index)| index)
    }

    /// The drafted tokens up to and with a node.
    pub fn path(&self, node: usize) -> Vec<u32> {
        let mut tokens = Vec::with_capacity(self.depth(node));
        let mut at = node;
        while let Some(token) = self.token(at) {
            tokens.push(token);
            at = self.parent(at).unwrap_or(0);
        }
        tokens.reverse();
        tokens
    }

    /// The tree of some nodes, in order, and of node 0. A node whose parent is not among them is left out, and all
    /// that is behind it.
    #[must_use]
    pub fn subtree(&self, nodes: &[usize]) -> Self {
        let mut kept = Self::default();
        let mut places = vec![None; self.len()];
        places[0] = Some(0);
        for &node in nodes {
            let parent = self.parent(node).and_then(|parent| places[parent]);
            places[node] = self.token(node).zip(parent).map(|(token, parent)| kept.add(parent, token));
        }
        for (node, place) in places.iter().enumerate() {
            let Some(place) = *place else { continue };
            let is_kept = |token: &u32| kept.child(place, *token).is_some();
            let drafts: Vec<u32> = self.drafts(node).iter().copied().filter(is_kept).collect();
            if !drafts.is_empty() {
                *kept.of(place) = drafts;
            }
            if let Some(row) = self.row(node) {
                kept.set_row(place, row.to_vec());
            }
        }
        kept
    }

    /// This tree behind a chain of tokens: its node 0 becomes the last of these.
    ///
    /// # Examples
    /// ```
    /// use moi_speculation::DraftTree;
    ///
    /// let tree = DraftTree::chain(&[3, 4]).behind(&[1, 2]);
    /// assert_eq!(tree, DraftTree::chain(&[1, 2, 3, 4]));
    /// ```
    #[must_use]
    pub fn behind(self, chain: &[u32]) -> Self {
        let mut all = Self::chain(chain);
        for node in &self.nodes {
            all.add(node.parent + chain.len(), node.token);
        }
        // Equal drafts, which are one node, are listed as often as they were drafted.
        for (node, drafts) in self.drafts.into_iter().enumerate().filter(|(_, drafts)| !drafts.is_empty()) {
            *all.of(node + chain.len()) = drafts;
        }
        for (node, row) in self.rows.into_iter().enumerate() {
            if let Some(row) = row {
                all.set_row(node + chain.len(), row);
            }
        }
        all
    }

    /// The same drafts without the distributions from which they were drawn, which take much memory.
    #[must_use]
    pub fn without_rows(&self) -> Self {
        Self { nodes: self.nodes.clone(), drafts: self.drafts.clone(), rows: Vec::new() }
    }

    /// The nodes whose token passes, and that of all nodes before them.
    pub fn passing(&self, passes: impl Fn(u32) -> bool) -> Vec<usize> {
        let mut passed = vec![true; self.len()];
        for node in 1..self.len() {
            passed[node] = self.parent(node).is_some_and(|parent| passed[parent])
                && self.token(node).is_some_and(&passes);
        }
        (1..self.len()).filter(|&node| passed[node]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_drafts_are_one_node_and_two_drafts() {
        let mut tree = DraftTree::default();
        let a = tree.add(0, 4);
        assert_eq!(tree.add(0, 4), a);
        let b = tree.add(a, 4);
        assert_eq!(
            (tree.len(), tree.drafts(0), tree.drafts(a), tree.drafts(b)),
            (3, &[4, 4][..], &[4][..], &[][..])
        );
        assert_eq!((tree.child(0, 4), tree.child(a, 4), tree.child(b, 4)), (Some(1), Some(2), None));
        assert!(tree.is_chain() && DraftTree::default().is_chain() && DraftTree::default().is_empty());
    }

    #[test]
    fn what_is_behind_a_dropped_node_is_dropped() {
        let mut tree = DraftTree::default();
        let a = tree.add(0, 1);
        let b = tree.add(0, 2);
        tree.add(a, 3);
        let c = tree.add(b, 4);
        tree.add(c, 1);
        tree.set_row(b, vec![0.5, 0.5]);
        assert_eq!(tree.passing(|token| token != 1), [2, 4]);
        let kept = tree.subtree(&[2, 4]);
        assert_eq!((kept.tokens(), kept.parents()), (vec![2, 4], vec![None, Some(0), Some(1)]));
        assert_eq!((kept.drafts(0), kept.row(1)), (&[2][..], Some(&[0.5, 0.5][..])));
        assert_eq!(tree.subtree(&[1, 2, 3, 4, 5]), tree);
        assert!(tree.subtree(&[3, 4]).is_empty());
    }

    #[test]
    fn a_tree_behind_a_chain_keeps_its_shape() {
        let mut tree = DraftTree::chain(&[1, 2]);
        tree.add(0, 1);
        let other = tree.add(0, 5);
        tree.set_row(other, vec![1.0]);
        let all = tree.clone().behind(&[8, 9]);
        assert_eq!((all.tokens(), all.drafts(2)), (vec![8, 9, 1, 2, 5], &[1, 1, 5][..]));
        assert_eq!((all.parent(5), all.row(5), all.path(4)), (Some(2), Some(&[1.0][..]), vec![8, 9, 1, 2]));
        assert_eq!(tree.clone().behind(&[]), tree);
    }
}
