//! Locally typical sampling.

use crate::{
    Candidates, Past, Sampling,
    candidates::{Candidate, by_logit},
    declare::{Sampler, sampler},
};

sampler! {
    /// Keeps the fewest tokens whose surprise is nearest to the entropy, until their probabilities reach this sum (locally
    /// typical sampling, arXiv 2202.00666).
    ///
    /// # Examples
    /// ```
    /// use moi_sampling::{Candidates, Past, Sampling};
    ///
    /// let sampling = Sampling { temperature: 1.0.into(), typical: 0.3.into(), ..Sampling::default() };
    /// // The entropy is 1.5 nats. The surprise of tokens 2 and 3 is 1.6, that of the likeliest token only 0.9.
    /// let mut candidates = Candidates::new(&[0.1, 0.4, 0.2, 0.2, 0.05, 0.05].map(f32::ln));
    /// sampling.apply(&mut candidates, &Past::default())?;
    /// let kept: Vec<u32> = candidates.probabilities().into_iter().map(|(token, _)| token).collect();
    /// assert_eq!(kept, [2, 3]);
    /// # Ok::<(), moi_sampling::SamplingError>(())
    /// ```
    Typical(f64) = "typical" {
        /// Keep the fewest tokens nearest to the entropy whose probabilities reach this sum; 1 keeps all
        "typical_p" => 0: f64 = 1.0, if |p| *p > 0.0 && *p <= 1.0, "above 0 and at most 1";
    }
}

impl Sampler for Typical {
    fn apply(&self, candidates: &mut Candidates, _past: &Past, _sampling: &Sampling) {
        typical(candidates, self.0);
    }
}

/// Keeps the fewest of the candidates whose surprise is nearest to the entropy, until their probabilities reach
/// `typical_p` (locally typical sampling, arXiv 2202.00666).
fn typical(candidates: &mut Candidates, typical_p: f64) {
    if typical_p >= 1.0 || candidates.is_empty() {
        return;
    }
    candidates.weigh();
    let sum: f64 = candidates.iter().map(|candidate| candidate.weight).sum();
    let surprise = |weight: f64| -(weight / sum).ln();
    let entropy: f64 = (candidates.iter().map(|candidate| candidate.weight))
        .filter(|&weight| weight > 0.0)
        .map(|weight| weight / sum * surprise(weight))
        .sum();
    let far = |weight| (surprise(weight) - entropy).abs();
    let nearest = |a: &Candidate, b: &Candidate| far(a.weight).total_cmp(&far(b.weight)).then(by_logit(a, b));
    let mut reached = 0.0;
    candidates.keep_first(nearest, |candidate| {
        reached += candidate.weight / sum;
        reached >= typical_p
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samplers::tests::{P, kept};

    #[test]
    fn typical_tokens_are_near_the_entropy() {
        // The entropy is 1.5 nats; surprises are 2.3, 0.92, 1.61, 1.61, 3.0, 3.0.
        assert_eq!(kept(P, |c| typical(c, 0.3)), [2, 3]);
        assert_eq!(kept(P, |c| typical(c, 0.5)), [1, 2, 3]);
        assert_eq!(kept(P, |c| typical(c, 0.85)), [0, 1, 2, 3]);
        assert_eq!(kept(P, |c| typical(c, 1.0)).len(), 6);
        assert_eq!(kept(&[1.0, 0.0], |c| typical(c, 0.5)), [0]);
    }

    #[test]
    fn those_that_are_kept_may_span_several_chunks() {
        let flat = vec![1.0; 2000];
        assert_eq!(kept(&flat, |c| typical(c, 0.5)).len(), 1000);
        assert_eq!(kept(&flat, |c| typical(c, 0.9999)).len(), 2000);
    }
}
