//! Collects the control tokens that the files beside a tokenizer name, as transformers does.

use std::path::Path;

use moi_text::ExtraToken;
use serde_json::{Map, Value};

use crate::directory::read_if_there;

const SPECIAL_TOKENS: &str = "special_tokens_map.json";
pub(crate) const DECODER: &str = "added_tokens_decoder";
const EXTRA: &str = "extra_special_tokens";
const ADDITIONAL: &str = "additional_special_tokens";
/// The names of control tokens that every tokenizer may have, in the order in which they are added.
const STANDARD: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// The contents of tokenizer_config.json with the tokens of special_tokens_map.json. If both have a standard token,
/// that of special_tokens_map.json counts. That file is only read if tokenizer_config.json does not list the added
/// tokens.
pub(crate) fn with_special_tokens(directory: &Path, config: Value) -> Value {
    let mut config: Map<String, Value> = match config {
        Value::Object(config) => config,
        _ => Map::new(),
    };
    if config.get(DECODER).is_some_and(|listed| !listed.is_null()) {
        return Value::Object(config);
    }
    let map: Value = of_map(directory);
    for (key, token) in map.as_object().into_iter().flatten().filter(|(_, token)| !token.is_null()) {
        let is_absent = config.get(key).is_none_or(Value::is_null);
        if key == EXTRA && token.is_array() && !config.get(key).is_some_and(Value::is_object) {
            let before: Vec<Value> = values(&config).cloned().collect();
            let more = token.as_array().into_iter().flatten().cloned();
            let all: Vec<Value> = before.into_iter().chain(more).collect();
            config.insert(key.clone(), Value::Array(all));
        } else if is_absent || STANDARD.contains(&key.as_str()) {
            config.insert(key.clone(), token.clone());
        }
    }
    Value::Object(config)
}

/// The contents of special_tokens_map.json; null if it cannot be read.
fn of_map(directory: &Path) -> Value {
    read_if_there(&directory.join(SPECIAL_TOKENS)).ok().flatten().unwrap_or_default()
}

/// The end token in special_tokens_map.json.
pub(crate) fn end_of_map(directory: &Path) -> Option<String> {
    Some(ExtraToken::named(of_map(directory).get("eos_token")?)?.content)
}

/// The tokens that have names, with their names: first the standard ones, then others in the order of the file.
///
/// # Errors
/// If the value of a standard name is no token.
pub(crate) fn named(config: &Value) -> Result<Vec<(String, ExtraToken)>, String> {
    let mut found: Vec<(String, ExtraToken)> = Vec::new();
    for name in STANDARD {
        let Some(value) = config.get(name).filter(|value| !value.is_null()) else { continue };
        let wrong = || format!("{name}: expected a token's text, or an object with its `content`");
        found.push((name.to_owned(), ExtraToken::named(value).ok_or_else(wrong)?));
    }
    let fields = config.as_object().into_iter().flatten();
    let others = fields.filter(|(name, _)| name.ends_with("_token") && !STANDARD.contains(&name.as_str()));
    // A model's own tokens can also stand in a table, which takes precedence.
    let table = config.get(EXTRA).and_then(Value::as_object).into_iter().flatten();
    let mut by_name: Map<String, Value> = Map::new();
    for (name, value) in others.chain(table) {
        by_name.insert(name.clone(), value.clone());
    }
    for (name, value) in by_name {
        let Some(token) = ExtraToken::named(&value) else { continue };
        let is_standard = STANDARD.contains(&name.as_str());
        match found.iter_mut().take(STANDARD.len()).find(|(known, _)| is_standard && *known == name) {
            Some(known) => known.1 = token,
            None => found.push((name, token)),
        }
    }
    Ok(found)
}

/// The control tokens that are listed without names.
pub(crate) fn nameless(config: &Value) -> Vec<ExtraToken> {
    config.as_object().into_iter().flat_map(values).filter_map(ExtraToken::named).collect()
}

/// The values of the list of nameless tokens. `additional_special_tokens` is the older name of
/// `extra_special_tokens`.
fn values(config: &Map<String, Value>) -> impl Iterator<Item = &Value> {
    let list = |key: &str| config.get(key).and_then(Value::as_array).filter(|list| !list.is_empty());
    list(EXTRA).or_else(|| list(ADDITIONAL)).into_iter().flatten()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failure must end the test")]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tokens_are_named_in_several_ways() {
        let config = json!({
            "image_token": "<im>", "eos_token": "</s>", "bos_token": { "content": "<s>", "lstrip": true },
            "extra_special_tokens": { "video_token": "<v>" }, "pad_token": null, "add_bos_token": true,
            "additional_special_tokens": ["<x>"],
        });
        let found: Vec<(String, String)> =
            named(&config).unwrap().into_iter().map(|(name, token)| (name, token.content)).collect();
        let expected =
            [("bos_token", "<s>"), ("eos_token", "</s>"), ("image_token", "<im>"), ("video_token", "<v>")];
        assert_eq!(found, expected.map(|(name, text)| (name.to_owned(), text.to_owned())));
        assert_eq!(nameless(&config), [ExtraToken::control("<x>".to_owned())]);
        assert!(
            named(&json!({ "bos_token": 5 })).unwrap_err().contains("bos_token: expected a token's text")
        );
    }

    #[test]
    fn the_map_counts_where_no_list_of_tokens_is_there() {
        let directory = std::env::temp_dir().join(format!("moi-special-tokens-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let map = json!({ "bos_token": "<b>", "extra_special_tokens": ["<y>"], "image_token": "<map>" });
        std::fs::write(directory.join(SPECIAL_TOKENS), map.to_string()).unwrap();
        let config = json!({
            "bos_token": "<s>", "image_token": "<im>", "additional_special_tokens": ["<x>"],
        });
        let merged = with_special_tokens(&directory, config);
        assert_eq!((&merged["bos_token"], &merged["image_token"]), (&json!("<b>"), &json!("<im>")));
        let texts: Vec<String> = nameless(&merged).into_iter().map(|token| token.content).collect();
        assert_eq!(texts, ["<x>", "<y>"]);
        let listing = json!({ "bos_token": "<s>", "added_tokens_decoder": {} });
        assert_eq!(with_special_tokens(&directory, listing.clone()), listing);
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
