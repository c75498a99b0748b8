//! `cargo xtask assets`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{build::root, dist};

/// Shells, and the name that each of them expects a completion script to have.
const COMPLETIONS: [(&str, &str); 5] = [
    ("bash", "moi.bash"),
    ("zsh", "_moi"),
    ("fish", "moi.fish"),
    ("powershell", "_moi.ps1"),
    ("elvish", "moi.elv"),
];

/// The systemd units in `examples/deploy`.
const UNITS: [&str; 2] = ["moi.service", "moi.socket"];

/// Writes the files that packages contain beside the binary into `target/assets`: completion scripts, manual pages and
/// systemd units. The binary writes the first two itself, so that they describe its features.
pub(crate) fn run(binary: Option<&Path>) -> Result<()> {
    let binary = binary.map_or_else(dist::binary, Path::to_owned);
    let directory = root().join("target/assets");
    if directory.exists() {
        // Pages of commands that no longer exist must not be packaged.
        fs::remove_dir_all(&directory)?;
    }
    completions(&binary, &directory.join("completions"))?;
    moi(&binary, &["man", &directory.join("man").to_string_lossy()])?;
    units(&directory.join("systemd"))?;
    eprintln!("xtask: completions, manual pages and systemd units are in {}", directory.display());
    Ok(())
}

fn completions(binary: &Path, directory: &Path) -> Result<()> {
    fs::create_dir_all(directory)?;
    for (shell, name) in COMPLETIONS {
        write(&directory.join(name), &moi(binary, &["completions", shell])?)?;
    }
    Ok(())
}

fn units(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory)?;
    for name in UNITS {
        write(&directory.join(name), packaged(&fs::read_to_string(unit(name))?).as_bytes())?;
    }
    Ok(())
}

fn unit(name: &str) -> PathBuf {
    root().join("examples/deploy").join(name)
}

/// A unit with the paths of a package in place of the paths of a manual installation.
fn packaged(unit: &str) -> String {
    unit.replace("/etc/systemd/system/", "/usr/lib/systemd/system/").replace("/usr/local/bin/", "/usr/bin/")
}

/// Runs the binary and returns its stdout.
fn moi(binary: &Path, args: &[&str]) -> Result<Vec<u8>> {
    let out = Command::new(binary).args(args).output().with_context(|| {
        format!("{} cannot be run; `cargo xtask dist` builds it, --binary names another", binary.display())
    })?;
    if !out.status.success() {
        let why = String::from_utf8_lossy(&out.stderr);
        bail!("{} {} failed ({}): {}", binary.display(), args.join(" "), out.status, why.trim());
    }
    Ok(out.stdout)
}

fn write(path: &Path, content: &[u8]) -> Result<()> {
    fs::write(path, content).with_context(|| format!("{} cannot be written", path.display()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failure must end the test")]
mod tests {
    use super::*;

    #[test]
    fn packaged_units_name_the_binary_of_the_package() {
        let service = packaged(&fs::read_to_string(unit("moi.service")).unwrap());
        assert!(service.contains("\nExecStart=/usr/bin/moi serve "), "{service}");
        assert!(!service.contains("/usr/local"), "{service}");
    }
}
