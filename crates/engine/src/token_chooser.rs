//! Chooses the tokens and the next inputs of one sequence.

use std::{collections::HashSet, sync::Arc};

use moi::{RuleState, Start};
use moi_sampling::RowSpec;

use crate::{
    EngineError, Sampled, Sampler, StopRules, Support,
    grammar::Constraint,
    sampler::{Allowed, Pick},
    speculation::Verification,
};

/// Sampler, rule and limits of a sequence.
#[derive(Debug)]
pub(crate) struct TokenChooser {
    pub(crate) row: RuleState,
    pub(crate) sampler: Sampler,
    limits: Limits,
    /// How many of the largest mixture weights are reported.
    pub(crate) top: usize,
    /// How many of the most likely tokens are reported.
    logprobs: usize,
    /// What decides the next token in place of its number: drafts that were drawn, and how they are verified.
    pub(crate) verification: Option<Verification>,
    /// How often the best possible verifier would have accepted a draft for the last token, if that was computed.
    pub(crate) optimal: Option<f64>,
}

/// Which tokens may come, besides what the sampling settings say.
#[derive(Debug, Default)]
pub(crate) struct Limits {
    pub(crate) constraint: Option<Constraint>,
    /// Whether the constraint applies to the current token: only the answer is constrained, thoughts are not.
    pub(crate) holds: bool,
    /// Whether the constraint also narrows the distribution that is mixed.
    pub(crate) mixes_constrained: bool,
    /// Tokens that end a generation, which may not come before `min_tokens`.
    pub(crate) eos: Vec<u32>,
    /// Number of tokens that must come before an end token.
    pub(crate) min_tokens: usize,
    /// The only tokens that may come.
    pub(crate) allowed: Option<Arc<HashSet<u32>>>,
    /// Token sequences that may not come.
    pub(crate) bad_words: Vec<Vec<u32>>,
    /// The first tokens, which are taken whatever is drawn.
    pub(crate) forced: Vec<u32>,
}

impl TokenChooser {
    pub(crate) fn new(row: RuleState, sampler: Sampler, limits: Limits) -> Self {
        Self { row, sampler, limits, top: 0, logprobs: 0, verification: None, optimal: None }
    }

    /// Sets how many of the largest weights and of the most likely tokens are reported.
    pub(crate) fn reporting(mut self, top: usize, logprobs: usize) -> Self {
        (self.top, self.logprobs) = (top, logprobs);
        self
    }

    /// A chooser with a rule and a sampler, without limits.
    pub(crate) fn plain(rule: crate::InputRule, sampler: Sampler) -> Result<Self, EngineError> {
        Ok(Self::new(RuleState::new(rule, &Start::default())?, sampler, Limits::default()))
    }

    /// The settings of the next step for a device, with a uniform number and the tolerance of the embedding; `None`
    /// if the host has to decide the step.
    pub(crate) fn spec(&self, uniform: f64, vocab: usize, tolerance: f32) -> Option<RowSpec> {
        if self.logprobs > 0 || self.verification.is_some() || !self.is_plain() {
            return None;
        }
        let sampling = self.sampler.sampling();
        let gated = self.row.gated_ahead()?;
        Some(RowSpec {
            temperature: sampling.temperature.0 as f32,
            top_k: sampling.top_k.0,
            top_p: sampling.top_p.0 as f32,
            min_p: sampling.min_p.0 as f32,
            // Rounding must not make it 1.
            uniform: (uniform as f32).min(1.0 - f32::EPSILON / 2.0),
            slope: gated.gate.slope,
            offset: gated.gate.offset,
            floor: gated.gate.floor,
            mixes: gated.mixes(),
            support: match gated.support {
                Support::TopK(k) if k < vocab => Some(k),
                Support::TopK(_) | Support::Full => None,
            },
            tolerance,
            top: self.top.min(vocab),
        })
    }

    /// Number of tokens so far.
    pub(crate) fn generated(&self) -> usize {
        self.sampler.history().generated(0).len()
    }

    /// Whether a token can be chosen without one thread looking at the whole vocabulary alone.
    pub(crate) fn is_plain(&self) -> bool {
        !self.has_limits() && self.sampler.sampling().is_plain()
    }

    fn has_limits(&self) -> bool {
        let Limits { constraint, min_tokens, allowed, bad_words, forced, .. } = &self.limits;
        let narrows = constraint.is_some() || allowed.is_some() || !bad_words.is_empty();
        narrows || self.generated() < (*min_tokens).max(forced.len())
    }

    /// Whether the current token is forced, whatever is drawn and whatever the rule picks.
    pub(crate) fn is_forced(&self) -> bool {
        self.generated() < self.limits.forced.len()
    }

