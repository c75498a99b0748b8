//! Small tokenizers to mutate, of every model type and with every component that the format has.

use serde_json::{Value, json};

/// A vocabulary of the printable bytes and some words.
fn tokens() -> Vec<String> {
    let letters = (b'!'..=b'~').map(|byte| char::from(byte).to_string());
    let words =
        ["<unk>", "<s>", "</s>", "\u{120}", "\u{2581}", "th", "the", "\u{120}the", "##e", "ab", "<0x0A>"];
    words.iter().map(|&word| word.to_owned()).chain(letters).collect()
}

fn vocab() -> Value {
    tokens()
        .into_iter()
        .zip(0..)
        .map(|(token, id)| (token, json!(id)))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

fn added() -> Value {
    let token = |id: u32, content: &str| {
        json!({ "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true })
    };
    json!([token(0, "<unk>"), token(1, "<s>"), token(2, "</s>")])
}

fn document(model: Value, normalizer: Value, pre: Value, post: Value, decoder: Value) -> Value {
    json!({
        "version": "1.0",
        "truncation": { "direction": "Right", "max_length": 512, "strategy": "LongestFirst", "stride": 0 },
        "padding": { "strategy": { "Fixed": 8 }, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
                     "pad_type_id": 0, "pad_token": "<unk>" },
        "added_tokens": added(),
        "normalizer": normalizer,
        "pre_tokenizer": pre,
        "post_processor": post,
        "decoder": decoder,
        "model": model,
    })
}

/// One tokenizer each of byte-level BPE, SentencePiece BPE, Unigram, WordPiece and whole words.
pub fn documents() -> Vec<Value> {
    let bpe = json!({ "type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
        "vocab": vocab(), "merges": [["t", "h"], ["th", "e"], ["a", "b"]] });
    let byte_level =
        json!({ "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true });
    let template = json!({ "type": "TemplateProcessing",
        "single": [{ "SpecialToken": { "id": "<s>", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }],
        "pair": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 1 } }],
        "special_tokens": { "<s>": { "id": "<s>", "ids": [1], "tokens": ["<s>"] } } });
    let scores: Vec<Value> =
        tokens().into_iter().zip(0..).map(|(token, at)| json!([token, -f64::from(at)])).collect();
    let split = |pattern: Value| json!({ "type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": false });
    vec![
        document(
            bpe.clone(),
            json!({ "type": "NFC" }),
            json!({ "type": "Sequence", "pretokenizers": [
                split(json!({ "Regex": "(?i:'s|'t)|\\p{N}{1,3}|\\s+(?!\\S)|\\s+" })),
                { "type": "Digits", "individual_digits": true }, byte_level ] }),
            template,
            byte_level.clone(),
        ),
        document(
            bpe,
            json!({ "type": "Sequence", "normalizers": [
                { "type": "Prepend", "prepend": "\u{2581}" },
                { "type": "Replace", "pattern": { "String": " " }, "content": "\u{2581}" } ] }),
            Value::Null,
            json!({ "type": "Sequence", "processors": [byte_level] }),
            json!({ "type": "Sequence", "decoders": [
                { "type": "Replace", "pattern": { "String": "\u{2581}" }, "content": " " },
                { "type": "ByteFallback" }, { "type": "Fuse" },
                { "type": "Strip", "content": " ", "start": 1, "stop": 0 } ] }),
        ),
        document(
            json!({ "type": "Unigram", "unk_id": 0, "byte_fallback": true, "vocab": scores }),
            json!({ "type": "Sequence", "normalizers": [
                { "type": "Strip", "strip_left": true, "strip_right": false },
                { "type": "Replace", "pattern": { "Regex": " {2,}" }, "content": " " },
                { "type": "NFKC" }, { "type": "Nmt" }, { "type": "Lowercase" } ] }),
            json!({ "type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "first", "split": true }),
            Value::Null,
            json!({ "type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "first", "split": true }),
        ),
        document(
            json!({ "type": "WordPiece", "unk_token": "<unk>", "continuing_subword_prefix": "##",
                    "max_input_chars_per_word": 100, "vocab": vocab() }),
            json!({ "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                    "strip_accents": null, "lowercase": true }),
            json!({ "type": "BertPreTokenizer" }),
            json!({ "type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 1], "trim_offsets": true,
                    "add_prefix_space": false }),
            json!({ "type": "WordPiece", "prefix": "##", "cleanup": true }),
        ),
        document(
            json!({ "type": "WordLevel", "unk_token": "<unk>", "vocab": vocab() }),
            Value::Null,
            json!({ "type": "Sequence", "pretokenizers": [
                { "type": "Whitespace" }, { "type": "Punctuation", "behavior": "Isolated" },
                { "type": "CharDelimiterSplit", "delimiter": "e" }, { "type": "UnicodeScripts" } ] }),
            json!({ "type": "BertProcessing", "sep": ["</s>", 2], "cls": ["<s>", 1] }),
            json!({ "type": "BPEDecoder", "suffix": "</w>" }),
        ),
    ]
}

/// The token list of a GGUF file.
pub fn listed() -> Vec<String> {
    tokens()
}
