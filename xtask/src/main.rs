//! Everything that prepares files, and the test command.

use std::process::{Command, ExitCode};

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

fn test(rest: &[String]) -> Result<()> {
    fetch(&[DEFAULT_MODEL.to_owned()])?;
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let mut command = Command::new(cargo);
    command.args(["test", "--release", "--workspace", "--"]).args(rest);
    let status = command.status().context("cargo cannot be run")?;
    if !status.success() {
        bail!("the tests failed ({status})");
    }
    Ok(())
}
