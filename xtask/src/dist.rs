//! `cargo xtask dist`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::build::{executable, root};

/// Devices of the binary that is carried: NVIDIA's and every other GPU with a driver, and the CPU.
pub(crate) const FEATURES: [&str; 3] = ["flex", "cuda", "vulkan"];

/// Bytes that it may have: it is carried, together with what it is tried on. Of these the server has about two million.
const MOST: u64 = 65_000_000;

/// Builds it, without the names of its symbols, and tries that it runs: drivers are loaded when they are asked for.
pub(crate) fn run(features: &[String]) -> Result<PathBuf> {
    let built = build(features)?;
    let directory = root().join("target/dist");
    fs::create_dir_all(&directory)?;
    let name = format!("moi{}", std::env::consts::EXE_SUFFIX);
    let made = directory.join(&name);
    fs::copy(&built, &made).with_context(|| format!("{} cannot be written", made.display()))?;
    for file in ["README.md", "LICENSE-MIT", "LICENSE-APACHE"] {
        fs::copy(root().join(file), directory.join(file))?;
    }
    let size = fs::metadata(&made)?.len();
    eprintln!("xtask: {} has {:.1} MB", made.display(), size as f64 / 1e6);
    try_out(&made)?;
    if size > MOST {
        bail!("{} has {size} bytes, more than the {MOST} that are meant to be carried", made.display());
    }
    Ok(made)
}

fn build(features: &[String]) -> Result<PathBuf> {
    // Beside the devices, what the binary does by default.
    let features = [&["tls".to_owned()], features].concat().join(",");
    // For `moi --version --verbose`.
    let commit = commit().map(|commit| format!("env.MOI_COMMIT='{commit}'"));
    let mut args =
        vec!["rustc", "--release", "--package", "moi-cli", "--bin", "moi", "--no-default-features"];
    // What is compiled in the binary's own crate is what launches and generates kernels, once for every runtime and
    // element type: small counts there, while the CPU's kernels are in crates of their own.
    if let Some(commit) = &commit {
        args.extend(["--config", commit]);
    }
    args.extend(["--features", &features, "--", "-C", "strip=symbols", "-C", "opt-level=z"]);
    if cfg!(all(target_os = "linux", target_env = "gnu", target_arch = "x86_64")) {
        // The same kernels are compiled for every runtime and element type, many of them to the same code: the linker
        // keeps one of each. It is the one that Rust brings for this target.
        args.extend(["-C", "link-arg=-fuse-ld=lld", "-C", "link-arg=-Wl,--icf=all"]);
    }
    executable(&args, "moi")
}

/// The commit that is built, where git can tell.
fn commit() -> Option<String> {
    let out =
        Command::new("git").args(["describe", "--always", "--dirty"]).current_dir(root()).output().ok()?;
    out.status.success().then(|| String::from_utf8_lossy(&out.stdout).trim().to_owned())
}

fn try_out(binary: &Path) -> Result<()> {
    for args in [&["devices"][..], &["doctor", "--device", "cpu"]] {
        let status = Command::new(binary).args(args).status()?;
        if !status.success() {
            bail!("{} {} failed ({status})", binary.display(), args.join(" "));
        }
    }
    Ok(())
}
