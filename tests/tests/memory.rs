//! Memory and time of loading: tensors go to the device as they are read, and pages of the file are given back.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure must end the test")]

use std::path::Path;

use moi_pretrained::Pretrained;
use moi_tests::{
    process::{json, run},
    real::model_file,
};

/// What a process that loads a model in float32 and runs a step had at most; the model's bytes beside it.
fn peak(path: &Path) -> Option<(u64, u64)> {
    let parameters = Pretrained::open(path).unwrap().architecture.config.num_params() as u64;
    let path = path.to_str().unwrap();
    let args = [
        "generate",
        "--model",
        path,
        "--device",
        "cpu",
        "--dtype",
        "f32",
        "--raw",
        "--max-tokens",
        "1",
        "Hi",
    ];
    let report = json(&args);
    // Other systems do not say.
    let peak = report["timing"]["peak_memory_bytes"].as_u64()?;
    println!(
        "{path}: {:.3} GB at most, weights {:.3} GB, loaded in {} s",
        peak as f64 / 1e9,
        4e-9 * parameters as f64,
        report["timing"]["load_s"]
    );
    Some((peak, 4 * parameters))
}

/// At most the model, a fifth of it, and 100 MB.
fn is_lean(path: &Path) {
    if let Some((peak, weights)) = peak(path) {
        assert!(peak > weights, "{peak} for weights of {weights}");
        let most = weights + weights / 5 + 100_000_000;
        assert!(peak <= most, "{}: {peak} bytes at most, expected {most}", path.display());
    }
}

#[test]
fn loading_takes_little_more_than_the_model() {
    let gguf = model_file("smollm2-135m-instruct");
    is_lean(&gguf);
    let directory = tempfile::tempdir().unwrap();
    for (dtype, shard) in [("f32", "100"), ("bf16", "5000")] {
        let to = directory.path().join(dtype);
        let out = run(&[
            "convert",
            gguf.to_str().unwrap(),
            "--output",
            to.to_str().unwrap(),
            "--dtype",
            dtype,
            "--max-shard-size",
            shard,
        ]);
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let files = std::fs::read_dir(&to).unwrap().flatten();
        let shards = files.filter(|file| file.path().extension().is_some_and(|e| e == "safetensors")).count();
        assert_eq!(shards > 1, dtype == "f32", "{shards} shards");
        is_lean(&to);
    }
}