    /// Tokens that may not come now: end tokens before `min_tokens`, and tokens that would complete a bad word.
    fn not_now(&self) -> Vec<u32> {
        let Limits { eos, min_tokens, bad_words, .. } = &self.limits;
        let so_far = self.sampler.history().generated(0);
        let complete = |word: &Vec<u32>| {
            let (last, before) = word.split_last()?;
            so_far.ends_with(before).then_some(*last)
        };
        let early: &[u32] = if so_far.len() < *min_tokens { eos } else { &[] };
        early.iter().copied().chain(bad_words.iter().filter_map(complete)).collect()
    }

    /// Chooses the token for a uniform number. Also returns the logits for the mixture, if limits narrow them.
    pub(crate) fn choose(
        &mut self,
        logits: &[f32],
        uniform: f64,
    ) -> Result<(Sampled, Option<Vec<f32>>), EngineError> {
        let (generated, not) = (self.generated(), self.not_now());
        let Limits { constraint, holds, mixes_constrained, allowed: listed, forced, .. } = &mut self.limits;
        *holds = !self.row.is_thinking();
        let mut constraint = constraint.as_mut().filter(|_| *holds);
        if let Some(constraint) = &mut constraint {
            constraint.compute()?;
        }
        // Before its answer has begun, a model may open its thoughts once.
        let may_open = generated == 0 && *holds;
        let opens = self.row.markers().map(|markers| markers.open);
        let listed = listed.as_ref();
        let only = (constraint.is_some() || listed.is_some()).then_some(|token: u32| {
            let follows = |constraint: &&mut Constraint| constraint.allows(token);
            let is_free = constraint.as_ref().is_none_or(follows) || (may_open && opens == Some(token));
            is_free && listed.is_none_or(|listed| listed.contains(&token))
        });
        let allowed = Allowed {
            not: &not,
            only: only.as_ref().map(|only| only as &dyn Fn(u32) -> bool),
            forced: forced.get(generated).copied(),
        };
        let mut verification = self.verification.take();
        let mut pick = verification.as_mut().map_or(Pick::Number(uniform), Pick::Verified);
        let (sampled, drawn) = self.sampler.choose_by(logits, allowed, self.logprobs, &mut pick)?;
        self.optimal = verification.and_then(|verification| verification.optimal);
        if self.row.wants_candidates() {
            self.row.drawn_from(drawn.shares(logits));
        }
        let is_narrow = !allowed.is_all() || self.sampler.sampling().has_penalties();
        let narrows = (self.row.picks_tokens() && is_narrow) || (*mixes_constrained && !allowed.is_all());
        Ok((sampled, narrows.then(|| self.sampler.narrowed(logits, allowed))))
    }

    /// As this chooser will be behind a token that is expected, except for its grammar, so that what it then chooses is
    /// a guess.
    pub(crate) fn behind(&self, token: u32) -> Self {
        let mut next = self.without_grammar();
        next.sampler.draw();
        next.sampler.push(token);
        next.row.pass();
        next.row.follow(token);
        next
    }

    /// Makes the next token this one, whatever is drawn.
    pub(crate) fn force(&mut self, token: u32) {
        let so_far = self.sampler.history().generated(0).iter().copied();
        self.limits.forced = so_far.chain([token]).collect();
    }

    /// A copy without its grammar, whose state is large, and without reports.
    pub(crate) fn without_grammar(&self) -> Self {
        let limits = Limits {
            constraint: None,
            eos: self.limits.eos.clone(),
            allowed: self.limits.allowed.clone(),
            bad_words: self.limits.bad_words.clone(),
            forced: self.limits.forced.clone(),
            ..self.limits
        };
        Self::new(self.row.clone(), self.sampler.clone(), limits)
    }

    /// Counts a token. Returns whether it completes the constraint.
    pub(crate) fn push(&mut self, token: u32) -> Result<bool, EngineError> {
        self.sampler.push(token);
        self.row.follow(token);
        match &mut self.limits.constraint {
            // The marker that opens the thoughts is not part of the answer.
            Some(_) if self.row.is_thinking() => Ok(false),
            Some(constraint) if self.limits.holds => constraint.push(token),
            _ => Ok(false),
        }
    }

    /// Whether the rule may end the reply now: not before `min_tokens`, and not if a grammar constrains the answer.
    pub(crate) fn may_end(&self) -> bool {
        self.generated() >= self.limits.min_tokens && self.limits.constraint.is_none()
    }
}

impl Limits {
    pub(crate) fn new(stop: &StopRules, eos: &[u32], constraint: Option<Constraint>, mixes: bool) -> Self {
        Self {
            constraint,
            holds: false,
            mixes_constrained: mixes,
            eos: eos.to_vec(),
            min_tokens: stop.min_tokens,
            ..Self::default()
        }
    }
}
