//! Top-n-sigma.

use crate::{
    Candidates, Past, Sampling,
    declare::{Sampler, sampler},
};

sampler! {
    /// Keeps tokens whose logits are within so many standard deviations of the largest one (arXiv 2411.07641).
    ///
    /// # Examples
    /// ```
    /// use moi_sampling::{Candidates, Past, Sampling};
    ///
    /// let sampling = Sampling { temperature: 1.0.into(), top_n_sigma: 1.0.into(), ..Sampling::default() };
    /// // The standard deviation is 1.4, and the largest logit is 4.
    /// let mut candidates = Candidates::new(&[0.0, 1.0, 2.0, 3.0, 4.0]);
    /// sampling.apply(&mut candidates, &Past::default())?;
    /// assert_eq!(candidates.iter().map(|candidate| candidate.id).collect::<Vec<_>>(), [3, 4]);
    /// # Ok::<(), moi_sampling::SamplingError>(())
    /// ```
    TopNSigma(f64) = "top-n-sigma" {
        /// Keep tokens whose logits are within so many standard deviations of the largest; 0 keeps all
        "top_n_sigma" => 0: f64 = 0.0, if |n| *n >= 0.0, "0 (off) or more, and finite";
    }
}

impl Sampler for TopNSigma {
    fn apply(&self, candidates: &mut Candidates, _past: &Past, _sampling: &Sampling) {
        top_n_sigma(candidates, self.0);
    }
}

/// Keeps the candidates whose logits are within `n` standard deviations of the largest one; all if `n` is 0 (arXiv
/// 2411.07641). Logits of -infinity are left out of the standard deviation.
fn top_n_sigma(candidates: &mut Candidates, n: f64) {
    let finite = || candidates.iter().map(|candidate| candidate.logit).filter(|logit| logit.is_finite());
    let count = finite().count() as f64;
    if n <= 0.0 || count < 1.0 {
        return;
    }
    let mean = finite().sum::<f64>() / count;
    let sigma = (finite().map(|logit| (logit - mean).powi(2)).sum::<f64>() / count).sqrt();
    let floor = candidates.largest() - n * sigma;
    candidates.retain(|candidate| candidate.logit >= floor);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sigma_is_of_finite_logits() {
        let kept = |logits: &[f32], n| {
            let mut candidates = Candidates::new(logits);
            top_n_sigma(&mut candidates, n);
            candidates.iter().map(|candidate| candidate.id).collect::<Vec<_>>()
        };
        // Deviation sqrt(2) around 2.
        let logits = [0.0, 1.0, 2.0, 3.0, 4.0];
        assert_eq!(kept(&logits, 1.0), [3, 4]);
        assert_eq!(kept(&logits, 1.42), [2, 3, 4]);
        assert_eq!(kept(&logits, 0.0).len(), 5);
        assert_eq!(kept(&[0.0, 1.0, f32::NEG_INFINITY, 2.0, 3.0, 4.0], 1.0), [4, 5]);
        assert_eq!(kept(&[1.0; 3], 1.0).len(), 3);
    }
}
