//! Requests: a prompt, and how it is to be continued.

use std::{collections::HashSet, sync::Arc};

use burn::tensor::{Tensor, backend::Backend};
use moi::{InputRule, Scope};
use moi_sampling::Sampling;
use serde::{Deserialize, Serialize};

use crate::{EngineError, Grammar, Speculation};

/// What to continue.
///
/// # Examples
/// ```
/// use burn::tensor::Tensor;
/// use burn_flex::Flex;
/// use moi_engine::{Engine, Prompt, Request};
/// # use moi_models::Architecture;
/// # let config = serde_json::json!({
/// #     "model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
/// #     "num_hidden_layers": 2, "num_attention_heads": 4,
/// # });
/// # let device = Default::default();
/// # let model = Architecture::from_config(&config)?.config.init::<burn_flex::Flex>(&device);
/// let soft = Prompt::Embeddings(Tensor::<Flex, 2>::zeros([5, 16], &device));
/// let engine = Engine::new(model, device);
/// assert_eq!(engine.prepare(Request::new(Prompt::Ids(vec![1, 2, 3])))?.prompt_positions(), 3);
/// assert_eq!(engine.prepare(Request::new(soft))?.prompt_positions(), 5);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub enum Prompt<B: Backend> {
    /// Text, encoded unchanged and with the tokenizer's begin token, if it has one.
    Text(String),
    /// Token ids, fed unchanged.
    Ids(Vec<u32>),
    /// Embeddings `[seq, d]`, fed unchanged: a soft prompt, or a mixture made elsewhere.
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
///
/// # Examples
/// ```
/// use moi_engine::{Prompt, Request, Sampling, StopRules};
///
/// let request = Request::<burn_flex::Flex> {
///     rule: "moi:beta=0.5".parse()?,
///     sampling: Sampling { temperature: 0.7.into(), top_p: 0.95.into(), ..Sampling::default() },
///     stop: StopRules { max_tokens: Some(100), ..StopRules::default() },
///     seed: 7,
///     top: 5, // the five largest weights of each next input are reported
///     ..Request::new(Prompt::Ids(vec![1, 2, 3]))
/// };
/// assert_eq!(request.rule.spec(), "moi:beta=0.5");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Request<B: Backend> {
    /// What to continue.
    pub prompt: Prompt<B>,
    /// The input rule: what the model is fed after each sampled token.
    pub rule: InputRule,
    /// Which generated tokens the rule applies to; the rule's default where `None`.
    pub scope: Option<Scope>,
    /// How tokens are sampled.
    pub sampling: Sampling,
    /// The grammar that the answer must match.
    pub grammar: Option<Grammar>,
    /// Whether the distribution that is mixed is the one that the grammar allows, instead of the raw one. Rules that
    /// pick tokens themselves always see only the allowed tokens.
    pub mix_constrained: bool,
    /// When the generation ends.
    pub stop: StopRules,
    /// Makes sampling repeatable: the same seed gives the same tokens.
    pub seed: u64,
    /// Cached blocks of a prompt are shared only between requests with the same salt, so that the time of an answer
    /// does not tell anyone what others have asked.
    pub salt: String,
    /// Its place among requests that wait for a [`crate::Scheduler`]: smaller numbers come first, whoever the owner
    /// is.
    pub priority: i64,
    /// How many of the largest mixture weights each step reports. With 0 they are not looked for.
    pub top: usize,
    /// How many of the likeliest tokens each step reports, with their log-probabilities.
    pub logprobs: usize,
    /// If set, the log-probability of each prompt token given those before it is reported, with this many of the most
    /// likely tokens. The whole prompt then runs, even if it is cached.
    pub prompt_logprobs: Option<usize>,
    /// The first tokens, taken as if they had been sampled; this does not change what is drawn, mixed and reported.
    /// With the seed and the tokens of another generation, the request is a fork of that generation at any of its
    /// tokens.
    pub forced: Vec<u32>,
    /// The only tokens that may be sampled; `None` allows all.
    pub allowed: Option<Arc<HashSet<u32>>>,
    /// Token sequences that must not be generated.
    pub bad_words: Vec<Vec<u32>>,
    /// Control tokens whose text is part of the answer's text. Other control tokens have no text.
    pub shown: Vec<u32>,
    /// Whether tokens are drafted, so that a pass through the model can give several.
    pub speculation: Speculation,
}

/// When a generation ends, besides the model's end tokens and a full context.
///
/// # Examples
/// ```
/// use moi_engine::StopRules;
///
/// let stop: StopRules = serde_json::from_str(r#"{"max_tokens": 64, "strings": ["User:"]}"#)?;
/// let same =
///     StopRules { max_tokens: Some(64), strings: vec!["User:".to_owned()], ..StopRules::default() };
/// assert_eq!(stop, same);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StopRules {
    /// The largest number of tokens.
    pub max_tokens: Option<usize>,
    /// The smallest number of tokens: before it, end tokens are not sampled and stop strings are not looked for.
    pub min_tokens: usize,
    /// Stop strings. The generation ends when its text contains one of them, which is then not part of the text. If a
    /// stop string is the text of a control token, that token ends the generation, too.
    pub strings: Vec<String>,
    /// Stop tokens, which are not part of the text.
    pub tokens: Vec<u32>,
    /// Whether the text ends behind the stop string instead of before it.
    pub includes_string: bool,
    /// Whether stop strings are ignored while the model thinks.
    pub spares_thoughts: bool,
    /// Whether the generation goes on past the model's end tokens.
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
            speculation: Speculation::default(),
        }
    }

    pub(crate) fn check(&self) -> Result<(), EngineError> {
        self.rule.validated()?;
        self.sampling.check()?;
        self.speculation.check()?;
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
