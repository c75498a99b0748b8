//! Tokens that may still be sampled.

use std::{cmp::Ordering, collections::HashMap};

/// A token that may be sampled.
///
/// # Examples
/// ```
/// use moi_sampling::{Candidate, Candidates};
///
/// let mut candidates = Candidates::new(&[0.5, 2.0]);
/// candidates.retain(|candidate: &Candidate| candidate.logit > 1.0);
/// assert_eq!(candidates.iter().map(|candidate| candidate.id).collect::<Vec<_>>(), [1]);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// The token id.
    pub id: u32,
    /// Its logit after the samplers applied so far.
    pub logit: f64,
    /// e^(logit - largest logit), the probability without normalisation. Valid right after [`Candidates::weigh`].
    pub(crate) weight: f64,
}

/// Tokens that may be sampled, with their logits.
///
/// # Examples
/// ```
/// use moi_sampling::{Candidates, filters};
///
/// let mut candidates = Candidates::new(&[0.0, 2.0, 1.0]);
/// filters::top_k(&mut candidates, 2);
/// let likeliest = candidates.probabilities();
/// assert_eq!(likeliest.iter().map(|(token, _)| *token).collect::<Vec<_>>(), [1, 2]);
/// assert!((likeliest.iter().map(|(_, p)| p).sum::<f64>() - 1.0).abs() < 1e-12);
/// // `draw` maps a number from 0 to below 1 to a token, walking the tokens in the order of their ids.
/// assert_eq!((candidates.draw(0.0), candidates.draw(0.99)), (1, 2));
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Candidates {
    pub(crate) list: Vec<Candidate>,
    /// Whether the list is still the whole vocabulary in order.
    whole: bool,
    /// Whether the weights are up to date with the logits.
    weighed: bool,
    /// Total weight of the tokens that were never on the list, because no filter could keep them.
    pub(crate) rest: f64,
}

impl Candidates {
    /// All tokens of a vocabulary by `logits` `[vocab]`. A token with logit -infinity is never drawn.
    pub fn new(logits: &[f32]) -> Self {
        let candidate = |(&logit, id): (&f32, u32)| Candidate { id, logit: logit.into(), weight: 0.0 };
        Self { list: logits.iter().zip(0..).map(candidate).collect(), whole: true, weighed: false, rest: 0.0 }
    }

    /// Some tokens of a vocabulary, in order: those that the filters of [`crate::Sampling::is_plain`] may keep.
    /// `rest` is the total weight of all others at the temperature that will be applied, where the most likely token
    /// has weight 1.
    pub fn of_likely(logits: &[f32], tokens: &[u32], rest: f64) -> Self {
        let candidate = |&id: &u32| Candidate { id, logit: logits[id as usize].into(), weight: 0.0 };
        Self { list: tokens.iter().map(candidate).collect(), whole: false, weighed: false, rest }
    }

    /// The number of candidates.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether no candidate is left.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The remaining candidates, unordered.
    pub fn iter(&self) -> impl Iterator<Item = &Candidate> {
        self.list.iter()
    }

    /// Changes all logits.
    pub fn map(&mut self, change: impl Fn(f64) -> f64) {
        self.list.iter_mut().for_each(|candidate| candidate.logit = change(candidate.logit));
        self.weighed = false;
    }

    /// Changes the logits of the tokens in `of`, each once.
    pub fn map_some<T>(&mut self, of: &HashMap<u32, T>, change: impl Fn(f64, &T) -> f64) {
        if self.whole {
            for (&id, value) in of {
                if let Some(candidate) = self.list.get_mut(id as usize) {
                    candidate.logit = change(candidate.logit, value);
                }
            }
        } else {
            for candidate in &mut self.list {
                if let Some(value) = of.get(&candidate.id) {
                    candidate.logit = change(candidate.logit, value);
                }
            }
        }
        self.weighed = false;
    }

    /// Removes the candidates for which `keep` is false.
    pub fn retain(&mut self, keep: impl Fn(&Candidate) -> bool) {
        self.list.retain(keep);
        self.whole = false;
    }

    /// Keeps the first `count` candidates. The caller has moved those that are kept to the front of the list.
    pub(crate) fn truncate(&mut self, count: usize) {
        self.rest = 0.0;
        self.list.truncate(count);
        self.whole = false;
    }

    /// Keeps the first candidates in `order`, up to and including the first for which `is_enough` is true; all if
    /// there is none. The list is sorted in growing chunks, because the kept part is nearly always much smaller than
    /// the vocabulary.
    pub(crate) fn keep_first(
        &mut self,
        order: impl Fn(&Candidate, &Candidate) -> Ordering,
        mut is_enough: impl FnMut(&Candidate) -> bool,
    ) {
        let list = self.unordered();
        let (mut sorted, mut chunk) = (0, 64);
        while sorted < list.len() {
            let rest = &mut list[sorted..];
            let n = chunk.min(rest.len());
            if n < rest.len() {
                rest.select_nth_unstable_by(n - 1, &order);
            }
            rest[..n].sort_unstable_by(&order);
            if let Some(last) = rest[..n].iter().position(&mut is_enough) {
                self.truncate(sorted + last + 1);
                return;
            }
            sorted += n;
            chunk *= 8;
        }
    }

