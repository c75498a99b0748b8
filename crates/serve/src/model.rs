//! What is known of the model that is served.

use std::sync::{Arc, PoisonError, RwLock};

use moi_engine::{InputRule, Markers, Sampling, Scope};
use moi_text::{ChatTemplate, Tokenizer};

use crate::{
    error::ApiError,
    status::Status,
    thoughts::{ThoughtMarkers, Thoughts},
    worker::Service,
};

/// A model, and how requests are served that say nothing else.
#[derive(Debug)]
pub struct ServedModel {
    /// Its names, of which the first is its id and the others are aliases.
    pub names: Vec<String>,
    /// Whether any other name is taken for it, too.
    pub any_name: bool,
    /// When it was made or loaded, in seconds since 1970.
    pub created: u64,
    /// Text to tokens.
    pub tokenizer: Tokenizer,
    /// How it wants a conversation spelled, or why it cannot be asked in one.
    pub template: Result<ChatTemplate, String>,
    /// The tokens that end a generation.
    pub eos: Vec<u32>,
    /// The tokens between which it thinks.
    pub markers: Option<Markers>,
    /// Positions that it can look back at.
    pub context_length: usize,
    /// Tokens of its vocabulary, and numbers of an embedding.
    pub embedding: [usize; 2],
    /// How its makers, or flags, say that tokens are sampled.
    pub sampling: Sampling,
    /// The input rule.
    pub rule: InputRule,
    /// Which tokens the rule applies to.
    pub scope: Option<Scope>,
    /// Tokens that an answer has at most, whatever is asked for.
    pub max_tokens: Option<usize>,
    /// Samples of a prompt at most.
    pub max_n: usize,
    /// Whether requests may say which place they have among those that wait.
    pub priorities: bool,
}

/// A model that is loaded, with the thread that runs it.
pub(crate) struct Loaded {
    pub(crate) model: ServedModel,
    pub(crate) service: Box<dyn Service>,
    pub(crate) status: Status,
    /// The names that are the ones now.
    names: RwLock<Arc<Vec<String>>>,
    /// How thoughts are marked, and the control tokens that have to be seen for it.
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

    /// Refuses texts that the context cannot hold whatever their tokens are: to cut them into tokens takes a hundred times
    /// their memory.
    ///
    /// # Errors
    /// Likewise.
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

    /// What tells thoughts from the answer behind a prompt.
    pub(crate) fn thoughts(&self, prompt: &[u32]) -> Thoughts {
        let is_open = self.model.markers.is_some_and(|markers| markers.opened_by(prompt));
        Thoughts::new(self.thoughts.as_ref().map(|(markers, _)| Arc::clone(markers)), is_open)
    }

    /// The model's names now.
    pub(crate) fn names(&self) -> Arc<Vec<String>> {
        Arc::clone(&self.names.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// From now on these are its names.
    pub(crate) fn set_names(&self, names: Vec<String>) {
        *self.names.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(names);
    }

    /// The name under which a request is answered, and the rule that the request's name of the model has behind it.
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
