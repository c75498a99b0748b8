//! Bad input to the binary must give one clear error that names the cause, a non-zero exit code and no panic.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure must end the test")]

mod directories;
mod faults;
mod vocabulary;

use moi_tests::{
    hostile::tokenizer,
    process::{json, refused, run, tiny},
};
use serde_json::Value;
use vocabulary::with_tokenizer;

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
    // The device may be missing in this build or on this machine; either way the error is one sentence.
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
        &|c| c["eos_token_id"] = "two".into(),
        &["config.json", "eos_token_id is \"two\", expected a token id"],
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

/// A broken tokenizer or chat template must not affect users who do not need it.
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
        &["--revision v1", "works only with hub repositories"],
    );
}

/// Endless input must not be read to its end, and a prompt that is too long for the context must not be tokenized.
#[cfg(unix)]
#[test]
fn what_has_no_end_is_refused() {
    use std::{
        io::Write,
        process::{Command, Stdio},
    };
    let (_, path) = tiny("llama");
    let model = moi_tests::real::model_file("smollm2-135m-instruct");
    let model = model.to_str().unwrap();
    let endless = "/dev/zero cannot be read";
    for flag in ["--json-schema", "--grammar"] {
        refused(
            &["generate", "--model", model, "x", flag, "/dev/zero"],
            &[endless, "more than 16777216 bytes"],
        );
    }
    refused(
        &["bench", "--model", &path, "-p", "4", "-n", "4", "-r", "1", "--compare", "/dev/zero"],
        &["/dev/zero"],
    );
    refused(&["score", "--model", model, "/dev/zero"], &[endless]);
    refused(&["--config", "/dev/zero", "rules"], &["/dev/zero cannot be used"]);
    refused(
        &["chat", "--model", model, "--load", "/dev/zero"],
        &["/dev/zero is no conversation that can be loaded", "more than 16777216 bytes"],
    );
    let piped = |bytes: usize, part: &str| {
        let mut command = Command::new(moi_tests::process::binary());
        command.args(["generate", "--model", model]).stdin(Stdio::piped()).stdout(Stdio::null());
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        // The write may fail, because the binary may stop reading before the end.
        let _ = stdin.write_all(&vec![b'a'; bytes]);
        drop(stdin);
        let out = child.wait_with_output().unwrap();
        let stderr = String::from_utf8(out.stderr).unwrap();
        assert!(out.status.code() == Some(1) && stderr.contains(part), "{:?}: {stderr}", out.status);
    };
    piped(17 << 20, "the prompt on stdin cannot be read: it has more than 16777216 bytes");
    piped(8 << 20, "the prompt has 8388608 bytes, more than the model's context of");
}

/// A full disk behind stderr must not cost the user the answer.
#[cfg(target_os = "linux")]
#[test]
fn nothing_is_lost_where_stderr_is_full() {
    use std::process::Command;
    let (_, path) = tiny("llama");
    let args =
        ["generate", "--model", &path, "--tokens", "1,2", "--max-tokens", "3", "--stats", "--ignore-eos"];
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let with_full = |args: &[&str]| {
        let full = full.try_clone().unwrap();
        Command::new(moi_tests::process::binary()).args(args).stderr(full).output().unwrap()
    };
    let out = with_full(&args);
    assert_eq!((out.status.code(), out.stdout), (Some(0), run(&args).stdout));
    assert_eq!(with_full(&["generate", "--model", "/nowhere", "x"]).status.code(), Some(1));
}

