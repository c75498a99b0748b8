//! Reads the tokenizer of a directory: its `tokenizer.json`, or the files from which one can be made.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use moi_checkpoint::{is_there, read_file};
use moi_text::{ExtraToken, IfKnown, SlowFiles, SlowTokenizer, TextError, Tokenizer, brief};
use serde::Deserialize;
use serde_json::Value;

use crate::{
    directory::{CONFIG, read, read_if_there},
    special_tokens::{DECODER, named, nameless, with_special_tokens},
};

const TOKENIZER: &str = "tokenizer.json";
const SENTENCE_PIECE: &str = "tokenizer.model";
const VOCABULARY: &str = "vocab.json";
const MERGES: &str = "merges.txt";
const TEKKEN: &str = "tekken.json";
pub(crate) const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const ADDED_TOKENS: &str = "added_tokens.json";
/// Names of tokenizer files that only transformers or other libraries can read.
const OTHERS: &[&str] = &["vocab.txt", "spiece.model", "sentencepiece.bpe.model", VOCABULARY];
/// The ending of tiktoken's file names.
const TIKTOKEN: &str = ".tiktoken";

/// The file that a directory's tokenizer is read from, if there is one.
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

/// Reads the tokenizer of a directory in Hugging Face layout, if it has one: a `tokenizer.json`; or a
/// `tokenizer.model`, a `vocab.json` with its `merges.txt`, or a `tekken.json`, which are converted as transformers
/// converts them.
///
/// # Errors
/// If the tokenizer is broken or of a kind that is not converted; the error says which files there are, and what to
/// do.
///
/// # Examples
/// ```
/// use std::fs;
///
/// use moi_pretrained::read_tokenizer;
///
/// # let directory = std::env::temp_dir().join(format!("moi-read-tokenizer-{}", std::process::id()));
/// # fs::create_dir_all(&directory)?;
/// fs::write(directory.join("vocab.json"), r#"{"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}"#)?;
/// fs::write(directory.join("merges.txt"), "a b\n")?;
/// fs::write(directory.join("tokenizer_config.json"), r#"{"tokenizer_class": "GPT2Tokenizer"}"#)?;
/// let tokenizer = read_tokenizer(&directory)?.ok_or("the directory has no tokenizer")?;
/// assert_eq!(tokenizer.encode("ab", false)?, [2]);
/// # fs::remove_dir_all(&directory)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn read_tokenizer(directory: &Path) -> Result<Option<Tokenizer>, TextError> {
    let Some(path) = tokenizer_file(directory) else { return Ok(None) };
    // Other errors in these files are reported with the chat template, because a model can be used without one.
    let config: Value = read_if_there(&directory.join(TOKENIZER_CONFIG)).ok().flatten().unwrap_or_default();
    let config = with_special_tokens(directory, config);
    if path.ends_with(TOKENIZER) {
        let extra = all_tokens(directory, &config)?;
        return Tokenizer::from_file_with(&path, &extra).map(Some);
    }
    converted(directory, &path, &config).map(Some).map_err(|error| advised(error, directory))
}

