//! Tests of devices and number types through the binary: what exists must work, and what does not must give a
//! one-sentence error.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure must end the test")]

use std::{
    fs::{self, File},
    io::Write,
};

use moi_backends::Kind;
use moi_tests::process::{json, numbers, refused, run, tiny};
use serde_json::{Value, json};

/// The entry of `moi devices` for a kind of device.
fn row(kind: &str) -> Value {
    let listed = json(&["devices"]);
    listed.as_array().unwrap().iter().find(|row| row["kind"] == kind).unwrap().clone()
}

fn is_compiled(kind: &str) -> bool {
    row(kind)["compiled"].as_bool().unwrap()
}

#[test]
fn every_kind_of_device_is_listed() {
    let listed = json(&["devices"]);
    let kinds: Vec<&str> =
        listed.as_array().unwrap().iter().map(|row| row["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, Kind::ALL.map(Kind::name));
    let cpu = &row("cpu")["devices"][0];
    assert_eq!(cpu["dtypes"], json!(["f32", "f16", "bf16"]));
    assert!(cpu["memory_bytes"].as_u64().unwrap() > 1 << 28);
    if is_compiled("ndarray") {
        assert_eq!(row("ndarray")["devices"][0]["dtypes"], json!(["f32"]));
    }
    // Every listed device must work.
    for device in listed.as_array().unwrap().iter().flat_map(|row| row["devices"].as_array().unwrap()) {
        assert_eq!(device["error"], Value::Null, "{device}");
    }
    let table = String::from_utf8(run(&["devices"]).stdout).unwrap();
    assert!(table.lines().count() > Kind::ALL.len() && table.contains("f32 f16 bf16"), "{table}");
}

/// A device that this build or machine lacks must never cause a panic.
#[test]
fn devices_that_are_not_there_are_one_sentence() {
    let (_, path) = tiny("llama");
    for kind in Kind::ALL.into_iter().filter(|kind| kind.is_gpu()) {
        let name = if kind == Kind::Metal { "metal".to_owned() } else { format!("{kind}:77") };
        let there = row(kind.name());
        if kind == Kind::Metal && !there["devices"].as_array().unwrap().is_empty() {
            continue;
        }
        let parts: &[&str] = match there["compiled"].as_bool().unwrap() {
            false => &["this build cannot compute on", kind.feature()],
            true => &["there is no device", kind.name()],
        };
        refused(&["generate", "--model", &path, "--tokens", "1,2", "--device", &name], parts);
        refused(&["doctor", "--device", &name], parts);
        refused(&["warmup", "--model", &path, "--device", &name], parts);
        let directory = tempfile::tempdir().unwrap();
        let output = directory.path().join("logits.safetensors");
        let file = output.to_str().unwrap();
        refused(&["logits", "--model", &path, "--tokens", "1", "--device", &name, "--output", file], parts);
        assert!(!fs::exists(&output).unwrap());
    }
}

#[test]
fn the_doctor_finds_the_cpu_well() {
    let report = json(&["doctor", "--device", "cpu"]);
    let cpu = &report[0];
    assert_eq!((&cpu["device"], &cpu["right"]), (&json!("cpu"), &json!(true)), "{report}");
    let types: Vec<&str> =
        cpu["types"].as_array().unwrap().iter().map(|t| t["dtype"].as_str().unwrap()).collect();
    assert_eq!(types, ["f32", "f16", "bf16"]);
    assert!(cpu["types"][0]["cached"].as_f64().unwrap() < 5e-5);
    // Every device of this machine must have a verdict.
    let out = run(&["doctor"]);
    let text = String::from_utf8(out.stdout).unwrap();
    assert!(out.status.success() && text.contains("cpu: ") && !text.contains("WRONG"), "{text}");
    assert_eq!(text.contains("ndarray: "), is_compiled("ndarray"), "{text}");
    assert_eq!(text.contains("tokens are the CPU's"), text.matches(" works (").count() > 1, "{text}");
}

#[test]
fn number_types() {
    let (_, path) = tiny("llama");
    let generate = ["generate", "--model", &path, "--tokens", "5,6,7", "--device"];
    let with = |args: &[&str], parts: &[&str]| refused(&[&generate[..], args].concat(), parts);
    let device = |name: &str, dtype: &str| {
        let how = [name, "--dtype", dtype, "--temperature", "0", "--max-tokens", "3"];
        json(&[&generate[..], &how].concat())
    };
    let exact = device("cpu", "f32");
    assert_eq!(device("cpu", "auto")["tokens"], exact["tokens"]);
    assert_eq!(device("cpu", "auto")["dtype"], "f32");
    for dtype in ["f16", "bf16"] {
        let rounded = device("cpu", dtype);
        assert_eq!(rounded["dtype"], dtype);
        assert_eq!(numbers(&rounded["tokens"]).len(), 3);
        let off =
            rounded["steps"][0]["entropy"].as_f64().unwrap() - exact["steps"][0]["entropy"].as_f64().unwrap();
        assert!(off != 0.0 && off.abs() < 0.02, "{dtype}: {off}");
    }
    if is_compiled("ndarray") {
        with(
            &["ndarray", "--dtype", "bf16"],
            &["the device `ndarray` cannot compute in bf16; it can in f32"],
        );
    }
    with(&["cpu", "--dtype", "f64"], &["`f64` is none of f32, f16 and bf16, nor auto"]);
    let both = ["--quantize, which computes in f32", "--dtype f16"];
    with(&["cpu", "--dtype", "f16", "--quantize", "q8_0"], &both);
}

/// A sparse file of half a terabyte: it takes no disk space, but the model that it describes would need the memory.
#[test]
fn what_does_not_fit_is_refused_before_it_is_loaded() {
    let directory = tempfile::tempdir().unwrap();
    let (vocab, d, inner) = (1usize << 24, 1usize << 14, 64usize);
    let config = json!({
        "model_type": "llama", "vocab_size": vocab, "hidden_size": d, "intermediate_size": inner,
        "num_hidden_layers": 1, "num_attention_heads": 128, "num_key_value_heads": 1,
        "tie_word_embeddings": true, "max_position_embeddings": 512,
    });
    fs::write(directory.path().join("config.json"), config.to_string()).unwrap();
    let layer = "model.layers.0";
    let tensors = [
        ("model.embed_tokens.weight".to_owned(), vec![vocab, d]),
        ("model.norm.weight".to_owned(), vec![d]),
        (format!("{layer}.input_layernorm.weight"), vec![d]),
        (format!("{layer}.post_attention_layernorm.weight"), vec![d]),
        (format!("{layer}.self_attn.q_proj.weight"), vec![d, d]),
        (format!("{layer}.self_attn.k_proj.weight"), vec![d / 128, d]),
        (format!("{layer}.self_attn.v_proj.weight"), vec![d / 128, d]),
        (format!("{layer}.self_attn.o_proj.weight"), vec![d, d]),
        (format!("{layer}.mlp.gate_proj.weight"), vec![inner, d]),
        (format!("{layer}.mlp.up_proj.weight"), vec![inner, d]),
        (format!("{layer}.mlp.down_proj.weight"), vec![d, inner]),
    ];
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    for (name, shape) in tensors {
        let start = end;
        end += 2 * shape.iter().product::<usize>();
        header.insert(name, json!({ "dtype": "BF16", "shape": shape, "data_offsets": [start, end] }));
    }
    let header = Value::Object(header).to_string();
    let mut file = File::create(directory.path().join("model.safetensors")).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.set_len((8 + header.len() + end) as u64).unwrap();
    let path = directory.path().to_str().unwrap();
    let generate = ["generate", "--model", path, "--tokens", "1,2", "--device", "cpu"];
    // 2^38 values, and those of the layer.
    refused(&generate, &["needs 1101.6", "GB for its weights", "`cpu`", "GB; --dtype f16 or bf16"]);
    refused(&[&generate[..], &["--dtype", "bf16"]].concat(), &["needs 550.8", "a cache of 3 positions"]);
    refused(
        &[&generate[..], &["--quantize", "q4_0"]].concat(),
        &["needs 154.9", "a smaller model or another device"],
    );
}

/// The CPU has no kernels to compile, and the command must say so.
#[test]
fn warming_up_the_cpu() {
    let (_, path) = tiny("llama");
    let out = run(&["warmup", "--model", &path, "--device", "cpu"]);
    let stderr = String::from_utf8(out.stderr).unwrap();
    assert!(out.status.success() && stderr.contains("cpu compiles no kernels"), "{stderr}");
    assert!(stderr.contains("first token"), "{stderr}");
}
