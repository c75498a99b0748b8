//! Tests of the memory and time of loading: tensors go to the device as they are read, and pages of the file are
//! released.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure must end the test")]

use std::{
    fs::File,
    io::{Seek, SeekFrom},
    path::Path,
};

use burn_flex::Flex;
use moi_checkpoint::{
    BlockFormat, Storage,
    gguf::{NewTensor, Value, write_gguf},
};
use moi_pretrained::{Pretrained, WeightForm};
use moi_tests::{
    process::{json, run},
    real::model_file,
};

/// The peak memory of a process that loads a model in float32 and runs a step, and the size of the model in bytes.
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
    // Other systems do not report the peak.
    let peak = report["timing"]["peak_memory_bytes"].as_u64()?;
    println!(
        "{path}: {:.3} GB at most, weights {:.3} GB, loaded in {} s",
        peak as f64 / 1e9,
        4e-9 * parameters as f64,
        report["timing"]["load_s"]
    );
    Some((peak, 4 * parameters))
}

/// Checks that the peak is at most the model's size, a fifth of it, and 100 MB.
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

/// Writes a Llama model with this number of layers in Q4_0, without a vocabulary. The weights are a hole in a sparse
/// file.
fn write_sparse_llama(path: &Path, layers: u64) {
    const WIDTH: usize = 8192;
    const INNER: usize = 28_672;
    const ROWS: usize = 32_000;
    let number = |key: &str, value: u64| (format!("llama.{key}"), Value::Unsigned(value));
    let metadata = [
        ("general.architecture".to_owned(), Value::String("llama".to_owned())),
        number("block_count", layers),
        number("context_length", 4096),
        number("embedding_length", WIDTH as u64),
        number("feed_forward_length", INNER as u64),
        number("attention.head_count", 64),
        number("attention.head_count_kv", 8),
        number("vocab_size", ROWS as u64),
        ("llama.attention.layer_norm_rms_epsilon".to_owned(), Value::Float(1e-5)),
    ];
    let tensor = |name: &str, shape: &[usize], storage| NewTensor {
        name: name.to_owned(),
        shape: shape.to_vec(),
        storage,
    };
    let matrix = |name: &str, shape: [usize; 2]| tensor(name, &shape, Storage::Block(BlockFormat::Q4_0));
    let norm = |name: &str| tensor(name, &[WIDTH], Storage::F32);
    let layer = |index: u64| {
        let name = |part: &str| format!("blk.{index}.{part}.weight");
        [
            norm(&name("attn_norm")),
            matrix(&name("attn_q"), [WIDTH, WIDTH]),
            matrix(&name("attn_k"), [WIDTH / 8, WIDTH]),
            matrix(&name("attn_v"), [WIDTH / 8, WIDTH]),
            matrix(&name("attn_output"), [WIDTH, WIDTH]),
            norm(&name("ffn_norm")),
            matrix(&name("ffn_gate"), [INNER, WIDTH]),
            matrix(&name("ffn_up"), [INNER, WIDTH]),
            matrix(&name("ffn_down"), [WIDTH, INNER]),
        ]
    };
    let ends = [
        matrix("token_embd.weight", [ROWS, WIDTH]),
        norm("output_norm.weight"),
        matrix("output.weight", [ROWS, WIDTH]),
    ];
    let tensors: Vec<NewTensor> = ends.into_iter().chain((0..layers).flat_map(layer)).collect();
    let mut file = File::create(path).unwrap();
    let skip = |index: usize, file: &mut File| {
        file.seek(SeekFrom::Current(tensors[index].num_bytes() as i64)).map(|_| ())
    };
    write_gguf(&mut file, &metadata, &tensors, skip).unwrap();
    let end = file.stream_position().unwrap();
    file.set_len(end).unwrap();
}

/// The resident memory of this process in bytes, including pages of mapped files.
#[cfg(target_os = "linux")]
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    // 4,096 bytes is the smallest page size. With larger pages the result is too small, but equally so for all
    // measurements.
    4096 * statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap()
}

#[cfg(target_os = "linux")]
#[test]
fn a_file_of_20_gb_is_mapped_and_its_weights_are_read_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("large.gguf");
    write_sparse_llama(&path, 42);
    let bytes = path.metadata().unwrap().len();
    assert!(bytes > 20_000_000_000, "{bytes}");
    // The description, the memory needs and the completeness of a model must be known without reading its weights.
    let before = resident();
    let opened = Pretrained::open(&path).unwrap();
    assert_eq!(opened.parameters().unwrap().num_bytes() as u64 / 1_000_000_000, bytes / 1_000_000_000);
    let footprint = opened.footprint::<Flex>(&Default::default(), WeightForm::Stored, 4096).unwrap();
    assert!(footprint.weights as u64 > 20_000_000_000 && footprint.cache > 0);
    let grown = resident().saturating_sub(before);
    assert!(grown < 50_000_000, "opening took {grown} bytes");
    // Loading reads each tensor once and releases its pages. The whole model would not fit on every machine.
    let path = directory.path().join("smaller.gguf");
    write_sparse_llama(&path, 1);
    let opened = Pretrained::open(&path).unwrap();
    let (mut read, mut total) = (0, 0);
    let before = resident();
    let decoder = opened.load::<Flex>(&Default::default(), WeightForm::Stored, |progress| {
        assert!(progress.bytes > read);
        (read, total) = (progress.bytes, progress.total_bytes);
    });
    assert_eq!(read, total);
    let grown = resident().saturating_sub(before);
    drop(decoder.unwrap());
    println!("{total} bytes loaded in {grown} bytes of memory");
    assert!(grown < total as u64 * 11 / 10 + 50_000_000, "{grown} bytes for {total}");
}
