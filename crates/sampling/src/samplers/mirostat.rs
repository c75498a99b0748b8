//! Mirostat 2 (Basu et al., arXiv 2007.14966), as llama.cpp has it.

use std::f64::consts::LOG2_E;

use crate::{
    Candidates, Past, Sampling, SamplingStep,
    candidates::by_logit,
    declare::{Sampler, sampler},
};

sampler! {
    /// Removes tokens whose surprise, -log2 p, exceeds a bound. The bound is twice the target at first, then follows
    /// the surprise of the sampled tokens so that it stays near the target.
    ///
    /// # Examples
    /// ```
    /// use moi_sampling::{Candidates, Mirostat, Past, Sampling, SamplingStep};
    ///
    /// let mirostat = Mirostat { version: 2, tau: 2.0, ..Mirostat::default() };
    /// let sampling = Sampling { temperature: 1.0.into(), mirostat, ..Sampling::default() };
    /// let (mut candidates, mut past) = (Candidates::new(&[0.0, 0.0, -5.0]), Past::default());
    /// sampling.apply(&mut candidates, &past)?;
    /// assert_eq!(candidates.len(), 2); // the surprise of the third is more than 4 bits
    /// let token = candidates.draw(0.3);
    /// sampling.observe(&mut candidates, token, &mut past);
    /// // Its surprise was 1 bit, less than the target of 2, so the bound rises.
    /// assert!(past.state(SamplingStep::Mirostat) > Some(4.0));
    /// # Ok::<(), moi_sampling::SamplingError>(())
    /// ```
    Mirostat = "mirostat" {
        /// Mirostat: 2 keeps the surprise of tokens near --mirostat-tau, 0 is off. The filters that a model's makers advise
        /// are then left out
        "mirostat" => version: usize = 0, if |version| [0, 2].contains(version), "0 (off) or 2";
        /// Mirostat: the surprise of a token, in bits, that is aimed at
        "mirostat_tau" => tau: f64 = 5.0, if |tau| *tau > 0.0, "above 0, and finite";
        /// Mirostat: how fast the bound follows
        "mirostat_eta" => eta: f64 = 0.1, if |eta| *eta > 0.0, "above 0, and finite";
    }
}

impl Sampler for Mirostat {
    fn is_off(&self) -> bool {
        self.version == 0
    }

    fn apply(&self, candidates: &mut Candidates, past: &Past, _sampling: &Sampling) {
        if self.is_off() {
            return;
        }
        let bound = past.state(SamplingStep::Mirostat).unwrap_or(2.0 * self.tau);
        candidates.weigh();
        // The surprise -log2 p is at most the bound if p is at least 2^-bound.
        let floor = (-bound / LOG2_E).exp() * candidates.total();
        if let Some(first) = candidates.iter().min_by(|a, b| by_logit(a, b)).copied() {
            candidates.retain(|candidate| candidate.weight >= floor || candidate.id == first.id);
        }
    }

    fn keeps_state(&self) -> bool {
        true
    }

    fn observe(&self, probability: f64, state: Option<f64>) -> Option<f64> {
        let bound = state.unwrap_or(2.0 * self.tau);
        Some(bound - self.eta * (-probability.log2() - self.tau))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_follows_the_surprise() {
        // Surprises are 1, 2, 3 and 3 bits.
        let logits = [0.5f32, 0.25, 0.125, 0.125].map(f32::ln);
        let sampling = Sampling {
            temperature: 1.0.into(),
            mirostat: Mirostat { version: 2, tau: 1.25, eta: 0.5 },
            ..Sampling::default()
        };
        sampling.check().unwrap();
        let mut past = Past::default();
        let mut step = |token: u32| {
            let mut candidates = Candidates::new(&logits);
            sampling.apply(&mut candidates, &past).unwrap();
            let mut left: Vec<u32> = candidates.iter().map(|candidate| candidate.id).collect();
            left.sort_unstable();
            sampling.observe(&mut candidates, token, &mut past);
            (left, past.state(SamplingStep::Mirostat).unwrap())
        };
        // At first the bound is 2.5 bits. Of the two that are left the second has 1/3: log2 3 = 1.585 bits.
        let (left, bound) = step(1);
        assert_eq!(left, [0, 1]);
        let expected = 2.5 - 0.5 * (3f64.log2() - 1.25);
        assert!((bound - expected).abs() < 1e-6, "{bound}");
        // 2.33 bits allow the same; 2/3 is a surprise of 0.585 bits.
        let (left, bound) = step(0);
        assert_eq!(left, [0, 1]);
        let expected = expected - 0.5 * (1.5f64.log2() - 1.25);
        assert!((bound - expected).abs() < 1e-6, "{bound}");
        // However low the bound is, the most likely token is kept.
        past.set_state(SamplingStep::Mirostat, Some(-3.0));
        let mut candidates = Candidates::new(&logits);
        sampling.apply(&mut candidates, &past).unwrap();
        assert_eq!(candidates.len(), 1);
    }

    #[test]
    fn surprise_stays_near_the_target() {
        // 1,000 tokens of Zipf's law, whose own entropy is 7.5 bits.
        let logits: Vec<f32> = (1..=1000).map(|rank| -(rank as f32).ln()).collect();
        for tau in [2.0, 4.0, 6.0] {
            let mirostat = Mirostat { version: 2, tau, ..Mirostat::default() };
            let sampling = Sampling { temperature: 1.0.into(), mirostat, ..Sampling::default() };
            let mut past = Past::default();
            let mut surprises = Vec::new();
            for step in 0..2000 {
                let mut candidates = Candidates::new(&logits);
                sampling.apply(&mut candidates, &past).unwrap();
                // A low-discrepancy sequence replaces random numbers.
                let uniform = (f64::from(step) * 0.618_033_988_749_894_9).fract();
                let token = candidates.draw(uniform);
                let share = candidates.shares().into_iter().find(|share| share.0 == token).unwrap().1;
                surprises.push(-share.log2());
                sampling.observe(&mut candidates, token, &mut past);
            }
            let mean = surprises[500..].iter().sum::<f64>() / 1500.0;
            assert!((mean - tau).abs() < 0.1, "{tau}: {mean}");
        }
    }
}
