//! Selective Latent Reasoning: Fu and Luo, arXiv 2604.08299.

use super::{Plan, Rule, RuleError, Start, Steps, View, knobs::knobs, nats};

knobs! {
    /// In doubt, the mean of the K likeliest tokens, pushed away from the first; else the sampled token
    ///
    /// H is the entropy of the K likeliest tokens of the sampler's distribution, divided by ln K. If H is at least
    /// tau, the input is `m + lambda H (m - E[first])`, where m is the mean of their embeddings.
    ///
    /// # Examples
    /// ```
    /// use moi::{InputRule, Selar};
    ///
    /// let rule = InputRule::from(Selar { tau: 0.25, ..Selar::default() });
    /// let json = serde_json::json!({"rule": "selar", "k": 3, "tau": 0.25, "lambda": 1.0});
    /// assert_eq!(serde_json::to_value(rule)?, json);
    /// assert_eq!(rule.spec(), "selar:tau=0.25");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    Selar = "selar" {
        /// Tokens in the mixture
        k: usize = 3,
        /// The entropy from which tokens are mixed, 0 to 1
        tau: f64 = 0.5,
        /// How far the mean is pushed away from the likeliest token
        lambda: f64 = 1.0,
    }
}

impl Rule for Selar {
    fn check(&self) -> Result<(), RuleError> {
        if self.k == 0 {
            return Err(RuleError::value("k", "1 or more", 0));
        }
        if !(0.0..=1.0).contains(&self.tau) {
            return Err(RuleError::value("tau", "between 0 and 1", self.tau));
        }
        if !(self.lambda.is_finite() && self.lambda >= 0.0) {
            return Err(RuleError::value("lambda", "0 or more, and finite", self.lambda));
        }
        Ok(())
    }

    fn steps(&self, _start: &Start) -> Result<Option<Box<dyn Steps>>, RuleError> {
        Ok(Some(Box::new(Selective(*self))))
    }

    fn thinks(&self) -> bool {
        true
    }
}

#[derive(Clone, Debug)]
struct Selective(Selar);

impl Steps for Selective {
    fn next(&mut self, view: &View<'_>) -> Plan {
        let Selar { k, tau, lambda } = self.0;
        let mut q = view.drawn_from();
        let by_probability = |a: &(u32, f64), b: &(u32, f64)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        if k < q.len() {
            q.select_nth_unstable_by(k - 1, by_probability);
            q.truncate(k);
        }
        q.sort_unstable_by(by_probability);
        let sum: f64 = q.iter().map(|&(_, p)| p).sum();
        q.iter_mut().for_each(|(_, p)| *p /= sum);
        let entropy = if k == 1 { 0.0 } else { nats(q.iter().copied()) / (k as f64).ln() };
        if entropy < tau || q.is_empty() {
            return view.token(view.sampled);
        }
        // m + c (m - E[first]) as weights: (1 + c) q, less c on the first.
        let push = lambda * entropy;
        q.iter_mut().for_each(|(_, p)| *p *= 1.0 + push);
        q[0].1 -= push;
        view.mixture(view.sampled, q)
    }

    fn wants_candidates(&self) -> bool {
        true
    }

    fn clone_box(&self) -> Box<dyn Steps> {
        Box::new(self.clone())
    }
}
