//! Compares added tokens under all flags, and tokens that only tokenizer_config.json lists, with the libraries of
//! Hugging Face (tests/reference/token_flags.py).

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::{Tokenizer, extra::ExtraToken};

#[derive(Deserialize)]
struct Table {
    /// A tokenizer without added tokens.
    tokenizer: Value,
    /// Texts in which `@` stands for the token.
    texts: Vec<String>,
    flags: Vec<Flags>,
    extra_texts: Vec<String>,
    extra: Vec<Extra>,
}

#[derive(Deserialize)]
struct Flags {
    content: String,
    flags: Vec<String>,
    ids: Vec<Vec<u32>>,
}

#[derive(Deserialize)]
struct Extra {
    name: String,
    added: Value,
    decoder: BTreeMap<String, ExtraToken>,
    ids: Vec<Vec<u32>>,
    tokens: usize,
}

fn table() -> Table {
    serde_json::from_str(include_str!("token_flags.json")).unwrap()
}

fn tokenizer(table: &Table, added: &Value, extra: &[ExtraToken]) -> Tokenizer {
    let mut json = table.tokenizer.clone();
    json["added_tokens"] = added.clone();
    Tokenizer::from_json_with(json.to_string().as_bytes(), extra).unwrap()
}

fn token(id: u32, content: &str, flags: &[String]) -> Value {
    let has = |flag: &str| flags.iter().any(|name| name == flag);
    json!({
        "id": id,
        "content": content,
        "single_word": has("single_word"),
        "lstrip": has("lstrip"),
        "rstrip": has("rstrip"),
        "normalized": has("normalized"),
        "special": has("special"),
    })
}

#[test]
fn flags_mean_what_they_mean_to_the_library() {
    let table = table();
    let end = token(257, "<e>", &["special".to_owned()]);
    for Flags { content, flags, ids } in &table.flags {
        let added = json!([end.clone(), token(258, content, flags)]);
        let tokenizer = tokenizer(&table, &added, &[]);
        for (text, expected) in table.texts.iter().zip(ids) {
            let text = text.replace('@', content);
            let found = tokenizer.encode_rendered(&text, true, str::to_owned).unwrap();
            assert_eq!(&found, expected, "{text:?} where {content} is {flags:?}");
        }
    }
}

#[test]
fn tokens_of_tokenizer_config_are_added_as_transformers_does() {
    let table = table();
    for Extra { name, added, decoder, ids, tokens } in &table.extra {
        let mut extra: Vec<(u64, &ExtraToken)> =
            decoder.iter().map(|(id, token)| (id.parse().unwrap(), token)).collect();
        extra.sort_by_key(|&(id, _)| id);
        let extra: Vec<ExtraToken> = extra.into_iter().map(|(_, token)| token.clone()).collect();
        let tokenizer = tokenizer(&table, added, &extra);
        assert_eq!(tokenizer.vocab_size(), *tokens, "{name}");
        for (text, expected) in table.extra_texts.iter().zip(ids) {
            let found = tokenizer.encode_rendered(text, true, str::to_owned).unwrap();
            assert_eq!(&found, expected, "{name}: {text:?}");
        }
    }
}

#[test]
fn more_tokens_than_models_have_are_refused() {
    let table = table();
    let json = table.tokenizer.to_string();
    let error =
        |extra: &[ExtraToken]| Tokenizer::from_json_with(json.as_bytes(), extra).unwrap_err().to_string();
    let named = |content: String| ExtraToken { content, special: true, ..ExtraToken::default() };
    let long = error(&[named("a".repeat(600))]);
    assert!(long.contains("600 bytes in an added token, expected 512"), "{long}");
    let many: Vec<ExtraToken> = (0..80_001).map(|id| named(format!("<{id}>"))).collect();
    let many = error(&many);
    assert!(many.contains("80001 added tokens, expected 80000"), "{many}");
}
