//! What can go wrong between text and tokens.

use std::path::PathBuf;

/// Why text cannot become tokens, or tokens text.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// The tokenizer file cannot be read.
    #[error("cannot read the tokenizer {path}: {what}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A vocabulary that makes no tokenizer.
    #[error("the tokenizer in the file is not usable: {0}")]
    Vocabulary(String),
    /// The tokenizer library refused.
    #[error("the tokenizer failed: {0}")]
    Tokenizer(String),
    /// A chat template that is not valid, or refused the conversation.
    #[error("the chat template failed: {0}; --raw sends the prompt without it")]
    Template(String),
}

impl From<tokenizers::Error> for TextError {
    fn from(error: tokenizers::Error) -> Self {
        Self::Tokenizer(error.to_string())
    }
}

impl From<minijinja::Error> for TextError {
    fn from(error: minijinja::Error) -> Self {
        let mut text = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            text += &format!(": {cause}");
            source = cause.source();
        }
        Self::Template(text)
    }
}
