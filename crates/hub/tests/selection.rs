//! Tests which files of a repository are downloaded, and which repositories are refused before their weights are
//! downloaded.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure must end the test")]

mod hub;

use std::fs;

use hub::{COMMIT, Manners, fetcher, nobody, repository, serve};

/// The files that are downloaded from a repository with these names (each file contains its name), and the path that
/// is opened; or the error.
fn fetched(names: &[&str], name: &str) -> Result<(Vec<String>, String), String> {
    let files: Vec<(&str, &[u8])> = names.iter().map(|&name| (name, name.as_bytes())).collect();
    fetched_of(&files, name)
}

fn fetched_of(files: &[(&str, &[u8])], name: &str) -> Result<(Vec<String>, String), String> {
    let directory = tempfile::tempdir().unwrap();
    let server = serve(repository(files), Manners::default());
    let fetcher = fetcher(directory.path(), &server.endpoint);
    let fetched = fetcher.fetch_repository(name, None, |_| {});
    let contents = |line: &String| {
        let path = line.strip_prefix("GET ")?.trim_end();
        Some(path.split_once(&format!("resolve/{COMMIT}/"))?.1.to_owned())
    };
    let asked: Vec<String> = server.asked.lock().unwrap().iter().filter_map(contents).collect();
    let root = directory.path().join("hub/models--owner--tiny/snapshots").join(COMMIT);
    match fetched {
        Ok(path) => {
            let opened = path.strip_prefix(&root).unwrap().to_string_lossy().into_owned();
            // Downloaded files are found again without a hub.
            let offline = fetcher.with_endpoint(&nobody());
            assert_eq!(offline.fetch_repository(name, None, |_| {}).unwrap(), path);
            Ok((asked, opened))
        }
        Err(error) => {
            assert!(asked.iter().all(|file| file.ends_with("config.json")), "{asked:?} came before {error}");
            Err(error.to_string())
        }
    }
}

const QUANTS: &[&str] = &[
    "README.md",
    "m-BF16.gguf",
    "m-F16.gguf",
    "m-IQ4_XS.gguf",
    "m-Q4_K_M.gguf",
    "m-Q4_K_S.gguf",
    "Q8_0/m-Q8_0-00001-of-00002.gguf",
    "Q8_0/m-Q8_0-00002-of-00002.gguf",
    "mmproj-m-F16.gguf",
];

#[test]
fn quantisations_choose_a_file() {
    for (name, files, opened) in [
        ("owner/tiny:Q4_K_M", &["m-Q4_K_M.gguf"][..], "m-Q4_K_M.gguf"),
        ("owner/tiny:q4_k_s", &["m-Q4_K_S.gguf"], "m-Q4_K_S.gguf"),
        ("owner/tiny:F16", &["m-F16.gguf"], "m-F16.gguf"),
        ("owner/tiny/m-BF16.gguf", &["m-BF16.gguf"], "m-BF16.gguf"),
        ("owner/tiny:m-BF16.gguf", &["m-BF16.gguf"], "m-BF16.gguf"),
        ("owner/tiny:Q8_0", &QUANTS[6..8], QUANTS[6]),
        ("owner/tiny/Q8_0", &QUANTS[6..8], QUANTS[6]),
        ("owner/tiny/Q8_0/m-Q8_0-00002-of-00002.gguf", &QUANTS[6..8], QUANTS[6]),
    ] {
        let (asked, path) = fetched(QUANTS, name).unwrap();
        assert_eq!(asked, files, "{name}");
        assert_eq!(path, opened, "{name}");
    }
    // An image projector is no model.
    let (asked, _) = fetched(&["a.gguf", "mmproj-a.gguf"], "owner/tiny").unwrap();
    assert_eq!(asked, ["a.gguf"]);
}

#[test]
fn what_to_write_is_said_where_several_fit_or_none() {
    let all = "write one of: owner/tiny:BF16, owner/tiny:F16, owner/tiny:IQ4_XS, owner/tiny:Q4_K_M, owner/tiny:Q4_K_S, \
               owner/tiny:Q8_0";
    for name in
        ["owner/tiny", "owner/tiny:latest", "owner/tiny:Q4_K", "owner/tiny:Q5_K_M", "owner/tiny/x.gguf"]
    {
        let error = fetched(QUANTS, name).unwrap_err();
        assert!(error.contains(all), "{name}: {error}");
    }
    let error = fetched(&["a/m-Q8_0.gguf", "b/m-Q8_0.gguf"], "owner/tiny:Q8_0").unwrap_err();
    assert!(error.contains("several .gguf files fit `Q8_0`"), "{error}");
    assert!(error.contains("owner/tiny/a/m-Q8_0.gguf, owner/tiny/b/m-Q8_0.gguf"), "{error}");
    let error = fetched(&["config.json", "model.safetensors"], "owner/tiny:Q8_0").unwrap_err();
    assert!(error.contains("no .gguf file") && error.contains("write owner/tiny alone"), "{error}");
}

