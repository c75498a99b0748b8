//! Directories and files that are not a model that can run: the error must say what is there and what to do. Also
//! models in several parts, which can run.

use std::{fs, path::Path};

use moi_tests::{
    golden_directory,
    hostile::gguf::File,
    process::{json, refused, run, tiny},
};
use serde_json::{Value, json as value};

/// The content of a file in a directory.
enum Content {
    /// The config of a tiny model.
    Config,
    /// The weights of a tiny model.
    Weights,
    /// A GGUF model.
    Gguf,
    /// JSON that is read.
    Json(Value),
    /// Any content, because only the file name matters.
    Any,
}

use Content::{Any, Config, Gguf, Json, Weights};

fn fill(directory: &Path, files: Vec<(&str, Content)>) {
    let (golden, _) = tiny("llama");
    for (name, content) in files {
        let path = directory.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        match content {
            Config => drop(fs::copy(golden.path.join("config.json"), path).unwrap()),
            Weights => drop(fs::copy(golden.path.join("model.safetensors"), path).unwrap()),
            Gguf => drop(fs::copy(golden_directory().join("gguf/llama.gguf"), path).unwrap()),
            Json(fields) => fs::write(path, fields.to_string()).unwrap(),
            Any => fs::write(path, "x").unwrap(),
        }
    }
}

/// The files of a directory, and the parts of the expected error.
struct Case {
    files: Vec<(&'static str, Content)>,
    parts: &'static [&'static str],
}

