//! What speculation did.

use std::{sync::Arc, time::Duration};

use moi_speculation::DraftTree;
use serde::{Serialize, Serializer};

use super::Verify;

/// How a token came out of a pass that ran drafts.
///
/// # Examples
/// ```
/// use moi_engine::{DrafterChoice, Engine, Prompt, Request, Speculation, speculation::PassCosts};
/// # use moi_models::Architecture;
/// # let config = serde_json::json!({
/// #     "model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
/// #     "num_hidden_layers": 2, "num_attention_heads": 4,
/// # });
/// # let device = Default::default();
/// # let model = Architecture::from_config(&config)?.config.init::<burn_flex::Flex>(&device);
/// // Two positions at the cost of one.
/// let engine = Engine::new(model, device).with_pass_costs(PassCosts::new(vec![(1, 1.0), (2, 1.0)]));
/// let mut request = Request::new(Prompt::Ids(vec![0, 0, 0])); // All logits of this model are 0.
/// request.rule = "token".parse()?;
/// request.speculation = Speculation::by(DrafterChoice::Lookup);
/// request.stop.max_tokens = Some(9);
/// let last = engine.generate(request)?.last().expect("tokens")?;
/// let report = last.speculated.and_then(|speculated| speculated.report).expect("a report at the end");
/// assert!(report.tokens == 9 && report.accepted > 0 && report.rounds < 9);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Speculated {
    /// Index of the pass among those of its sequence.
    pub round: usize,
    /// Number of tokens that the same pass had given before.
    pub depth: usize,
    /// Whether the token was drafted for its place. Where the rule feeds a mixture behind it, the pass ends all the
    /// same.
    pub accepted: bool,
    /// With the first token of a pass, what was drafted for it.
    pub tree: Option<Arc<DraftTree>>,
    /// With the last token of the sequence, what speculation did for it.
    pub report: Option<Box<SpeculationReport>>,
}

/// What speculation did for a sequence so far.
///
/// # Examples
/// ```
/// use moi_engine::SpeculationReport;
///
/// let report = SpeculationReport { rounds: 4, tokens: 10, ..SpeculationReport::default() };
/// assert_eq!(report.tokens_per_round(), 2.5);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct SpeculationReport {
    /// The drafter.
    pub drafter: &'static str,
    /// Passes through the model that gave tokens.
    pub rounds: usize,
    /// Tokens that they gave.
    pub tokens: usize,
    /// Drafts that passes ran. Guesses that are kept from pass to pass count in each.
    pub drafted: usize,
    /// Drafted tokens that were accepted.
    pub accepted: usize,
    /// By depth from 1 on: how often the pass came to a place with drafts, and how often one of them was accepted.
    pub by_depth: Vec<DepthReport>,
    /// How the tokens were decided: see [`crate::Verify`].
    pub verify: Verify,
    /// Guessed inputs that were let through without being exact. Results are then approximate, by rounding alone if the
    /// tolerance was 1e-6 or so.
    pub inexact: usize,
    /// The largest error of these, relative to the norm of the true input.
    pub worst: f64,
    /// Time that drafting took; nothing on targets without a clock.
    #[serde(rename = "draft_s", serialize_with = "seconds")]
    pub draft_time: Duration,
    /// Time of passes and of choosing their tokens.
    #[serde(rename = "verify_s", serialize_with = "seconds")]
    pub verify_time: Duration,
}

/// Drafts of one depth.
///
/// # Examples
/// ```
/// use moi_engine::DepthReport;
///
/// let depth = DepthReport { reached: 4, accepted: 3, ..DepthReport::default() };
/// assert_eq!(serde_json::to_string(&depth)?, r#"{"reached":4,"accepted":3}"#);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct DepthReport {
    /// How often there were drafts of this depth where the pass came to.
    pub reached: usize,
    /// How often one of them was accepted.
    pub accepted: usize,
    /// How often the best possible verifier would have accepted one, on average over some of the places: see
    /// [`crate::Speculation::optimum`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub optimal: Option<f64>,
    /// At how many places that was computed.
    #[serde(skip)]
    pub sampled: usize,
}

impl SpeculationReport {
    /// Tokens that a pass gave on average; 0 before the first.
    pub fn tokens_per_round(&self) -> f64 {
        if self.rounds == 0 { 0.0 } else { self.tokens as f64 / self.rounds as f64 }
    }

    pub(crate) fn count(&mut self, depth: usize, (has_drafts, accepted): (bool, bool), optimal: Option<f64>) {
        self.tokens += 1;
        self.accepted += usize::from(accepted);
        if has_drafts {
            if self.by_depth.len() <= depth {
                self.by_depth.resize(depth + 1, DepthReport::default());
            }
            let of = &mut self.by_depth[depth];
            of.reached += 1;
            of.accepted += usize::from(accepted);
            if let Some(optimal) = optimal {
                let sum = of.optimal.unwrap_or(0.0) * of.sampled as f64 + optimal;
                of.sampled += 1;
                of.optimal = Some(sum / of.sampled as f64);
            }
        }
    }
}

fn seconds<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(time.as_secs_f64())
}
