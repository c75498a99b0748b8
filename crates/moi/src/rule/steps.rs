//! Rules that are more than a gate: what they see of a step and what they decide.

use std::{cell::OnceCell, fmt::Debug};

use moi_sampling::Candidates;
use serde::{Deserialize, Serialize};

/// The tokens between which a model thinks, such as `<think>` and `</think>`.
///
/// # Examples
/// ```
/// use moi::Markers;
///
/// let markers = Markers::new(7, 8); // <think> and </think> of some vocabulary
/// assert!(markers.opened_by(&[1, 7, 2]));
/// assert!(!markers.opened_by(&[1, 7, 2, 8, 3]));
/// // A token that opens several channels, of which only the one named by token 5 is for thinking.
/// let channel = Markers { name: Some(5), ..markers };
/// assert!(channel.opened_by(&[7, 5]) && !channel.opened_by(&[7, 6]));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Markers {
    /// The token that begins thinking.
    pub open: u32,
    /// The token that must follow `open` for thinking to begin, if `open` begins other things, too, as gpt-oss's
    /// `<|channel|>` does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<u32>,
    /// The token that ends thinking.
    pub close: u32,
}

impl Markers {
    /// Markers whose first token begins nothing but thinking.
    pub fn new(open: u32, close: u32) -> Self {
        Self { open, name: None, close }
    }

    /// Whether the token that follows `tokens` is between the markers.
    pub fn opened_by(&self, tokens: &[u32]) -> bool {
        let mut state = (false, false);
        for &token in tokens {
            state = self.behind(state, token);
        }
        state.0
    }

    /// Updates the state by one token: whether the next step is between the markers, and whether the token was
    /// `open`.
    pub(crate) fn behind(&self, (thinking, opened): (bool, bool), token: u32) -> (bool, bool) {
        let is_open = token == self.open;
        match self.name {
            None if is_open => (true, false),
            Some(name) if opened && token == name => (true, false),
            _ if token == self.close => (false, is_open),
            _ => (thinking, is_open),
        }
    }
}

/// What is known of a sequence before its first step.
///
/// # Examples
/// ```
/// use moi::{Markers, RuleState, Scope, Start};
///
/// // The chat template has opened the thinking, so the rule applies from the first token on.
/// let start = Start { markers: Some(Markers::new(7, 8)), thinking: true, ..Start::default() };
/// let row = RuleState::new("soft-thinking".parse()?, &start)?;
/// assert_eq!(row.scope(), Scope::Thinking);
/// assert!(row.is_thinking());
/// # Ok::<(), moi::RuleError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Start {
    /// Seed of the rule's own noise.
    pub seed: u64,
    /// Which tokens the rule applies to: the rule's default where `None`, see [`crate::Scope`].
    pub scope: Option<crate::Scope>,
    /// The tokens between which the model thinks, if it has any.
    pub markers: Option<Markers>,
    /// Whether the prompt ends within thinking: some chat templates open it.
    pub thinking: bool,
    /// The largest number of tokens to generate, if known.
    pub limit: Option<usize>,
}

/// One step of a sequence, as seen on the host.
#[derive(Debug)]
pub(crate) struct View<'a> {
    /// Raw logits `[vocab]`.
    pub(crate) logits: &'a [f32],
    /// The token that was sampled.
    pub(crate) sampled: u32,
    /// Number of steps before this one.
    pub(crate) step: usize,
    pub(crate) markers: Option<Markers>,
    /// Whether the step is between the markers.
    pub(crate) thinking: bool,
    candidates: Option<&'a [(u32, f64)]>,
    raw: OnceCell<Raw>,
}

/// The raw distribution, in float64.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Raw {
    largest: f64,
    /// Sum of e^(logit - largest) over the vocabulary.
    sum: f64,
    /// Its entropy in nats.
    pub(crate) nats: f64,
}

impl Raw {
    pub(crate) fn new(logits: &[f32]) -> Self {
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let largest = f64::from(largest);
        let (mut sum, mut weighted) = (0.0, 0.0);
        for &logit in logits.iter().filter(|&&logit| logit > f32::NEG_INFINITY) {
            let shifted = f64::from(logit) - largest;
            let exponential = shifted.exp();
            sum += exponential;
            weighted += exponential * shifted;
        }
        Self { largest, sum, nats: sum.ln() - weighted / sum }
    }

    /// The probability of a token with this logit.
    pub(crate) fn probability(&self, logit: f32) -> f64 {
        (f64::from(logit) - self.largest).exp() / self.sum
    }
}

impl<'a> View<'a> {
    pub(crate) fn new(logits: &'a [f32], sampled: u32, candidates: Option<&'a [(u32, f64)]>) -> Self {
        Self { logits, sampled, step: 0, markers: None, thinking: false, candidates, raw: OnceCell::new() }
    }

