//! CTRL's repetition penalty.

use crate::{
    Candidates, Past, Sampling,
    declare::{Sampler, sampler},
    history::counts,
};

sampler! {
    /// Divides the positive logits of tokens that are in the prompt or were generated, and multiplies the negative ones
    /// (CTRL, arXiv 1909.05858).
    ///
    /// # Examples
    /// ```
    /// use moi_sampling::{Candidates, History, Past, Sampling};
    ///
    /// let past = Past::new(History::new(&[0, 1]));
    /// let sampling = Sampling { repetition: 2.0.into(), ..Sampling::default() };
    /// let mut candidates = Candidates::new(&[2.0, -1.0, 0.5]);
    /// sampling.penalise(&mut candidates, &past);
    /// let logits: Vec<f64> = candidates.iter().map(|candidate| candidate.logit).collect();
    /// assert_eq!(logits, [1.0, -2.0, 0.5]);
    /// ```
    Repetition(f64) = "repetition" {
        /// Divide the logits of tokens in the prompt and the answer so far; 1 is none
        "repetition_penalty" => 0: f64 = 1.0, if |by| *by > 0.0, "above 0, and finite";
    }
}

impl Sampler for Repetition {
    fn is_penalty(&self) -> bool {
        true
    }

    fn apply(&self, candidates: &mut Candidates, past: &Past, sampling: &Sampling) {
        let penalty = self.0;
        if penalty != 1.0 {
            let change = |logit: f64, _: &u32| if logit > 0.0 { logit / penalty } else { logit * penalty };
            candidates.map_some(&counts(past.history.all(sampling.penalty_window.0)), change);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{History, samplers::tests::logits};

    #[test]
    fn logits_of_tokens_before_shrink() {
        let past = Past::new(History::new(&[0, 1, 1, 7]));
        let after = |by| logits(|c| Repetition(by).apply(c, &past, &Sampling::default()));
        assert_eq!(after(2.0), [1.0, -2.0, 0.5]);
        assert_eq!(after(1.0), [2.0, -1.0, 0.5]);
    }
}
