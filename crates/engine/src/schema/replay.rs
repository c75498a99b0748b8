//! What the `jsonschema` package says of schemas and values (`tests/reference/schemas.py`), and the grammar.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    Grammar,
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
    /// Values that fit, but not as a grammar writes them, and why.
    unjudged: Vec<(String, String)>,
}

const END: u32 = 256;

/// A tokenizer whose tokens are the bytes, and an end.
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

/// Whether an answer can be this text and end there.
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
    let compile = |schema: &Value| compiler.compile(&Grammar::JsonSchema(schema.clone()));
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
