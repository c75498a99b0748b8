//! Tokens that may still be sampled.

use std::{cmp::Ordering, collections::HashMap};

/// A token that may be sampled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// The token.
    pub id: u32,
    /// Its logit, as changed so far.
    pub logit: f64,
    /// e to the power of its logit less the largest one: its probability, but for a common factor. Right after
    /// [`Candidates::weigh`].
    pub(crate) weight: f64,
}

/// Tokens that may be sampled, with their logits.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidates {
    pub(crate) list: Vec<Candidate>,
    /// Whether the list is still the whole vocabulary in order.
    whole: bool,
    /// Whether weights belong to the logits.
    weighed: bool,
    /// The weight of tokens that are too unlikely to be left by a filter and were never on the list.
    pub(crate) rest: f64,
}

impl Candidates {
    /// All tokens of a vocabulary. A logit of -infinity has no chance.
    pub fn new(logits: &[f32]) -> Self {
        let candidate = |(&logit, id): (&f32, u32)| Candidate { id, logit: logit.into(), weight: 0.0 };
        Self { list: logits.iter().zip(0..).map(candidate).collect(), whole: true, weighed: false, rest: 0.0 }
    }

    /// Some tokens of a vocabulary, in order: those that the filters of [`crate::Sampling::is_plain`] may leave. `rest` is
    /// what all others weigh at the temperature that will be, where the most likely token weighs 1.
    pub fn of_likely(logits: &[f32], tokens: &[u32], rest: f64) -> Self {
        let candidate = |&id: &u32| Candidate { id, logit: logits[id as usize].into(), weight: 0.0 };
        Self { list: tokens.iter().map(candidate).collect(), whole: false, weighed: false, rest }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether none is left.
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

    /// Changes the logits of some tokens, each once.
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

    /// Takes away those that are not to be kept.
    pub fn retain(&mut self, keep: impl Fn(&Candidate) -> bool) {
        self.list.retain(keep);
        self.whole = false;
    }

    /// Keeps the first `count` of a list that was put in order.
    pub(crate) fn truncate(&mut self, count: usize) {
        self.rest = 0.0;
        self.list.truncate(count);
        self.whole = false;
    }

    /// Keeps the first in an order up to the one that is enough; all where none is. They are put in order a few at a time:
    /// what is kept is nearly always much smaller than the vocabulary.
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

    /// The list, to be put in another order.
    pub(crate) fn unordered(&mut self) -> &mut [Candidate] {
        self.whole = false;
        &mut self.list
    }

    /// The largest logit; -infinity if there is none.
    pub fn largest(&self) -> f64 {
        self.list.iter().map(|candidate| candidate.logit).fold(f64::NEG_INFINITY, f64::max)
    }

    /// Brings the weights up to date.
    pub(crate) fn weigh(&mut self) {
        if !self.weighed {
            let largest = self.largest();
            for candidate in &mut self.list {
                candidate.weight = (candidate.logit - largest).exp();
            }
            self.weighed = true;
        }
    }

    /// The sum of all weights, of tokens that were never on the list too. Right after [`Candidates::weigh`].
    pub(crate) fn total(&self) -> f64 {
        self.list.iter().map(|candidate| candidate.weight).sum::<f64>() + self.rest
    }

    /// The probability of a token among the candidates; `None` where it is not one of them.
    pub(crate) fn probability(&mut self, token: u32) -> Option<f64> {
        self.weigh();
        let candidate = self.list.iter().find(|candidate| candidate.id == token)?;
        Some(candidate.weight / self.total())
    }

    /// Tokens with their probabilities, unordered; those without a chance left out.
    pub fn shares(&mut self) -> Vec<(u32, f64)> {
        self.weigh();
        let sum: f64 = self.list.iter().map(|candidate| candidate.weight).sum();
        let with_chance = self.list.iter().filter(|candidate| candidate.weight > 0.0);
        with_chance.map(|candidate| (candidate.id, candidate.weight / sum)).collect()
    }

    /// As [`Candidates::shares`], the most likely first, ties by the lower id.
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

    /// The token at which the cumulative distribution, in order of ids, passes `uniform`, a number from 0 to below 1. So
    /// a number means the same token wherever the logits agree.
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
