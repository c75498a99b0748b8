//! Converts a `tokenizer.json` into the lists that GGUF files have: the inverse of [`Vocabulary::into_tokenizer`].

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::Value;

use crate::{
    TextError, TokenKind, Vocabulary, VocabularyKind,
    cuts::{DIGITS, EACH_DIGIT, GPT2, name_of},
};

#[derive(Deserialize)]
struct File {
    model: Model,
    #[serde(default)]
    added_tokens: Vec<Added>,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    normalizer: Value,
}

#[derive(Deserialize)]
struct Model {
    #[serde(rename = "type")]
    kind: Option<String>,
    vocab: Value,
    merges: Option<Vec<Merge>>,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
    unk_token: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair(String, String),
    Joined(String),
}

#[derive(Deserialize)]
struct Added {
    id: usize,
    content: String,
    #[serde(default)]
    special: bool,
}

impl Vocabulary {
    /// Lists the vocabulary of a `tokenizer.json`; `bos` is the token put before a prompt. A BPE tokenizer that marks
    /// spaces with `\u{2581}` keeps its merges if `spaced`, as Gemma 4's files want it; otherwise its merges become
    /// scores.
    ///
    /// # Errors
    /// If the tokenizer is of a kind that GGUF's lists cannot hold.
    pub fn from_tokenizer_json(json: &[u8], bos: Option<u32>, spaced: bool) -> Result<Self, TextError> {
        let wrong = |what: String| TextError::Vocabulary(what);
        let file: File = serde_json::from_slice(json).map_err(|error| wrong(error.to_string()))?;
        let kind = file.model.kind.as_deref().unwrap_or("BPE");
        let (Some(merges), Ok(vocab), "BPE") =
            (file.model.merges, HashMap::<String, usize>::deserialize(&file.model.vocab), kind)
        else {
            return Err(wrong(format!("a tokenizer of type {kind} cannot be listed (only BPE can)")));
        };
        let merges: Vec<(String, String)> = merges.into_iter().filter_map(Merge::into_pair).collect();
        let (mut tokens, mut kinds) = listed(&vocab, &file.added_tokens).map_err(wrong)?;
        let kind = if file.model.byte_fallback {
            for (token, kind) in tokens.iter().zip(&mut kinds) {
                let is_byte = token.len() == 6 && token.starts_with("<0x") && token.ends_with('>');
                if is_byte {
                    *kind = TokenKind::Byte;
                } else if Some(token) == file.model.unk_token.as_ref() {
                    *kind = TokenKind::Unknown;
                }
            }
            let text = format!("{} {}", file.normalizer, file.pre_tokenizer);
            let never = text.contains("\"prepend_scheme\":\"never\"")
                || (text.contains("\"add_prefix_space\":false") && !text.contains("prepend_scheme"));
            let prepends = text.contains("Prepend") || (text.contains("Metaspace") && !never);
            match spaced {
                true => VocabularyKind::Spaced { merges: joined(merges) },
                false => VocabularyKind::SentencePiece {
                    scores: scores(&tokens, &merges),
                    add_space_prefix: prepends,
                },
            }
        } else {
            let pre = pre(&file.pre_tokenizer, file.model.ignore_merges).ok_or_else(|| {
                wrong("its way of cutting text before merging has no name in GGUF files".to_owned())
            })?;
            VocabularyKind::ByteLevel { pre: pre.to_owned(), merges: joined(merges) }
        };
        for (index, text) in tokens.iter_mut().filter(|text| text.is_empty()).enumerate() {
            *text = format!("[EMPTY{index}]");
        }
        Ok(Self { kind, tokens, kinds, bos, eos: None, rstrip: Vec::new() })
    }
}

fn joined(merges: Vec<(String, String)>) -> Vec<String> {
    merges.into_iter().map(|(left, right)| format!("{left} {right}")).collect()
}

