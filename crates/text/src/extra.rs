//! Tokens that a model's directory adds to those of its `tokenizer.json`.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::Value;
use tokenizers::AddedToken;

use crate::{
    TextError,
    tokenizer::{MAX_ADDED_BYTES, MAX_ADDED_TOKEN_BYTES, MAX_ADDED_TOKENS},
};

/// A token that a file other than `tokenizer.json` lists, as `added_tokens_decoder` in tokenizer_config.json does.
///
/// # Examples
/// ```
/// use moi_text::ExtraToken;
/// use serde_json::json;
///
/// // As `added_tokens_decoder` lists it, and as `eos_token` names it.
/// let listed: ExtraToken = serde_json::from_value(json!({"content": "<tool>", "rstrip": true}))?;
/// assert!(listed.rstrip && !listed.special);
/// assert_eq!(ExtraToken::named(&json!("</s>")), Some(ExtraToken::control("</s>".to_owned())));
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct ExtraToken {
    /// The token's text.
    pub content: String,
    /// Whether the token is a control token.
    #[serde(default)]
    pub special: bool,
    /// Whether the token is not matched within a word.
    #[serde(default)]
    pub single_word: bool,
    /// Whether the token swallows the spaces before it.
    #[serde(default)]
    pub lstrip: bool,
    /// Whether the token swallows the spaces behind it.
    #[serde(default)]
    pub rstrip: bool,
    /// Whether the token is searched in the normalised text. By default a control token is not.
    #[serde(default)]
    pub normalized: Option<bool>,
    /// What happens if the tokenizer already has the token.
    #[serde(skip)]
    pub if_known: IfKnown,
}

/// What happens to a token that the `tokenizer.json` itself lists.
///
/// # Examples
/// ```
/// # use std::path::Path;
/// #
/// use moi_text::{ExtraToken, IfKnown, SlowFiles, SlowTokenizer};
///
/// # let config = serde_json::json!({});
/// # let tekken = serde_json::json!({
/// #     "config": {"pattern": "[a-z]+"}, "special_tokens": [{"rank": 0, "token_str": "<s>"}],
/// #     "vocab": [{"token_bytes": "YQ=="}, {"token_bytes": "Yg=="}],
/// # });
/// # let tekken = tekken.to_string();
/// # let files = SlowFiles::Tekken(tekken.as_bytes());
/// // A tokenizer whose `<s>` leaves the spaces behind it alone, and an extra token that swallows them.
/// let strips_spaces = |if_known| {
///     let extra = [ExtraToken { rstrip: true, if_known, ..ExtraToken::control("<s>".to_owned()) }];
///     let path = Path::new("tekken.json");
///     let slow = SlowTokenizer { files, config: &config, model_type: None, extra: &extra, path };
///     slow.into_tokenizer().map(|tokenizer| tokenizer.strips_spaces())
/// };
/// assert!(strips_spaces(IfKnown::Replace)?);
/// assert!(!strips_spaces(IfKnown::Keep)?);
/// # Ok::<(), moi_text::TextError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IfKnown {
    /// The token gets the flags of the extra token.
    #[default]
    Replace,
    /// The token becomes a control token, and keeps its other flags.
    MakeSpecial,
    /// The token stays unchanged.
    Keep,
}

impl ExtraToken {
    /// A control token of this text, which is searched in the text before normalisation.
    pub fn control(content: String) -> Self {
        Self { content, special: true, normalized: Some(false), ..Self::default() }
    }

    /// A control token that a configuration gives by its text, or as an object with flags.
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

    /// The token to add, if any; `before` is the tokenizer's own token of the same text.
    fn news(&self, before: Option<&AddedToken>) -> Option<AddedToken> {
        let Some(before) = before else { return (!self.content.is_empty()).then(|| self.to_added()) };
        let token = match self.if_known {
            IfKnown::Replace => self.to_added(),
            IfKnown::MakeSpecial => AddedToken { special: true, ..before.clone() },
            IfKnown::Keep => return None,
        };
        // The library never forgets that a token was special, so a token that loses the flag would be spelled out as
        // text.
        (token != *before && (token.special || !before.special)).then_some(token)
    }
}

/// Adds these tokens in order, as transformers does: a text that the vocabulary has keeps its id and gets these
/// flags, and the others get the next ids, whatever ids the file gives them. `growth` is how many times as long
/// normalising can make a text. Returns whether any token was added.
///
/// # Errors
/// If the tokens are more or longer than those of real models.
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
        ("bytes in an added token", longest, MAX_ADDED_TOKEN_BYTES),
        ("added tokens", known + tokens.len(), MAX_ADDED_TOKENS),
        (
            "bytes of added tokens, normalised",
            tokens.iter().map(bytes).fold(0, usize::saturating_add),
            MAX_ADDED_BYTES,
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
