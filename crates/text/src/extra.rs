//! Tokens that a model's directory adds to those of its `tokenizer.json`.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::Value;
use tokenizers::AddedToken;

use crate::{
    TextError,
    tokenizer::{LONGEST_ADDED_TOKEN, MOST_ADDED_BYTES, MOST_ADDED_TOKENS},
};

/// A token that another file than `tokenizer.json` lists, as `added_tokens_decoder` in tokenizer_config.json does.
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
    /// What becomes of one that is there already.
    #[serde(skip)]
    pub if_known: IfKnown,
}

/// What becomes of a token that the `tokenizer.json` itself lists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IfKnown {
    /// It gets the flags of the other.
    #[default]
    Replace,
    /// It becomes a control token, and keeps its other flags.
    MakeSpecial,
    /// It stays as it is.
    Keep,
}

impl ExtraToken {
    /// A control token of this text, which is looked for in the text as it is written.
    pub fn control(content: String) -> Self {
        Self { content, special: true, normalized: Some(false), ..Self::default() }
    }

    /// A control token that a configuration names: by its text, or as an object with flags.
    pub fn named(value: &Value) -> Option<Self> {
        match value {
            Value::String(text) => Some(Self::control(text.clone())),
            Value::Object(_) => Some(Self { special: true, ..Self::deserialize(value).ok()? }),
            _ => None,
        }
    }

    fn to_added(&self) -> AddedToken {
        AddedToken::from(self.content.clone(), self.special)
            .single_word(self.single_word)
            .lstrip(self.lstrip)
            .rstrip(self.rstrip)
            .normalized(self.normalized.unwrap_or(!self.special))
    }

    /// What is to be added, if anything is, where the tokenizer has it `before`.
    fn news(&self, before: Option<&AddedToken>) -> Option<AddedToken> {
        let Some(before) = before else { return (!self.content.is_empty()).then(|| self.to_added()) };
        let token = match self.if_known {
            IfKnown::Replace => self.to_added(),
            IfKnown::MakeSpecial => AddedToken { special: true, ..before.clone() },
            IfKnown::Keep => return None,
        };
        // The library never forgets that a token was special, so one that no longer is would be spelled out.
        (token != *before && (token.special || !before.special)).then_some(token)
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
    let tokens: Vec<AddedToken> =
        extra.iter().filter_map(|token| token.news(known.get(&token.content))).collect();
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
