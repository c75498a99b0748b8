//! Direct Mixture, the paper's ablation.

use super::{Gate, Gated, Rule, RuleError, Support, check_support, knobs::knobs};

knobs! {
    /// The distribution's mean embedding, whatever was sampled (Direct Mixture)
    ///
    /// # Examples
    /// ```
    /// use moi::{Direct, Gate, InputRule, Support};
    ///
    /// let rule = InputRule::from(Direct { support: Support::TopK(5) });
    /// assert_eq!(rule.spec(), "direct:support=5");
    /// // The sampled token has no share of its own.
    /// assert_eq!(rule.gated().map(|gated| gated.gate), Some(Gate::constant(1.0)));
    /// ```
    Direct = "direct" {
        /// Which tokens are mixed: `full`, or the K most likely
        support: Support = Support::Full,
    }
}

impl Rule for Direct {
    fn check(&self) -> Result<(), RuleError> {
        check_support(self.support)
    }

    fn gated(&self) -> Option<Gated> {
        Some(Gated { gate: Gate::constant(1.0), support: self.support })
    }
}
