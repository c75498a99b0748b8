//! Compares texts under every pre-tokenizer that GGUF files name with llama.cpp (tests/reference/pre_tokenizers.py).

#![allow(clippy::unwrap_used, reason = "a failure must end the test")]

use std::collections::{HashMap, HashSet};

use moi_text::{DEFAULT_PRE_TOKENIZER, Tokenizer, Vocabulary, VocabularyKind, adds_begin_token};
use serde::Deserialize;

#[derive(Deserialize)]
struct Table {
    /// Tokens that no merge makes; their ids come after those of the others.
    unmerged: Vec<String>,
    merges: Vec<String>,
    /// Names of pre-tokenizers under which llama.cpp adds a begin token.
    begins: Vec<String>,
    /// By name of the pre-tokenizer (empty if a file has none): for each text, the index of its expected list of ids.
    names: HashMap<String, Vec<usize>>,
    /// The texts for which llama.cpp gives other ids: the index of the text, and that of llama.cpp's list of ids.
    llama_cpp_differs: HashMap<String, Vec<(usize, usize)>>,
    texts: Vec<Text>,
}

#[derive(Deserialize)]
struct Text {
    text: String,
    ids: Vec<Vec<u32>>,
}

fn table() -> Table {
    serde_json::from_str(include_str!("pre_tokenizers.json")).unwrap()
}

/// GPT-2's table of bytes as characters.
fn byte_characters() -> Vec<String> {
    let prints = |byte: &u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let others: Vec<u32> = (0..256).filter(|byte| !prints(byte)).collect();
    let code = |byte: u32| match others.iter().position(|&other| other == byte) {
        Some(at) => 256 + at as u32,
        None => byte,
    };
    (0..256).map(|byte| char::from_u32(code(byte)).unwrap().to_string()).collect()
}

fn tokenizer(table: &Table, pre: &str) -> Tokenizer {
    let mut tokens = byte_characters();
    let mut seen: HashSet<String> = tokens.iter().cloned().collect();
    for merge in &table.merges {
        let token = merge.replace(' ', "");
        if seen.insert(token.clone()) {
            tokens.push(token);
        }
    }
    tokens.extend(table.unmerged.iter().cloned());
    let kind = VocabularyKind::ByteLevel { pre: pre.to_owned(), merges: table.merges.clone() };
    let vocabulary = Vocabulary { kind, tokens, kinds: Vec::new(), bos: None, eos: None, rstrip: Vec::new() };
    vocabulary.into_tokenizer().unwrap()
}

/// The pre-tokenizer's name, or the default for a missing name.
fn named(name: &str) -> &str {
    if name.is_empty() { DEFAULT_PRE_TOKENIZER } else { name }
}

#[test]
fn every_pre_tokenizer_cuts_as_llama_cpp_does() {
    let table = table();
    let mut wrong = Vec::new();
    for (name, lists) in &table.names {
        let tokenizer = tokenizer(&table, named(name));
        assert_eq!(lists.len(), table.texts.len());
        for (Text { text, ids }, &list) in table.texts.iter().zip(lists) {
            let found = tokenizer.encode(text, false).unwrap();
            if found != ids[list] {
                wrong.push(format!("{name}: {text:?}\n  is       {found:?}\n  expected {:?}", ids[list]));
            }
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn begin_tokens_are_added_where_llama_cpp_adds_them() {
    let table = table();
    for name in table.names.keys() {
        assert_eq!(adds_begin_token(named(name)), table.begins.contains(name), "{name}");
    }
}

/// A listed difference that is none would hide an error.
#[test]
fn listed_differences_are_differences() {
    let table = table();
    for (name, texts) in &table.llama_cpp_differs {
        assert!(!texts.is_empty());
        for &(text, theirs) in texts {
            let ours = table.names[name][text];
            assert_ne!(table.texts[text].ids[ours], table.texts[text].ids[theirs], "{name}");
        }
    }
}
