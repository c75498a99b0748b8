//! What drafts tokens for one sequence, and drafters that need no model.

use std::{
    fmt::Debug,
    sync::{Arc, Mutex, PoisonError},
};

use crate::{
    Chance, DraftTree, Growth, HitRate, LookupIndex, LookupSettings, RecyclingTable, SUCCESSOR_RATES,
    likeliest, lookup::MAX_MATCH,
};

/// Drafted tokens and what they promise.
///
/// # Examples
/// ```
/// use moi_speculation::{Draft, DraftTree};
///
/// let draft = Draft { tree: DraftTree::chain(&[4, 5]), values: vec![0.5, 0.25] };
/// assert_eq!(draft.best(1).tree.tokens(), [4]);
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Draft {
    /// The tokens.
    pub tree: DraftTree,
    /// For each drafted node, from node 1 on, the estimated probability that it is accepted: never more than that of
    /// its parent.
    pub values: Vec<f64>,
}

impl Draft {
    /// Keeps the `count` nodes that are likeliest to be accepted, ties by the earlier node.
    #[must_use]
    pub fn best(self, count: usize) -> Self {
        if count >= self.tree.drafted() {
            return self;
        }
        let mut nodes: Vec<usize> = (1..self.tree.len()).collect();
        nodes.sort_by(|&a, &b| self.values[b - 1].total_cmp(&self.values[a - 1]).then(a.cmp(&b)));
        nodes.truncate(count);
        nodes.sort_unstable();
        let values = nodes.iter().map(|&node| self.values[node - 1]).collect();
        Self { tree: self.tree.subtree(&nodes), values }
    }
}

/// An error of a drafter.
pub type DraftError = Box<dyn std::error::Error + Send + Sync>;

/// Drafts tokens of one sequence. A wrong draft costs time and changes nothing else.
///
/// Where drafts are verified by the distributions from which they were drawn ([`DraftTree::set_row`]), these must be
/// over the vocabulary of the model that verifies, and neither the number of drafts nor whether one is there may depend
/// on its own token.
///
/// # Examples
/// ```
/// use moi_speculation::{Draft, DraftError, DraftTree, Drafter, Growth, Chance};
///
/// /// Always drafts the same token.
/// #[derive(Debug)]
/// struct Stubborn(u32);
///
/// impl Drafter for Stubborn {
///     fn draft(&mut self, _: &[u32], growth: &Growth, _: &mut dyn Chance) -> Result<Draft, DraftError> {
///         let tokens = vec![self.0; growth.depth.min(growth.nodes)];
///         Ok(Draft { tree: DraftTree::chain(&tokens), values: vec![0.5; tokens.len()] })
///     }
///
///     fn push(&mut self, _: u32) {}
/// }
/// let growth = Growth { depth: 2, ..Growth::default() };
/// assert_eq!(Stubborn(7).draft(&[], &growth, &mut || 0.5).unwrap().tree.tokens(), [7, 7]);
/// ```
pub trait Drafter: Debug + Send {
    /// Drafts tokens behind the text so far and `ahead`, tokens that are expected behind it but may still change,
    /// within limits.
    ///
    /// # Errors
    /// If the drafter fails; the sequence then goes on without drafts in this round.
    fn draft(&mut self, ahead: &[u32], growth: &Growth, source: &mut dyn Chance)
    -> Result<Draft, DraftError>;

    /// Adds a token to the text: first those of the prompt, then those that are generated.
    fn push(&mut self, token: u32);

    /// Whether [`Drafter::learn`] uses what it is given.
    fn learns(&self) -> bool {
        false
    }

    /// Tells the logits `[vocab]` behind a token that ran through the model, whether it was accepted or not.
    fn learn(&mut self, token: u32, logits: &[f32]) {
        let _ = (token, logits);
    }
}

/// The most nodes of a draft, whatever is asked for.
const MAX_DRAFTED: usize = 1024;

