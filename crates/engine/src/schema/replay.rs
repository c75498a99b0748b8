//! Compares grammars with what the `jsonschema` package says of schemas and values (`tests/reference/schemas.py`).

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    Grammar, GrammarLimits,
    grammar::{Compiler, Constraint},
    text::Tokenizer,
};

#[derive(Deserialize)]
struct Reference {
    cases: Vec<Case>,
    refused: Vec<(Value, String)>,
}

#[derive(Deserialize)]
struct Case {
    schema: Value,
    valid: Vec<String>,
    invalid: Vec<String>,
    /// Values that match the schema but that the grammar does not write in this way, and why.
    unjudged: Vec<(String, String)>,
}

const END: u32 = 256;

/// A tokenizer with a token for each byte, and an end token.
fn bytes() -> Tokenizer {
    let prints = |byte: u32| matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
    let mut others = 256..;
    let mut vocab = serde_json::Map::new();
    for byte in 0..256 {
        let character = if prints(byte) { byte } else { others.next().unwrap() };
        vocab.insert(char::from_u32(character).unwrap().to_string(), byte.into());
    }
    let level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let end = json!({
        "id": END, "content": "<end>", "special": true,
        "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
    });
    let tokenizer = json!({
        "version": "1.0", "added_tokens": [end], "normalizer": null,
        "pre_tokenizer": level, "post_processor": null, "decoder": level,
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    });
    Tokenizer::from_json(tokenizer.to_string().as_bytes()).unwrap()
}

/// Whether the grammar allows exactly this text as an answer.
fn takes(mut grammar: Constraint, text: &str) -> bool {
    let mut is_over = false;
    for byte in text.bytes() {
        if is_over {
            return false;
        }
        grammar.compute().unwrap();
        if !grammar.allows(byte.into()) {
            return false;
        }
        is_over = grammar.push(byte.into()).unwrap();
    }
    if !is_over {
        grammar.compute().unwrap();
        is_over = grammar.allows(END);
    }
    is_over
}

#[test]
fn grammars_take_what_fits_the_schema() {
    let reference: Reference = serde_json::from_str(include_str!("schemas.json")).unwrap();
    let compiler = Compiler::new(&bytes(), END as usize + 1, &[END]).unwrap();
    let compile =
        |schema: &Value| compiler.compile(&Grammar::JsonSchema(schema.clone()), &GrammarLimits::default());
    let mut wrong: Vec<String> = Vec::new();
    for Case { schema, valid, invalid, unjudged } in &reference.cases {
        if let Err(error) = compile(schema) {
            wrong.push(format!("{schema}: {error}"));
            continue;
        }
        let outside = unjudged.iter().map(|(text, _)| text);
        let texts = (valid.iter().map(|text| (text, true)))
            .chain(invalid.iter().chain(outside).map(|text| (text, false)));
        for (text, fits) in texts {
            if takes(compile(schema).unwrap(), text) != fits {
                wrong.push(format!("{schema}: {text} should be {fits}"));
            }
        }
    }
    for (schema, says) in &reference.refused {
        match compile(schema) {
            Ok(_) => wrong.push(format!("{schema} is not refused")),
            Err(error) if !error.to_string().contains(says) => wrong.push(format!("{schema}: {error}")),
            Err(_) => {}
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A grammar is compiled once, and each row that uses it has its own state.
#[test]
fn a_grammar_is_kept_by_its_text() {
    let compiler = Compiler::new(&bytes(), END as usize + 1, &[END]).unwrap();
    let regex = |text: &str| compiler.compile(&Grammar::Regex(text.to_owned()), &GrammarLimits::default());
    let (mut first, mut second) = (regex("ab+").unwrap(), regex("ab+").unwrap());
    assert_eq!(compiler.compiled(), ["{\"regex\":\"ab+\"}"]);
    first.compute().unwrap();
    first.push(b'a'.into()).unwrap();
    second.compute().unwrap();
    assert!(second.allows(b'a'.into()) && !second.allows(b'b'.into()));
    first.compute().unwrap();
    assert!(first.allows(b'b'.into()) && !first.allows(b'a'.into()));
    // The oldest ones are dropped.
    (0..40).for_each(|i| drop(regex(&format!("a{{{i}}}b")).unwrap()));
    let kept = compiler.compiled();
    assert!(kept.len() == 32 && kept[0].contains("a{8}") && kept[31].contains("a{39}"), "{kept:?}");
}

/// A grammar of `count` rules, each of which may continue with any of them.
fn rules(count: usize) -> Grammar {
    let rules: String = (0..count).map(|i| format!("r{i}: start \"{i}\"\n")).collect();
    let names: Vec<String> = (0..count).map(|i| format!("r{i}")).collect();
    Grammar::Lark(format!("start: \"a\" | {}\n{rules}", names.join(" | ")))
}

#[test]
fn grammars_that_take_too_much_are_refused() {
    let compiler = Compiler::new(&bytes(), END as usize + 1, &[END]).unwrap();
    let refused = |grammar: &Grammar, limits: GrammarLimits| {
        compiler.compile(grammar, &limits).unwrap_err().to_string()
    };
    let limits = GrammarLimits { max_bytes: 1000, ..GrammarLimits::default() };
    let said = refused(&Grammar::Regex("a".repeat(1001)), limits);
    assert!(said.contains("1001 bytes, and at most 1000"), "{said}");
    let limits = GrammarLimits { max_time: Some(Duration::ZERO), ..GrammarLimits::default() };
    let said = refused(&rules(300), limits);
    assert!(said.contains("takes longer than 0 s"), "{said}");
    let said = refused(&rules(2), GrammarLimits { max_compiling: 0, ..GrammarLimits::default() });
    assert!(said.contains("0 others"), "{said}");
}
