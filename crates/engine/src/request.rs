//! What a caller asks for.

use std::{collections::HashSet, sync::Arc};

use burn::tensor::{Tensor, backend::Backend};
use moi::{InputRule, Scope};
use moi_sampling::Sampling;
use serde::{Deserialize, Serialize};

use crate::{EngineError, Grammar};

/// What to continue.
#[derive(Clone, Debug)]
pub enum Prompt<B: Backend> {
    /// Text, encoded as it stands with the tokenizer's begin token, if it has one.
    Text(String),
    /// Token ids, fed as they stand.
    Ids(Vec<u32>),
    /// Embeddings `[seq, d]`, fed as they stand: a soft prompt, or a mixture made elsewhere.
    Embeddings(Tensor<B, 2>),
}

impl<B: Backend> Prompt<B> {
    /// Whether both are the same text or the same ids.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Text(a), Self::Text(b)) => a == b,
            (Self::Ids(a), Self::Ids(b)) => a == b,
            _ => false,
        }
    }
}

/// One generation.
#[derive(Clone, Debug)]
pub struct Request<B: Backend> {
    /// What to continue.
    pub prompt: Prompt<B>,
    /// What is fed after each sampled token.
    pub rule: InputRule,
    /// Which generated tokens the rule applies to; the rule's default where `None`.
    pub scope: Option<Scope>,
    /// How tokens are sampled.
    pub sampling: Sampling,
    /// What the answer follows.
    pub grammar: Option<Grammar>,
    /// Whether the distribution that is mixed is the one that the grammar leaves, instead of the raw one. Rules that pick
    /// tokens themselves always see what is left.
    pub mix_constrained: bool,
    /// When to end.
    pub stop: StopRules,
    /// Makes sampling repeatable: the same seed gives the same tokens.
    pub seed: u64,
    /// What is cached of a prompt serves other requests with the same salt alone, so that nobody tells from the time that an
    /// answer takes what others have asked.
    pub salt: String,
    /// Which place it has among those that wait for a [`crate::Scheduler`]: smaller numbers come first, whoever has asked.
    pub priority: i64,
    /// How many of the largest mixture weights each step reports. With 0 they are not looked for.
    pub top: usize,
    /// How many of the likeliest tokens each step reports, with their log-probabilities.
    pub logprobs: usize,
    /// Whether it is reported how likely each token of the prompt is behind those before it, and so many of the likeliest
    /// beside it. All of the prompt runs then, whatever is cached of it.
    pub prompt_logprobs: Option<usize>,
    /// The first tokens, taken as if they had been sampled: what is drawn, mixed and reported is as it would be. With the seed
    /// and the tokens of another generation this is a fork of it, at any of its tokens.
    pub forced: Vec<u32>,
    /// The only tokens that are sampled; all where `None`.
    pub allowed: Option<Arc<HashSet<u32>>>,
    /// Sequences of tokens that do not come.
    pub bad_words: Vec<Vec<u32>>,
    /// Control tokens whose text is part of the answer's text, where others have none.
    pub shown: Vec<u32>,
}

/// When a generation ends, besides the model's end tokens and a full context.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StopRules {
    /// After this many tokens.
    pub max_tokens: Option<usize>,
    /// Not before this many tokens: end tokens are not sampled until then, and stop strings not looked for.
    pub min_tokens: usize,
    /// Where the text comes to one of these; it is not part of the text then. Where one is the text of a control token,
    /// that token ends the generation, too.
    pub strings: Vec<String>,
    /// At one of these tokens, which is no part of the text.
    pub tokens: Vec<u32>,
    /// The text ends behind the stop string instead of before it.
    pub includes_string: bool,
    /// Stop strings are not looked for while the model thinks.
    pub spares_thoughts: bool,
    /// Go on past the model's end tokens.
    pub ignore_eos: bool,
}

impl<B: Backend> Request<B> {
    /// MoI as the paper defines it, greedy, until an end token or a full context.
    pub fn new(prompt: Prompt<B>) -> Self {
        Self {
            prompt,
            rule: InputRule::default(),
            scope: None,
            sampling: Sampling::default(),
            grammar: None,
            mix_constrained: false,
            stop: StopRules::default(),
            seed: 0,
            salt: String::new(),
            priority: 0,
            top: 0,
            logprobs: 0,
            prompt_logprobs: None,
            forced: Vec::new(),
            allowed: None,
            bad_words: Vec::new(),
            shown: Vec::new(),
        }
    }

    pub(crate) fn check(&self) -> Result<(), EngineError> {
        self.rule.validated()?;
        self.sampling.check()?;
        match self.stop.max_tokens {
            Some(0) => return Err(EngineError::MaxTokensZero),
            Some(max) if max < self.stop.min_tokens => {
                return Err(EngineError::MinAboveMax { min: self.stop.min_tokens, max });
            }
            _ => {}
        }
        if self.stop.strings.iter().any(String::is_empty) {
            return Err(EngineError::EmptyStopString);
        }
        if self.bad_words.iter().any(Vec::is_empty) {
            return Err(EngineError::EmptyBadWord);
        }
        if self.allowed.as_ref().is_some_and(|allowed| allowed.is_empty()) {
            return Err(EngineError::NothingAllowed);
        }
        Ok(())
    }
}
