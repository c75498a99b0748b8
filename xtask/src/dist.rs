//! `cargo xtask dist`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::build::{executable, root};

/// The features of the portable binary: NVIDIA GPUs, other GPUs with a Vulkan driver, and the CPU.
pub(crate) const FEATURES: [&str; 3] = ["flex", "cuda", "vulkan"];

/// Size limit of the binary in bytes, because it is copied to other machines. The server takes about two million of
/// these, and drafting half a million: the walk is compiled for each backend.
const MAX_BYTES: u64 = 66_000_000;

/// Whether the linker can merge identical functions. On other targets the binary is larger, and its size is not
/// limited.
const FOLDS_CODE: bool = cfg!(all(target_os = "linux", target_env = "gnu", target_arch = "x86_64"));

/// The path that the binary is copied to.
pub(crate) fn binary() -> PathBuf {
    root().join("target/dist").join(format!("moi{}", std::env::consts::EXE_SUFFIX))
}

/// Builds the stripped binary, and tests that it runs without drivers, which are only loaded on demand.
pub(crate) fn run(features: &[String]) -> Result<PathBuf> {
    let built = build(features)?;
    let directory = root().join("target/dist");
    fs::create_dir_all(&directory)?;
    let made = binary();
    fs::copy(&built, &made).with_context(|| format!("{} cannot be written", made.display()))?;
    for file in ["README.md", "LICENSE-MIT", "LICENSE-APACHE"] {
        fs::copy(root().join(file), directory.join(file))?;
    }
    let size = fs::metadata(&made)?.len();
    eprintln!("xtask: {} has {:.1} MB", made.display(), size as f64 / 1e6);
    try_out(&made)?;
    if FOLDS_CODE && size > MAX_BYTES {
        bail!("{} has {size} bytes, more than the {MAX_BYTES} that are meant to be carried", made.display());
    }
    Ok(made)
}

fn build(features: &[String]) -> Result<PathBuf> {
    // Besides the devices, the default features of the binary.
    let features = [&["tls", "pytorch", "plots"].map(str::to_owned)[..], features].concat().join(",");
    // `moi --version --verbose` prints the commit.
    let commit = commit().map(|commit| format!("env.MOI_COMMIT='{commit}'"));
    let mut args =
        vec!["rustc", "--release", "--package", "moi-cli", "--bin", "moi", "--no-default-features"];
    // The binary's own crate contains the code that launches and generates kernels, once for every runtime and
    // element type, so it is optimised for size. The CPU kernels are in other crates.
    if let Some(commit) = &commit {
        args.extend(["--config", commit]);
    }
    args.extend(["--features", &features, "--", "-C", "strip=symbols", "-C", "opt-level=z"]);
    if FOLDS_CODE {
        // Many kernels compile to the same code for several runtimes and element types, and this linker option merges
        // them. The linker is the one that comes with Rust for this target.
        args.extend(["-C", "link-arg=-fuse-ld=lld", "-C", "link-arg=-Wl,--icf=all"]);
    }
    executable(&args, "moi")
}

/// The commit of the build, if git can tell.
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
