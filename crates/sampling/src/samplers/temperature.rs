//! Temperature.

use super::top_k;
use crate::{
    Candidates, Past, Sampling,
    declare::{Sampler, sampler},
};

sampler! {
    /// Divides the logits; 0 always takes the most likely token (greedy).
    Temperature(f64) = "temperature" {
        /// Divides the logits; 0 always takes the most likely token (greedy)
        "temperature" => 0: f64 = 0.0, if |t| *t == 0.0 || *t >= COLDEST, "0 (greedy) or from 0.0001 on, and finite";
    }
}

/// A lower one would divide logits to infinity.
const COLDEST: f64 = 1e-4;

impl Sampler for Temperature {
    fn is_off(&self) -> bool {
        self.0 == 1.0
    }

    fn apply(&self, candidates: &mut Candidates, _past: &Past, _sampling: &Sampling) {
        temperature(candidates, self.0);
    }
}

/// Divides the logits; 0 keeps the most likely token alone, of several the one with the lowest id.
pub fn temperature(candidates: &mut Candidates, temperature: f64) {
    if temperature == 0.0 {
        top_k(candidates, 1);
    } else if temperature != 1.0 {
        candidates.map(|logit| logit / temperature);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samplers::{
        TopNSigma,
        tests::{P, kept},
    };

    #[test]
    fn cold_is_greedy() {
        assert_eq!(kept(P, |c| temperature(c, 0.0)), [1]);
    }

    #[test]
    fn a_temperature_does_not_move_the_sigma_filter() {
        for t in [0.3, 1.7] {
            let kept = kept(P, |c| {
                temperature(c, t);
                TopNSigma(1.0).apply(c, &Past::default(), &Sampling::default());
            });
            assert_eq!(kept, [1, 2, 3]);
        }
    }
}
