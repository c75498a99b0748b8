//! The differences between a reader's machine and the test: files, variables and programs that the documentation's
//! commands need, and shorter versions of long commands.
//!
//! The test fails if an entry is no longer used.

/// Text in a shown command, and its replacement.
pub(crate) const CHANGES: &[(&str, &str)] = &[
    // A few tokens are enough to show that it runs.
    ("--max-tokens 300", "--max-tokens 4"),
    // The user says something, and leaves.
    ("moi chat", "echo Hello | moi chat"),
    // A tiny model takes a second instead of minutes to measure.
    ("moi bench --", "MOI_MODEL=tiny moi bench --"),
    ("--shape llama-8b --device cuda", "--shape test-tiny --device cpu"),
    // A catalogue name would be downloaded; here it is a directory.
    ("gemma-3-270m", "./gemma-3-270m"),
    // Use any free port.
    ("--port 8000", "--port 0"),
    // Placeholders for things that a reader has.
    ("moi COMMAND", "moi generate"),
    ("completions SHELL", "completions bash"),
    ("moi eval TASK", "moi eval countdown"),
    ("--shard I/N", "countdown --shard 1/2"),
    ("--model M --device D", "--model tiny --device cpu"),
    ("--max-tokens 48 RULE", "--max-tokens 48 --rule gate --gate 0.3"),
    (
        "SOURCE --output DIR [--to safetensors|burnpack|gguf] [--dtype f32|f16|bf16] [--quantize q8_0|q4_0|q4_1] [--verify]",
        "tiny --output converted --to gguf --quantize q8_0 --verify",
    ),
    // Use a separate cache, so that the user's cache does not change.
    (
        "moi models --remove NAME",
        "mkdir -p cache/models/smollm2-135m-instruct && \
         touch cache/models/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf && \
         MOI_CACHE=cache HF_HUB_CACHE=cache/hub moi models --remove smollm2-135m-instruct",
    ),
];

/// A file or directory.
pub(crate) enum Made {
    /// A text file with this content.
    Text(&'static str),
    /// A tiny model in Hugging Face layout, with a tokenizer and a chat template.
    Model,
}

/// The files to create in the directory of a page, before the first command that names them.
pub(crate) const FILES: &[(&str, Made)] = &[
    ("tiny", Made::Model),
    ("PATH", Made::Model),
    ("Llama-3.2-1B-Instruct", Made::Model),
    ("gemma-3-270m", Made::Model),
    // A local directory takes precedence over the hub.
    ("Qwen/QwQ-32B", Made::Model),
    ("server.jsonl", Made::Text("{\"model\": \"tiny\", \"device\": \"cuda:0\", \"test\": \"tg32\"}\n")),
    ("book.txt", Made::Text("It was a dark and stormy night; the rain fell in torrents.\n")),
];

/// Commands, and an environment variable with the value of one of their flags, for lines that do not set the flag.
pub(crate) const ENVIRONMENT: &[(&str, &str, &str)] = &[
    ("chat compare eval generate serve trace", "MOI_MAX_TOKENS", "4"),
    ("eval", "MOI_PROBLEMS", "1"),
    ("bench", "MOI_REPETITIONS", "1"),
    ("serve", "MOI_PORT", "0"),
];

/// Text in a line, and the cargo feature that it needs. A build without the feature must refuse the line with an
/// error that names the feature.
pub(crate) const NEEDS: &[(&str, &str)] = &[("--plot ", "plots")];

/// Programs besides `moi` that lines use. Lines with a program that is not installed are skipped.
pub(crate) const PROGRAMS: &[&str] = &["curl", "jq"];

/// Lines that are not run, with the reason.
pub(crate) const NOT_RUN: &[(&str, &str)] = &[
    (r#"alias moi="cargo run --release --quiet --""#, "`moi` is the binary that is tested"),
    (
        r#"export RUSTFLAGS='--cfg getrandom_backend="wasm_js"'"#,
        "it is for the lines behind it, which ci.yml runs",
    ),
    ("unset RUSTFLAGS", "it ends what `export` began"),
];
