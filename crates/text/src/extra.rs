//! Tokens that a model's directory adds to those of its `tokenizer.json`.

use std::collections::HashMap;

use serde::Deserialize;
use tokenizers::AddedToken;

use crate::{
    TextError,
    tokenizer::{LONGEST_ADDED_TOKEN, MOST_ADDED_BYTES, MOST_ADDED_TOKENS},
};

/// A token of `added_tokens_decoder` in tokenizer_config.json.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct ExtraToken {
    /// Its text.
    pub content: String,
    /// Whether it is a control token.
    #[serde(default)]
    pub special: bool,
    /// Whether it is none within a word.
    #[serde(default)]
    pub single_word: bool,
    /// Whether it swallows the spaces before it.
    #[serde(default)]
    pub lstrip: bool,
    /// Whether it swallows the spaces behind it.
    #[serde(default)]
    pub rstrip: bool,
    /// Whether it is looked for in the normalised text; control tokens are not, if that is not said.
    #[serde(default)]
    pub normalized: Option<bool>,
}

impl ExtraToken {
    fn to_added(&self) -> AddedToken {
        AddedToken::from(self.content.clone(), self.special)
            .single_word(self.single_word)
            .lstrip(self.lstrip)
            .rstrip(self.rstrip)
            .normalized(self.normalized.unwrap_or(!self.special))
    }
}

/// Adds these tokens in order, as transformers does: a text that the vocabulary has keeps its id and gets these flags, and
/// the others get the next ids, whatever ids the file gives them. Normalising makes a text so many times as long at most.
/// Whether there was anything to add.
///
/// # Errors
/// If they are more or longer than those of real models.
pub(crate) fn extend(
    inner: &mut tokenizers::Tokenizer,
    extra: &[ExtraToken],
    growth: usize,
) -> Result<bool, TextError> {
    if extra.is_empty() {
        return Ok(false);
    }
    let known = inner.get_added_tokens_decoder().into_iter();
    let known: HashMap<String, AddedToken> = known.map(|(_, token)| (token.content.clone(), token)).collect();
    let is_news = |token: &AddedToken| match known.get(&token.content) {
        // The library never forgets that a token was special, so one that no longer is would be spelled out.
        Some(before) => before != token && (token.special || !before.special),
        None => !token.content.is_empty(),
    };
    let tokens: Vec<AddedToken> = extra.iter().map(ExtraToken::to_added).filter(is_news).collect();
    if tokens.is_empty() {
        return Ok(false);
    }
    check(known.len(), &tokens, growth)?;
    inner.add_tokens(&tokens);
    Ok(true)
}

fn check(known: usize, tokens: &[AddedToken], growth: usize) -> Result<(), TextError> {
    let bytes = |token: &AddedToken| match token.normalized {
        true => token.content.len().saturating_mul(growth),
        false => token.content.len(),
    };
    let longest = tokens.iter().map(|token| token.content.len()).max().unwrap_or(0);
    let bounds = [
        ("bytes in an added token", longest, LONGEST_ADDED_TOKEN),
        ("added tokens", known + tokens.len(), MOST_ADDED_TOKENS),
        (
            "bytes of added tokens, normalised",
            tokens.iter().map(bytes).fold(0, usize::saturating_add),
            MOST_ADDED_BYTES,
        ),
    ];
    match bounds.into_iter().find(|(_, found, most)| found > most) {
        Some((what, found, most)) => {
            let what = format!("with tokenizer_config.json it has {found} {what}, expected {most} at most");
            Err(TextError::Vocabulary(what))
        }
        None => Ok(()),
    }
}
