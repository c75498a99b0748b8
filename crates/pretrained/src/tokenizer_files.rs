//! The tokenizer of a directory: its `tokenizer.json`, or the files that it would have been made of.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use moi_checkpoint::{is_there, read_file};
use moi_text::{ExtraToken, SlowFiles, SlowTokenizer, TextError, Tokenizer, brief};
use serde::Deserialize;
use serde_json::Value;

use crate::directory::{CONFIG, read, read_if_there};

const TOKENIZER: &str = "tokenizer.json";
const SENTENCE_PIECE: &str = "tokenizer.model";
const VOCABULARY: &str = "vocab.json";
const MERGES: &str = "merges.txt";
const TEKKEN: &str = "tekken.json";
pub(crate) const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const SPECIAL_TOKENS: &str = "special_tokens_map.json";
const ADDED_TOKENS: &str = "added_tokens.json";
/// Names of files that only transformers, or a library of their own, makes a tokenizer of.
const OTHERS: &[&str] = &["vocab.txt", "spiece.model", "sentencepiece.bpe.model", VOCABULARY];
/// How the names of others end: tiktoken's.
const TIKTOKEN: &str = ".tiktoken";

/// Which file a directory's tokenizer is read from, if there is one.
pub(crate) fn tokenizer_file(directory: &Path) -> Option<PathBuf> {
    let has = |name: &str| is_there(&directory.join(name));
    if has(TOKENIZER) {
        return Some(directory.join(TOKENIZER));
    }
    if has(SENTENCE_PIECE) {
        return Some(directory.join(SENTENCE_PIECE));
    }
    if has(VOCABULARY) && has(MERGES) {
        return Some(directory.join(VOCABULARY));
    }
    if has(TEKKEN) {
        return Some(directory.join(TEKKEN));
    }
    let other = OTHERS.iter().find(|name| has(name)).map(|name| directory.join(name));
    other.or_else(|| {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        let mut names: Vec<String> =
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names.into_iter().find(|name| name.ends_with(TIKTOKEN)).map(|name| directory.join(name))
    })
}

/// Reads the tokenizer of a directory in Hugging Face layout, if it has one: a `tokenizer.json`; or a `tokenizer.model`, a
/// `vocab.json` with its `merges.txt`, or a `tekken.json`, which are converted as transformers does it.
///
/// # Errors
/// If the tokenizer is broken or of a kind that is not converted; the error says what is there, and what to do.
pub fn read_tokenizer(directory: &Path) -> Result<Option<Tokenizer>, TextError> {
    let Some(path) = tokenizer_file(directory) else { return Ok(None) };
    // What else can be wrong with these files is said of the chat template, without which a model can be used.
    let config: Value = read_if_there(&directory.join(TOKENIZER_CONFIG)).ok().flatten().unwrap_or_default();
    if path.ends_with(TOKENIZER) {
        let extra = listed_tokens(directory, &config)?.unwrap_or_default();
        return Tokenizer::from_file_with(&path, &extra).map(Some);
    }
    converted(directory, &path, config).map(Some).map_err(|error| advised(error, directory))
}

/// The tokenizer of files that are no `tokenizer.json`.
fn converted(directory: &Path, path: &Path, config: Value) -> Result<Tokenizer, TextError> {
    /// Gemma's has 4 MB, and the largest tekken.json 20.
    const MOST_BYTES: u64 = 1 << 26;
    let unreadable = |path: &Path, what: String| TextError::File { path: path.to_owned(), what };
    let content = |path: &Path| {
        read_file(path, MOST_BYTES).map_err(|error| unreadable(path, brief(&error.to_string())))
    };
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let whole = with_special_tokens(directory, config);
    let extra = match listed_tokens(directory, &whole)? {
        Some(extra) => extra,
        None => added_tokens(directory, &whole)?,
    };
    let model: Value = read(&directory.join(CONFIG)).unwrap_or_default();
    let model_type = model.get("model_type").and_then(Value::as_str);
    let first = content(path)?;
    let merges = if name == VOCABULARY { content(&directory.join(MERGES))? } else { Vec::new() };
    let files = match name.as_str() {
        SENTENCE_PIECE => SlowFiles::SentencePiece(&first),
        VOCABULARY if !merges.is_empty() => SlowFiles::BytePairs { vocab: &first, merges: &merges },
        TEKKEN => SlowFiles::Tekken(&first),
        _ => return Err(unreadable(path, "a tokenizer of this form is not converted".to_owned())),
    };
    SlowTokenizer { files, config: &whole, model_type, extra: &extra, path }.into_tokenizer()
}

