//! Why a request is refused or a generation ends early.

use std::{fmt, sync::Arc};

use crate::Origin;

/// Why a request is refused or a generation fails, with the value at fault.
///
/// # Examples
/// ```
/// use moi_engine::{Engine, EngineError, Prompt, Request};
/// # use moi_models::Architecture;
/// # let config = serde_json::json!({
/// #     "model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
/// #     "num_hidden_layers": 2, "num_attention_heads": 4,
/// # });
/// # let device = Default::default();
/// # let model = Architecture::from_config(&config)?.config.init::<burn_flex::Flex>(&device);
/// let engine = Engine::new(model, device);
/// let empty = engine.generate(Request::new(Prompt::Ids(vec![])));
/// assert!(matches!(empty, Err(EngineError::EmptyPrompt)));
/// let text = engine.generate(Request::new(Prompt::Text("Hello".to_owned())));
/// assert!(matches!(text, Err(EngineError::NoTokenizer(_))));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
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
    /// The device computes wrong numbers, according to the self-check.
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
    /// The prompt is empty.
    #[error("the prompt is empty; a model needs at least one token to continue from")]
    EmptyPrompt,
    /// Text that needs a tokenizer, for a model without one.
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
        /// Size of the model's vocabulary.
        vocab_size: usize,
    },
    /// A token that a setting names and the model does not have.
    #[error("token {token} ({what}) is outside the vocabulary of {vocab_size} tokens")]
    UnknownToken {
        /// What the token is named for.
        what: TokenUse,
        /// The token.
        token: u32,
        /// Size of the model's vocabulary.
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
    /// The prompt does not fit into the model's context.
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
    /// A grammar that cannot be compiled now, because too many others are being compiled.
    #[error("the grammar cannot be compiled now, as {0} others are being compiled; try again later")]
    Busy(usize),
    /// The minimum of tokens is above the maximum.
    #[error("min tokens ({min}) is above max tokens ({max})")]
    MinAboveMax {
        /// The minimum.
        min: usize,
        /// The maximum.
        max: usize,
    },
    /// The maximum of tokens is 0.
    #[error("max tokens must be 1 or more, got 0")]
    MaxTokensZero,
    /// A stop string that would match everywhere.
    #[error("a stop string is empty; it would stop every generation at once")]
    EmptyStopString,
    /// A bad word without tokens.
    #[error("a bad word is empty, which would ban every token; remove it")]
    EmptyBadWord,
    /// A list of allowed tokens that is empty.
    #[error("no token is allowed; name one at least, or leave the list out")]
    NothingAllowed,
    /// Logits that cannot be sampled from, because they hold NaN or infinity, or no finite value.
    #[error("the logits of step {step} hold {what}: {origin}", origin = of(origin))]
    BadLogits {
        /// Number of tokens generated before.
        step: usize,
        /// What the logits hold.
        what: &'static str,
        /// Where in the model the values come from, if that is known.
        origin: Option<Box<Origin>>,
    },
    /// A number of drafts that is not allowed.
    #[error("the draft budget must be from 1 to {max}, got {budget}", max = crate::Speculation::MAX_BUDGET)]
    DraftBudget {
        /// What was asked for.
        budget: usize,
    },
    /// Drafts of no tokens.
    #[error("draft tokens must be 1 or more, got 0; to draft nothing, use the drafter `none`")]
    DraftTokensZero,
    /// A bound of probabilities that is none.
    #[error("the draft min-p must be from 0 to 1, got {min_p}")]
    DraftMinP {
        /// What was asked for.
        min_p: f64,
    },
    /// A tolerance that is none.
    #[error("the tolerance of speculation must be from 0 to below 1, got {tolerance}")]
    SpeculateTolerance {
        /// What was asked for.
        tolerance: f64,
    },
    /// A window that is too small or too large.
    #[error(
        "the window of speculation must be from 2 to {max}, got {window}",
        max = crate::Speculation::MAX_BUDGET + 1
    )]
    SpeculateWindow {
        /// What was asked for.
        window: usize,
    },
    /// A verifier that needs drafts which were drawn from a distribution.
    #[error(
        "`{verify}` verifies drafts that a model has drawn; draft with a model or with layers, or use `match`"
    )]
    NoSampledDrafts {
        /// The verifier.
        verify: &'static str,
    },
    /// Drafts of a model, where the engine has no draft model.
    #[error(
        "there is no draft model; start with `--speculate model:PATH`, or use `auto`, `lookup` or `recycling`"
    )]
    NoDraftModel,
    /// A model or a rule under which drafts can gain nothing.
    #[error(
        "speculation is not possible here: {0}; use the drafter `none`, or `auto`, which then drafts nothing"
    )]
    NoSpeculation(&'static str),
    /// The device failed to return its decisions.
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
///
/// # Examples
/// ```
/// use moi_engine::{Engine, EngineError, Prompt, Request, TokenUse};
/// # use moi_models::Architecture;
/// # let config = serde_json::json!({
/// #     "model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
/// #     "num_hidden_layers": 2, "num_attention_heads": 4,
/// # });
/// # let device = Default::default();
/// # let model = Architecture::from_config(&config)?.config.init::<burn_flex::Flex>(&device);
/// let engine = Engine::new(model, device);
/// let mut request = Request::new(Prompt::Ids(vec![1, 2, 3]));
/// request.stop.tokens = vec![99]; // The model has 32 tokens.
/// let refused = engine.prepare(request);
/// assert!(matches!(refused, Err(EngineError::UnknownToken { what: TokenUse::Stop, token: 99, .. })));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenUse {
    /// It is never sampled.
    Banned,
    /// Its logit is changed.
    Biased,
    /// It is one of the forced first tokens.
    Forced,
    /// It is one of the allowed tokens.
    Allowed,
    /// It is part of a bad word.
    BadWord,
    /// It ends the answer.
    Stop,
    /// It is a marker of thinking.
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
