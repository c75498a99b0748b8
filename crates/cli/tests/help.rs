//! What the binary says about itself. (As an integration test of this package it also has cargo build the
//! binary that the end-to-end tests run.)

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure must end the test")]

use std::process::Command;

fn moi(args: &[&str]) -> (bool, String, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_moi")).args(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (out.status.success(), text(out.stdout), text(out.stderr))
}

#[test]
fn help_names_every_flag() {
    let (ok, help, _) = moi(&["generate", "--help"]);
    assert!(ok);
    for flag in [
        "--model",
        "--rule",
        "--beta",
        "--support",
        "--gate",
        "--temperature",
        "--top-k",
        "--top-p",
        "--min-p",
        "--seed",
        "--max-tokens",
        "--stop",
        "--system",
        "--raw",
        "--tokens",
        "--ignore-eos",
        "--device",
        "--dtype",
        "--quantize",
        "--format",
        "--stats",
        "--revision",
        "--mix-scope",
        "--typical-p",
        "--top-n-sigma",
        "--repetition-penalty",
        "--no-repeat-ngram",
        "--logit-bias",
        "--ban",
        "--samplers",
        "--json-schema",
        "--min-tokens",
        "--logprobs",
        "--quiet",
        "--verbose",
        "--config",
        "--preset",
    ] {
        assert!(help.contains(flag), "{flag} is not in the help");
    }
}

#[test]
fn completions_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let (ok, script, _) = moi(&["completions", shell]);
        assert!(ok && script.contains("generate"), "{shell}");
    }
}

#[test]
fn manual_pages_for_every_command() {
    let directory = std::env::temp_dir().join(format!("moi-man-{}", std::process::id()));
    let (ok, _, stderr) = moi(&["man", directory.to_str().unwrap()]);
    assert!(ok, "{stderr}");
    for page in ["moi.1", "moi-generate.1", "moi-chat.1", "moi-trace.1", "moi-eval.1"] {
        let text = std::fs::read_to_string(directory.join(page)).unwrap();
        assert!(text.contains(".TH") && text.contains("OPTIONS"), "{page}");
    }
    std::fs::remove_dir_all(&directory).unwrap();
    let (ok, _, stderr) = moi(&["man", "/dev/null/man"]);
    assert!(!ok && stderr.contains("/dev/null/man"), "{stderr}");
}

#[test]
fn no_command_shows_the_help_and_fails() {
    let (ok, _, stderr) = moi(&[]);
    assert!(!ok && stderr.contains("Examples:"));
}
