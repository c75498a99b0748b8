//! Mixture of Inputs: Zhuang et al., arXiv 2505.14827.

use super::{Gate, Gated, Rule, RuleError, Support, check_support, knobs::knobs};

knobs! {
    /// The token's embedding moved towards the distribution's mean, further where entropy is high
    ///
    /// Mixture of Inputs. The gate is H / (beta + 1), H the normalised entropy on the support.
    ///
    /// # Examples
    /// ```
    /// use moi::{Gate, InputRule, Moi, Support};
    ///
    /// let rule = InputRule::from(Moi { beta: 3.0, support: Support::TopK(20), ..Moi::default() });
    /// assert_eq!(rule.spec(), "moi:beta=3:support=20");
    /// assert_eq!(rule.gated().map(|gated| gated.gate), Some(Gate { slope: 0.25, offset: 0.0, floor: 0.0 }));
    /// // With a floor it is another rule, and is called so.
    /// assert_eq!(InputRule::from(Moi { floor: 0.02, ..Moi::default() }).spec(), "moi:floor=0.02");
    /// ```
    Moi = "moi" {
        /// Weight of the sampled token, above -1 and finite; more means less mixing
        beta: f64 = 1.0,
        /// Which tokens are mixed: `full`, or the K most likely
        support: Support = Support::Full,
        /// Gates below this are 0, so that the token's own embedding is fed, which drafts can guess; 0 to 1
        floor: f64 = 0.0,
    }
}

impl Rule for Moi {
    fn check(&self) -> Result<(), RuleError> {
        if !self.beta.is_finite() || self.beta <= -1.0 {
            return Err(RuleError::value("beta", "finite and above -1", self.beta));
        }
        if !(0.0..=1.0).contains(&self.floor) {
            return Err(RuleError::value("floor", "from 0 to 1", self.floor));
        }
        check_support(self.support)
    }

    /// The clamp of the gate matters only for a beta below 0: there H / (beta + 1) may exceed 1, which would give the
    /// sampled token a negative weight.
    fn gated(&self) -> Option<Gated> {
        // A beta just above -1 gives a slope beyond f32; limiting it is harmless, because the gate is clamped to 1
        // anyway.
        let slope = ((1.0 / (self.beta + 1.0)) as f32).min(f32::MAX);
        Some(Gated { gate: Gate { slope, offset: 0.0, floor: self.floor as f32 }, support: self.support })
    }
}