/// A file with wrong content must be an error, not be treated as absent.
#[cfg(unix)]
#[test]
fn what_is_there_and_broken_is_named() {
    use std::{fs, os::unix::fs::symlink};
    let (golden, _) = tiny("llama");
    let directory = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(golden.path.join(name), directory.path().join(name)).unwrap();
    }
    let path = directory.path().to_str().unwrap();
    let generate = ["generate", "--model", path, "--tokens", "1,2", "--max-tokens", "2"];
    let hints = directory.path().join("generation_config.json");
    for (text, what) in [
        (r#"{"do_sample": true, "temperature": -5}"#, "temperature is -5, expected a number from 0 to 1000"),
        (r#"{"do_sample": true, "top_p": 5}"#, "top_p is 5, expected a number from 0 to 1"),
        (r#"{"do_sample": true, "min_p": "x"}"#, "min_p is \"x\", expected a number from 0 to 1"),
        (r#"{"do_sample": true, "top_k": 1.5}"#, "top_k is 1.5, expected a whole number"),
        (
            r#"{"do_sample": true"#,
            "it is cut off (EOF while parsing an object at line 1 column 18); fetch it again",
        ),
        (r#"{"do_sample" true}"#, "it is not valid JSON (expected `:`"),
        ("", "it is empty; fetch it again"),
    ] {
        fs::write(&hints, text).unwrap();
        refused(&generate, &["generation_config.json", what]);
    }
    // Sampling advice that cannot be followed is only an error if it is needed.
    fs::write(&hints, r#"{"do_sample": true, "top_p": 5}"#).unwrap();
    assert!(run(&["inspect", path]).status.success());
    assert!(run(&[&generate[..], &["--temperature", "0"]].concat()).status.success());
    // As in transformers: almost no temperature, which selects the most likely token.
    fs::write(&hints, r#"{"do_sample": true, "temperature": 1e-6, "top_p": 0, "top_k": 50.0}"#).unwrap();
    let sampling = &json(&generate)["sampling"];
    assert_eq!((&sampling["temperature"], &sampling["top_k"]), (&0.0.into(), &50.into()));
    fs::remove_file(&hints).unwrap();
    symlink("nowhere", &hints).unwrap();
    refused(&generate, &["generation_config.json", "it is a link to nowhere, which cannot be reached"]);
    fs::remove_file(&hints).unwrap();
    symlink("nowhere", directory.path().join("tokenizer.json")).unwrap();
    refused(&["generate", "--model", path, "x"], &["tokenizer.json", "No such file"]);
    fs::remove_file(directory.path().join("tokenizer.json")).unwrap();
    // A clone without Git LFS contains pointer files.
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n";
    for (name, command) in
        [("model.safetensors", &generate[..]), ("tokenizer.json", &["generate", "--model", path, "x"])]
    {
        let kept = fs::read(directory.path().join(name));
        fs::write(directory.path().join(name), pointer).unwrap();
        refused(command, &[name, "it is a pointer of Git LFS"]);
        match kept {
            Ok(bytes) => fs::write(directory.path().join(name), bytes).unwrap(),
            Err(_) => fs::remove_file(directory.path().join(name)).unwrap(),
        }
    }
    // The token settings of chat templates only matter if there is a tokenizer.
    let settings = directory.path().join("tokenizer_config.json");
    fs::write(directory.path().join("tokenizer.json"), tokenizer::documents()[0].to_string()).unwrap();
    for (text, what) in [
        (r#"{"bos_token": 5}"#, "expected a token's text, or an object with its `content`"),
        (r#"{"chat_template": [{"name": "default"}]}"#, "expected one value of its kind or a list of them"),
        (r#"{"chat_template": 1}"#, "expected one value of its kind or a list of them"),
        ("{", "it is cut off"),
    ] {
        fs::write(&settings, text).unwrap();
        refused(&["generate", "--model", path, "x"], &["tokenizer_config.json", what]);
    }
    fs::remove_file(&settings).unwrap();
    for (name, away) in
        [("config.json", "config.json"), ("model.safetensors.index.json", "model.safetensors")]
    {
        fs::remove_file(directory.path().join(away)).unwrap();
        symlink("nowhere", directory.path().join(name)).unwrap();
        refused(&generate, &[name, "it is a link to nowhere"]);
        fs::remove_file(directory.path().join(name)).unwrap();
        fs::copy(golden.path.join(away), directory.path().join(away)).unwrap();
    }

    let mut bytes = fs::read(moi_tests::golden_directory().join("gguf/llama.gguf")).unwrap();
    let key = b"llama.attention.layer_norm_rms_epsilon";
    // The key is followed by its type (a float of four bytes) and the value.
    let at = bytes.windows(key.len()).position(|window| window == key).unwrap() + key.len() + 4;
    bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    let broken = directory.path().join("broken.gguf");
    fs::write(&broken, bytes).unwrap();
    refused(&["inspect", broken.to_str().unwrap()], &["broken.gguf", "layer_norm_rms_epsilon` is NaN"]);
}

/// Errors must name weights that are NaN or infinite, whatever their storage form, also if the embedding is the
/// output head.
#[test]
fn broken_weights_are_named() {
    let (golden, _) = tiny("llama");
    let model = moi_tests::broken_weights::with_values(&golden, "model.layers.1.mlp.up_proj.weight", |at| {
        (at == 5).then_some(f32::NAN)
    });
    let path = model.path().to_str().unwrap();
    for form in ["q8_0", "q4_0", "q4_1"] {
        let out =
            run(&["generate", "--model", path, "--tokens", "1,2", "--max-tokens", "2", "--quantize", form]);
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(said.contains("tensor `model.layers.1.mlp.up_proj.weight` has 1 NaN"), "{form}: {said}");
    }
    let tied = moi_tests::golden::Golden::read("granite-tied");
    let model = moi_tests::broken_weights::with_values(&tied, "model.embed_tokens.weight", |at| {
        (at == 900).then_some(f32::NAN)
    });
    refused(
        &["generate", "--model", model.path().to_str().unwrap(), "--tokens", "1,2"],
        &["`model.embed_tokens.weight` is not finite"],
    );
}

/// Input that would take endless memory or time, and input that cannot be computed or written.
#[test]
fn what_cannot_be_used_is_said_before_it_is_used() {
    let step = serde_json::json!({ "type": "Replace", "pattern": { "Regex": "." }, "content": "aa" });
    let steps = serde_json::json!({ "type": "Sequence", "normalizers": vec![step; 40] });
    let model = with_tokenizer(|tokenizer| tokenizer["normalizer"] = steps.clone());
    refused(
        &["generate", "--model", model.path().to_str().unwrap(), "x"],
        &["can make a text 2199023255552 times as long, expected at most 256"],
    );
    let model = with_tokenizer(|_| {});
    let path = model.path().to_str().unwrap();
    std::fs::write(model.path().join("chat_template.jinja"), "{% if false %}{% endif %}").unwrap();
    refused(
        &["generate", "--model", path, "x"],
        &["chat_template.jinja", "it makes nothing of the messages"],
    );
    let schema = ["generate", "--model", path, "--raw", "the", "--json-schema"];
    refused(&[&schema[..], &[""]].concat(), &["--json-schema is empty"]);
    let output = model.path().join("nowhere/logits");
    let output = output.to_str().unwrap();
    refused(&["logits", "--model", path, "--tokens", "1", "-o", output], &[output, "there is no directory"]);
    refused(&["convert", path, "-o", output], &[output, "there is no directory"]);
    refused(&["convert", path, "-o", output, "--max-shard-size", "0"], &["0 is not in 1.."]);
}
