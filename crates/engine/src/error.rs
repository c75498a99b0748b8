//! Why a request is refused or a generation ends early.

use std::{fmt, sync::Arc};

use crate::Origin;

/// What went wrong, with the value it was.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The model refused its inputs.
    #[error(transparent)]
    Model(#[from] moi_models::ModelError),
    /// The input rule has a value it does not allow.
    #[error(transparent)]
    Rule(#[from] moi::RuleError),
    /// Mixing failed.
    #[error(transparent)]
    Mix(#[from] moi::MixError),
    /// The tokenizer failed.
    #[error(transparent)]
    Text(#[from] crate::text::TextError),
    /// The device gives wrong numbers.
    #[error(transparent)]
    Device(#[from] crate::WrongLogits),
    /// A sampling value that is not allowed, or nothing left to sample.
    #[error(transparent)]
    Sampling(#[from] moi_sampling::SamplingError),
    /// A round failed as a whole, and with it all requests that took part.
    #[error(transparent)]
    Round(Arc<EngineError>),
    /// A request that another engine has prepared.
    #[error("the request was prepared by another engine; prepare it by the one that is to run it")]
    ForeignRequest,
    /// Nothing to continue.
    #[error("the prompt is empty; a model needs at least one token to continue from")]
    EmptyPrompt,
    /// Text for, or stop strings against, a model without a tokenizer.
    #[error("the model has no tokenizer, so {0} cannot be used; give the prompt as token ids")]
    NoTokenizer(&'static str),
    /// DRY with sequence breakers and a model without a tokenizer.
    #[error(
        "the model has no tokenizer, so the texts over which no repeated sequence reaches cannot be found; give none: \
         `dry_sequence_breakers` as an empty list, or --dry-sequence-breaker none"
    )]
    NoBreakers,
    /// A prompt token that the model does not have.
    #[error("prompt token {token} is outside the vocabulary of {vocab_size} tokens")]
    TokenOutsideVocabulary {
        /// The token.
        token: u32,
        /// Tokens the model has.
        vocab_size: usize,
    },
    /// A token that a setting names and the model does not have.
    #[error("token {token} ({what}) is outside the vocabulary of {vocab_size} tokens")]
    UnknownToken {
        /// What it is for.
        what: TokenUse,
        /// The token.
        token: u32,
        /// Tokens the model has.
        vocab_size: usize,
    },
    /// Embeddings of another width than the model's.
    #[error("the prompt's embeddings are {found} wide, the model's are {expected}")]
    EmbeddingWidth {
        /// The model's width.
        expected: usize,
        /// The prompt's width.
        found: usize,
    },
    /// No room for even one new token.
    #[error(
        "the prompt has {prompt} tokens but the model's context holds {context_length}; shorten the prompt"
    )]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// The model's limit.
        context_length: usize,
    },
    /// A grammar that cannot be used.
    #[error("the grammar cannot be used: {0}")]
    Grammar(String),
    /// A grammar that cannot be compiled now.
    #[error("the grammar cannot be compiled now, as {0} others are being compiled; try again later")]
    Busy(usize),
    /// More tokens asked for than allowed.
    #[error("min tokens ({min}) is above max tokens ({max})")]
    MinAboveMax {
        /// At least.
        min: usize,
        /// At most.
        max: usize,
    },
    /// A generation of no tokens.
    #[error("max tokens must be 1 or more, got 0")]
    MaxTokensZero,
    /// A stop string that would match everywhere.
    #[error("a stop string is empty; it would stop every generation at once")]
    EmptyStopString,
    /// A sequence of no tokens that shall not come.
    #[error("a bad word is empty; nothing could come")]
    EmptyBadWord,
    /// A list of allowed tokens without one.
    #[error("no token is allowed; name one at least, or leave the list out")]
    NothingAllowed,
    /// Logits from which nothing can be sampled.
    #[error("the logits of step {step} hold {what}: {origin}", origin = of(origin))]
    BadLogits {
        /// Tokens generated before.
        step: usize,
        /// What they hold.
        what: &'static str,
        /// Where it comes from, if that is known.
        origin: Option<Box<Origin>>,
    },
    /// A device did not tell what it has decided.
    #[error("the device failed during a step: {0}")]
    Reading(String),
}

fn of(origin: &Option<Box<Origin>>) -> String {
    match origin {
        Some(origin) => origin.to_string(),
        None => "the weights are broken or overflow their type".to_owned(),
    }
}

/// What a setting names a token for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenUse {
    /// It never comes.
    Banned,
    /// Its logit is changed.
    Biased,
    /// It comes first.
    Forced,
    /// It may come.
    Allowed,
    /// It is one of a word that does not come.
    BadWord,
    /// It ends the answer.
    Stop,
    /// It begins or ends thoughts.
    Marker,
}

impl fmt::Display for TokenUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Banned => "banned",
            Self::Biased => "biased",
            Self::Forced => "forced",
            Self::Allowed => "allowed",
            Self::BadWord => "of a bad word",
            Self::Stop => "to stop at",
            Self::Marker => "marker of thinking",
        })
    }
}
