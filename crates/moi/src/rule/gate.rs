//! A constant gate: a control experiment that the paper does not include.

use super::{Gate as EntropyGate, Gated, Rule, RuleError, Support, check_support, knobs::knobs};

knobs! {
    /// The token's embedding moved towards the mean by a constant
    ///
    /// A control experiment that the paper does not include.
    ///
    /// # Examples
    /// ```
    /// use moi::{ConstantGate, InputRule, Support};
    ///
    /// let rule = ConstantGate { gate: 0.25, support: Support::TopK(20) };
    /// assert_eq!(InputRule::from(rule).spec(), "gate:gate=0.25:support=20");
    /// // A gate has to be given.
    /// assert!("gate".parse::<InputRule>().is_err());
    /// ```
    Gate = "gate" {
        /// How far every input moves towards the mean embedding: 0 (token) to 1 (direct)
        gate: f64 = f64::NAN,
        /// Which tokens are mixed: `full`, or the K most likely
        support: Support = Support::Full,
    }
}

impl Rule for Gate {
    fn check(&self) -> Result<(), RuleError> {
        if self.gate.is_nan() {
            return Err(RuleError::Needs { rule: "gate", knob: "gate=F, 0 to 1" });
        }
        if !(0.0..=1.0).contains(&self.gate) {
            return Err(RuleError::value("gate", "between 0 and 1", self.gate));
        }
        check_support(self.support)
    }

    fn gated(&self) -> Option<Gated> {
        Some(Gated { gate: EntropyGate::constant(self.gate as f32), support: self.support })
    }
}
