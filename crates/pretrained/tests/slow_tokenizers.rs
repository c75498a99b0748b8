//! Compares tokenizers without a `tokenizer.json` with transformers and SentencePiece
//! (`tests/reference/slow_tokenizers.py`).

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure must end the test")]

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use moi_pretrained::read_tokenizer;
use moi_text::Tokenizer;
use serde::Deserialize;

#[derive(Deserialize)]
struct Reference {
    texts: Vec<String>,
    prompts: Vec<String>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    /// File names of the directory, and the files that they are copied from.
    copied: HashMap<String, String>,
    written: HashMap<String, String>,
    /// The ids of the texts, with nothing encoded as a control token.
    texts: Vec<Vec<u32>>,
    /// The ids of the prompts, with control tokens encoded as such.
    prompts: Vec<Vec<u32>>,
}

fn kept() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/slow")
}

/// An empty directory of this name.
fn directory(name: &str) -> PathBuf {
    let directory =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("slow-{}", name.replace([' ', ','], "-")));
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(&directory).unwrap();
    directory
}

fn tokenizer(case: &Case) -> Tokenizer {
    let directory = directory(&case.name);
    for (file, source) in &case.copied {
        fs::copy(kept().join(source), directory.join(file)).unwrap();
    }
    for (file, content) in &case.written {
        fs::write(directory.join(file), content).unwrap();
    }
    read_tokenizer(&directory).unwrap().unwrap()
}

#[test]
fn slow_tokenizers_are_converted_exactly() {
    let reference: Reference = serde_json::from_slice(&fs::read(kept().join("cases.json")).unwrap()).unwrap();
    for case in &reference.cases {
        let tokenizer = tokenizer(case);
        for (text, ids) in reference.texts.iter().zip(&case.texts) {
            assert_eq!(&tokenizer.encode(text, true).unwrap(), ids, "{}: {text:?}", case.name);
        }
        for (prompt, ids) in reference.prompts.iter().zip(&case.prompts) {
            assert_eq!(&tokenizer.encode_prompt(prompt).unwrap(), ids, "{}: {prompt:?}", case.name);
        }
        // A conversion writes the tokenizer and reads it back.
        let again = Tokenizer::from_json(tokenizer.to_json().unwrap().as_bytes()).unwrap();
        let text = &reference.texts[4];
        assert_eq!(again.encode(text, true).unwrap(), tokenizer.encode(text, true).unwrap(), "{}", case.name);
    }
}

#[test]
fn what_is_not_converted_is_named() {
    let config = r#"{"tokenizer_class": "CLIPTokenizer"}"#;
    for (name, files, says) in [
        ("words", &[("vocab.txt", "a\nb\n")][..], "vocab.txt"),
        ("tiktoken", &[("qwen.tiktoken", "IQ== 0\n")], "qwen.tiktoken"),
        ("tiktoken as a model", &[("tokenizer.model", "IQ== 0\n")], "no model of SentencePiece"),
        ("no merges", &[("vocab.json", "{}")], "merges.txt"),
        (
            "another class",
            &[("vocab.json", "{}"), ("merges.txt", "#version: 0.2\n"), ("tokenizer_config.json", config)],
            "its class is CLIPTokenizer",
        ),
        ("no class", &[("vocab.json", "{}"), ("merges.txt", "#version: 0.2\n")], "of which class"),
        ("a broken tekken", &[("tekken.json", "{}")], "it is no tekken.json"),
    ] {
        let directory = directory(name);
        for (file, content) in files {
            fs::write(directory.join(file), content).unwrap();
        }
        let error = read_tokenizer(&directory).unwrap_err().to_string();
        assert!(error.contains(says), "{name}: {error}");
        assert!(error.contains("AutoTokenizer.from_pretrained("), "{name}: {error}");
    }
    assert!(read_tokenizer(&directory("nothing")).unwrap().is_none());
}
