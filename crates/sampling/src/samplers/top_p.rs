//! Nucleus sampling.

use crate::{
    Candidates, Past, Sampling,
    candidates::by_logit,
    declare::{Sampler, sampler},
};

sampler! {
    /// Keeps the fewest of the most likely tokens whose probabilities reach this sum (nucleus sampling, arXiv 1904.09751).
    ///
    /// # Examples
    /// ```
    /// use moi_sampling::{Candidates, Past, Sampling};
    ///
    /// let sampling = Sampling { temperature: 1.0.into(), top_p: 0.8.into(), ..Sampling::default() };
    /// let mut candidates = Candidates::new(&[0.6, 0.3, 0.1].map(f32::ln));
    /// sampling.apply(&mut candidates, &Past::default())?;
    /// assert_eq!(candidates.len(), 2);
    /// # Ok::<(), moi_sampling::SamplingError>(())
    /// ```
    TopP(f64) = "top-p" {
        /// Keep the fewest tokens whose probabilities reach this sum; 1 keeps all
        "top_p" => 0: f64 = 1.0, if |p| *p > 0.0 && *p <= 1.0, "above 0 and at most 1";
    }
}

impl Sampler for TopP {
    fn apply(&self, candidates: &mut Candidates, _past: &Past, _sampling: &Sampling) {
        top_p(candidates, self.0);
    }
}

/// Keeps the fewest of the most likely candidates whose probabilities reach `top_p` (nucleus sampling, arXiv
/// 1904.09751).
///
/// # Examples
/// ```
/// use moi_sampling::{Candidates, filters};
///
/// let mut candidates = Candidates::new(&[0.6, 0.3, 0.1].map(f32::ln));
/// filters::top_p(&mut candidates, 0.8);
/// assert_eq!(candidates.len(), 2);
/// ```
pub fn top_p(candidates: &mut Candidates, top_p: f64) {
    if top_p >= 1.0 {
        return;
    }
    candidates.weigh();
    let target = top_p * candidates.total();
    let mut reached = 0.0;
    candidates.keep_first(by_logit, |candidate| {
        reached += candidate.weight;
        reached >= target
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samplers::{
        tests::{P, kept},
        top_k,
    };

    #[test]
    fn the_nucleus_is_kept() {
        assert_eq!(kept(P, |c| top_p(c, 0.399)), [1]);
        assert_eq!(kept(P, |c| top_p(c, 0.61)), [1, 2, 3]);
        assert_eq!(kept(P, |c| top_p(c, 1e-9)), [1]);
        // top-p sees what top-k left, renormalised: .4 of .8 is half.
        let both = |c: &mut Candidates| {
            top_k(c, 3);
            top_p(c, 0.499);
        };
        assert_eq!(kept(P, both), [1]);
    }

    #[test]
    fn a_nucleus_may_span_several_chunks() {
        let flat = vec![1.0; 2000];
        assert_eq!(kept(&flat, |c| top_p(c, 0.5)).len(), 1000);
        assert_eq!(kept(&flat, |c| top_p(c, 0.9999)).len(), 2000);
    }
}
