//! Bad input to the binary: one clear error that names the thing, exit code not 0, no panic.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure must end the test")]

use moi_tests::process::{json, refused, tiny};
use serde_json::Value;

#[test]
fn bad_input_gets_one_clear_error() {
    let (_, path) = tiny("llama");
    let generate = |args: &[&str], parts: &[&str]| {
        refused(&[&["generate", "--model", &path, "--tokens", "1,2"], args].concat(), parts);
    };
    generate(&["--beta", "-1"], &["beta must be finite and above -1, got -1"]);
    generate(&["--beta", "nan"], &["beta", "NaN"]);
    generate(&["--beta", "inf"], &["beta", "inf"]);
    generate(&["--support", "0"], &["support must be 1 or more"]);
    generate(&["--support", "half"], &["`full` or a number", "`half`"]);
    generate(&["--rule", "gate"], &["needs --gate"]);
    generate(&["--rule", "gate", "--gate", "2"], &["gate must be between 0 and 1, got 2"]);
    generate(&["--rule", "token", "--beta", "1"], &["--beta has no meaning for the rule `token`"]);
    generate(&["--rule", "mio"], &["mio", "token, moi, direct, gate, soft-thinking"]);
    generate(&["--temperature", "-1"], &["temperature must be 0", "got -1"]);
    generate(&["--top-p", "0"], &["top-p", "got 0"]);
    generate(&["--min-p", "2"], &["min-p", "got 2"]);
    generate(&["--max-tokens", "0"], &["max tokens must be 1 or more"]);
    generate(&["--device", "abacus"], &["abacus", "cpu, ndarray, cuda"]);
    generate(&["--device", "cpu:1"], &["cpu:1", "other devices have none"]);
    // Not in this build, or not that many on this machine: either way one sentence.
    generate(&["--device", "vulkan:1000"], &["`vulkan", "moi"]);
    generate(&["--stop", "x"], &["no tokenizer"]);
    refused(&["generate", "--model", &path, "hello"], &["no tokenizer", "--tokens"]);
    refused(&["generate", "--model", &path, "--tokens", "1,256"], &["prompt token 256", "256 tokens"]);
    refused(&["generate", "--model", &path, "--tokens", "1,x"], &["invalid value 'x'"]);
    let long = vec!["1"; 600].join(",");
    refused(&["generate", "--model", &path, "--tokens", &long], &["600 tokens", "holds 512", "shorten"]);
    refused(&["generate", "--model", "no-such-model", "hi"], &["no-such-model", "smollm2-135m-instruct"]);
    refused(&["generate", "--model", "/no/such/file.gguf", "hi"], &["/no/such/file.gguf"]);
}

#[test]
fn broken_models_get_one_clear_error() {
    let (golden, _) = tiny("llama3-rope");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_str().unwrap();
    let files = ["config.json", "model.safetensors"];
    let restore = || {
        for file in files {
            std::fs::copy(golden.path.join(file), directory.path().join(file)).unwrap();
        }
    };
    let with_config = |change: &dyn Fn(&mut Value), parts: &[&str]| {
        restore();
        let file = directory.path().join("config.json");
        let mut config: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        change(&mut config);
        std::fs::write(&file, serde_json::to_vec(&config).unwrap()).unwrap();
        refused(&["generate", "--model", path, "--tokens", "1"], parts);
    };
    refused(&["generate", "--model", path, "--tokens", "1"], &["neither config.json nor a .gguf"]);
    with_config(&|c| c["model_type"] = "mamba".into(), &["config.json", "`mamba` is not supported", "llama"]);
    with_config(&|c| c["hidden_act"] = "mish".into(), &["`hidden_act` = \"mish\" is not supported", "silu"]);
    with_config(
        &|c| c["rope_scaling"]["rope_type"] = "mrope".into(),
        &["`rope_type` = \"mrope\" is not supported", "yarn"],
    );
    with_config(
        &|c| c["quantization_config"] = serde_json::json!({ "quant_method": "gptq" }),
        &["`quantization_config`", "gptq", "GGUF"],
    );
    with_config(&|c| c["num_key_value_heads"] = 3.into(), &["num_key_value_heads (3) does not divide"]);
    with_config(&|c| c["hidden_size"] = 64.5.into(), &["config.json", "field `hidden_size`: invalid type"]);
    with_config(
        &|c| c["num_hidden_layers"] = 100_000.into(),
        &["num_hidden_layers is 100000, expected 1 to 4096"],
    );
    with_config(
        &|c| c["eos_token_id"] = (-1).into(),
        &["config.json", "eos_token_id is -1, expected a token id"],
    );
    with_config(&|c| c["hidden_size"] = 0.into(), &["hidden_size is 0"]);
    with_config(
        &|c| c["vocab_size"] = 300.into(),
        &["embed_tokens.weight", "expected [300, 64], found [256, 64]"],
    );
    with_config(&|c| c["num_hidden_layers"] = 4.into(), &["model.layers.3.", "is missing", "and 4 more"]);
    with_config(&|c| c["attention_bias"] = true.into(), &["q_proj.bias` is missing"]);
    restore();
    let weights = directory.path().join("model.safetensors");
    let whole = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &whole[..whole.len() / 2]).unwrap();
    refused(&["generate", "--model", path, "--tokens", "1"], &["model.safetensors", "damaged or incomplete"]);
    std::fs::write(directory.path().join("config.json"), "{").unwrap();
    refused(&["generate", "--model", path, "--tokens", "1"], &["config.json", "EOF"]);
}

#[test]
fn nan_weights_end_in_an_error() {
    let (golden, _) = tiny("llama3-rope");
    let directory = tempfile::tempdir().unwrap();
    std::fs::copy(golden.path.join("config.json"), directory.path().join("config.json")).unwrap();
    let mut weights = std::fs::read(golden.path.join("model.safetensors")).unwrap();
    let length = weights.len();
    weights[length - 2..].copy_from_slice(&[0xff, 0x7f]);
    std::fs::write(directory.path().join("model.safetensors"), weights).unwrap();
    refused(
        &["generate", "--model", directory.path().to_str().unwrap(), "--tokens", "1,2"],
        &["logits of step 0 hold NaN"],
    );
}

/// A tokenizer or chat template that is broken hinders nobody who does not need it.
#[test]
fn broken_text_parts_are_refused_where_they_are_needed() {
    let (golden, _) = tiny("llama");
    let directory = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(golden.path.join(file), directory.path().join(file)).unwrap();
    }
    std::fs::write(directory.path().join("tokenizer.json"), "{}").unwrap();
    std::fs::write(directory.path().join("chat_template.jinja"), "{%}").unwrap();
    std::fs::write(directory.path().join("generation_config.json"), r#"{"do_sample": true, "top_k": -1}"#)
        .unwrap();
    let path = directory.path().to_str().unwrap();
    assert_eq!(json(&["generate", "--model", path, "--tokens", "1,2", "--max-tokens", "2"])["text"], "");
    refused(&["generate", "--model", path, "hello"], &["cannot read the tokenizer", "tokenizer.json"]);
    refused(
        &["generate", "--model", path, "--revision", "v1", "--tokens", "1"],
        &["--revision v1", "no hub repository"],
    );
}
