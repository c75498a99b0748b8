//! Tokens beside their text, as JSON has them.

use moi_text::Tokenizer;
use serde::Serialize;

/// A token that is likely.
#[derive(Debug, Serialize)]
pub(crate) struct Likely {
    token: u32,
    text: String,
    logprob: f64,
}

/// Tokens and their log-probabilities, with what `text` says of each.
pub(crate) fn likely(tokens: &[(u32, f64)], text: impl Fn(u32) -> String) -> Vec<Likely> {
    tokens.iter().map(|&(token, logprob)| Likely { token, text: text(token), logprob }).collect()
}

/// A token's text alone; nothing for a control token, or without a tokenizer.
pub(crate) fn decoded(tokenizer: Option<&Tokenizer>, token: u32) -> String {
    tokenizer.and_then(|tokenizer| tokenizer.decode(&[token]).ok()).unwrap_or_default()
}