/// The error, with what makes a tokenizer that can be read.
fn advised(error: TextError, directory: &Path) -> TextError {
    // Python takes a backslash for an escape.
    let directory = directory.display().to_string().replace('\\', "/");
    let advice = format!(
        "there is no {TOKENIZER}, which transformers can write: python -c \"from transformers import AutoTokenizer; \
         AutoTokenizer.from_pretrained('{directory}').save_pretrained('{directory}')\""
    );
    match error {
        TextError::File { path, what } => TextError::File { path, what: format!("{what}; {advice}") },
        other => other,
    }
}

/// The configuration, with the control tokens that only special_tokens_map.json names.
fn with_special_tokens(directory: &Path, config: Value) -> Value {
    let named: Value = read_if_there(&directory.join(SPECIAL_TOKENS)).ok().flatten().unwrap_or_default();
    let mut config = match config {
        Value::Object(config) => config,
        _ => serde_json::Map::new(),
    };
    if let Value::Object(named) = named {
        for (key, token) in named {
            config.entry(key).or_insert(token);
        }
    }
    Value::Object(config)
}

/// The tokens that tokenizer_config.json lists, in the order of their ids; none if it has no list.
fn listed_tokens(directory: &Path, config: &Value) -> Result<Option<Vec<ExtraToken>>, TextError> {
    let path = directory.join(TOKENIZER_CONFIG);
    let unreadable = |what: String| TextError::File { path: path.clone(), what };
    let listed = config.get("added_tokens_decoder").unwrap_or(&Value::Null);
    let listed: Option<HashMap<String, ExtraToken>> = Option::deserialize(listed)
        .map_err(|error| unreadable(format!("added_tokens_decoder: {}", brief(&error.to_string()))))?;
    let Some(listed) = listed else { return Ok(None) };
    let mut tokens: Vec<(u32, ExtraToken)> = Vec::new();
    for (id, token) in listed {
        let Ok(number) = id.parse::<u32>() else {
            return Err(unreadable(format!("added_tokens_decoder: `{}` is no id", brief(&id))));
        };
        tokens.push((number, token));
    }
    tokens.sort_by_key(|(id, _)| *id);
    Ok(Some(tokens.into_iter().map(|(_, token)| token).collect()))
}

/// The tokens that older tools list in a file of their own. Those that the configuration names are control tokens.
fn added_tokens(directory: &Path, config: &Value) -> Result<Vec<ExtraToken>, TextError> {
    let path = directory.join(ADDED_TOKENS);
    let listed: Option<HashMap<String, u32>> =
        read_if_there(&path).map_err(|what| TextError::File { path: path.clone(), what })?;
    let mut listed: Vec<(u32, String)> =
        listed.unwrap_or_default().into_iter().map(|(text, id)| (id, text)).collect();
    listed.sort();
    let is_named = |text: &str| {
        let is_it = |token: &Value| {
            token.as_str() == Some(text) || token.get("content").and_then(Value::as_str) == Some(text)
        };
        let fields = config.as_object().into_iter().flatten().filter(|(key, _)| key.contains("_token"));
        fields.into_iter().any(|(_, value)| match value {
            Value::Array(tokens) => tokens.iter().any(is_it),
            token => is_it(token),
        })
    };
    let token = |(_, content): (u32, String)| {
        let special = is_named(&content);
        ExtraToken { content, special, ..ExtraToken::default() }
    };
    Ok(listed.into_iter().map(token).collect())
}
