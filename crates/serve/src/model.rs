//! The model that is served.

use std::sync::{Arc, PoisonError, RwLock};

use moi_engine::{InputRule, Markers, Sampling, Scope, Speculation};
use moi_text::{ChatTemplate, Tokenizer};

use crate::{
    error::ApiError,
    status::Status,
    thoughts::{ThoughtMarkers, Thoughts},
    worker::Service,
};

/// A model, and the defaults for requests to it.
#[derive(Debug)]
pub struct ServedModel {
    /// Its names, of which the first is its id and the others are aliases.
    pub names: Vec<String>,
    /// Whether requests may call it by any other name, too.
    pub any_name: bool,
    /// When it was made or loaded, in seconds since 1970.
    pub created: u64,
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    /// Its chat template, or why it cannot answer conversations.
    pub template: Result<ChatTemplate, String>,
    /// The tokens that end a generation.
    pub eos: Vec<u32>,
    /// The tokens between which it thinks.
    pub markers: Option<Markers>,
    /// Number of positions of its context.
    pub context_length: usize,
    /// Size of its vocabulary, and width of its embedding.
    pub embedding: [usize; 2],
    /// The default sampling, from its makers or from flags.
    pub sampling: Sampling,
    /// The default input rule.
    pub rule: InputRule,
    /// Which tokens the rule applies to.
    pub scope: Option<Scope>,
    /// What drafts tokens for requests that do not say it.
    pub speculation: Speculation,
    /// The most tokens of an answer, whatever a request asks for.
    pub max_tokens: Option<usize>,
    /// The most samples of a prompt.
    pub max_n: usize,
    /// Whether requests may set their priority among those that wait.
    pub priorities: bool,
}

/// A model that is loaded, with the thread that runs it.
pub(crate) struct Loaded {
    pub(crate) model: ServedModel,
    pub(crate) service: Box<dyn Service>,
    pub(crate) status: Status,
    /// Its current names.
    names: RwLock<Arc<Vec<String>>>,
    /// How thoughts are marked, and the control tokens that must be visible in the text for it.
    thoughts: Option<(Arc<ThoughtMarkers>, Vec<u32>)>,
    /// Bytes of the longest token.
    longest: usize,
}

impl std::fmt::Debug for Loaded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loaded").field("model", &self.model).finish_non_exhaustive()
    }
}

impl Loaded {
    pub(crate) fn new(model: ServedModel, service: Box<dyn Service>, status: Status) -> Self {
        let thoughts = model.markers.and_then(|markers| ThoughtMarkers::of(markers, &model.tokenizer));
        let thoughts = thoughts.map(|(markers, shown)| (Arc::new(markers), shown));
        let tokenizer = &model.tokenizer;
        let ids = (0..tokenizer.vocab_size() as u32).filter_map(|id| tokenizer.token(id));
        let longest = ids.map(|token| token.len()).max().unwrap_or(0).max(1);
        let names = RwLock::new(Arc::new(model.names.clone()));
        Self { model, service, status, names, thoughts, longest }
    }

    /// Refuses texts that the context cannot hold whatever their tokens are, because tokenizing a text takes a
    /// hundred times its memory.
    ///
    /// # Errors
    /// If the text is too long.
    pub(crate) fn check_bytes(&self, bytes: usize, param: &str) -> Result<(), ApiError> {
        let context = self.model.context_length;
        if bytes / self.longest <= context {
            return Ok(());
        }
        let message =
            format!("the text has {bytes} bytes, more than the model's context of {context} tokens holds");
        Err(ApiError::invalid("context_length_exceeded", message).of(param))
    }

    /// Control tokens whose text is needed to tell thoughts from answers.
    pub(crate) fn shown(&self) -> Vec<u32> {
        self.thoughts.as_ref().map(|(_, shown)| shown.clone()).unwrap_or_default()
    }

    /// Separates thoughts from the answer, for the text behind a prompt.
    pub(crate) fn thoughts(&self, prompt: &[u32]) -> Thoughts {
        let is_open = self.model.markers.is_some_and(|markers| markers.opened_by(prompt));
        Thoughts::new(self.thoughts.as_ref().map(|(markers, _)| Arc::clone(markers)), is_open)
    }

    /// The model's current names.
    pub(crate) fn names(&self) -> Arc<Vec<String>> {
        Arc::clone(&self.names.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces the model's names.
    pub(crate) fn set_names(&self, names: Vec<String>) {
        *self.names.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(names);
    }

    /// The name under which a request is answered, and the rule that is appended to the model's name in the request,
    /// if there is one.
    ///
    /// # Errors
    /// If no such model is served.
    pub(crate) fn named<'a>(&self, asked: Option<&'a str>) -> Result<(String, Option<&'a str>), ApiError> {
        let names = self.names();
        let first = || names.first().cloned().unwrap_or_default();
        let Some(asked) = asked.filter(|asked| !asked.is_empty()) else { return Ok((first(), None)) };
        let is_rule = |rest: &&str| rest.starts_with(':');
        for name in names.iter() {
            if asked == name {
                return Ok((name.clone(), None));
            }
            if let Some(rest) = asked.strip_prefix(name.as_str()).filter(is_rule) {
                return Ok((name.clone(), Some(&rest[1..])));
            }
        }
        match self.model.any_name {
            true => Ok((first(), None)),
            false => Err(ApiError::no_model(asked, &names)),
        }
    }
}
