//! Tests the binary as a process, on the tiny golden checkpoints and the real model.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure must end the test")]

use std::{
    io::Write,
    process::{Command, Stdio},
};

use moi_tests::{
    process::{binary, ids, json, numbers, refused, run, tiny, with_default_signals},
    real::{RealGolden, model_file},
    relative_error,
};
use safetensors::SafeTensors;
use serde_json::Value;

#[test]
fn a_directory_without_a_tokenizer_generates_from_ids() {
    let (golden, path) = tiny("llama");
    for device in ["cpu", "ndarray"] {
        for run in &golden.cases.runs {
            let rule = serde_json::to_value(run.rule()).unwrap();
            let max = run.steps.len().to_string();
            let prompt = ids(&run.prompt);
            let mut args = vec![
                "generate",
                "--model",
                &path,
                "--tokens",
                &prompt,
                "--temperature",
                "0",
                "--ignore-eos",
                "--max-tokens",
                &max,
                "--device",
                device,
                "--rule",
                rule["rule"].as_str().unwrap(),
            ];
            let beta = rule.get("beta").map(Value::to_string);
            let support =
                rule.get("support").map(|s| s.as_str().map_or_else(|| s.to_string(), str::to_owned));
            for (flag, value) in [("--beta", &beta), ("--support", &support)] {
                if let Some(value) = value {
                    args.extend([flag, value]);
                }
            }
            let found = json(&args);
            let expected: Vec<u32> = run.steps.iter().map(|step| step.token).collect();
            assert_eq!(numbers(&found["tokens"]), expected, "{}", run.rule());
            assert_eq!(found["rule"], rule);
            assert_eq!(found["text"], "");
            assert_eq!(found["stop_reason"], "length");
            assert_eq!(found["device"], device);
        }
    }
}

#[test]
fn the_json_object_has_every_field() {
    let (golden, path) = tiny("llama");
    let prompt = ids(&golden.cases.tokens[..5]);
    let args = [
        "generate",
        "--model",
        &path,
        "--tokens",
        &prompt,
        "--max-tokens",
        "3",
        "--seed",
        "7",
        "--ignore-eos",
    ];
    let found = json(&args);
    assert_eq!(found["model"], path);
    assert_eq!(found["dtype"], "f32");
    assert_eq!(found["seed"], 7);
    assert_eq!(numbers(&found["prompt_tokens"]), golden.cases.tokens[..5]);
    let steps = found["steps"].as_array().unwrap();
    assert_eq!(steps.len(), 3);
    for step in steps {
        assert!(step["text"].is_string() && step["logprob"].as_f64().unwrap() < 0.0);
        let (entropy, gate) = (step["entropy"].as_f64().unwrap(), step["gate"].as_f64().unwrap());
        assert!((gate - entropy / 2.0).abs() < 1e-6);
        let top = step["top"].as_array().unwrap();
        assert_eq!(top.len(), 5);
        assert!(top.iter().all(|t| t["token"].is_u64() && t["weight"].as_f64().unwrap() > 0.0));
    }
    for field in ["load_s", "prefill_tokens", "reused_positions", "prefill_s", "decode_tokens", "decode_s"] {
        assert!(found["timing"][field].is_number(), "{field}");
    }
}

#[test]
fn a_seed_gives_the_same_tokens() {
    let (golden, path) = tiny("llama");
    let prompt = ids(&golden.cases.tokens[..5]);
    let tokens = |seed: &str, device: &str| {
        let args = [
            "generate",
            "--model",
            &path,
            "--tokens",
            &prompt,
            "--max-tokens",
            "12",
            "--temperature",
            "0.9",
            "--top-k",
            "40",
            "--top-p",
            "0.95",
            "--min-p",
            "0.01",
            "--ignore-eos",
            "--seed",
            seed,
            "--device",
            device,
        ];
        numbers(&json(&args)["tokens"])
    };
    assert_eq!(tokens("5", "cpu"), tokens("5", "cpu"));
    assert_eq!(tokens("5", "cpu"), tokens("5", "ndarray"));
    assert_ne!(tokens("5", "cpu"), tokens("6", "cpu"));
}

