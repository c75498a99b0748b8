//! Temperature.

use super::top_k;
use crate::{
    Candidates, Past, Sampling,
    declare::{Sampler, sampler},
};

sampler! {
    /// Divides the logits; 0 always takes the most likely token (greedy).
    ///
    /// # Examples
    /// ```
    /// use moi_sampling::{Candidates, Past, Sampling};
    ///
    /// let sampling = Sampling { temperature: 0.5.into(), ..Sampling::default() };
    /// let mut candidates = Candidates::new(&[0.0, 1.0]);
    /// sampling.apply(&mut candidates, &Past::default())?;
    /// let logits: Vec<f64> = candidates.iter().map(|candidate| candidate.logit).collect();
    /// assert_eq!(logits, [0.0, 2.0]);
    /// # Ok::<(), moi_sampling::SamplingError>(())
    /// ```
    Temperature(f64) = "temperature" {
        /// Divides the logits; 0 always takes the most likely token (greedy)
        "temperature" => 0: f64 = 0.0, if |t| *t == 0.0 || *t >= COLDEST, "0 (greedy) or from 0.0001 on, and finite";
    }
}

/// The lowest temperature above 0; a lower one could divide logits to infinity.
const COLDEST: f64 = 1e-4;

impl Sampler for Temperature {
    fn is_off(&self) -> bool {
        self.0 == 1.0
    }

    fn apply(&self, candidates: &mut Candidates, _past: &Past, _sampling: &Sampling) {
        temperature(candidates, self.0);
    }
}

/// Divides the logits; 0 keeps the most likely token alone, ties by the lowest id.
///
/// # Examples
/// ```
/// use moi_sampling::{Candidates, filters};
///
/// let mut candidates = Candidates::new(&[0.0, 1.0]);
/// filters::temperature(&mut candidates, 0.5);
/// assert_eq!(candidates.largest(), 2.0);
/// filters::temperature(&mut candidates, 0.0);
/// assert_eq!(candidates.len(), 1);
/// ```
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
