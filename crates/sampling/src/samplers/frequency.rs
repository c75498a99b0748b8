//! A penalty that grows with how often a token was generated.

use crate::{
    Candidates, Past, Sampling,
    declare::{Sampler, sampler},
    history::counts,
};

sampler! {
    /// Lowers the logit of every generated token by the penalty times how often it was generated.
    ///
    /// # Examples
    /// ```
    /// use moi_sampling::{Candidates, History, Past, Sampling};
    ///
    /// let mut history = History::default();
    /// history.push(1);
    /// history.push(1);
    /// let sampling = Sampling { frequency: 0.5.into(), ..Sampling::default() };
    /// let mut candidates = Candidates::new(&[2.0, 2.0]);
    /// sampling.penalise(&mut candidates, &Past::new(history));
    /// let logits: Vec<f64> = candidates.iter().map(|candidate| candidate.logit).collect();
    /// assert_eq!(logits, [2.0, 1.0]);
    /// ```
    Frequency(f64) = "frequency" {
        /// Taken from the logits of tokens as often as they are in the answer so far
        "frequency_penalty" => 0: f64 = 0.0;
    }
}

impl Sampler for Frequency {
    fn is_penalty(&self) -> bool {
        true
    }

    fn apply(&self, candidates: &mut Candidates, past: &Past, sampling: &Sampling) {
        if self.0 != 0.0 {
            let generated = counts(past.history.generated(sampling.penalty_window.0));
            candidates.map_some(&generated, |logit, &count| logit - self.0 * f64::from(count));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{History, samplers::tests::logits};

    #[test]
    fn generated_tokens_lose_by_their_number() {
        let mut history = History::new(&[2]);
        [0, 1, 1, 7].iter().for_each(|&token| history.push(token));
        let past = Past::new(history);
        let after = |by| logits(|c| Frequency(by).apply(c, &past, &Sampling::default()));
        assert_eq!(after(0.25), [1.75, -1.5, 0.5]);
        assert_eq!(
            logits(|c| Frequency(1.0).apply(c, &Past::default(), &Sampling::default())),
            [2.0, -1.0, 0.5]
        );
    }
}
