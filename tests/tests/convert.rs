//! Tests of conversions: every target and type gives the same logits; and of conversions that are refused or killed,
//! and of files that are copied along.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure must end the test")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use burn_flex::Flex;
use moi_convert::{BlockFormat, ConvertError, Converted, FloatType, Options, Target, convert};
use moi_pretrained::Pretrained;
use moi_tests::{
    golden::Golden,
    hostile::tokenizer,
    process::{binary, json, refused, run},
};

fn options(to: Target) -> Options {
    Options { to, dtype: None, quantize: None, max_shard_bytes: 5_000_000_000, source_name: "a test".into() }
}

fn verified(source: &Path, output: &Path, options: &Options) -> Result<Converted, ConvertError> {
    convert::<Flex>(source, output, options, Some(&Default::default()), |_| {})
}

fn golden(name: &str) -> PathBuf {
    Golden::read(name).path
}

/// Converts each architecture to each form and type. The conversion itself compares the results and fails on a
/// difference.
#[test]
fn every_architecture_every_form_every_type() {
    let directory = tempfile::tempdir().unwrap();
    let tiny = golden("llama");
    let mut names: Vec<String> = fs::read_dir(tiny.parent().unwrap())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let mut converted = 0;
    for name in &names {
        for (to, dtype) in [
            (Target::Safetensors, None),
            (Target::Safetensors, Some(FloatType::F16)),
            (Target::Burnpack, Some(FloatType::F32)),
            (Target::Burnpack, Some(FloatType::BF16)),
        ] {
            let output = directory.path().join(format!("{name}-{converted}"));
            let made = verified(&golden(name), &output, &Options { dtype, ..options(to) });
            let found = made.unwrap_or_else(|error| panic!("{name} to {to:?} {dtype:?}: {error}"));
            let found = found.verified.unwrap();
            assert!(found.parameters > 10, "{name}");
            // A conversion without rounding must be exact.
            let exact = dtype.is_none() || dtype == Some(FloatType::F32);
            assert!(!exact || found.rounded == 0, "{name} to {to:?}: {} rounded", found.rounded);
            converted += 1;
        }
    }
    assert_eq!(converted, 4 * names.len());
}