impl Merge {
    fn into_pair(self) -> Option<(String, String)> {
        match self {
            Self::Pair(left, right) => Some((left, right)),
            // A space can begin the left token, but cannot be all of it.
            Self::Joined(text) => {
                let at = text.char_indices().skip(1).find(|&(_, c)| c == ' ')?.0;
                Some((text[..at].to_owned(), text[at + 1..].to_owned()))
            }
        }
    }
}

/// Token texts by id, with gaps filled, and the kind of each token.
fn listed(vocab: &HashMap<String, usize>, added: &[Added]) -> Result<(Vec<String>, Vec<TokenKind>), String> {
    let last = vocab.values().copied().chain(added.iter().map(|token| token.id)).max().unwrap_or(0);
    if last > 2 * (vocab.len() + added.len()) + 1024 {
        return Err(format!("token {last} of {} is out of order", vocab.len()));
    }
    let mut tokens: Vec<String> = (0..=last).map(|id| format!("[PAD{id}]")).collect();
    let mut kinds = vec![TokenKind::Unused; last + 1];
    for (text, &id) in vocab {
        tokens[id].clone_from(text);
        kinds[id] = TokenKind::Normal;
    }
    for token in added {
        tokens[token.id].clone_from(&token.content);
        kinds[token.id] = if token.special { TokenKind::Control } else { TokenKind::UserDefined };
    }
    Ok((tokens, kinds))
}

/// The score of a token that no merge makes.
pub const NEVER_MERGED: f32 = -1e9;

/// Scores by token: a token that an early merge makes scores high, and one that no merge makes scores lowest.
fn scores(tokens: &[String], merges: &[(String, String)]) -> Vec<f32> {
    let mut ranks: HashMap<String, usize> = HashMap::new();
    for (rank, (left, right)) in merges.iter().enumerate() {
        ranks.entry(format!("{left}{right}")).or_insert(rank);
    }
    tokens.iter().map(|token| ranks.get(token).map_or(NEVER_MERGED, |&rank| -(rank as f32))).collect()
}

/// llama.cpp's name of a pre-tokenizer that consists of split patterns and a byte-level step behind them.
fn pre(pre_tokenizer: &Value, whole_pieces: bool) -> Option<&'static str> {
    let steps: &[Value] = match pre_tokenizer.get("pretokenizers").and_then(Value::as_array) {
        Some(steps) => steps.as_slice(),
        None => std::slice::from_ref(pre_tokenizer),
    };
    let (last, before) = steps.split_last()?;
    let mut patterns: Vec<String> = before.iter().map(pattern).collect::<Option<_>>()?;
    let flag = |name: &str| last.get(name).and_then(Value::as_bool);
    let is_byte_level = last.get("type").and_then(Value::as_str) == Some("ByteLevel");
    if !is_byte_level || flag("add_prefix_space") == Some(true) {
        return None;
    }
    if flag("use_regex") != Some(false) {
        patterns.push(GPT2.to_owned());
    }
    name_of(&patterns, whole_pieces)
}

/// The pattern whose matches a pre-tokenizer step turns into pieces of their own.
fn pattern(step: &Value) -> Option<String> {
    let flag = |name: &str| step.get(name).and_then(Value::as_bool) == Some(true);
    let text = |name: &str| step.get(name).and_then(Value::as_str);
    match (text("type")?, text("behavior"), flag("invert")) {
        ("Digits", ..) if flag("individual_digits") => Some(EACH_DIGIT.to_owned()),
        ("Digits", ..) => Some(DIGITS.to_owned()),
        // `Removed` drops the text between matches, but these patterns leave no text between matches.
        ("Split", Some("Isolated"), _) | ("Split", Some("Removed"), true) => {
            let regex = step.get("pattern")?.get("Regex")?.as_str()?;
            // Some files have literal line ends in their patterns where others have escapes.
            Some(regex.replace('\r', r"\r").replace('\n', r"\n"))
        }
        _ => None,
    }
}
