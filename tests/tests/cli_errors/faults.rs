//! Tests of the binary for faults that users of other tools have reported: what ends an answer, how a prompt is read,
//! and values that other tools accept.

use std::{path::Path, process::Command};

use moi_tests::process::{binary, fed, json, refused};
use serde_json::{Value, json as object};

use super::vocabulary::with_tokenizer;

/// The control token `</s>` of the tokenizers in `moi_tests::hostile`.
const END: u32 = 2;

/// A tiny model with that tokenizer and these files, in which nothing names an end token.
fn model(files: &[(&str, Value)]) -> tempfile::TempDir {
    let directory = with_tokenizer(|tokenizer| {
        // A well-known end token would end a generation by itself.
        *tokenizer = tokenizer.to_string().replace("</s>", "<turn-end>").parse().unwrap();
    });
    let path = directory.path().join("config.json");
    let config = std::fs::read_to_string(&path).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    config["eos_token_id"] = Value::Null;
    for (name, content) in files {
        match *name {
            "config.json" => {
                config.as_object_mut().unwrap().extend(content.as_object().unwrap().clone());
            }
            name => std::fs::write(directory.path().join(name), content.to_string()).unwrap(),
        }
    }
    std::fs::write(path, config.to_string()).unwrap();
    directory
}

/// A greedy generation in which one token is almost certain.
fn generated(model: &Path, token: u32, more: &[&str]) -> Value {
    let bias = format!("{token}=500");
    let args =
        ["generate", "--model", model.to_str().unwrap(), "--raw", "--rule", "token", "--temperature", "0"];
    json(&[&args[..], &["--logit-bias", &bias, "--max-tokens", "4"], more, &["ab"]].concat())
}

fn ended(model: &Path, more: &[&str]) -> (String, usize) {
    let report = generated(model, END, more);
    let steps = report["steps"].as_array().unwrap().len();
    (report["stop_reason"].as_str().unwrap().to_owned(), steps)
}

#[test]
fn ends_are_those_of_all_files() {
    let named = object!({ "eos_token": "<turn-end>" });
    let full = object!({ "eos_token": { "content": "<turn-end>", "lstrip": false } });
    for (files, ends) in [
        (vec![], false),
        (vec![("generation_config.json", object!({ "eos_token_id": END }))], true),
        (vec![("generation_config.json", object!({ "eos_token_id": [5, null, END] }))], true),
        (vec![("generation_config.json", object!({ "eos_token_id": -1 }))], false),
        (vec![("config.json", object!({ "eos_token_id": END }))], true),
        (vec![("config.json", object!({ "text_config": { "eos_token_id": [END] } }))], true),
        (vec![("tokenizer_config.json", named.clone())], true),
        (vec![("tokenizer_config.json", full)], true),
        (vec![("special_tokens_map.json", named.clone())], true),
        // The end token of the base model, next to that of the chat model.
        (
            vec![
                ("generation_config.json", object!({ "eos_token_id": 5 })),
                ("tokenizer_config.json", named),
            ],
            true,
        ),
        // A default in config.json that is a text token, while generation_config.json names another token.
        (
            vec![
                ("generation_config.json", object!({ "eos_token_id": 1 })),
                ("config.json", object!({ "eos_token_id": 6 })),
            ],
            false,
        ),
    ] {
        let directory = model(&files);
        let expected = if ends { ("eos", 1) } else { ("length", 4) };
        let found = ended(directory.path(), &[]);
        assert_eq!((found.0.as_str(), found.1), expected, "{files:?}");
        let inspected = json(&["inspect", directory.path().to_str().unwrap()]);
        let listed = inspected["files"]["eos"].as_array().unwrap().contains(&END.into());
        assert_eq!(listed, ends, "{files:?}: {inspected}");
    }
    let stale = model(&[
        ("generation_config.json", object!({ "eos_token_id": 1 })),
        ("config.json", object!({ "eos_token_id": 6 })),
    ]);
    assert_eq!(generated(stale.path(), 6, &[])["stop_reason"], "length");
}