fn case(files: Vec<(&'static str, Content)>, parts: &'static [&'static str]) -> Case {
    Case { files, parts }
}

fn cases() -> Vec<Case> {
    let lora = value!({ "peft_type": "LORA", "base_model_name_or_path": "maker/base" });
    let ia3 = value!({ "peft_type": "IA3", "base_model_name_or_path": null });
    vec![
        case(vec![("README.md", Any)], &["neither config.json nor a .gguf file"]),
        case(
            vec![("adapter_config.json", Json(lora.clone())), ("adapter_model.safetensors", Any)],
            &[
                "it holds a LoRA adapter of maker/base",
                "from_pretrained(\"maker/base\")",
                "merge_and_unload()",
            ],
        ),
        case(
            vec![("config.json", Config), ("adapter_config.json", Json(lora)), ("adapter_model.bin", Any)],
            &["it holds a LoRA adapter of maker/base, no whole model"],
        ),
        case(vec![("adapter_config.json", Json(ia3))], &["it holds an adapter (IA3), no whole model"]),
        case(
            vec![("adapter_config.json", Json(value!({ "model": "b" }))), ("adapters.safetensors", Any)],
            &["a LoRA adapter of b, made by MLX", "mlx_lm.fuse --model b"],
        ),
        case(
            vec![("a.gguf", Gguf), ("b.gguf", Gguf), ("mmproj-b.gguf", Any)],
            &["several .gguf files; name one of them (a.gguf, b.gguf)"],
        ),
        case(
            vec![("a.gguf", Gguf), ("b-00001-of-00002.gguf", Any), ("b-00002-of-00002.gguf", Any)],
            &["name one of them (a.gguf, b-00001-of-00002.gguf)"],
        ),
        case(vec![("model.safetensors", Weights)], &["it holds model.safetensors, but no config.json"]),
        case(
            vec![("model-00001-of-00001.safetensors", Weights)],
            &["it holds model-00001-of-00001.safetensors, but no config.json"],
        ),
        case(
            vec![("config.json", Config), ("model-00001-of-00002.safetensors", Weights)],
            &["of 2 shards these are missing: model-00002-of-00002.safetensors; fetch them"],
        ),
        case(
            vec![("config.json", Config), ("weights.safetensors", Weights)],
            &["it holds weights.safetensors, but no model.safetensors; give the file that name"],
        ),
        case(
            vec![("params.json", Any), ("consolidated.00.pth", Any), ("consolidated.01.pth", Any)],
            &["consolidated.00.pth, consolidated.01.pth in the layout of the model's makers"],
        ),
        case(
            vec![("config.json", Config), ("pytorch_model.bin", Any)],
            &["PyTorch files; convert them first"],
        ),
        case(
            vec![("config.json", Config), ("pytorch_model-00001-of-00002.bin", Any)],
            &["pytorch_model-00001-of-00002.bin, but no pytorch_model.bin.index.json"],
        ),
        case(
            vec![("ggml-model.bin", Any)],
            &["weights for PyTorch or GGML (ggml-model.bin), which do not run"],
        ),
        case(vec![("model.onnx", Any), ("config.json", Config)], &["weights for ONNX (model.onnx)"]),
        case(
            vec![("config.json", Config), ("onnx/model.onnx", Any), ("onnx/config.json", Config)],
            &["weights for ONNX (onnx/model.onnx)"],
        ),
        case(vec![("openvino_model.bin", Any)], &["weights for OpenVINO (openvino_model.bin)"]),
        case(vec![("params_shard_0.bin", Any)], &["weights for MLC (params_shard_0.bin)"]),
        case(vec![("config.json", Config), ("model.bin", Any)], &["weights for CTranslate2 (model.bin)"]),
        case(
            vec![("config.json", Config), ("weights.npz", Any)],
            &["weights for NumPy or MLX (weights.npz)"],
        ),
        case(
            vec![("config.json", Config), ("model.safetensors.part", Any)],
            &["it holds model.safetensors.part, which a download that has not ended leaves"],
        ),
        case(
            vec![
                ("refs/main", Any),
                ("snapshots/x/config.json", Config),
                ("snapshots/a/config.json", Config),
            ],
            &["it is a repository in the hub's cache; give the files of a commit in it: ", "snapshots/x"],
        ),
        case(
            vec![("a.GGUF", Gguf), ("b.gguf", Gguf)],
            &["several .gguf files; name one of them (a.GGUF, b.gguf)"],
        ),
        case(vec![("model_index.json", Any)], &["it is a diffusion pipeline"]),
        case(
            vec![("tokenizer.json", Any), ("tokenizer_config.json", Any)],
            &[
                "neither config.json nor a .gguf file, but files of a tokenizer (tokenizer.json, tokenizer_config.json)",
            ],
        ),
        case(
            vec![("config.json", Config), ("tokenizer.json", Any)],
            &["it holds config.json, but no weights (model.safetensors, or its shards"],
        ),
        case(vec![("inner/config.json", Config)], &["nor a .gguf file; inner in it holds a model"]),
        case(vec![("x-00002-of-00003.gguf", Any)], &["x-00002-of-00003.gguf"]),
    ]
}

#[test]
fn what_is_there_is_named() {
    for Case { files, parts } in cases() {
        let directory = tempfile::tempdir().unwrap();
        fill(directory.path(), files);
        let path = directory.path().to_str().unwrap();
        refused(&["generate", "--model", path, "--tokens", "1"], parts);
        refused(&["inspect", path], parts);
    }
}

/// Files whose content does not match their names.
#[test]
fn pages_and_old_formats_are_named() {
    let directory = tempfile::tempdir().unwrap();
    fill(directory.path(), vec![("config.json", Config)]);
    fs::write(directory.path().join("model.safetensors"), "<!DOCTYPE html>\n<html></html>").unwrap();
    let path = directory.path().to_str().unwrap();
    refused(&["generate", "--model", path, "--tokens", "1"], &["model.safetensors", "it is an HTML page"]);
    let old = directory.path().join("ggml-model.bin");
    fs::write(&old, b"tjgg\x03\0\0\0 and more").unwrap();
    let path = old.to_str().unwrap();
    refused(&["generate", "--model", path, "--tokens", "1"], &["ggml-model.bin", "the old format GGJT"]);
}

/// GGUF files can also hold other things than language models.
#[test]
fn gguf_files_that_are_no_model_are_named() {
    let whole = fs::read(golden_directory().join("gguf/llama.gguf")).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("m.gguf");
    for (key, text, part) in [
        ("general.type", "adapter", "it holds an adapter, no whole model"),
        ("general.type", "mmproj", "it holds the projector of a model for images"),
        ("general.architecture", "clip", "it holds the projector of a model for images"),
        ("general.type", "imatrix", "it holds an importance matrix"),
    ] {
        fs::write(&path, File::parse(&whole).with_text(key, text).to_bytes()).unwrap();
        refused(&["generate", "--model", path.to_str().unwrap(), "--tokens", "1"], &["m.gguf", part]);
    }
}

/// The error must name the quantisation method before it complains about a tensor.
#[test]
fn quantised_weights_are_named_by_their_method() {
    let (golden, _) = tiny("llama");
    let text = fs::read(golden.path.join("config.json")).unwrap();
    let good: Value = serde_json::from_slice(&text).unwrap();
    for (name, fields, part) in [
        ("quantization_config", value!({ "quant_method": "gptq", "bits": 3 }), "quantised by gptq to 3 bits"),
        ("quantization_config", value!({ "quant_method": "aqlm", "bits": 2 }), "quantised by aqlm to 2 bits"),
        (
            "quantization_config",
            value!({ "quant_method": "bitsandbytes", "load_in_8bit": true }),
            "quantised by bitsandbytes to 8 bits",
        ),
        (
            "quantization_config",
            value!({ "quant_method": "torchao" }),
            "quantised by torchao (`quantization_config`)",
        ),
        (
            "quantization",
            value!({ "group_size": 32, "bits": 4, "mode": "mxfp4" }),
            "quantised by MLX to 4 bits (`quantization`)",
        ),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let mut config = good.clone();
        config[name] = fields;
        fill(directory.path(), vec![("config.json", Json(config)), ("model.safetensors", Any)]);
        let path = directory.path().to_str().unwrap();
        let instead = "use the model in float32, float16 or bfloat16, or a GGUF file of it";
        refused(&["generate", "--model", path, "--tokens", "1"], &["config.json", part, instead]);
        refused(&["inspect", directory.path().join("config.json").to_str().unwrap()], &["config.json", part]);
    }
}

fn tokens(model: &str) -> Value {
    let args = ["generate", "--model", model, "--tokens", "1,2", "--max-tokens", "4", "--temperature", "0"];
    json(&args)["tokens"].clone()
}

/// A split model must equal the same model in one file, whether it is named by one of its parts or by its directory.
#[test]
fn models_in_parts_run() {
    let whole = golden_directory().join("gguf/llama.gguf");
    let file = File::parse(&fs::read(&whole).unwrap());
    let directory = tempfile::tempdir().unwrap();
    let path = |number: usize| directory.path().join(format!("m-{number:05}-of-00003.gguf"));
    for (index, part) in file.split(3).iter().enumerate() {
        fs::write(path(index + 1), part).unwrap();
    }
    let expected = tokens(whole.to_str().unwrap());
    for model in [path(1), path(3), directory.path().to_owned()] {
        assert_eq!(tokens(model.to_str().unwrap()), expected, "{}", model.display());
    }
    // The config of the original model may stay in the directory.
    fill(directory.path(), vec![("config.json", Config)]);
    assert_eq!(tokens(directory.path().to_str().unwrap()), expected);
    fs::remove_file(directory.path().join("config.json")).unwrap();

    let (second, output) = (path(2), directory.path().join("converted"));
    let (second, output) = (second.to_str().unwrap(), output.to_str().unwrap());
    assert!(run(&["convert", second, "--output", output, "--verify"]).status.success());
    assert_eq!(tokens(output), expected);
    assert_eq!(json(&["inspect", second])["parameters"], json(&["inspect", output])["parameters"]);

    fs::remove_file(path(3)).unwrap();
    for model in [path(1).to_str().unwrap(), directory.path().to_str().unwrap()] {
        let parts = ["m-00003-of-00003.gguf", "this part of the model is missing; all 3 parts are needed"];
        refused(&["generate", "--model", model, "--tokens", "1"], &parts);
    }
}

/// Text in the metadata that is not UTF-8 must not prevent loading; a note counts such tokens and merges.
#[test]
fn texts_that_are_not_utf8_are_noted() {
    let whole = golden_directory().join("gguf/llama.gguf");
    let texts: Vec<String> = (0..256).map(|id| format!("t{id}")).collect();
    let file = File::parse(&fs::read(&whole).unwrap())
        .with_text("tokenizer.ggml.model", "gpt2")
        .with_text("tokenizer.ggml.pre", "gpt-2")
        .with_texts("tokenizer.ggml.tokens", &texts)
        .with_texts("tokenizer.ggml.merges", &["t 0".to_owned(), "t 1".to_owned()])
        .with_bytes_at("tokenizer.ggml.tokens", 7, b"t\xff\xfe")
        .with_bytes_at("tokenizer.ggml.merges", 0, b"t \xff")
        .with_bytes_at("tokenizer.ggml.merges", 1, b"\xfe t");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("m.gguf");
    fs::write(&path, file.to_bytes()).unwrap();
    let found = json(&["inspect", path.to_str().unwrap()]);
    let notes = found["files"]["notes"].to_string();
    for part in ["1 of its tokens are not UTF-8", "2 of its merges are not UTF-8 and are left out"] {
        assert!(notes.contains(part), "{notes:?} does not say {part:?}");
    }
    let tokenizer = found["files"]["tokenizer"].as_str().unwrap();
    assert!(tokenizer.contains("256 tokens"), "{tokenizer}");
}
