//! Everything that prepares files, and the test command.

use std::{
    path::Path,
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use moi_hub::{CATALOGUE, Cache, DEFAULT_MODEL, Fetcher};

/// Tasks of the moi workspace.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Fetch catalogue models into the cache, verified by sha256
    Fetch {
        /// Catalogue names; see `moi models`
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Convert a model into another form: `moi convert`, built if need be
    #[command(disable_help_flag = true)]
    Convert {
        /// See `cargo xtask convert --help`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<String>,
    },
    /// Print what a model is and needs: `moi inspect`, built if need be
    #[command(disable_help_flag = true)]
    Inspect {
        /// See `cargo xtask inspect --help`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<String>,
    },
    /// Fetch the model that tests need, then run all tests
    ///
    /// In release: a float32 forward pass of a real model is too slow without optimisation, and the
    /// dependencies are then the ones that `cargo run --release` has built.
    Test {
        /// Arguments for the tests themselves, such as `--ignored` or a part of a name
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<String>,
    },
}

fn main() -> ExitCode {
    let done = match Args::parse().task {
        Task::Fetch { names } => fetch(&names),
        Task::Convert { rest } => moi("convert", &rest),
        Task::Inspect { rest } => moi("inspect", &rest),
        Task::Test { rest } => test(&rest),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn fetch(names: &[String]) -> Result<()> {
    let fetcher = Fetcher::new(Cache::from_env()?);
    for name in names {
        let entry = moi_hub::find(name).with_context(|| {
            let known: Vec<&str> = CATALOGUE.iter().map(|entry| entry.name).collect();
            format!("there is no model `{name}` in the catalogue ({})", known.join(", "))
        })?;
        let path = fetcher.fetch(entry, |line| eprintln!("xtask: {line}"))?;
        eprintln!("xtask: {name} is at {}", path.display());
    }
    Ok(())
}

/// Runs the binary that `cargo run` builds: one build for both, and the same code.
fn moi(command: &str, rest: &[String]) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask stands in the workspace")?;
    let mut cargo = cargo();
    cargo.args(["run", "--release", "--quiet", "--manifest-path"]).arg(root.join("Cargo.toml"));
    let status = cargo.arg("--").arg(command).args(rest).status().context("cargo cannot be run")?;
    if !status.success() {
        bail!("moi {command} failed ({status})");
    }
    Ok(())
}

fn cargo() -> Command {
    Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()))
}

fn test(rest: &[String]) -> Result<()> {
    fetch(&[DEFAULT_MODEL.to_owned()])?;
    let mut command = cargo();
    command.args(["test", "--release", "--workspace", "--"]).args(rest);
    let status = command.status().context("cargo cannot be run")?;
    if !status.success() {
        bail!("the tests failed ({status})");
    }
    Ok(())
}
