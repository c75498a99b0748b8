//! Tests the names that `--model` takes: names with quantisations, which the hub's own library does not know, and
//! texts that are no name.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure must end the test")]

use moi_hub::ModelReference;

const HUB: &str = "https://huggingface.co";

fn parse(text: &str) -> Result<Option<ModelReference>, String> {
    ModelReference::parse(text, HUB)
}

/// The repository, revision, file and quantisation of a reference, with `-` for each that is absent.
fn parts(text: &str) -> String {
    let found = parse(text).unwrap().unwrap();
    let or_none = |part: &Option<String>| part.clone().unwrap_or_else(|| "-".to_owned());
    let (revision, file, quant) = (or_none(&found.revision), or_none(&found.file), or_none(&found.quant));
    format!("{} {revision} {file} {quant}", found.repository)
}

#[test]
fn names_and_addresses() {
    for (text, expected) in [
        ("o/n", "o/n - - -"),
        ("o/n/", "o/n - - -"),
        ("owner-1/Name_2.5-GGUF", "owner-1/Name_2.5-GGUF - - -"),
        ("o/n/a.gguf", "o/n - a.gguf -"),
        ("o/n/dir/a.gguf", "o/n - dir/a.gguf -"),
        ("o/n@v1", "o/n v1 - -"),
        ("o/n:Q4_K_M", "o/n - - Q4_K_M"),
        ("o/n:q8_0", "o/n - - q8_0"),
        ("o/n:UD-IQ2_XXS", "o/n - - UD-IQ2_XXS"),
        ("o/n:latest", "o/n - - -"),
        ("o/n:a-Q8_0.gguf", "o/n - a-Q8_0.gguf -"),
        ("hf.co/o/n:Q4_K_M", "o/n - - Q4_K_M"),
        ("huggingface.co/o/n:latest", "o/n - - -"),
        ("https://huggingface.co/o/n:IQ4_XS", "o/n - - IQ4_XS"),
        ("hf://o/n:Q6_K", "o/n - - Q6_K"),
        ("https://huggingface.co/o/n.git", "o/n - - -"),
        ("https://www.huggingface.co/o/n", "o/n - - -"),
        ("https://huggingface.co/api/models/o/n", "o/n - - -"),
        ("https://huggingface.co/o/n?show_file_info=a-Q8_0.gguf", "o/n - a-Q8_0.gguf -"),
        // safetensors need the other files of the repository.
        ("https://huggingface.co/o/n/blob/main/model.safetensors", "o/n main - -"),
        ("o/n/model-00001-of-00002.safetensors", "o/n - - -"),
        (" o/n ", "o/n - - -"),
    ] {
        assert_eq!(parts(text), expected, "{text}");
    }
}

#[test]
fn the_endpoint_has_pages_too() {
    let parse = |text: &str| ModelReference::parse(text, "http://art.example:8081/api/huggingface");
    for text in [
        "http://art.example:8081/api/huggingface/o/n",
        "art.example:8081/api/huggingface/o/n",
        "https://art.example/o/n/tree/main",
        "https://huggingface.co/o/n",
    ] {
        assert_eq!(parse(text).unwrap().unwrap().repository, "o/n", "{text}");
    }
}

#[test]
fn paths_stay_paths() {
    for text in [
        "",
        "model",
        "model.gguf",
        "llama3:8b",
        "/models/o/n",
        "./o/n",
        "../o/n",
        "~/o/n",
        "C:\\models\\a.gguf",
        "C:/models/a.gguf",
        "c:a.gguf",
        "models\\a.gguf",
        "o//n",
        "o/..",
        "o/n/../x",
        "o/na me",
        "-o/n",
        "o/n--m",
    ] {
        assert_eq!(parse(text), Ok(None), "{text}");
    }
}

#[test]
fn other_addresses_say_what_to_write() {
    for (text, said) in [
        ("https://github.com/o/n", "HF_ENDPOINT=https://github.com and write o/n"),
        ("https://hf-mirror.com/o/n", "HF_ENDPOINT=https://hf-mirror.com and write o/n"),
        ("modelscope.cn/models/o/n", "OWNER/NAME"),
        ("https://huggingface.co/datasets/o/n", "datasets"),
        ("hf.co/spaces/o/n", "spaces"),
        ("https://huggingface.co/o", "OWNER/NAME"),
        ("https://huggingface.co/o/n/discussions/1", "o/n for this page"),
        ("https:/huggingface.co/o/n", "OWNER/NAME"),
        ("git@hf.co:o/n", "OWNER/NAME"),
        ("s3://bucket/o/n", "OWNER/NAME"),
        ("file:///models/a.gguf", "path of a file"),
        ("hf://n", "OWNER/NAME"),
        ("o/n:", "o/n:"),
        ("o/n:Q4 K", "Q4_K_M"),
        ("o/n/a.gguf:Q4_K_M", "OWNER/NAME:QUANT"),
        ("https://huggingface.co/o/n:Q4_K_M/blob/main/a.gguf", "write one of them"),
    ] {
        let error = parse(text).unwrap_err();
        assert!(error.contains(said) && error.contains(text), "{text}: {error}");
    }
}
