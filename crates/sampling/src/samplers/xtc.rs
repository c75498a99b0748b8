//! XTC, "exclude top choices", as llama.cpp has it (text-generation-webui pull request 6335, llama.cpp pull request 9742).

use crate::{
    Candidates, Past, Sampling,
    candidates::by_logit,
    declare::{Sampler, sampler},
};

sampler! {
    /// At random steps, removes all tokens that reach a probability except the least likely of them.
    ///
    /// # Examples
    /// ```
    /// use moi_sampling::{Candidates, Past, Sampling, Xtc};
    ///
    /// let xtc = Xtc { probability: 1.0, threshold: 0.25 };
    /// let sampling = Sampling { temperature: 1.0.into(), xtc, ..Sampling::default() };
    /// assert!(sampling.needs_chance()); // `Past::chance` decides at which steps it acts
    /// let mut candidates = Candidates::new(&[0.5, 0.3, 0.2].map(f32::ln));
    /// sampling.apply(&mut candidates, &Past::default())?;
    /// // Tokens 0 and 1 reach the threshold; the less likely of them is kept.
    /// assert_eq!(candidates.iter().map(|candidate| candidate.id).collect::<Vec<_>>(), [1, 2]);
    /// # Ok::<(), moi_sampling::SamplingError>(())
    /// ```
    Xtc = "xtc" {
        /// XTC: at how many of the steps likely tokens are taken away, 0 to 1; 0 is off
        "xtc_probability" => probability: f64 = 0.0, if |p| (0.0..=1.0).contains(p), "between 0 and 1";
        /// XTC: of the tokens that reach this probability all but the least likely are taken away; above 0.5 is off
        "xtc_threshold" => threshold: f64 = 0.1, if |p| (0.0..=1.0).contains(p), "between 0 and 1";
    }
}

impl Sampler for Xtc {
    fn is_off(&self) -> bool {
        // If the threshold is above 0.5, at most one token can reach it.
        self.probability == 0.0 || self.threshold > 0.5
    }

    fn apply(&self, candidates: &mut Candidates, past: &Past, _sampling: &Sampling) {
        if self.is_off() || past.chance >= self.probability {
            return;
        }
        candidates.weigh();
        let floor = self.threshold * candidates.total();
        let likely = candidates.iter().filter(|candidate| candidate.weight >= floor);
        if let Some(last) = likely.max_by(|a, b| by_logit(a, b)).copied() {
            candidates.retain(|candidate| candidate.weight < floor || candidate.id == last.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samplers::tests::kept;

    #[test]
    fn all_likely_tokens_but_the_last_go() {
        let p = [0.05, 0.4, 0.15, 0.3, 0.1];
        let after = |probability, threshold, chance| {
            let mut past = Past::default();
            past.chance = chance;
            kept(&p, |c| Xtc { probability, threshold }.apply(c, &past, &Sampling::default()))
        };
        // Three reach 0.12; of these 0.15 is the least likely.
        assert_eq!(after(1.0, 0.12, 0.0), [0, 2, 4]);
        assert_eq!(after(1.0, 0.35, 0.0), [0, 1, 2, 3, 4]);
        assert_eq!(after(1.0, 0.45, 0.0).len(), 5);
        assert_eq!(after(1.0, 0.0, 0.0), [0]);
        // The step's random number decides whether tokens are removed.
        assert_eq!(after(0.3, 0.12, 0.29), [0, 2, 4]);
        assert_eq!(after(0.3, 0.12, 0.3).len(), 5);
        assert_eq!(after(0.0, 0.12, 0.0).len(), 5);
        assert_eq!(after(1.0, 0.51, 0.0).len(), 5);
    }

    #[test]
    fn of_tokens_alike_the_one_with_the_highest_id_stays() {
        let past = Past::default();
        let xtc = Xtc { probability: 1.0, threshold: 0.2 };
        assert_eq!(kept(&[0.25; 4], |c| xtc.apply(c, &past, &Sampling::default())), [3]);
    }
}
