//! Everything that prepares files, and the test commands.

mod bench_matrix;
mod build;
mod busy;
mod dist;
mod fuzz;
mod gpu_report;
mod parity;
mod serve_check;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use moi_hub::{CATALOGUE, Cache, DEFAULT_MODEL, Fetcher};

use build::{cargo, root};

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
    /// Run the parity suite on devices: golden logits, caches, batches, decodes, seeds, in every number type
    Parity {
        /// Devices by name, such as cuda or vulkan:1; all of the machine's that the features allow where none is given
        #[arg(long = "device", value_name = "NAME")]
        devices: Vec<String>,
        /// Further cargo features, such as fusion and autotune: combinations that do not ship
        #[arg(long, value_name = "FEATURES", value_delimiter = ',')]
        features: Vec<String>,
    },
    /// Build the binary that is carried to other machines, stripped, into target/dist
    Dist {
        /// Its devices' features
        #[arg(long, value_delimiter = ',', default_values_t = dist::FEATURES.map(String::from))]
        features: Vec<String>,
    },
    /// Run the real model for long, 4,000 tokens and 500 generations, and look at memory and speed
    Soak,
    /// Feed what reads files of strangers with libFuzzer, from a corpus made of the golden files
    Fuzz(fuzz::FuzzArgs),
    /// Check a machine's GPUs in under ten minutes and write a dated report: doctor, parity, real models, warm starts
    GpuReport(gpu_report::GpuReportArgs),
    /// Measure two threads against one, alone and beside processes that compute without end
    Busy(busy::BusyArgs),
    /// Computes until its input ends
    #[command(hide = true)]
    Spin,
    /// Measure models, devices, types and rules with `moi bench`, and write the tables and plots of benches/RESULTS.md
    BenchMatrix(bench_matrix::BenchMatrixArgs),
    /// Run clients that others wrote against `moi serve`, where nothing but this machine can be reached
    ServeCheck(serve_check::ServeCheckArgs),
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
        Task::Parity { devices, features } => parity::run(&devices, &features),
        Task::Dist { features } => dist::run(&features).map(|_| ()),
        Task::Soak => soak(),
        Task::Fuzz(args) => fuzz::run(&args),
        Task::GpuReport(args) => gpu_report::run(&args),
        Task::Busy(args) => busy::run(&args),
        Task::Spin => busy::spin(),
        Task::BenchMatrix(args) => bench_matrix::run(&args),
        Task::ServeCheck(args) => serve_check::run(&args),
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
    for name in names {
        let path = fetched(name, Cache::from_env()?)?;
        eprintln!("xtask: {name} is at {}", path.display());
    }
    Ok(())
}

/// A catalogue model in a cache, fetched if need be.
fn fetched(name: &str, cache: Cache) -> Result<PathBuf> {
    let entry = moi_hub::find(name).with_context(|| {
        let known: Vec<&str> = CATALOGUE.iter().map(|entry| entry.name).collect();
        format!("there is no model `{name}` in the catalogue ({})", known.join(", "))
    })?;
    Ok(Fetcher::new(cache).fetch(entry, |line| eprintln!("xtask: {line}"))?)
}

/// Runs the binary that `cargo run` builds: one build for both, and the same code.
fn moi(command: &str, rest: &[String]) -> Result<()> {
    let mut cargo = cargo();
    cargo.args(["run", "--release", "--quiet", "--manifest-path"]).arg(root().join("Cargo.toml"));
    let status = cargo.arg("--").arg(command).args(rest).status().context("cargo cannot be run")?;
    if !status.success() {
        bail!("moi {command} failed ({status})");
    }
    Ok(())
}

fn soak() -> Result<()> {
    fetch(&[DEFAULT_MODEL.to_owned()])?;
    let mut command = cargo();
    command.args(["test", "--release", "--workspace", "--exclude", "moi-gpu", "--test", "long_runs", "--"]);
    let status =
        command.args(["soak", "--ignored", "--nocapture"]).status().context("cargo cannot be run")?;
    if !status.success() {
        bail!("the long runs failed ({status})");
    }
    Ok(())
}

fn test(rest: &[String]) -> Result<()> {
    fetch(&[DEFAULT_MODEL.to_owned()])?;
    let mut command = cargo();
    command.args(["test", "--release", "--workspace", "--exclude", "moi-gpu", "--"]).args(rest);
    let status = command.status().context("cargo cannot be run")?;
    if !status.success() {
        bail!("the tests failed ({status})");
    }
    Ok(())
}