/// GGUF for the architectures that have it, and a clear error for options that it cannot hold.
#[test]
fn every_architecture_to_gguf() {
    let directory = tempfile::tempdir().unwrap();
    let cannot = [
        ("mistral-sliding", "the attention window of layer 0 is"),
        ("mixtral-sliding", "window"),
        ("qwen2-sliding", "window"),
        ("smollm3", "smollm3"),
        ("smollm3-sliding", "smollm3"),
        ("nemotron-nas", "linear_mlp"),
        ("qwen3-moe-dense", "mixture of experts"),
        ("gemma2-caps", "the attention scale of layer 0 is"),
        ("gemma3-linear", "rotary positions"),
        ("gpt2-scales", "activation"),
        ("gpt-neox-sequential", "activation"),
        ("llama-dynamic", "rotary positions"),
        ("llama-longrope-beyond", "rotary positions"),
        ("llama-yarn", "rotary positions"),
    ];
    let cannot = cannot.into_iter().chain([
        ("opt", "has no GGUF architecture here"),
        ("gpt-oss", "the limit of the activation of layer 0 is"),
        ("gpt-oss-mxfp4", "the limit of the activation of layer 0 is"),
        ("deepseek-v32", "need its indexer"),
        ("glm-moe-dsa", "need its indexer"),
    ]);
    let cannot: Vec<(&str, &str)> = cannot.collect();
    let mut wrong = Vec::new();
    for entry in fs::read_dir(golden("llama").parent().unwrap()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        let output = directory.path().join(name);
        let made = verified(&path, &output, &options(Target::Gguf));
        match (made, cannot.iter().find(|(refused, _)| *refused == name)) {
            (Ok(made), None) => assert_eq!(made.verified.unwrap().rounded, 0, "{name}"),
            (Err(error), Some((_, why))) => {
                let error = error.to_string();
                if !error.contains(why) || output.exists() {
                    wrong.push(format!("{name}: {error}"));
                }
            }
            (Ok(_), Some(_)) => wrong.push(format!("{name} was written, and should not")),
            (Err(error), None) => wrong.push(format!("{name}: {error}")),
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Quantised blocks: created, read back, and converted into every other form.
#[test]
fn blocks_and_back() {
    let directory = tempfile::tempdir().unwrap();
    for kind in [BlockFormat::Q8_0, BlockFormat::Q4_0, BlockFormat::Q4_1] {
        let blocks = directory.path().join(kind.name());
        let quantize = Some(kind);
        let made =
            verified(&golden("gemma"), &blocks, &Options { quantize, ..options(Target::Gguf) }).unwrap();
        assert!(made.verified.unwrap().rounded > 10);
        for (to, exact) in [(Target::Safetensors, true), (Target::Burnpack, true), (Target::Gguf, true)] {
            let output = directory.path().join(format!("{}-{to:?}", kind.name()));
            let made = verified(&blocks, &output, &options(to)).unwrap();
            assert_eq!(made.verified.unwrap().rounded == 0, exact, "{kind:?} to {to:?}");
            let types = json(&["inspect", output.to_str().unwrap()])["files"]["types"].to_string();
            assert_eq!(types.contains(kind.name()), to == Target::Gguf, "{types}");
        }
    }
}

#[test]
fn pytorch_files_whole_and_sharded() {
    let directory = tempfile::tempdir().unwrap();
    let golden = golden("gpt-neox-sequential");
    for kind in ["whole", "shards"] {
        let source = golden.join("../../pytorch").join(kind);
        let output = directory.path().join(kind);
        let made = verified(&source, &output, &options(Target::Safetensors)).unwrap();
        assert_eq!(made.verified.unwrap().rounded, 0);
        let (found, expected) =
            (Pretrained::open(&output).unwrap().parameters().unwrap(), Pretrained::open(&golden).unwrap());
        for (name, tensor) in expected.parameters().unwrap().tensors() {
            assert_eq!(found.tensors()[name].read(), tensor.read(), "{kind}: {name}");
        }
        let source = source.to_str().unwrap();
        refused(&["generate", "--model", source, "--tokens", "1"], &["PyTorch", "moi convert"]);
    }
    // A file with a part of a model.
    let source = golden.join("../../pytorch/transposed");
    let error = verified(&source, &directory.path().join("t"), &options(Target::Safetensors)).unwrap_err();
    let error = error.to_string();
    assert!(error.contains("pytorch_model.bin does not fit the model"), "{error}");
    let hidden = [".partial", ".safetensors"];
    assert!(error.contains("is missing") && !hidden.iter().any(|name| error.contains(name)), "{error}");
}

#[test]
fn shards_and_what_is_written_about_the_source() {
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("sharded");
    let options = Options { max_shard_bytes: 100_000, ..options(Target::Safetensors) };
    verified(&golden("llama"), &output, &options).unwrap();
    let files: Vec<_> = fs::read_dir(&output)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "safetensors"))
        .collect();
    assert!(files.len() > 3, "{files:?}");
    for file in files {
        let bytes = fs::read(&file).unwrap();
        let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let metadata = metadata.metadata().clone().unwrap();
        assert_eq!(metadata["format"], "pt");
        assert_eq!(metadata["moi.source"], "a test");
        assert!(metadata["moi.conversion"].contains("safetensors"), "{metadata:?}");
    }
    assert!(output.join("model.safetensors.index.json").is_file());
}

/// A link next to the weights is only followed if its target belongs to the model.
#[cfg(unix)]
#[test]
fn links_to_elsewhere_are_not_followed() {
    use std::os::unix::fs::symlink;
    let directory = tempfile::tempdir().unwrap();
    let (repository, secret) = (directory.path().join("models--o--n"), directory.path().join("secret"));
    let (blobs, snapshot) = (repository.join("blobs"), repository.join("snapshots/0123"));
    fs::create_dir_all(&blobs).unwrap();
    fs::create_dir_all(&snapshot).unwrap();
    fs::write(&secret, "not theirs").unwrap();
    fs::write(blobs.join("1"), "the licence").unwrap();
    for file in ["config.json", "model.safetensors"] {
        symlink(golden("llama").join(file), snapshot.join(file)).unwrap();
    }
    symlink("../../blobs/1", snapshot.join("LICENSE")).unwrap();
    symlink("LICENSE", snapshot.join("NOTICE")).unwrap();
    symlink(&secret, snapshot.join("notes.txt")).unwrap();
    let output = directory.path().join("output");
    let made = verified(&snapshot, &output, &options(Target::Safetensors)).unwrap();
    assert_eq!(made.notes, ["notes.txt is a link to another place and was not copied"]);
    assert!(!output.join("notes.txt").exists());
    for file in ["LICENSE", "NOTICE"] {
        assert_eq!(fs::read_to_string(output.join(file)).unwrap(), "the licence");
    }
}

/// A real tokenizer and chat template, from a GGUF file into a directory and back.
#[test]
fn tokenizer_and_template_travel_along() {
    let model = moi_tests::real::model_file("smollm2-135m-instruct");
    let directory = tempfile::tempdir().unwrap();
    let (there, back) = (directory.path().join("there"), directory.path().join("back"));
    let half = Options { dtype: Some(FloatType::F16), ..options(Target::Safetensors) };
    convert::<Flex>(&model, &there, &half, None, |_| {}).unwrap();
    let blocks = Options { quantize: Some(BlockFormat::Q8_0), ..options(Target::Gguf) };
    let made = convert::<Flex>(&there, &back, &blocks, None, |_| {}).unwrap();
    assert!(made.notes.is_empty(), "{:?}", made.notes);
    let original = Pretrained::open(&model).unwrap();
    let template =
        |model: &Pretrained| model.chat_template.as_ref().unwrap().as_ref().unwrap().source().to_owned();
    for path in [&there, &back] {
        let found = Pretrained::open(path).unwrap();
        assert_eq!(found.eos, original.eos, "{}", path.display());
        assert_eq!(template(&found), template(&original));
        let tokenizer = |model: Pretrained| model.tokenizer.into_inner().unwrap().unwrap();
        let found = tokenizer(found);
        let expected = tokenizer(Pretrained::open(&model).unwrap());
        for case in &moi_tests::real::RealGolden::read("smollm2-135m-instruct").tokenizer {
            assert_eq!(found.encode(&case.text, true).unwrap(), expected.encode(&case.text, true).unwrap());
        }
    }
    let config = fs::read_to_string(there.join("config.json")).unwrap();
    assert!(config.contains("LlamaForCausalLM") && config.contains("\"float16\""), "{config}");
}

/// A GGUF file must list exactly one token per row of the embedding.
#[test]
fn vocabularies_get_a_token_for_each_row() {
    let directory = tempfile::tempdir().unwrap();
    let source = directory.path().join("source");
    fs::create_dir(&source).unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(golden("llama").join(file), source.join(file)).unwrap();
    }
    let listed = tokenizer::documents().into_iter().take(2);
    // Byte-level tokenizers, and SentencePiece tokenizers, which have scores.
    for (at, document) in listed.enumerate() {
        for tokens in [105, 258] {
            let mut document = document.clone();
            if at == 0 {
                document["model"]["byte_fallback"] = false.into();
                document["pre_tokenizer"] = serde_json::json!({ "type": "ByteLevel", "add_prefix_space": false,
                    "trim_offsets": true, "use_regex": true });
            }
            let added = document["added_tokens"].as_array_mut().unwrap();
            added.extend((105..tokens).map(|id| {
                serde_json::json!({ "id": id, "content": format!("<extra{id}>"), "single_word": false,
                    "lstrip": false, "rstrip": false, "normalized": false, "special": true })
            }));
            fs::write(source.join("tokenizer.json"), document.to_string()).unwrap();
            let output = directory.path().join(format!("{at}-{tokens}"));
            let made = verified(&source, &output, &options(Target::Gguf)).unwrap();
            let left_out = made.notes.iter().any(|note| note.contains("2 tokens from 256 on have no row"));
            assert_eq!(left_out, tokens > 256, "{:?}", made.notes);
            let tokenizer = Pretrained::open(&output).unwrap().tokenizer.into_inner().unwrap().unwrap();
            assert_eq!(tokenizer.vocab_size(), 256);
            let ids = tokenizer.encode("the", false).unwrap();
            assert_eq!(ids.last(), Some(&tokenizer.id("the").unwrap()));
        }
    }
}