#[test]
fn logits_are_written_for_other_engines_to_compare() {
    let (golden, path) = tiny("llama3-rope");
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("logits.safetensors");
    let tokens = ids(&golden.cases.tokens);
    let out = run(&["logits", "--model", &path, "--tokens", &tokens, "--output", file.to_str().unwrap()]);
    assert!(out.status.success() && out.stdout.is_empty());
    let bytes = std::fs::read(&file).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let logits = tensors.tensor("logits").unwrap();
    assert_eq!(logits.shape(), [golden.cases.tokens.len(), golden.vocab]);
    let values: Vec<f32> = logits.data().as_chunks::<4>().0.iter().map(|&w| f32::from_le_bytes(w)).collect();
    assert!(relative_error(&values, &golden.logits) <= 5e-5);
    #[cfg(unix)]
    {
        use std::os::unix::fs::{FileTypeExt, PermissionsExt};
        let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode();
        let plain = directory.path().join("plain");
        std::fs::write(&plain, "").unwrap();
        assert_eq!(mode(&file), mode(&plain), "the file is not as readable as others");
        assert!(
            run(&["logits", "--model", &path, "--tokens", "1", "--output", "/dev/null"]).status.success()
        );
        assert!(std::fs::metadata("/dev/null").unwrap().file_type().is_char_device());
    }
    let nowhere = directory.path().join("no/such/dir/x.safetensors");
    refused(
        &["logits", "--model", &path, "--tokens", "1", "--output", nowhere.to_str().unwrap()],
        &["cannot write", "x.safetensors"],
    );
}

fn real_model() -> String {
    model_file("smollm2-135m-instruct").to_str().unwrap().to_owned()
}

#[test]
fn text_mode_prints_the_answer_alone() {
    let golden = RealGolden::read("smollm2-135m-instruct");
    let run = golden.runs.iter().find(|run| run.kind == "chat" && run.text.is_some()).unwrap();
    let rule = serde_json::to_value(run.rule()).unwrap();
    let model = real_model();
    let mut args = vec![
        "generate",
        "--model",
        &model,
        &run.prompt,
        "--temperature",
        "0",
        "--max-tokens",
        "24",
        "--stats",
        "--rule",
        rule["rule"].as_str().unwrap(),
    ];
    let beta = rule.get("beta").map(Value::to_string);
    if let Some(beta) = &beta {
        args.extend(["--beta", beta]);
    }
    let out = self::run(&args);
    let (stdout, stderr) = (String::from_utf8(out.stdout).unwrap(), String::from_utf8(out.stderr).unwrap());
    assert!(out.status.success());
    assert!(stdout.len() > 20 && run.text.as_ref().unwrap().starts_with(&stdout), "{stdout}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(
        stderr.contains("tokens/s") && stderr.contains("GB/s") && stderr.contains("ended by length"),
        "{stderr}"
    );
}

#[test]
fn the_prompt_may_come_from_stdin_and_stop_strings_end_it() {
    let golden = RealGolden::read("smollm2-135m-instruct");
    let run = golden.runs.iter().find(|run| run.kind == "plain").unwrap();
    let model = real_model();
    let base = [
        "generate",
        "--model",
        &model,
        "--raw",
        "--temperature",
        "0",
        "--rule",
        "token",
        "--max-tokens",
        "16",
        "--format",
        "json",
    ];
    let mut child =
        Command::new(binary()).args(base).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(format!("{}\n", run.prompt).as_bytes()).unwrap();
    let found: Value = serde_json::from_slice(&child.wait_with_output().unwrap().stdout).unwrap();
    assert_eq!(numbers(&found["prompt_tokens"]), run.prompt_ids);
    assert_eq!(numbers(&found["tokens"]), run.ids[..16]);
    let text = found["text"].as_str().unwrap();
    let stop: String = text.chars().skip(10).take(9).collect();
    let stopped = json(&[&base[..10], &[&run.prompt, "--stop", &stop]].concat());
    assert_eq!(stopped["stop_reason"], "stop");
    assert_eq!(stopped["text"].as_str().unwrap(), &text[..text.find(&stop).unwrap()]);
}

#[test]
fn a_system_prompt_reaches_the_template() {
    let model = real_model();
    let prompt = |args: &[&str]| {
        numbers(
            &json(&[&["generate", "--model", &model, "Hi", "--max-tokens", "1"], args].concat())["prompt_tokens"],
        )
    };
    let (with, without) = (prompt(&["--system", "You are a pirate."]), prompt(&[]));
    assert_ne!(with, without);
    assert!(prompt(&["--raw"]).len() < without.len());
}

/// Ctrl-C must end the generation and keep the text so far.
#[cfg(unix)]
#[test]
fn an_interrupt_ends_cleanly() {
    let model = real_model();
    let args =
        ["generate", "--model", &model, "Count.", "--ignore-eos", "--max-tokens", "5000", "--rule", "token"];
    let mut child = with_default_signals()
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // When the first text has arrived, the generation is in progress.
    let mut first = [0];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut first).unwrap();
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
    let out = child.wait_with_output().unwrap();
    assert_eq!(out.status.code(), Some(130));
    assert!(out.stderr.is_empty(), "{}", String::from_utf8_lossy(&out.stderr));
}

