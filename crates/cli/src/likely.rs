//! Tokens with their text, as written to JSON.

use moi_text::Tokenizer;
use serde::Serialize;

/// A token with its text and log-probability.
#[derive(Debug, Serialize)]
pub(crate) struct Likely {
    token: u32,
    text: String,
    logprob: f64,
}

/// Lists tokens with their log-probabilities and the text that `text` returns for each.
pub(crate) fn likely(tokens: &[(u32, f64)], text: impl Fn(u32) -> String) -> Vec<Likely> {
    tokens.iter().map(|&(token, logprob)| Likely { token, text: text(token), logprob }).collect()
}

/// The text of a single token; empty for a control token, or without a tokenizer.
pub(crate) fn decoded(tokenizer: Option<&Tokenizer>, token: u32) -> String {
    tokenizer.and_then(|tokenizer| tokenizer.decode(&[token]).ok()).unwrap_or_default()
}
