//! The mean of K sampled tokens: Gozeten et al., arXiv 2505.23648 (CoT2); Tang et al., arXiv 2601.08808 (Multiplex
//! Thinking).

use super::{Plan, Rule, RuleError, Start, Steps, View, knobs::knobs};
use crate::noise::Noise;

/// More draws than this tell nothing that `direct` does not.
const MOST: usize = 100_000;

knobs! {
    /// The mean embedding of K tokens, drawn from what the sampler draws from; the first is recorded
    ///
    /// Tokens that are drawn twice count twice. One token is standard decoding; many come to `direct` by the sampler's
    /// distribution.
    KSample = "k-sample" {
        /// Tokens
        k: usize = 3,
    }
}

impl Rule for KSample {
    fn check(&self) -> Result<(), RuleError> {
        match (1..=MOST).contains(&self.k) {
            true => Ok(()),
            false => Err(RuleError::value("k", "1 or more, and at most 100000", self.k)),
        }
    }

    fn steps(&self, start: &Start) -> Result<Option<Box<dyn Steps>>, RuleError> {
        Ok(Some(Box::new(Draws { k: self.k, random: Noise::new(start.seed) })))
    }

    fn thinks(&self) -> bool {
        true
    }
}

#[derive(Debug)]
struct Draws {
    k: usize,
    random: Noise,
}

impl Steps for Draws {
    fn next(&mut self, view: &View<'_>) -> Plan {
        let mut q = view.drawn_from();
        // So that equal draws are equal tokens where likely ones change places.
        if !q.is_sorted_by_key(|&(token, _)| token) {
            q.sort_unstable_by_key(|&(token, _)| token);
        }
        self.random.begin(view.step);
        let share = 1.0 / self.k as f64;
        let others = (1..self.k).map(|_| (self.random.pick(&q).unwrap_or(view.sampled), share));
        let weights = [(view.sampled, share)].into_iter().chain(others).collect();
        Plan { gate: (1.0 - share) as f32, ..view.mixture(view.sampled, weights) }
    }

    fn wants_candidates(&self) -> bool {
        true
    }
}