/// Weights that are NaN or infinite are converted and reported; their logits cannot be compared.
#[test]
fn nan_weights_are_named() {
    let model = moi_tests::broken_weights::with_values(&Golden::read("llama"), "model.norm.weight", |at| {
        [f32::NAN, f32::INFINITY].get(at).copied()
    });
    let directory = tempfile::tempdir().unwrap();
    for to in [Target::Safetensors, Target::Burnpack, Target::Gguf] {
        let made = verified(model.path(), &directory.path().join(format!("{to:?}")), &options(to)).unwrap();
        let named = "tensor `model.norm.weight` has 1 NaN and 1 infinite values, here as in the source";
        assert!(made.notes.iter().any(|note| note.contains(named)), "{:?}", made.notes);
        assert!(made.verified.unwrap().logit_error.is_none());
    }
}

/// PyTorch files that are something else, or that are larger than any model needs.
#[cfg(unix)]
#[test]
fn what_is_no_pytorch_file_is_refused() {
    use std::os::unix::fs::symlink;
    let directory = tempfile::tempdir().unwrap();
    let (source, new) = (directory.path().join("source"), directory.path().join("new"));
    fs::create_dir(&source).unwrap();
    let config = source.join("config.json");
    fs::copy(golden("llama").join("config.json"), &config).unwrap();
    let refuse = |parts: &[&str]| {
        refused(&["convert", source.to_str().unwrap(), "--output", new.to_str().unwrap()], parts);
        assert!(!new.exists());
    };
    let (whole, index) = (source.join("pytorch_model.bin"), source.join("pytorch_model.bin.index.json"));
    symlink("nowhere", &whole).unwrap();
    refuse(&["pytorch_model.bin", "it is a link to nowhere"]);
    fs::remove_file(&whole).unwrap();
    assert!(Command::new("mkfifo").arg(&whole).status().unwrap().success());
    refuse(&["pytorch_model.bin", "it is a device or a pipe"]);
    fs::rename(&whole, source.join("pipe.bin")).unwrap();
    fs::write(&index, r#"{"weight_map": {"a": "pipe.bin"}}"#).unwrap();
    refuse(&["index.json", "shard `pipe.bin` is no file"]);
    fs::write(&index, r#"{"weight_map": {"a": "../source/pipe.bin"}}"#).unwrap();
    refuse(&["index.json", "shard `../source/pipe.bin` is no file"]);
    fs::write(&index, r#"{"weight_map": "#).unwrap();
    refuse(&["index.json", "it is cut off", "fetch it again"]);
    // A sparse file takes no disk space.
    fs::File::create(&index).unwrap().set_len(100 << 20).unwrap();
    refuse(&["index.json", "it has 104857600 bytes, expected 67108864 at most"]);
    fs::File::create(&config).unwrap().set_len(20 << 20).unwrap();
    refuse(&["config.json", "it has 20971520 bytes, expected 16777216 at most"]);
}

#[test]
fn what_cannot_be_done_is_said() {
    let directory = tempfile::tempdir().unwrap();
    let path = golden("llama");
    let path = path.to_str().unwrap();
    let there = directory.path().join("there");
    fs::create_dir(&there).unwrap();
    let new = directory.path().join("new");
    let new = new.to_str().unwrap();
    refused(&["convert", path, "--output", there.to_str().unwrap()], &["there exists", "another directory"]);
    refused(&["convert", path, "--output", new, "--quantize", "q8_0"], &["GGUF", "--to gguf"]);
    refused(
        &["convert", path, "--output", new, "--to", "gguf", "--quantize", "q8_0", "--dtype", "f16"],
        &["--quantize", "--dtype"],
    );
    refused(&["convert", "no-such-model", "--output", new], &["no-such-model"]);
    refused(&["convert", path, "--output", new, "--to", "onnx"], &["onnx", "burnpack"]);
    // A value that float16 cannot represent.
    let broken = directory.path().join("large");
    fs::create_dir(&broken).unwrap();
    fs::copy(Path::new(path).join("config.json"), broken.join("config.json")).unwrap();
    let mut weights = fs::read(Path::new(path).join("model.safetensors")).unwrap();
    let end = weights.len();
    // A place inside a matrix: the last tensor is a norm.
    weights[end - 4096..end - 4092].copy_from_slice(&1e6f32.to_le_bytes());
    fs::write(broken.join("model.safetensors"), weights).unwrap();
    let broken = broken.to_str().unwrap();
    refused(&["convert", broken, "--output", new, "--dtype", "f16"], &["1000000", "float16", "bf16"]);
    refused(
        &["convert", broken, "--output", new, "--to", "gguf", "--quantize", "q4_0"],
        &["1000000", "Q4_0", "bf16"],
    );
    assert!(!Path::new(new).exists());
    let left: Vec<_> =
        fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");
}

/// A conversion that is killed at any moment leaves either nothing or a complete directory under the output's name,
/// and the next conversion works.
#[test]
fn killed_conversions_leave_nothing_half_done() {
    let directory = tempfile::tempdir().unwrap();
    let model = moi_tests::real::model_file("smollm2-135m-instruct");
    let model = model.to_str().unwrap();
    let mut finished = 0;
    for attempt in 0..12u64 {
        for to in ["safetensors", "burnpack", "gguf"] {
            let output = directory.path().join(to);
            let args = ["convert", model, "--to", to, "--dtype", "f32", "--output", output.to_str().unwrap()];
            let mut child = Command::new(binary()).args(args).stderr(Stdio::null()).spawn().unwrap();
            std::thread::sleep(Duration::from_millis(20 + attempt * attempt * 13));
            child.kill().unwrap();
            child.wait().unwrap();
            if output.exists() {
                let made = Pretrained::open(&output).unwrap();
                made.parameters().unwrap();
                finished += 1;
                fs::remove_dir_all(&output).unwrap();
            }
        }
    }
    println!("{finished} of 36 had finished");
    let output = directory.path().join("safetensors");
    let out = run(&["convert", model, "--dtype", "bf16", "--output", output.to_str().unwrap(), "--verify"]);
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success() && said.contains("verified"), "{said}");
    let left: Vec<_> = fs::read_dir(directory.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains("safetensors"))
        .collect();
    assert_eq!(left, ["safetensors"]);
}
