//! Rules that are more than a gate: what they see of a step and what they decide.

use std::{cell::OnceCell, fmt::Debug};

use moi_sampling::Candidates;
use serde::{Deserialize, Serialize};

/// The tokens between which a model thinks, such as `<think>` and `</think>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Markers {
    /// The one that begins it.
    pub open: u32,
    /// The one that must follow the first for it to count, where the first begins other things, too, as gpt-oss's
    /// `<|channel|>` does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<u32>,
    /// The one that ends it.
    pub close: u32,
}

impl Markers {
    /// Two tokens, of which the first begins nothing else.
    pub fn new(open: u32, close: u32) -> Self {
        Self { open, name: None, close }
    }

    /// Whether what follows these tokens is between the markers.
    pub fn opened_by(&self, tokens: &[u32]) -> bool {
        let mut state = (false, false);
        for &token in tokens {
            state = self.behind(state, token);
        }
        state.0
    }

    /// Whether a step is between the markers, and whether the token before it was the first one: behind one more token.
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

/// What is known of a row before its first step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Start {
    /// Of the rule's own noise.
    pub seed: u64,
    /// Which tokens the rule applies to: the rule's default where `None`, see [`crate::Scope`].
    pub scope: Option<crate::Scope>,
    /// The tokens between which the model thinks, if it has such.
    pub markers: Option<Markers>,
    /// Whether the prompt ends within thinking: some chat templates open it.
    pub thinking: bool,
    /// Tokens to generate at most, where known.
    pub limit: Option<usize>,
}

/// One step of a row, on the host.
#[derive(Debug)]
pub(crate) struct View<'a> {
    /// Raw logits `[vocab]`.
    pub(crate) logits: &'a [f32],
    /// The token that was sampled.
    pub(crate) sampled: u32,
    /// Steps before.
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
    /// Of e^(logit - largest).
    sum: f64,
    /// Its entropy.
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

    /// What the token was drawn from, in any order; the raw distribution where that was not told.
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

    /// Feeds a token's own embedding.
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

    /// Feeds a mixture of some embeddings.
    pub(crate) fn mixture(&self, token: u32, weights: Vec<(u32, f64)>) -> Plan {
        let weights = merged(weights);
        Plan { token, mean: 0.0, weights, entropy: self.entropy(), gate: 1.0, ends: false }
    }

    /// Feeds `share` of the mean embedding of the raw distribution, and some embeddings beside it.
    pub(crate) fn mean(&self, token: u32, share: f32, beside: Vec<(u32, f32)>) -> Plan {
        Plan { token, mean: share, weights: beside, entropy: self.entropy(), gate: 1.0, ends: false }
    }
}

/// A token may come several times.
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

/// What a rule decides for a step.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Plan {
    /// The token that counts as generated: the sampled one, or one that the rule puts in its place.
    pub(crate) token: u32,
    /// Weight of the mean embedding of the raw distribution.
    pub(crate) mean: f32,
    /// Weights of embeddings, each token once.
    pub(crate) weights: Vec<(u32, f32)>,
    /// Normalised, 0 to 1.
    pub(crate) entropy: f32,
    /// The share of the input that is not the token's own embedding, but for what the mixture has of it.
    pub(crate) gate: f32,
    /// Whether the reply ends with this token.
    pub(crate) ends: bool,
}

/// A rule under way in one row.
pub(crate) trait Steps: Debug + Send {
    /// Decides a step to which the rule applies.
    fn next(&mut self, view: &View<'_>) -> Plan;

    /// Sees a step that is outside the rule's scope.
    fn outside(&mut self, view: &View<'_>) -> Plan {
        view.token(view.sampled)
    }

    /// Whether it picks tokens from the logits.
    fn picks_tokens(&self) -> bool {
        false
    }

    /// Whether it wants to know what tokens are drawn from.
    fn wants_candidates(&self) -> bool {
        false
    }
}

/// Entropy of probabilities.
pub(crate) fn nats(q: impl IntoIterator<Item = (u32, f64)>) -> f64 {
    let terms = q.into_iter().map(|(_, p)| if p > 0.0 { -p * p.ln() } else { 0.0 });
    terms.sum::<f64>().max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of channels that begin alike only the named one counts, until it ends.
    #[test]
    fn a_named_channel_opens() {
        let (open, name, other, close, text) = (1, 2, 3, 4, 9);
        let markers = Markers { open, name: Some(name), close };
        assert!(markers.opened_by(&[open, name, text]));
        assert!(!markers.opened_by(&[open, other, text]));
        assert!(!markers.opened_by(&[open, name, text, close, open, other, text]));
        // Its name by itself is text, before it and in it.
        assert!(!markers.opened_by(&[name, text]));
        assert!(!markers.opened_by(&[open, text, name]));
        assert!(markers.opened_by(&[open, name, open, other]));
        let plain = Markers::new(open, close);
        assert!(plain.opened_by(&[open]) && !plain.opened_by(&[open, close]) && !plain.opened_by(&[]));
    }
}
