//! What speculation can do under an input rule.

use moi::{InputRule, RuleState, Scope};

use super::Verify;

/// How exactly inputs are to be guessed where a rule feeds mixtures.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct InputLimits {
    /// The largest relative error of an input that stays: see [`moi_speculation::relative_error`].
    pub(crate) tolerance: f64,
    /// Whether the rule ever feeds anything but the token's own embedding.
    pub(crate) mixes: bool,
    /// Whether the rule feeds a mixture behind every token.
    pub(crate) always: bool,
    /// Whether the rows behind an input that was not near enough give the next guesses.
    pub(crate) refines: bool,
    /// Whether the sampled token has no share of its own in the input, so that errors need not shrink from pass to pass.
    pub(crate) is_full: bool,
}

/// The tolerance where a rule always mixes: what rounding in float32 amounts to.
const ROUNDING: f64 = 1e-6;

impl InputLimits {
    /// What a sequence allows with this tolerance, or with a default one; why drafts gain nothing, if they do not.
    pub(crate) fn new(row: &RuleState, tolerance: Option<f64>, verify: Verify) -> Result<Self, &'static str> {
        let rule = row.rule();
        let always = row.scope() == Scope::All && always_mixes(rule);
        let is_full = match rule.gated() {
            Some(gated) => gated.gate.offset >= 1.0,
            None => matches!(rule, InputRule::SoftThinking(_)),
        };
        if always && is_full && tolerance.is_none() {
            return Err(
                "this input rule feeds nothing but a mixture, and guesses of it need not get better from pass to \
                        pass; set a tolerance to try it",
            );
        }
        let usual = if always_mixes(rule) && !is_full { ROUNDING } else { 0.0 };
        let tolerance = tolerance.unwrap_or(usual);
        if always && tolerance == 0.0 {
            return Err(
                "this input rule feeds a mixture behind every token, and with a tolerance of 0 no guess of it is \
                        right; moi:floor=F feeds tokens where the model is sure",
            );
        }
        if always && matches!(verify, Verify::KSeq | Verify::Greedy) {
            return Err(
                "this input rule feeds a mixture behind every token, and `k-seq` and `greedy` keep no guesses of \
                        it; use `match` or `rejection`",
            );
        }
        let has_floor = rule.gated().is_some_and(|gated| gated.gate.floor > 0.0);
        // The inputs of K sampled tokens take few values, which guesses meet exactly.
        let is_discrete = matches!(rule, InputRule::KSample(_));
        let mixes = rule.mixes();
        let refines = mixes && (tolerance > 0.0 || has_floor || is_discrete);
        Ok(Self { tolerance, mixes, always, refines, is_full })
    }
}

/// Whether a rule never feeds a token's own embedding on purpose.
fn always_mixes(rule: InputRule) -> bool {
    match rule.gated() {
        Some(gated) => gated.mixes() && gated.gate.floor == 0.0,
        None => matches!(rule, InputRule::SoftThinking(_)),
    }
}
