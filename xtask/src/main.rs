//! `cargo xtask`: the tasks of the workspace that prepare files, test and measure.

mod assets;
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
    /// Download catalogue models into the cache, verified by sha256
    Fetch {
        /// Names of the catalogue, see `moi models`
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Convert a model with `moi convert`, which is built if necessary
    #[command(disable_help_flag = true)]
    Convert {
        /// See `cargo xtask convert --help`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<String>,
    },
    /// Describe a model with `moi inspect`, which is built if necessary
    #[command(disable_help_flag = true)]
    Inspect {
        /// See `cargo xtask inspect --help`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<String>,
    },
    /// Run the parity suite on devices: golden logits, caches, batches, decodes, seeds, in every number type
    Parity {
        /// Devices such as cuda or vulkan:1 [default: all devices of this machine that the features allow]
        #[arg(long = "device", value_name = "NAME")]
        devices: Vec<String>,
        /// Additional cargo features, such as fusion and autotune, for combinations that are not released
        #[arg(long, value_name = "FEATURES", value_delimiter = ',')]
        features: Vec<String>,
    },
    /// Build the stripped binary for other machines into target/dist
    Dist {
        /// Cargo features of its devices
        #[arg(long, value_delimiter = ',', default_values_t = dist::FEATURES.map(String::from))]
        features: Vec<String>,
    },
    /// Write the additional files of packages into target/assets: completions, manual pages, systemd units
    Assets {
        /// Binary that writes the files [default: the one of `cargo xtask dist`]
        #[arg(long, value_name = "PATH")]
        binary: Option<PathBuf>,
    },
    /// Run the real model for 4,000 tokens and 500 generations, and check memory and speed
    Soak,
    /// Fuzz the readers of untrusted model files with libFuzzer, from a corpus of golden files
    Fuzz(fuzz::FuzzArgs),
    /// Check a machine's GPUs in under ten minutes and write a dated report: doctor, parity, real models, warm starts
    GpuReport(gpu_report::GpuReportArgs),
    /// Measure two threads against one, alone and next to busy processes
    Busy(busy::BusyArgs),
    /// Keep the CPU busy until stdin closes
    #[command(hide = true)]
    Spin,
    /// Measure models, devices, types and rules with `moi bench`, and write the tables and plots of benches/RESULTS.md
    BenchMatrix(bench_matrix::BenchMatrixArgs),
    /// Run third-party clients against `moi serve`, in a network without access to other machines
    ServeCheck(serve_check::ServeCheckArgs),
    /// Download the model that tests need, then run all tests
    ///
    /// The tests are built in release mode, because a float32 forward pass of a real model is too slow without
    /// optimisation. The build shares its dependencies with `cargo run --release`.
    Test {
        /// Arguments for the tests, such as `--ignored` or a part of a test name
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
        Task::Assets { binary } => assets::run(binary.as_deref()),
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

/// The path of a catalogue model in a cache, downloaded if necessary.
fn fetched(name: &str, cache: Cache) -> Result<PathBuf> {
    let entry = moi_hub::find(name).with_context(|| {
        let known: Vec<&str> = CATALOGUE.iter().map(|entry| entry.name).collect();
        format!("there is no model `{name}` in the catalogue ({})", known.join(", "))
    })?;
    Ok(Fetcher::new(cache).fetch(entry, |line| eprintln!("xtask: {line}"))?)
}

/// Runs the binary with the build of `cargo run`, so that both share one build.
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