#[test]
fn stop_strings_that_are_control_tokens_end() {
    let directory = model(&[]);
    let path = directory.path();
    assert_eq!(ended(path, &["--stop", "<turn-end>"]), ("stop".to_owned(), 1));
    assert_eq!(ended(path, &["--stop", "<turn-end>", "--ignore-eos"]), ("stop".to_owned(), 1));
    // The stop string must not match before --min-tokens, but right after it.
    let report = generated(path, END, &["--stop", "<turn-end>", "--min-tokens", "2"]);
    let tokens: Vec<u64> =
        report["steps"].as_array().unwrap().iter().map(|step| step["token"].as_u64().unwrap()).collect();
    assert!(tokens.len() == 3 && tokens[..2].iter().all(|&token| token != u64::from(END)), "{tokens:?}");
    let mixed = [
        "generate",
        "--model",
        path.to_str().unwrap(),
        "--raw",
        "--stop",
        "x<turn-end>",
        "--max-tokens",
        "1",
        "ab",
    ];
    let out = Command::new(binary()).args(mixed).output().unwrap();
    let stderr = String::from_utf8(out.stderr).unwrap();
    assert!(stderr.contains("holds the control token `<turn-end>`, which prints nothing"), "{stderr}");
}

#[test]
fn prompts_are_read_as_they_are_meant() {
    let directory = model(&[]);
    let path = directory.path().to_str().unwrap();
    let args = ["generate", "--model", path, "--raw", "--max-tokens", "1", "--format", "json"];
    let tokens = |input: &[u8]| -> Vec<u64> {
        let out = fed(&args, input);
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let report: Value = serde_json::from_slice(&out.stdout).unwrap();
        report["prompt_tokens"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect()
    };
    let plain = tokens(b"ab");
    let utf16 =
        |order: fn(u16) -> [u8; 2]| -> Vec<u8> { "\u{feff}ab\r\n".encode_utf16().flat_map(order).collect() };
    for same in
        [b"ab\n".to_vec(), b"\xef\xbb\xbfab\r\n".to_vec(), utf16(u16::to_le_bytes), utf16(u16::to_be_bytes)]
    {
        assert_eq!(tokens(&same), plain, "{same:?}");
    }
    // A control token in a prompt without a template is meant as such.
    let control = tokens(b"<turn-end>ab");
    assert!(control[..2] == [1, u64::from(END)] && control.len() == plain.len() + 1, "{control:?}");
    for (input, part) in [
        (&b"a\0b\0"[..], "looks like UTF-16 or UTF-32"),
        (b"ab\xff", "it is not UTF-8 text (byte 2)"),
        (b"", "the prompt is empty"),
        (b"\xef\xbb\xbf\n", "the prompt is empty"),
    ] {
        let out = fed(&args, input);
        let stderr = String::from_utf8(out.stderr).unwrap();
        assert!(!out.status.success() && stderr.contains(part), "{input:?}: {stderr}");
    }
}

#[test]
fn empty_prompts_are_refused_with_a_template_too() {
    let directory = model(&[]);
    let template = "u:{{ messages[0].content }}\n";
    std::fs::write(directory.path().join("chat_template.jinja"), template).unwrap();
    let path = directory.path().to_str().unwrap();
    for command in ["generate", "compare", "trace"] {
        refused(&[command, "--model", path, ""], &["the prompt is empty"]);
    }
    refused(&["generate", "--model", path, "--raw", ""], &["the prompt is empty"]);
}

/// Other tools use -1 for "off", "random" or "no limit". Where it means nothing to moi, the error must name the flag.
#[test]
fn minus_one_is_a_value() {
    let directory = model(&[("generation_config.json", object!({ "eos_token_id": END }))]);
    let path = directory.path().to_str().unwrap();
    let bias = format!("{END}=500");
    let args = ["generate", "--model", path, "--raw", "--temperature", "0.5", "--logit-bias", &bias];
    let off = ["--top-k", "-1", "--seed", "-1", "--max-tokens", "-1", "--penalty-window", "-1", "ab"];
    let report = json(&[&args[..], &off].concat());
    assert_eq!((&report["stop_reason"], &report["sampling"]["top_k"]), (&"eos".into(), &0.into()));
    for flag in ["-n", "--logprobs", "--min-tokens", "--top", "--dry-allowed-length", "--threads"] {
        refused(&[&args[..], &[flag, "-1", "ab"]].concat(), &["invalid value '-1' for '-"]);
    }
    refused(&["eval", "countdown", "--model", path, "--seed", "-1"], &["--seed -1 draws a seed"]);
}
