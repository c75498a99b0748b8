//! Mixture of Inputs: Zhuang et al., arXiv 2505.14827.

use super::{Gate, Gated, Rule, RuleError, Support, check_support, knobs::knobs};

knobs! {
    /// The token's embedding moved towards the distribution's mean, further where entropy is high
    ///
    /// Mixture of Inputs. The gate is H / (beta + 1), H the normalised entropy on the support.
    Moi = "moi" {
        /// Weight of the sampled token, above -1 and finite; more means less mixing
        beta: f64 = 1.0,
        /// Which tokens are mixed: `full`, or the K most likely
        support: Support = Support::Full,
    }
}

impl Rule for Moi {
    fn check(&self) -> Result<(), RuleError> {
        if !self.beta.is_finite() || self.beta <= -1.0 {
            return Err(RuleError::value("beta", "finite and above -1", self.beta));
        }
        check_support(self.support)
    }

    /// The clamp of a gate matters for a beta below 0 only: there H / (beta + 1) may pass 1, which would give the sampled
    /// token a negative weight.
    fn gated(&self) -> Option<Gated> {
        // beta just above -1 divides to more than f32 holds; the clamp makes any such slope alike.
        let slope = ((1.0 / (self.beta + 1.0)) as f32).min(f32::MAX);
        Some(Gated { gate: Gate { slope, offset: 0.0 }, support: self.support })
    }
}
