//! Top-k.

use crate::{
    Candidates, Past, Sampling,
    candidates::by_logit,
    declare::{Sampler, sampler},
};

sampler! {
    /// Keeps the K most likely tokens; 0 keeps all.
    ///
    /// # Examples
    /// ```
    /// use moi_sampling::{Candidates, Past, Sampling};
    ///
    /// let sampling = Sampling { temperature: 1.0.into(), top_k: 2.into(), ..Sampling::default() };
    /// let mut candidates = Candidates::new(&[0.0, 3.0, 2.0]);
    /// sampling.apply(&mut candidates, &Past::default())?;
    /// let likeliest: Vec<u32> = candidates.probabilities().into_iter().map(|(token, _)| token).collect();
    /// assert_eq!(likeliest, [1, 2]);
    /// # Ok::<(), moi_sampling::SamplingError>(())
    /// ```
    TopK(usize) = "top-k" {
        /// Keep the N most likely tokens; 0 or -1 keeps all
        "top_k" => 0: usize = 0;
    }
}

impl Sampler for TopK {
    fn apply(&self, candidates: &mut Candidates, _past: &Past, _sampling: &Sampling) {
        top_k(candidates, self.0);
    }
}

/// Keeps the `k` most likely candidates; all if `k` is 0.
///
/// # Examples
/// ```
/// use moi_sampling::{Candidates, filters};
///
/// let mut candidates = Candidates::new(&[0.0, 3.0, 2.0]);
/// filters::top_k(&mut candidates, 2);
/// assert_eq!((candidates.draw(0.0), candidates.draw(0.99)), (1, 2));
/// ```
pub fn top_k(candidates: &mut Candidates, k: usize) {
    if k > 0 && k < candidates.len() {
        candidates.unordered().select_nth_unstable_by(k - 1, by_logit);
        candidates.truncate(k);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samplers::tests::{P, kept};

    #[test]
    fn the_most_likely_are_kept() {
        assert_eq!(kept(P, |c| top_k(c, 3)), [1, 2, 3]);
        assert_eq!(kept(P, |c| top_k(c, 2)), [1, 2]);
        assert_eq!(kept(P, |c| top_k(c, 0)).len(), 6);
    }
}
