//! Direct Mixture, the paper's ablation.

use super::{Gate, Gated, Rule, RuleError, Support, check_support, knobs::knobs};

knobs! {
    /// The distribution's mean embedding, whatever was sampled (Direct Mixture)
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
        Some(Gated { gate: Gate { slope: 0.0, offset: 1.0 }, support: self.support })
    }
}
