//! Runs the binary as a process.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use serde_json::Value;

use crate::golden::Golden;

/// The binary that cargo built next to this test, or the one in `MOI_BINARY`.
pub fn binary() -> PathBuf {
    if let Some(other) = std::env::var_os("MOI_BINARY") {
        return other.into();
    }
    let path = std::env::current_exe().unwrap();
    let path =
        path.parent().and_then(Path::parent).unwrap().join(format!("moi{}", std::env::consts::EXE_SUFFIX));
    assert!(path.is_file(), "{} is not built; run the tests as `cargo xtask test` does", path.display());
    path
}

/// The beginning of a command that runs the binary without ignored signals. A test that starts in the background of a
/// script or under `nohup` would pass on ignored signals.
pub fn with_default_signals() -> Command {
    const RESET: &str = "--default-signal";
    let resets = Command::new("env").args([RESET, "true"]).stderr(Stdio::null()).status();
    // The `env` of some systems cannot reset signals.
    if !resets.is_ok_and(|status| status.success()) {
        return Command::new(binary());
    }
    let mut command = Command::new("env");
    command.arg(RESET).arg(binary());
    command
}

/// Runs the binary until it ends.
pub fn run(args: &[&str]) -> Output {
    Command::new(binary()).args(args).stdin(Stdio::null()).output().unwrap()
}

/// Whether the binary was built with a cargo feature.
pub fn has_feature(name: &str) -> bool {
    let about = String::from_utf8(run(&["--version", "--verbose"]).stdout).unwrap();
    let features = about.lines().find_map(|line| line.strip_prefix("features ")).unwrap();
    features.split_whitespace().any(|feature| feature == name)
}

/// Runs the binary with a text or bytes on stdin.
pub fn fed(args: &[&str], input: impl AsRef<[u8]>) -> Output {
    let mut child = Command::new(binary())
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_ref()).unwrap();
    child.wait_with_output().unwrap()
}

/// Runs the binary and parses its stdout as JSON.
pub fn json(args: &[&str]) -> Value {
    let out = run(&[args, &["--format", "json"]].concat());
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).unwrap()
}

/// Runs the binary, which must fail with one error on stderr that contains `parts`, a non-zero exit code and no
/// panic.
pub fn refused(args: &[&str], parts: &[&str]) {
    let out = run(args);
    let stderr = String::from_utf8(out.stderr).unwrap();
    assert!(!out.status.success() && out.stdout.is_empty(), "{args:?} was accepted");
    assert!(
        out.status.code().is_some_and(|code| code != 101) && !stderr.contains("panicked"),
        "{args:?}: {stderr}"
    );
    for part in parts {
        assert!(stderr.contains(part), "{args:?}: {stderr:?} does not say {part:?}");
    }
    let mut clauses: Vec<&str> = stderr.trim().split(": ").collect();
    let said = clauses.len();
    clauses.sort_unstable();
    clauses.dedup();
    assert_eq!(clauses.len(), said, "{args:?}: something is said twice: {stderr:?}");
}

/// A tiny golden checkpoint and its directory.
pub fn tiny(name: &str) -> (Golden, String) {
    let golden = Golden::read(name);
    let path = golden.path.to_str().unwrap().to_owned();
    (golden, path)
}

/// Formats token ids for `--tokens`.
pub fn ids(ids: &[u32]) -> String {
    ids.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
}

/// Parses a JSON array of token ids.
pub fn numbers(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as u32).collect()
}
