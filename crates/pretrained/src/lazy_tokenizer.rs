//! A tokenizer that is built on first use.

use std::{
    fmt,
    ops::Deref,
    sync::{Mutex, OnceLock, PoisonError},
};

use moi_text::{TextError, Tokenizer};

/// The tokenizer of a model, `None` if it has none, or the error of one that cannot be used.
pub type TokenizerResult = Result<Option<Tokenizer>, TextError>;

type Build = Box<dyn FnOnce() -> TokenizerResult + Send>;

/// A model's tokenizer, built on first use because a vocabulary of 262,144 tokens takes half a second, in which the
/// weights can be loaded on another thread.
///
/// # Examples
/// ```
/// use moi_pretrained::{LazyTokenizer, TokenizerResult};
///
/// let none: TokenizerResult = Ok(None); // of a model without a tokenizer
/// let tokenizer = LazyTokenizer::from(none);
/// assert!(matches!(&*tokenizer, Ok(None)));
/// assert!(matches!(tokenizer.into_inner(), Ok(None)));
/// ```
pub struct LazyTokenizer {
    build: Mutex<Option<Build>>,
    built: OnceLock<TokenizerResult>,
}

impl LazyTokenizer {
    pub(crate) fn new(build: impl FnOnce() -> TokenizerResult + Send + 'static) -> Self {
        Self { build: Mutex::new(Some(Box::new(build))), built: OnceLock::new() }
    }

    /// Returns the tokenizer, building it if necessary.
    pub fn into_inner(self) -> TokenizerResult {
        let Self { build, built } = self;
        match (built.into_inner(), build.into_inner().unwrap_or_else(PoisonError::into_inner)) {
            (Some(built), _) => built,
            (None, Some(build)) => build(),
            // The closure was called before and panicked.
            (None, None) => Ok(None),
        }
    }
}

impl Deref for LazyTokenizer {
    type Target = TokenizerResult;

    fn deref(&self) -> &TokenizerResult {
        self.built.get_or_init(|| {
            let build = self.build.lock().unwrap_or_else(PoisonError::into_inner).take();
            build.map_or(Ok(None), |build| build())
        })
    }
}

impl From<TokenizerResult> for LazyTokenizer {
    fn from(built: TokenizerResult) -> Self {
        Self { build: Mutex::new(None), built: OnceLock::from(built) }
    }
}

impl fmt::Debug for LazyTokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LazyTokenizer").field(&self.built.get()).finish()
    }
}