    /// The list, for callers that change its order.
    pub(crate) fn unordered(&mut self) -> &mut [Candidate] {
        self.whole = false;
        &mut self.list
    }

    /// The largest logit; -infinity if there is none.
    pub fn largest(&self) -> f64 {
        self.list.iter().map(|candidate| candidate.logit).fold(f64::NEG_INFINITY, f64::max)
    }

    /// Computes the weights if the logits have changed.
    pub(crate) fn weigh(&mut self) {
        if !self.weighed {
            let largest = self.largest();
            for candidate in &mut self.list {
                candidate.weight = (candidate.logit - largest).exp();
            }
            self.weighed = true;
        }
    }

    /// The sum of all weights, including tokens that were never on the list. Valid right after [`Candidates::weigh`].
    pub(crate) fn total(&self) -> f64 {
        self.list.iter().map(|candidate| candidate.weight).sum::<f64>() + self.rest
    }

    /// The probability of a token among the candidates; `None` if it is not one of them.
    pub(crate) fn probability(&mut self, token: u32) -> Option<f64> {
        self.weigh();
        let candidate = self.list.iter().find(|candidate| candidate.id == token)?;
        Some(candidate.weight / self.total())
    }

    /// Tokens with their probabilities, unordered; tokens with probability 0 are left out.
    pub fn shares(&mut self) -> Vec<(u32, f64)> {
        self.weigh();
        let sum: f64 = self.list.iter().map(|candidate| candidate.weight).sum();
        let with_chance = self.list.iter().filter(|candidate| candidate.weight > 0.0);
        with_chance.map(|candidate| (candidate.id, candidate.weight / sum)).collect()
    }

    /// Like [`Candidates::shares`], the most likely first, ties by the lower id.
    pub fn probabilities(&mut self) -> Vec<(u32, f64)> {
        let mut shares = self.shares();
        shares.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        shares
    }

    /// The entropy, in nats.
    pub fn entropy(&mut self) -> f64 {
        self.weigh();
        let largest = self.largest();
        let (mut sum, mut weighted) = (0.0, 0.0);
        for candidate in self.list.iter().filter(|candidate| candidate.weight > 0.0) {
            sum += candidate.weight;
            weighted += candidate.weight * (candidate.logit - largest);
        }
        (sum.ln() - weighted / sum).max(0.0)
    }

    /// Draws the token at which the cumulative distribution, in order of ids, passes `uniform`, a number from 0 to
    /// below 1. Because of that order, the same number gives the same token wherever the logits are the same.
    pub fn draw(&mut self, uniform: f64) -> u32 {
        self.weigh();
        if !self.whole && !self.list.is_sorted_by_key(|candidate| candidate.id) {
            self.list.sort_unstable_by_key(|candidate| candidate.id);
        }
        let target = uniform * self.list.iter().map(|candidate| candidate.weight).sum::<f64>();
        let (mut reached, mut last) = (0.0, 0);
        for candidate in self.list.iter().filter(|candidate| candidate.weight > 0.0) {
            reached += candidate.weight;
            last = candidate.id;
            if reached > target {
                break;
            }
        }
        last
    }
}

/// Most likely first, ties by the lower id.
pub(crate) fn by_logit(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draw_covers_every_uniform() {
        let logits = [0.25f32, 0.0, 0.5, 0.25, 0.0].map(f32::ln);
        let token = |u| Candidates::new(&logits).draw(u);
        assert_eq!([0.0, 0.249, 0.251, 0.749, 0.751, 1.0 - 1e-16].map(token), [0, 0, 2, 2, 3, 3]);
    }

    #[test]
    fn some_logits_are_changed_in_any_order() {
        let of = HashMap::from([(1, 5.0), (9, 1.0)]);
        let mut whole = Candidates::new(&[0.0, 1.0, 2.0]);
        let mut part = whole.clone();
        part.unordered().reverse();
        whole.map_some(&of, |logit, by| logit + by);
        part.map_some(&of, |logit, by| logit + by);
        assert_eq!((whole.largest(), part.largest()), (6.0, 6.0));
        assert_eq!(whole.probabilities(), part.probabilities());
        assert_eq!(whole.probabilities()[0].0, 1);
        let expected: f64 = whole.shares().iter().map(|(_, p)| -p * p.ln()).sum();
        assert!((whole.entropy() - expected).abs() < 1e-12);
        assert_eq!(Candidates::new(&[1.0, f32::NEG_INFINITY]).entropy(), 0.0);
    }
}
