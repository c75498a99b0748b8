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
fn no_command_shows_the_help_and_fails() {
    let (ok, _, stderr) = moi(&[]);
    assert!(!ok && stderr.contains("Examples:"));
}
