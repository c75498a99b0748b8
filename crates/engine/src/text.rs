//! Text, with the feature `text`. Without it, these types have no values, so a prompt can only be ids or embeddings.

#[cfg(feature = "text")]
pub(crate) use moi_text::{Detokenizer, TextError, Tokenizer};
#[cfg(not(feature = "text"))]
pub(crate) use without::{Detokenizer, TextError, Tokenizer};

/// The tokens between which a model with this tokenizer thinks, if it has any.
#[cfg(feature = "text")]
pub(crate) fn thinking_markers(tokenizer: &Tokenizer) -> Option<moi::Markers> {
    tokenizer.thinking_markers().map(|(open, name, close)| moi::Markers { open, name, close })
}

/// The token sequences that spell some texts, in a vocabulary of so many tokens.
#[cfg(feature = "text")]
pub(crate) fn breakers(
    tokenizer: &Tokenizer,
    vocab: usize,
    texts: &[String],
) -> Result<moi_sampling::Breakers, TextError> {
    let tokens = (0..vocab as u32).filter_map(|id| Some((id, tokenizer.token_bytes(id)?)));
    let encode =
        |rest: &[u8]| std::str::from_utf8(rest).ok().map(|rest| tokenizer.encode(rest, false)).transpose();
    moi_sampling::Breakers::new(texts, tokens, encode)
}

#[cfg(not(feature = "text"))]
pub(crate) fn breakers(
    tokenizer: &Tokenizer,
    _vocab: usize,
    _texts: &[String],
) -> Result<moi_sampling::Breakers, TextError> {
    match *tokenizer {}
}

/// The control token of this text, if there is one.
#[cfg(feature = "text")]
pub(crate) fn control_token(tokenizer: &Tokenizer, text: &str) -> Option<u32> {
    tokenizer.control_token(text)
}

/// The text of a control token, if it is one.
#[cfg(feature = "text")]
pub(crate) fn special_text(tokenizer: &Tokenizer, token: u32) -> Option<&str> {
    tokenizer.special_text(token)
}

#[cfg(not(feature = "text"))]
pub(crate) fn special_text(tokenizer: &Tokenizer, _token: u32) -> Option<&str> {
    match *tokenizer {}
}

#[cfg(not(feature = "text"))]
pub(crate) fn control_token(tokenizer: &Tokenizer, _text: &str) -> Option<u32> {
    match *tokenizer {}
}

#[cfg(not(feature = "text"))]
pub(crate) fn thinking_markers(tokenizer: &Tokenizer) -> Option<moi::Markers> {
    match *tokenizer {}
}

#[cfg(not(feature = "text"))]
mod without {
    use std::fmt;

    /// A tokenizer; there is none without the feature `text`.
    #[derive(Clone, Debug)]
    pub enum Tokenizer {}

    impl Tokenizer {
        pub(crate) fn encode(&self, _text: &str, _special: bool) -> Result<Vec<u32>, TextError> {
            match *self {}
        }
    }

    /// The error of a tokenizer; there is none without the feature `text`.
    #[derive(Clone, Copy, Debug)]
    pub enum TextError {}

    impl fmt::Display for TextError {
        fn fmt(&self, _f: &mut fmt::Formatter<'_>) -> fmt::Result {
            match *self {}
        }
    }

    impl std::error::Error for TextError {}

    #[derive(Clone, Debug, Default)]
    pub(crate) struct Detokenizer(());

    impl Detokenizer {
        pub(crate) fn push(&mut self, tokenizer: &Tokenizer, _token: u32) -> Result<String, TextError> {
            match *tokenizer {}
        }

        pub(crate) fn finish(self, tokenizer: &Tokenizer) -> Result<String, TextError> {
            match *tokenizer {}
        }
    }
}
