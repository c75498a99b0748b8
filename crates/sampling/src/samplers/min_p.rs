//! Min-p.

use crate::{
    Candidates, Past, Sampling,
    declare::{Sampler, sampler},
};

sampler! {
    /// Keeps tokens at least this probable relative to the most likely one (arXiv 2407.01082).
    ///
    /// # Examples
    /// ```
    /// use moi_sampling::{Candidates, Past, Sampling};
    ///
    /// let sampling = Sampling { temperature: 1.0.into(), min_p: 0.5.into(), ..Sampling::default() };
    /// // The second token is 0.9 times as likely as the first, and the third 0.05 times.
    /// let mut candidates = Candidates::new(&[0.0, -0.1, -3.0]);
    /// sampling.apply(&mut candidates, &Past::default())?;
    /// assert_eq!(candidates.len(), 2);
    /// # Ok::<(), moi_sampling::SamplingError>(())
    /// ```
    MinP(f64) = "min-p" {
        /// Keep tokens at least this probable relative to the most likely; 0 keeps all
        "min_p" => 0: f64 = 0.0, if |p| (0.0..=1.0).contains(p), "between 0 and 1";
    }
}

impl Sampler for MinP {
    fn apply(&self, candidates: &mut Candidates, _past: &Past, _sampling: &Sampling) {
        min_p(candidates, self.0);
    }
}

/// Keeps the candidates that are at least `min_p` times as likely as the most likely one (arXiv 2407.01082).
///
/// # Examples
/// ```
/// use moi_sampling::{Candidates, filters};
///
/// // The second token is 0.9 times as likely as the first, and the third 0.05 times.
/// let mut candidates = Candidates::new(&[0.0, -0.1, -3.0]);
/// filters::min_p(&mut candidates, 0.5);
/// assert_eq!(candidates.len(), 2);
/// ```
pub fn min_p(candidates: &mut Candidates, min_p: f64) {
    if min_p > 0.0 {
        candidates.weigh();
        let largest = candidates.iter().map(|candidate| candidate.weight).fold(0.0, f64::max);
        candidates.retain(|candidate| candidate.weight >= min_p * largest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samplers::tests::{P, kept};

    #[test]
    fn the_relatively_likely_are_kept() {
        assert_eq!(kept(P, |c| min_p(c, 0.499)), [1, 2, 3]);
        assert_eq!(kept(P, |c| min_p(c, 1.0)), [1]);
    }
}