/// Prompt lookup, with estimates of how often matches of each length go on as they did.
///
/// # Examples
/// ```
/// use moi_speculation::{Drafter, Growth, LookupDrafter, LookupSettings};
///
/// let mut drafter = LookupDrafter::new(LookupSettings::default());
/// [1, 2, 3, 4, 1, 2].into_iter().for_each(|token| drafter.push(token));
/// let draft = drafter.draft(&[], &Growth { depth: 2, ..Growth::default() }, &mut || 0.5)?;
/// assert_eq!(draft.tree.tokens(), [3, 4]);
/// # Ok::<(), moi_speculation::DraftError>(())
/// ```
#[derive(Clone, Debug)]
pub struct LookupDrafter {
    index: LookupIndex,
    /// By the number of tokens that agree, from 1 on.
    rates: [HitRate; MAX_MATCH],
}

impl LookupDrafter {
    /// A drafter without a text.
    pub fn new(settings: LookupSettings) -> Self {
        let prior = |matched: usize| 1.0 - 0.7 / (matched as f64 + 1.0).sqrt();
        Self { index: LookupIndex::new(settings), rates: std::array::from_fn(|at| HitRate::new(prior(at))) }
    }

    fn rate(&self, matched: usize) -> f64 {
        self.rates[matched.clamp(1, MAX_MATCH) - 1].get()
    }
}

impl Drafter for LookupDrafter {
    fn draft(&mut self, ahead: &[u32], growth: &Growth, _: &mut dyn Chance) -> Result<Draft, DraftError> {
        let found = self.index.draft_behind(ahead, growth.depth.min(growth.nodes).min(MAX_DRAFTED));
        let (mut value, mut values) = (1.0, Vec::with_capacity(found.tokens.len()));
        for more in 0..found.tokens.len() {
            // A token that is right makes the match one longer.
            value *= self.rate(found.matched + more);
            values.push(value);
        }
        Ok(Draft { tree: DraftTree::chain(&found.tokens), values })
    }

    fn push(&mut self, token: u32) {
        let found = self.index.draft(1);
        if let Some(&drafted) = found.tokens.first() {
            self.rates[found.matched.clamp(1, MAX_MATCH) - 1].observe(drafted == token);
        }
        self.index.push(token);
    }
}

/// Token Recycling with a table that all sequences of a model share, and estimates of how often a successor of each
/// rank is right.
///
/// # Examples
/// ```
/// use std::sync::{Arc, Mutex};
///
/// use moi_speculation::{Drafter, Growth, RecyclingDrafter, RecyclingTable};
///
/// let table = Arc::new(Mutex::new(RecyclingTable::new(10, 2)));
/// let mut drafter = RecyclingDrafter::new(table);
/// // Behind 3 the model found 4 likeliest.
/// drafter.learn(3, &[0.0, 0.0, 0.0, 0.0, 9.0, 1.0, 0.0, 0.0, 0.0, 0.0]);
/// drafter.push(3);
/// let draft = drafter.draft(&[], &Growth { nodes: 1, ..Growth::default() }, &mut || 0.5)?;
/// assert_eq!(draft.tree.tokens(), [4]);
/// # Ok::<(), moi_speculation::DraftError>(())
/// ```
#[derive(Clone, Debug)]
pub struct RecyclingDrafter {
    table: Arc<Mutex<RecyclingTable>>,
    last: Option<u32>,
    /// By rank.
    rates: Vec<HitRate>,
}

impl RecyclingDrafter {
    /// A drafter without a text.
    pub fn new(table: Arc<Mutex<RecyclingTable>>) -> Self {
        let width = table.lock().unwrap_or_else(PoisonError::into_inner).width();
        let prior = |rank: usize| SUCCESSOR_RATES.get(rank).copied().unwrap_or(0.01);
        Self { table, last: None, rates: (0..width).map(|rank| HitRate::new(prior(rank))).collect() }
    }
}

