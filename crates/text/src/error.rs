//! What can go wrong between text and tokens.

use std::path::{Path, PathBuf};

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
    #[error("the chat template{of} failed: {what}; --raw sends the prompt without it", of = of(path))]
    Template {
        /// The file that it stands in, if it is known.
        path: Option<PathBuf>,
        /// What is wrong.
        what: String,
    },
}

impl TextError {
    /// The same, of something that stands in a file.
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

/// What a library says, without what a terminal would obey, and not endless: it may quote the file.
pub fn brief(text: &str) -> String {
    const LONGEST: usize = 500;
    let mut out = String::new();
    for c in text.chars().take(LONGEST) {
        match c.is_control() && c != '\n' {
            true => out.extend(c.escape_unicode()),
            false => out.push(c),
        }
    }
    if text.chars().nth(LONGEST).is_some() {
        out += "...";
    }
    out
}

impl From<tokenizers::Error> for TextError {
    fn from(error: tokenizers::Error) -> Self {
        Self::Tokenizer(brief(&error.to_string()))
    }
}

impl From<minijinja::Error> for TextError {
    fn from(error: minijinja::Error) -> Self {
        let mut what = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            what += &format!(": {cause}");
            source = cause.source();
        }
        Self::Template { path: None, what: brief(&what) }
    }
}
