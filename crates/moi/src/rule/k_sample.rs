//! The mean of K sampled tokens: Gozeten et al., arXiv 2505.23648 (CoT2); Tang et al., arXiv 2601.08808 (Multiplex
//! Thinking).

use super::{Plan, Rule, RuleError, Start, Steps, View, knobs::knobs};
use crate::noise::Noise;

/// The largest K: the mean of more draws hardly differs from the mean of the whole distribution.
const MAX_CANDIDATES: usize = 100_000;

knobs! {
    /// The mean embedding of K tokens, drawn from what the sampler draws from; the first is recorded
    ///
    /// A token that is drawn twice counts twice. K = 1 is standard decoding; a large K approaches `direct` on the
    /// sampler's distribution.
    ///
    /// # Examples
    /// ```
    /// use moi::{KSample, RuleState, Start};
    ///
    /// let row = RuleState::new(KSample { k: 5 }.into(), &Start { seed: 7, ..Start::default() })?;
    /// // The sampler's tokens are given by `RuleState::drawn_from`.
    /// assert!(row.wants_candidates());
    /// # Ok::<(), moi::RuleError>(())
    /// ```
    KSample = "k-sample" {
        /// Tokens
        k: usize = 3,
    }
}

impl Rule for KSample {
    fn check(&self) -> Result<(), RuleError> {
        match (1..=MAX_CANDIDATES).contains(&self.k) {
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

#[derive(Clone, Debug)]
struct Draws {
    k: usize,
    random: Noise,
}

impl Steps for Draws {
    fn next(&mut self, view: &View<'_>) -> Plan {
        let mut q = view.drawn_from();
        // Sorted by token, so that equal random numbers give equal tokens even if likely tokens swap places.
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

    fn clone_box(&self) -> Box<dyn Steps> {
        Box::new(self.clone())
    }
}