    pub(crate) fn raw(&self) -> &Raw {
        self.raw.get_or_init(|| Raw::new(self.logits))
    }

    /// The tokens and probabilities that the sampler drew from, in any order; the raw distribution if they were not
    /// given.
    pub(crate) fn drawn_from(&self) -> Vec<(u32, f64)> {
        match self.candidates {
            Some(candidates) => candidates.to_vec(),
            None => Candidates::new(self.logits).shares(),
        }
    }

    /// Entropy of the raw distribution, divided by ln of the vocabulary.
    fn entropy(&self) -> f32 {
        match self.logits.len() {
            1 => 0.0,
            vocab => (self.raw().nats / (vocab as f64).ln()).clamp(0.0, 1.0) as f32,
        }
    }

    /// A plan that feeds a token's own embedding.
    pub(crate) fn token(&self, token: u32) -> Plan {
        Plan {
            token,
            mean: 0.0,
            weights: vec![(token, 1.0)],
            entropy: self.entropy(),
            gate: 0.0,
            ends: false,
        }
    }

    /// A plan that feeds a weighted sum of embeddings.
    pub(crate) fn mixture(&self, token: u32, weights: Vec<(u32, f64)>) -> Plan {
        let weights = merged(weights);
        Plan { token, mean: 0.0, weights, entropy: self.entropy(), gate: 1.0, ends: false }
    }

    /// A plan that feeds `share` of the mean embedding of the raw distribution plus the embeddings `beside`.
    pub(crate) fn mean(&self, token: u32, share: f32, beside: Vec<(u32, f32)>) -> Plan {
        Plan { token, mean: share, weights: beside, entropy: self.entropy(), gate: 1.0, ends: false }
    }
}

/// Adds up the weights of tokens that occur several times.
fn merged(weights: Vec<(u32, f64)>) -> Vec<(u32, f32)> {
    let mut weights = weights;
    weights.sort_by_key(|&(token, _)| token);
    weights.dedup_by(|later, first| {
        let same = later.0 == first.0;
        if same {
            first.1 += later.1;
        }
        same
    });
    weights.into_iter().map(|(token, weight)| (token, weight as f32)).collect()
}

/// A rule's decision for one step.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Plan {
    /// The token recorded as generated: the sampled one, or one with which the rule replaces it.
    pub(crate) token: u32,
    /// Weight of the mean embedding of the raw distribution.
    pub(crate) mean: f32,
    /// Weights of embeddings, each token once.
    pub(crate) weights: Vec<(u32, f32)>,
    /// Normalised entropy, 0 to 1.
    pub(crate) entropy: f32,
    /// The share of the input that comes from the mixture instead of the token itself (the mixture may contain the
    /// token).
    pub(crate) gate: f32,
    /// Whether the reply ends with this token.
    pub(crate) ends: bool,
}

/// The state of a rule for one sequence.
pub(crate) trait Steps: Debug + Send {
    /// Decides a step to which the rule applies.
    fn next(&mut self, view: &View<'_>) -> Plan;

    /// Decides a step outside the rule's scope. By default the sampled token is fed.
    fn outside(&mut self, view: &View<'_>) -> Plan {
        view.token(view.sampled)
    }

    /// Whether the rule picks tokens from the logits itself.
    fn picks_tokens(&self) -> bool {
        false
    }

    /// Whether the rule needs the tokens that the sampler draws from.
    fn wants_candidates(&self) -> bool {
        false
    }

    /// A copy, to try steps that may not come.
    fn clone_box(&self) -> Box<dyn Steps>;
}

impl Clone for Box<dyn Steps> {
    fn clone(&self) -> Self {
        self.as_ref().clone_box()
    }
}

/// Entropy of probabilities, in nats.
pub(crate) fn nats(q: impl IntoIterator<Item = (u32, f64)>) -> f64 {
    let terms = q.into_iter().map(|(_, p)| if p > 0.0 { -p * p.ln() } else { 0.0 });
    terms.sum::<f64>().max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of channels that begin with the same token, only the named one counts as thinking, until it ends.
    #[test]
    fn a_named_channel_opens() {
        let (open, name, other, close, text) = (1, 2, 3, 4, 9);
        let markers = Markers { open, name: Some(name), close };
        assert!(markers.opened_by(&[open, name, text]));
        assert!(!markers.opened_by(&[open, other, text]));
        assert!(!markers.opened_by(&[open, name, text, close, open, other, text]));
        // The name opens thinking only directly after `open`.
        assert!(!markers.opened_by(&[name, text]));
        assert!(!markers.opened_by(&[open, text, name]));
        assert!(markers.opened_by(&[open, name, open, other]));
        let plain = Markers::new(open, close);
        assert!(plain.opened_by(&[open]) && !plain.opened_by(&[open, close]) && !plain.opened_by(&[]));
    }
}
