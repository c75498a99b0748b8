//! Tiny models whose tokens are single bytes, so that a test can force any text, byte by byte.

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::golden::Golden;

/// The chat template of these models: one line per message.
pub const TEMPLATE: &str = "{% for message in messages %}{{ message.role }}: {{ message.content or '' }}\n{% endfor %}\
                            {% if add_generation_prompt %}assistant: {% endif %}";

/// The token that ends an answer.
pub const EOS: u32 = 0;

/// A copy of the tiny checkpoint `name`, which must have 256 tokens, with a tokenizer in which the token of each byte
/// has the number of that byte. Token 0 ends answers. The tokens in `control` get another text and become control
/// tokens. The chat template is [`TEMPLATE`] unless one is given.
pub fn model(name: &str, control: &[(u32, &str)], template: Option<&str>) -> TempDir {
    let golden = Golden::read(name);
    let directory = tempfile::tempdir().unwrap();
    for file in fs::read_dir(&golden.path).unwrap() {
        let path = file.unwrap().path();
        fs::copy(&path, directory.path().join(path.file_name().unwrap())).unwrap();
    }
    add_tokenizer(directory.path(), control, template);
    directory
}

/// Adds such a byte tokenizer to a checkpoint of 256 tokens.
pub fn add_tokenizer(directory: &Path, control: &[(u32, &str)], template: Option<&str>) {
    let control: BTreeMap<u32, &str> = [(EOS, "<eos>")].into_iter().chain(control.iter().copied()).collect();
    let text = |id: u32| match control.get(&id) {
        Some(text) => (*text).to_owned(),
        None => character(id as u8).to_string(),
    };
    let vocab: serde_json::Map<String, Value> = (0..256).map(|id| (text(id), id.into())).collect();
    let added: Vec<Value> = control
        .iter()
        .map(|(id, text)| {
            json!({
                "id": id, "content": text, "special": true, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false,
            })
        })
        .collect();
    let bytes = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false,
    });
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": bytes, "post_processor": null, "decoder": bytes,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": [],
        },
    });
    let template = template.unwrap_or(TEMPLATE);
    let config = json!({"eos_token": "<eos>", "chat_template": template});
    let write = |name: &str, value: &Value| fs::write(directory.join(name), value.to_string()).unwrap();
    write("tokenizer.json", &tokenizer);
    write("tokenizer_config.json", &config);
    write("generation_config.json", &json!({"eos_token_id": EOS}));
}

/// The tokens of a text.
pub fn ids(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

/// The character that stands for a byte in byte-level vocabularies, as in GPT-2.
fn character(byte: u8) -> char {
    let is_shown = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    match is_shown(byte) {
        true => char::from(byte),
        false => {
            let before = (0..byte).filter(|&byte| !is_shown(byte)).count() as u32;
            char::from_u32(256 + before).unwrap()
        }
    }
}