impl Drafter for RecyclingDrafter {
    fn draft(&mut self, ahead: &[u32], growth: &Growth, _: &mut dyn Chance) -> Result<Draft, DraftError> {
        let last = ahead.last().copied().or(self.last);
        let Some(last) = last.filter(|_| growth.depth > 0) else { return Ok(Draft::default()) };
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut tree, mut values) = (DraftTree::default(), Vec::new());
        // The next draft of a node is that of its next rank, so the best places are among a few for each node.
        let mut places = vec![(self.rates.first().map_or(0.0, HitRate::get), 0, 0)];
        while values.len() < growth.nodes.min(MAX_DRAFTED) {
            let best = places.iter().enumerate().max_by(|a, b| a.1.0.total_cmp(&b.1.0).then(b.0.cmp(&a.0)));
            let Some((at, &(value, node, rank))) = best else { break };
            places.swap_remove(at);
            let before = if node == 0 { 1.0 } else { values[node - 1] };
            let token = tree.token(node).unwrap_or(last);
            let Some(&successor) = table.successors(token).get(rank) else { continue };
            let new = tree.add(node, successor);
            values.push(value);
            if let Some(next) = self.rates.get(rank + 1) {
                // Estimates of later ranks may be larger by chance; a parent's value is never below its child's.
                places.push(((before * next.get()).min(before), node, rank + 1));
            }
            if tree.depth(new) < growth.depth {
                places.push((value * self.rates[0].get(), new, 0));
            }
        }
        Ok(Draft { tree, values })
    }

    fn push(&mut self, token: u32) {
        if let Some(last) = self.last.replace(token) {
            let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
            let successors = table.successors(last);
            for (rate, &successor) in self.rates.iter_mut().zip(successors) {
                rate.observe(successor == token);
            }
        }
    }

    fn learns(&self) -> bool {
        true
    }

    fn learn(&mut self, token: u32, logits: &[f32]) {
        let successors = likeliest(logits, self.rates.len());
        self.table.lock().unwrap_or_else(PoisonError::into_inner).learn(token, &successors);
    }
}

/// Several drafters as one: equal drafts of theirs are one draft, and those that promise most are taken.
///
/// # Examples
/// ```
/// use moi_speculation::{Drafter, Growth, JoinedDrafter, LookupDrafter, LookupSettings};
///
/// let lookup = || Box::new(LookupDrafter::new(LookupSettings::default())) as Box<dyn Drafter>;
/// let mut joined = JoinedDrafter::new(vec![lookup(), lookup()]);
/// [8, 9, 8].into_iter().for_each(|token| joined.push(token));
/// let draft = joined.draft(&[], &Growth { depth: 1, ..Growth::default() }, &mut || 0.5)?;
/// assert_eq!(draft.tree.tokens(), [9]);
/// # Ok::<(), moi_speculation::DraftError>(())
/// ```
#[derive(Debug)]
pub struct JoinedDrafter {
    parts: Vec<Box<dyn Drafter>>,
}

impl JoinedDrafter {
    /// One drafter of several.
    pub fn new(parts: Vec<Box<dyn Drafter>>) -> Self {
        Self { parts }
    }
}

impl Drafter for JoinedDrafter {
    fn draft(
        &mut self,
        ahead: &[u32],
        growth: &Growth,
        source: &mut dyn Chance,
    ) -> Result<Draft, DraftError> {
        let (mut tree, mut values) = (DraftTree::default(), Vec::new());
        for part in &mut self.parts {
            let draft = part.draft(ahead, growth, source)?;
            let mut places = vec![0];
            for node in 1..draft.tree.len() {
                let parent = places[draft.tree.parent(node).unwrap_or(0)];
                let (token, value) =
                    (draft.tree.token(node).unwrap_or(0), draft.values.get(node - 1).copied().unwrap_or(0.0));
                let bound = if parent == 0 { 1.0 } else { values[parent - 1] };
                let place = tree.child(parent, token).unwrap_or_else(|| tree.add(parent, token));
                match values.get_mut(place - 1) {
                    Some(known) => *known = value.max(*known).min(bound),
                    None => values.push(value.min(bound)),
                }
                places.push(place);
            }
        }
        Ok(Draft { tree, values }.best(growth.nodes))
    }

    fn push(&mut self, token: u32) {
        self.parts.iter_mut().for_each(|part| part.push(token));
    }

    fn learns(&self) -> bool {
        self.parts.iter().any(|part| part.learns())
    }

    fn learn(&mut self, token: u32, logits: &[f32]) {
        self.parts.iter_mut().filter(|part| part.learns()).for_each(|part| part.learn(token, logits));
    }
}