/// A message lists a bounded number of files, however many the repository has.
#[test]
fn many_files_are_named_in_part() {
    let names: Vec<String> = (0..20_000).map(|i| format!("m{i:05}-Q{i}_0.gguf")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let error = fetched(&names, "owner/tiny").unwrap_err();
    assert!(error.contains("write one of: owner/tiny:Q0_0, owner/tiny:Q1_0, "), "{error}");
    assert!(error.ends_with(", owner/tiny:Q19_0 and 19980 more"), "{error}");
    let error = fetched(&names[..21], "owner/tiny").unwrap_err();
    assert!(error.ends_with("owner/tiny:Q19_0 and 1 more"), "{error}");
    let error = fetched(&names[..20], "owner/tiny").unwrap_err();
    assert!(error.ends_with("owner/tiny:Q18_0, owner/tiny:Q19_0"), "{error}");
}

#[test]
fn split_models_are_whole_or_refused() {
    let parts = ["m-00001-of-00003.gguf", "m-00002-of-00003.gguf", "m-00003-of-00003.gguf"];
    for name in ["owner/tiny", "owner/tiny/m-00003-of-00003.gguf"] {
        let (asked, opened) = fetched(&parts, name).unwrap();
        assert_eq!(asked, parts, "{name}");
        assert_eq!(opened, parts[0], "{name}");
    }
    for name in ["owner/tiny", "owner/tiny/m-00001-of-00003.gguf"] {
        let error = fetched(&parts[..2], name).unwrap_err();
        assert!(error.contains("first of 3 parts, 1 of which are not there"), "{name}: {error}");
    }
}

/// As for a directory, shards are read without an index if all are there.
#[test]
fn shards_without_an_index_are_fetched() {
    let whole = ["config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    let others =
        [&whole[..], &["other-00001-of-00001.safetensors", "sub/x-00001-of-00001.safetensors"]].concat();
    for names in [&whole[..], &others] {
        let (asked, opened) = fetched(names, "owner/tiny").unwrap();
        assert_eq!((&asked[..], opened.as_str()), (&whole.map(str::to_owned)[..], ""), "{names:?}");
    }
    // A GGUF file takes precedence over an incomplete set of shards.
    let (asked, _) = fetched(&["config.json", whole[1], "m.gguf"], "owner/tiny").unwrap();
    assert_eq!(asked, ["m.gguf"]);
}

#[test]
fn repositories_without_a_model_that_runs() {
    for (names, said) in [
        (&["config.json", "model-00002-of-00002.safetensors"][..], "nor all shards of one model"),
        (&["model-00001-of-00001.safetensors"], "no config.json"),
        (
            &["config.json", "a-00001-of-00001.safetensors", "b-00001-of-00001.safetensors"],
            "nor all shards of one model",
        ),
        (&["config.json", "pytorch_model.bin"], "moi convert owner/tiny"),
        (&["config.json", "onnx/model.onnx"], "ONNX"),
        (&["config.json", "tf_model.h5"], "TensorFlow"),
        (&["ggml-model-q4_0.bin"], "PyTorch or GGML"),
        (&["params.json", "consolidated.safetensors"], "config.json beside model.safetensors"),
        (&["model_index.json", "unet/model.safetensors"], "diffusion"),
        (&["README.md"], "neither config.json with model.safetensors nor a .gguf file"),
    ] {
        let error = fetched(names, "owner/tiny").unwrap_err();
        assert!(error.contains(said), "{names:?}: {error}");
    }
    let adapter = br#"{"peft_type": "LORA", "base_model_name_or_path": "meta/base"}"#;
    let files: &[(&str, &[u8])] = &[("adapter_config.json", adapter), ("adapter_model.safetensors", b"x")];
    let error = fetched_of(files, "owner/tiny").unwrap_err();
    assert!(error.contains("a LoRA adapter of meta/base") && error.contains("merge_and_unload"), "{error}");
    for (config, method) in [
        (&br#"{"quantization_config": {"quant_method": "gptq"}}"#[..], "gptq"),
        (br#"{"quantization": {"bits": 4}, "quantization_config": {"bits": 4}}"#, "MLX"),
    ] {
        let files: &[(&str, &[u8])] = &[("config.json", config), ("model.safetensors", b"x")];
        let error = fetched_of(files, "owner/tiny").unwrap_err();
        assert!(error.contains("quantised by") && error.contains(method), "{error}");
    }
}

/// The tokenizer's other files are downloaded, too, because a conversion can use them.
#[test]
fn what_a_tokenizer_is_made_of_is_fetched_where_there_is_none() {
    let others = ["added_tokens.json", "merges.txt", "qwen.tiktoken", "tekken.json", "vocab.json"];
    let names = [&["config.json", "model.safetensors", "deep/x.tiktoken"][..], &others].concat();
    let (mut asked, _) = fetched(&names, "owner/tiny").unwrap();
    asked.sort();
    let mut expected = [&["config.json", "model.safetensors"][..], &others].concat();
    expected.sort();
    assert_eq!(asked, expected);
    let (mut asked, _) = fetched(&[&names[..], &["tokenizer.json"]].concat(), "owner/tiny").unwrap();
    asked.sort();
    assert_eq!(asked, ["config.json", "model.safetensors", "tokenizer.json"]);
}

#[test]
fn conversions_take_weights_of_pytorch() {
    let directory = tempfile::tempdir().unwrap();
    let files: &[(&str, &[u8])] = &[("config.json", b"{}"), ("pytorch_model.bin", b"x")];
    let server = serve(repository(files), Manners::default());
    let fetcher = fetcher(directory.path(), &server.endpoint).for_conversion();
    let path = fetcher.fetch_repository("owner/tiny", None, |_| {}).unwrap();
    assert_eq!(fs::read(path.join("pytorch_model.bin")).unwrap(), b"x");
}

/// A revision may come from an address or from the argument, but not from both.
#[test]
fn one_revision_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let server = serve(repository(&[("a.gguf", b"x")]), Manners::default());
    let fetcher = fetcher(directory.path(), &server.endpoint);
    let page = format!("{}/owner/tiny/tree/main", server.endpoint);
    for revision in [None, Some("main")] {
        let path = fetcher.fetch_repository(&page, revision, |_| {}).unwrap();
        assert!(path.ends_with("a.gguf"));
    }
    let error = fetcher.fetch_repository(&page, Some("v1"), |_| {}).unwrap_err().to_string();
    assert!(error.contains("names the revision main, --revision names v1"), "{error}");
}
