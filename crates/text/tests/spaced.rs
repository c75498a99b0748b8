//! Compares texts under a tokenizer of Gemma 4's kind with llama.cpp (tests/reference/spaced_tokenizer.py).

#![allow(clippy::unwrap_used, reason = "a failure must end the test")]

use moi_text::{TokenKind, Tokenizer, Vocabulary, VocabularyKind};
use serde::Deserialize;

#[derive(Deserialize)]
struct Table {
    tokens: Vec<String>,
    kinds: Vec<usize>,
    merges: Vec<String>,
    texts: Vec<Text>,
}

#[derive(Deserialize)]
struct Text {
    text: String,
    ids: Vec<u32>,
}

fn table() -> Table {
    serde_json::from_str(include_str!("spaced.json")).unwrap()
}

fn vocabulary(table: &Table) -> Vocabulary {
    Vocabulary {
        kind: VocabularyKind::Spaced { merges: table.merges.clone() },
        tokens: table.tokens.clone(),
        kinds: table.kinds.iter().map(|&kind| TokenKind::from_ggml(kind).unwrap()).collect(),
        bos: Some(2),
        eos: None,
        rstrip: Vec::new(),
    }
}

fn wrong(table: &Table, tokenizer: &Tokenizer) -> Vec<String> {
    let check = |Text { text, ids }: &Text| {
        let found = tokenizer.encode(text, false).unwrap();
        let back = tokenizer.decode(&found).unwrap();
        let is_right = found == *ids && back == *text;
        (!is_right)
            .then(|| format!("{text:?}\n  is       {found:?}\n  expected {ids:?}\n  and back {back:?}"))
    };
    table.texts.iter().filter_map(check).collect()
}

#[test]
fn texts_are_cut_as_llama_cpp_does() {
    let table = table();
    let wrong = wrong(&table, &vocabulary(&table).into_tokenizer().unwrap());
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

/// Writes the merges to a `tokenizer.json` and reads them back into GGUF's lists.
#[test]
fn merges_are_kept() {
    let table = table();
    let tokenizer = vocabulary(&table).into_tokenizer().unwrap();
    let json = tokenizer.to_json().unwrap();
    let listed = Vocabulary::from_tokenizer_json(json.as_bytes(), Some(2), true).unwrap();
    let VocabularyKind::Spaced { merges } = &listed.kind else { panic!("{:?}", listed.kind) };
    assert_eq!(*merges, table.merges);
    assert!(wrong(&table, &listed.into_tokenizer().unwrap()).is_empty());
}