#[test]
fn the_catalogue_is_listed() {
    model_file("smollm2-135m-instruct");
    let table = String::from_utf8(run(&["models"]).stdout).unwrap();
    let row = table.lines().find(|line| line.starts_with("smollm2-135m-instruct")).unwrap();
    for cell in ["135 M", "98 MB", "Apache-2.0", "SmolLM2-135M-Instruct.Q4_1.gguf", "default"] {
        assert!(row.contains(cell), "{row}");
    }
    assert!(table.contains("gemma-3-270m"));
    let row = table.lines().find(|line| line.starts_with("openai/gpt-oss-20b")).unwrap();
    for cell in ["20.9 B (3.6 B)", "41 GB", "see its card", "no"] {
        assert!(row.contains(cell), "{row}");
    }
    let rows: Value = serde_json::from_slice(&run(&["models", "--format", "json"]).stdout).unwrap();
    assert_eq!(rows[0]["cached"], true);
    assert!(rows[0]["path"].as_str().is_some_and(|path| std::path::Path::new(path).is_file()));
}

#[test]
fn a_model_is_removed_from_the_cache() {
    let cache = tempfile::tempdir().unwrap();
    let directory = cache.path().join("models/smollm2-135m-instruct");
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join("SmolLM2-135M-Instruct.Q4_1.gguf"), "cut short").unwrap();
    let remove = |name: &str| {
        let mut command = std::process::Command::new(moi_tests::process::binary());
        command.args(["models", "--remove", name]).env("MOI_CACHE", cache.path());
        let out = command.env("HF_HUB_CACHE", cache.path().join("hub")).output().unwrap();
        (out.status.success(), String::from_utf8(out.stderr).unwrap())
    };
    let (removed, said) = remove("smollm2-135m-instruct");
    assert!(removed && said.contains("removed smollm2-135m-instruct"), "{said}");
    assert!(!directory.exists());
    let (removed, said) = remove("smollm2-135m-instruct");
    assert!(!removed && said.contains("is not in the cache"), "{said}");
    let (removed, said) = remove("smollm2-135m");
    assert!(!removed && said.contains("no model `smollm2-135m`") && said.contains("did you mean"), "{said}");
    // A model in the hub's cache also belongs to other tools.
    #[cfg(unix)]
    {
        let entry = moi_hub::find("smollm2-135m-instruct").unwrap();
        let root =
            cache.path().join("hub").join(format!("models--{}", entry.hub.repository.replace('/', "--")));
        let (blob, snapshot) = (root.join("blobs").join(entry.sha256), root.join("snapshots/main"));
        std::fs::create_dir_all(blob.parent().unwrap()).unwrap();
        std::fs::create_dir_all(&snapshot).unwrap();
        std::fs::create_dir_all(root.join("refs")).unwrap();
        std::fs::write(root.join("refs").join(entry.hub.revision), "main").unwrap();
        std::fs::File::create(&blob).unwrap().set_len(entry.size).unwrap();
        std::os::unix::fs::symlink(&blob, snapshot.join(entry.file)).unwrap();
        let (removed, said) = remove("smollm2-135m-instruct");
        assert!(
            !removed && said.contains("lies in the hub's own cache, which other tools use too"),
            "{said}"
        );
        assert!(blob.exists());
    }
}

/// Both spellings of the rotary parameters, alone and together, mean the same model.
#[test]
fn rope_spellings_agree() {
    let (golden, _) = tiny("llama3-rope");
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("config.json");
    std::fs::copy(golden.path.join("model.safetensors"), directory.path().join("model.safetensors")).unwrap();
    let original: Value =
        serde_json::from_slice(&std::fs::read(golden.path.join("config.json")).unwrap()).unwrap();
    let tokens = |change: &dyn Fn(&mut Value)| {
        let mut changed = original.clone();
        change(&mut changed);
        std::fs::write(&config, changed.to_string()).unwrap();
        let prompt = ids(&golden.cases.tokens);
        let path = directory.path().to_str().unwrap();
        numbers(&json(&["generate", "--model", path, "--tokens", &prompt, "--max-tokens", "8"])["tokens"])
    };
    let expected = tokens(&|_| {});
    let both = |c: &mut Value| c["rope_scaling"]["type"] = "llama3".into();
    let old = |c: &mut Value| {
        both(c);
        c["rope_scaling"].as_object_mut().unwrap().remove("rope_type");
    };
    let new = |c: &mut Value| {
        c["rope_parameters"] = c["rope_scaling"].take();
        c["rope_parameters"]["rope_theta"] = c["rope_theta"].take();
    };
    assert_eq!(tokens(&both), expected);
    assert_eq!(tokens(&old), expected);
    assert_eq!(tokens(&new), expected);
    let none = tokens(&|c| c["rope_scaling"] = Value::Null);
    let linear = tokens(&|c| c["rope_scaling"] = serde_json::json!({ "type": "linear", "factor": 8.0 }));
    assert!(none != expected && linear != expected && linear != none, "the scaling makes no difference");
}
