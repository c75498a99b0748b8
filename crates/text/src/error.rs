//! Errors of converting between text and tokens.

use std::path::{Path, PathBuf};

use moi_files::brief;
use moi_jinja::TemplateError;

/// Why text cannot become tokens, or tokens text.
///
/// # Examples
/// ```
/// use moi_text::{TextError, Tokenizer};
///
/// let error = Tokenizer::from_json(b"{").unwrap_err();
/// assert!(matches!(error, TextError::Vocabulary(_)));
/// let error = error.in_file("model/tokenizer.json".as_ref());
/// assert!(error.to_string().starts_with("cannot read the tokenizer model/tokenizer.json: "));
/// ```
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// The tokenizer file cannot be read.
    #[error("cannot read the tokenizer {path}: {what}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The vocabulary makes no usable tokenizer.
    #[error("the tokenizer in the file is not usable: {0}")]
    Vocabulary(String),
    /// The tokenizer library returned an error.
    #[error("the tokenizer failed: {0}")]
    Tokenizer(String),
    /// The chat template is not valid, or it refused the conversation.
    #[error("the chat template{of} failed: {what}; --raw sends the prompt without it", of = of(path))]
    Template {
        /// The template's file, if it is known.
        path: Option<PathBuf>,
        /// What is wrong.
        what: String,
    },
}

impl TextError {
    /// The same error, with the file in which the tokenizer or template stands.
    pub fn in_file(self, file: &Path) -> Self {
        let path = file.to_owned();
        match self {
            Self::Vocabulary(what) | Self::Tokenizer(what) => Self::File { path, what },
            Self::Template { what, .. } => Self::Template { path: Some(path), what },
            file => file,
        }
    }
}

fn of(path: &Option<PathBuf>) -> String {
    path.as_ref().map(|path| format!(" of {}", path.display())).unwrap_or_default()
}

impl From<tokenizers::Error> for TextError {
    fn from(error: tokenizers::Error) -> Self {
        Self::Tokenizer(brief(&error.to_string()))
    }
}

impl From<TemplateError> for TextError {
    fn from(error: TemplateError) -> Self {
        Self::Template { path: None, what: error.to_string() }
    }
}