/// Converts tokenizer files other than a `tokenizer.json`.
fn converted(directory: &Path, path: &Path, config: &Value) -> Result<Tokenizer, TextError> {
    /// Gemma's tokenizer.model has 4 MB, and the largest tekken.json has 20 MB.
    const MAX_BYTES: u64 = 1 << 26;
    let unreadable = |path: &Path, what: String| TextError::File { path: path.to_owned(), what };
    let content =
        |path: &Path| read_file(path, MAX_BYTES).map_err(|error| unreadable(path, brief(&error.to_string())));
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let extra = match listed_tokens(directory, config)? {
        Some(extra) => extra,
        None => added_tokens(directory, config)?,
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
    SlowTokenizer { files, config, model_type, extra: &extra, path }.into_tokenizer()
}

/// Adds to an error how to make a tokenizer that can be read.
fn advised(error: TextError, directory: &Path) -> TextError {
    // Forward slashes are used because Python reads a backslash as an escape.
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

/// All tokens that the files beside a tokenizer.json add to it, in transformers' order: those listed by id, those
/// with names, then the others.
fn all_tokens(directory: &Path, config: &Value) -> Result<Vec<ExtraToken>, TextError> {
    let (mut tokens, if_known): (Vec<ExtraToken>, IfKnown) = match listed_tokens(directory, config)? {
        Some(tokens) => (tokens, IfKnown::Keep),
        None => (added_tokens(directory, config)?, IfKnown::MakeSpecial),
    };
    let mut places: HashMap<String, usize> = HashMap::new();
    for (place, token) in tokens.iter().enumerate() {
        places.insert(token.content.clone(), place);
    }
    // Errors in these tokens are reported with the chat template.
    for (_, token) in named(config).unwrap_or_default() {
        match places.get(&token.content) {
            Some(&place) => tokens[place].special = true,
            None => {
                places.insert(token.content.clone(), tokens.len());
                tokens.push(ExtraToken { if_known, ..token });
            }
        }
    }
    for token in nameless(config) {
        if places.insert(token.content.clone(), tokens.len()).is_none() {
            tokens.push(ExtraToken { if_known: IfKnown::Keep, ..token });
        }
    }
    Ok(tokens)
}

/// The tokens that tokenizer_config.json lists, in order of their ids; `None` if it has no list.
fn listed_tokens(directory: &Path, config: &Value) -> Result<Option<Vec<ExtraToken>>, TextError> {
    let path = directory.join(TOKENIZER_CONFIG);
    let unreadable = |what: String| TextError::File { path: path.clone(), what };
    let listed = config.get(DECODER).unwrap_or(&Value::Null);
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

/// The tokens that older tools list in added_tokens.json. Those that the configuration names are control tokens.
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
        // If the tokenizer has the token itself, its own flags are more complete.
        let if_known = if special { IfKnown::MakeSpecial } else { IfKnown::Keep };
        ExtraToken { content, special, if_known, ..ExtraToken::default() }
    };
    Ok(listed.into_iter().map(token).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failure must end the test")]
mod tests {
    use serde_json::json;

    use super::*;

    fn token(id: u32, content: &str) -> Value {
        json!({
            "id": id, "content": content, "special": false, "normalized": true,
            "single_word": false, "lstrip": true, "rstrip": false,
        })
    }

    /// The tokenizer of a directory with these files beside a tokenizer.json, whose tokens are `a`, `b` and the added
    /// token `<m>`.
    fn tokenizer(name: &str, files: &[(&str, Value)]) -> Tokenizer {
        let directory = std::env::temp_dir().join(format!("moi-tokens-{name}-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let vocab = json!({ "<unk>": 0, "a": 1, "b": 2 });
        let whole = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [token(3, "<m>")],
            "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null,
            "model": { "type": "BPE", "unk_token": "<unk>", "vocab": vocab, "merges": [] },
        });
        fs::write(directory.join(TOKENIZER), whole.to_string()).unwrap();
        for (file, content) in files {
            fs::write(directory.join(file), content.to_string()).unwrap();
        }
        let read = read_tokenizer(&directory);
        fs::remove_dir_all(&directory).unwrap();
        read.unwrap().unwrap()
    }

    #[test]
    fn tokens_beside_a_tokenizer_are_added_as_transformers_does() {
        let ids = |tokenizer: &Tokenizer, texts: &[&str]| -> Vec<Option<u32>> {
            texts.iter().map(|text| tokenizer.id(text)).collect()
        };
        let listed = tokenizer("listed", &[(ADDED_TOKENS, json!({ "<x>": 259, "<w>": 12 }))]);
        assert_eq!(ids(&listed, &["<m>", "<w>", "<x>"]), [Some(3), Some(4), Some(5)]);
        assert_eq!(listed.encode("a<x>b", false).unwrap(), [1, 5, 2]);

        let config = json!({
            "additional_special_tokens": ["<x>", "<w>", "<m>"], "mask_token": "<k>", "pad_token": "<p>",
            "eos_token": "b", "cls_token": "<c>",
        });
        let named = tokenizer("named", &[(TOKENIZER_CONFIG, config)]);
        let texts = ["b", "<m>", "<p>", "<c>", "<k>", "<x>", "<w>"];
        let expected = [2, 3, 4, 5, 6, 7, 8].map(Some);
        assert_eq!(ids(&named, &texts), expected);
        assert_eq!((named.control_token("b"), named.control_token("<x>")), (Some(2), Some(7)));
        // A token of the tokenizer is not changed by a nameless list, but it is by a name.
        assert_eq!(named.control_token("<m>"), None);
        let masked = tokenizer("masked", &[(TOKENIZER_CONFIG, json!({ "mask_token": "<m>" }))]);
        assert_eq!(masked.control_token("<m>"), Some(3));

        let config = json!({
            "image_token": "<im>", "extra_special_tokens": { "video_token": "<v>" },
            "added_tokens_decoder": { "9": { "content": "<q>", "special": false, "normalized": false } },
        });
        let map = json!({ "bos_token": "<b>" });
        let files = [(TOKENIZER_CONFIG, config), ("special_tokens_map.json", map)];
        let decoded = tokenizer("decoded", &files);
        assert_eq!(ids(&decoded, &["<q>", "<im>", "<v>", "<b>"]), [Some(4), Some(5), Some(6), None]);
    }
}
