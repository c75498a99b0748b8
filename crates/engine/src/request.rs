//! What a caller asks for.

use burn::tensor::{Tensor, backend::Backend};
use moi::InputRule;
use serde::{Deserialize, Serialize};

use crate::{EngineError, Sampling};

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

/// One generation.
#[derive(Clone, Debug)]
pub struct Request<B: Backend> {
    /// What to continue.
    pub prompt: Prompt<B>,
    /// What is fed after each sampled token.
    pub rule: InputRule,
    /// How tokens are sampled.
    pub sampling: Sampling,
    /// When to end.
    pub stop: StopRules,
    /// Makes sampling repeatable: the same seed gives the same tokens.
    pub seed: u64,
    /// How many of the largest mixture weights each step reports.
    pub top: usize,
}

/// When a generation ends, besides the model's end tokens and a full context.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StopRules {
    /// After this many tokens.
    pub max_tokens: Option<usize>,
    /// Where the text comes to one of these; it is not part of the text then.
    pub strings: Vec<String>,
    /// Go on past the model's end tokens.
    pub ignore_eos: bool,
}

impl<B: Backend> Request<B> {
    /// MoI as the paper defines it, greedy, until an end token or a full context.
    pub fn new(prompt: Prompt<B>) -> Self {
        Self {
            prompt,
            rule: InputRule::default(),
            sampling: Sampling::default(),
            stop: StopRules::default(),
            seed: 0,
            top: 5,
        }
    }

    pub(crate) fn check(&self) -> Result<(), EngineError> {
        self.rule.validated()?;
        self.sampling.check()?;
        if self.stop.max_tokens == Some(0) {
            return Err(EngineError::MaxTokensZero);
        }
        if self.stop.strings.iter().any(String::is_empty) {
            return Err(EngineError::EmptyStopString);
        }
        Ok(())
    }
}
