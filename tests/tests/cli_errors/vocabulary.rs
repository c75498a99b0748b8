//! Tokenizers that do not fit the model in their directory.

use moi_tests::{
    hostile::tokenizer,
    process::{json, refused, run, tiny},
};
use serde_json::Value;

/// A model with 256 embedding rows and a changed copy of the first tokenizer of the mutation tests.
pub(super) fn with_tokenizer(change: impl Fn(&mut Value)) -> tempfile::TempDir {
    let (golden, _) = tiny("llama");
    let directory = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(golden.path.join(file), directory.path().join(file)).unwrap();
    }
    let mut document = tokenizer::documents()[0].clone();
    change(&mut document);
    std::fs::write(directory.path().join("tokenizer.json"), document.to_string()).unwrap();
    directory
}

/// Tokens without a row, rows without a token, and two tokens with one id.
#[test]
fn vocabularies_and_embeddings_that_disagree_are_named() {
    let model = with_tokenizer(|tokenizer| tokenizer["model"]["vocab"]["zebra"] = 300.into());
    let path = model.path().to_str().unwrap();
    refused(
        &["generate", "--model", path, "x"],
        &["tokenizer.json: its vocabulary has a token 300, and the model's embedding only 256 rows"],
    );
    // A command that needs no text must still work.
    assert_eq!(json(&["generate", "--model", path, "--tokens", "1", "--max-tokens", "2"])["text"], "");
    let model = with_tokenizer(|tokenizer| tokenizer["model"]["vocab"]["zebra"] = 5.into());
    refused(
        &["generate", "--model", model.path().to_str().unwrap(), "x"],
        &["tokenizer.json: two tokens of its vocab have the id 5"],
    );

    // Gemma 3's tokenizer has such a token for images.
    let model = with_tokenizer(|tokenizer| {
        let vocab = tokenizer["model"]["vocab"].as_object_mut().unwrap();
        (vocab.len()..256).for_each(|id| drop(vocab.insert(format!("[{id}]"), id.into())));
        let image = serde_json::json!({ "id": 256, "content": "<image>", "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": false });
        tokenizer["added_tokens"].as_array_mut().unwrap().push(image);
    });
    let path = model.path().to_str().unwrap();
    let generate = ["generate", "--model", path, "--raw", "--max-tokens", "2", "--seed", "1"];
    assert!(run(&[&generate[..], &["the"]].concat()).status.success());
    refused(&[&generate[..], &["the <image>"]].concat(), &[path, "the token 256 (`<image>`)", "256 rows"]);

    let model = with_tokenizer(|_| {});
    let path = model.path().to_str().unwrap();
    let out = run(&[
        "generate",
        "--model",
        path,
        "--raw",
        "--temperature",
        "1",
        "--max-tokens",
        "40",
        "--ignore-eos",
        "the",
    ]);
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success() && said.contains("print nothing: the tokenizer, of 105 tokens"), "{said}");
}

/// The library for grammars has no room for tokens of a thousand bytes, and would panic.
#[test]
fn long_tokens_and_grammars_go_together() {
    let model = with_tokenizer(|tokenizer| {
        tokenizer["model"]["vocab"]["a".repeat(1500)] = 200.into();
    });
    let path = model.path().to_str().unwrap();
    let generate = ["generate", "--model", path, "--raw", "--max-tokens", "3", "--regex", "[a-z]+", "the"];
    let out = run(&generate);
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success() && out.stdout.iter().all(|byte| byte.is_ascii_lowercase()), "{said}");
}

/// End tokens and think markers without an embedding row cannot be sampled, so they must be ignored.
#[test]
fn ends_and_marks_without_rows_do_not_matter() {
    let model = with_tokenizer(|tokenizer| {
        let vocab = tokenizer["model"]["vocab"].as_object_mut().unwrap();
        (vocab.len()..256).for_each(|id| drop(vocab.insert(format!("[{id}]"), id.into())));
        for (id, content) in [(256, "<think>"), (257, "</think>")] {
            let mark = serde_json::json!({ "id": id, "content": content, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": false });
            tokenizer["added_tokens"].as_array_mut().unwrap().push(mark);
        }
        // A well-known end token counts in any place, so it is renamed here.
        *tokenizer = tokenizer.to_string().replace("</s>", "<x>").parse().unwrap();
    });
    let config = model.path().join("config.json");
    let text =
        std::fs::read_to_string(&config).unwrap().replace("\"eos_token_id\": 2", "\"eos_token_id\": null");
    std::fs::write(&config, text).unwrap();
    let path = model.path().to_str().unwrap();
    let generate = ["generate", "--model", path, "--raw", "--max-tokens", "3", "the"];
    for rule in ["token", "moi"] {
        let out = run(&[&generate[..], &["--rule", rule]].concat());
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    }
    let ends = model.path().join("generation_config.json");
    std::fs::write(&ends, r#"{ "eos_token_id": [1, 5000] }"#).unwrap();
    let out = run(&[&generate[..], &["--regex", "[a-z]+"]].concat());
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    std::fs::write(&ends, r#"{ "eos_token_id": 5000 }"#).unwrap();
    refused(&[&generate[..], &["--regex", "[a-z]+"]].concat(), &["the model has no end token"]);
}
