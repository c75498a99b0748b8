//! Calls cargo in the same way for every task, so that all tasks share one build.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// The directory of the workspace.
pub(crate) fn root() -> PathBuf {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask).to_owned()
}

/// The cargo command in the workspace, with the environment of a shell. Cargo sets variables about this package for
/// this program. Build scripts that read them, such as ring's, would run again, and everything that depends on them
/// would be rebuilt.
pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()));
    let of_this = |name: &str| ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|start| name.starts_with(start));
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(of_this) {
            cargo.env_remove(name);
        }
    }
    cargo.current_dir(root());
    cargo
}

/// Runs cargo and returns the path of the executable of `target`.
pub(crate) fn executable(args: &[&str], target: &str) -> Result<PathBuf> {
    let mut cargo = cargo();
    let separator = args.iter().position(|&arg| arg == "--").unwrap_or(args.len());
    cargo.args(&args[..separator]).arg("--message-format=json-render-diagnostics").args(&args[separator..]);
    let out = cargo.stderr(std::process::Stdio::inherit()).output().context("cargo cannot be run")?;
    if !out.status.success() {
        bail!("cargo {} failed ({})", args.join(" "), out.status);
    }
    let messages = out.stdout.split(|&byte| byte == b'\n');
    let mut made =
        messages.filter_map(|line| serde_json::from_slice::<Value>(line).ok()).filter_map(|message| {
            let is_it = message["target"]["name"] == target;
            Some(PathBuf::from(message["executable"].as_str().filter(|_| is_it)?))
        });
    made.next_back().with_context(|| format!("cargo says nothing of an executable `{target}`"))
}

/// The cargo features of the binary and of the tests. Both are built together, so that they share the builds of their
/// dependencies.
pub(crate) fn features(names: &[String]) -> String {
    let both = names.iter().flat_map(|name| [format!("moi-cli/{name}"), format!("moi-tests/{name}")]);
    both.collect::<Vec<_>>().join(",")
}

/// The cargo feature of a device, such as `vulkan` for `vulkan:1`.
pub(crate) fn feature(device: &str) -> String {
    let kind = device.split(':').next().unwrap_or(device);
    if kind == "cpu" { "flex" } else { kind }.to_owned()
}
