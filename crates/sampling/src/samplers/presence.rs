//! The same penalty for every token that was generated.

use crate::{
    Candidates, Past, Sampling,
    declare::{Sampler, sampler},
    history::counts,
};

sampler! {
    /// Takes the same from the logit of every token that was generated.
    Presence(f64) = "presence" {
        /// Taken from the logits of tokens in the answer so far
        "presence_penalty" => 0: f64 = 0.0;
    }
}

impl Sampler for Presence {
    fn is_penalty(&self) -> bool {
        true
    }

    fn apply(&self, candidates: &mut Candidates, past: &Past, sampling: &Sampling) {
        if self.0 != 0.0 {
            let generated = counts(past.history.generated(sampling.penalty_window.0));
            candidates.map_some(&generated, |logit, _| logit - self.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{History, samplers::tests::logits};

    #[test]
    fn generated_tokens_lose_the_same() {
        let mut history = History::new(&[2]);
        [0, 1, 1, 7].iter().for_each(|&token| history.push(token));
        let past = Past::new(history);
        let after = |by| logits(|c| Presence(by).apply(c, &past, &Sampling::default()));
        assert_eq!(after(0.25), [1.75, -1.25, 0.5]);
        assert_eq!(after(0.0), [2.0, -1.0, 0.5]);
    }
}
