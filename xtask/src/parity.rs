//! `cargo xtask parity`.

use std::{path::PathBuf, process::Command};

use anyhow::{Context, Result, bail};

use crate::build::{executable, feature, features};

/// Builds and runs the suite.
pub(crate) fn run(devices: &[String], more: &[String]) -> Result<()> {
    let executable = build(devices, more)?;
    // The ignored tests count kernel launches and need a process of their own.
    for own in [&[][..], &["--ignored"]] {
        let mut suite = Command::new(&executable);
        suite.arg("--nocapture").args(own);
        if !devices.is_empty() {
            suite.env("MOI_TEST_DEVICES", devices.join(","));
        }
        let status = suite.status().context("the parity suite cannot be run")?;
        if !status.success() {
            bail!("the parity suite failed ({status})");
        }
    }
    Ok(())
}

/// Builds the suite for these devices and for the CPU backends that they are compared with. Returns the executable.
pub(crate) fn build(devices: &[String], more: &[String]) -> Result<PathBuf> {
    let mut all: Vec<String> =
        devices.iter().map(|device| feature(device)).chain(more.iter().cloned()).collect();
    all.sort();
    all.dedup();
    let (features, packages) = (features(&all), ["--package", "moi-cli", "--package", "moi-tests"]);
    let mut args = vec!["test", "--release", "--test", "parity", "--no-run"];
    args.extend(packages);
    if !features.is_empty() {
        args.extend(["--features", &features]);
    }
    executable(&args, "parity")
}
