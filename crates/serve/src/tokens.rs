//! Tokens in the form in which clients read them beside their log-probabilities.

use moi_text::Tokenizer;
use serde_json::{Map, Value, json};

/// The smallest log-probability that is written, because JSON has no minus infinity.
const LEAST: f64 = -9999.0;

/// A log-probability as JSON.
pub(crate) fn logprob(value: f64) -> Value {
    json!(value.max(LEAST))
}

/// How tokens are written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TokenNames<'a> {
    pub(crate) tokenizer: &'a Tokenizer,
    /// Whether tokens are written as `token_id:N`.
    pub(crate) as_ids: bool,
}

/// A token with its log-probability, and the most likely tokens in its place.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TokenLogprob {
    pub(crate) token: u32,
    /// `None` for the first token of a prompt.
    pub(crate) logprob: Option<f64>,
    pub(crate) likeliest: Vec<(u32, f64)>,
}

impl TokenNames<'_> {
    /// The bytes that a token stands for.
    fn bytes(&self, token: u32) -> Vec<u8> {
        self.tokenizer.token_bytes(token).unwrap_or_default()
    }

    /// Its text; `bytes:\xe4\xb8` if its bytes are not a whole text.
    pub(crate) fn name(&self, token: u32) -> String {
        if self.as_ids {
            return format!("token_id:{token}");
        }
        match String::from_utf8(self.bytes(token)) {
            Ok(text) => text,
            Err(error) => {
                let bytes = error.as_bytes().iter().map(|byte| format!("\\x{byte:02x}"));
                format!("bytes:{}", bytes.collect::<String>())
            }
        }
    }

    /// The bytes of its text; empty for a control token.
    pub(crate) fn text_of(&self, token: u32) -> Vec<u8> {
        match self.tokenizer.special_text(token) {
            Some(_) => Vec::new(),
            None => self.bytes(token),
        }
    }

    /// An entry of a chat completion's list of log-probabilities.
    pub(crate) fn chat(&self, of: &TokenLogprob) -> Value {
        let entry = |token: u32, value: f64| json!({"token": self.name(token), "logprob": logprob(value), "bytes": self.bytes(token)});
        let mut all = entry(of.token, of.logprob.unwrap_or(0.0));
        all["top_logprobs"] = of.likeliest.iter().map(|&(token, value)| entry(token, value)).collect();
        all
    }

    /// The most likely tokens of a text completion's list, including the token itself. Every token has a key of its
    /// own.
    pub(crate) fn dictionary(&self, of: &TokenLogprob) -> Value {
        let Some(own) = of.logprob else { return Value::Null };
        let mut tokens = of.likeliest.clone();
        if tokens.iter().all(|&(token, _)| token != of.token) {
            tokens.push((of.token, own));
        }
        let mut entries = Map::new();
        // The token itself comes first, so that its key is its text, even if another token has the same one.
        tokens.sort_by_key(|&(token, _)| token != of.token);
        for (token, value) in tokens {
            let mut key = self.name(token);
            if entries.contains_key(&key) {
                key = format!("token_id:{token}");
            }
            // The text of a token may look like this key.
            while entries.contains_key(&key) {
                key.push('\'');
            }
            entries.insert(key, logprob(value));
        }
        Value::Object(entries)
    }
}
