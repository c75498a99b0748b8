//! `cargo xtask busy`: measures whether threads help, or at least do no harm, on a machine with other work.

use std::{
    io::Read,
    process::{Child, Command, Stdio},
    thread,
};

use anyhow::{Context, Result, bail};
use moi_hub::DEFAULT_MODEL;
use serde_json::Value;

use crate::build::executable;

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct BusyArgs {
    /// Number of processes that keep the CPU busy during the measurement
    #[arg(long, value_name = "N", default_value_t = 1)]
    processes: usize,
    /// Number of threads to compare with one thread
    #[arg(long, value_name = "N", default_value_t = 2)]
    threads: u16,
    /// Number of measurements each, in turns
    #[arg(long, value_name = "N", default_value_t = 3)]
    rounds: usize,
    /// Model to run
    #[arg(long, value_name = "NAME|PATH", default_value = DEFAULT_MODEL)]
    model: String,
}

/// Measures alone and next to busy processes, and prints the ratios.
pub(crate) fn run(args: &BusyArgs) -> Result<()> {
    let moi = executable(&["build", "--release", "--package", "moi-cli"], "moi")?;
    for processes in [0, args.processes] {
        let _beside = (0..processes).map(|_| Beside::start()).collect::<Result<Vec<_>>>()?;
        let (mut one, mut several) = (Vec::new(), Vec::new());
        for _ in 0..args.rounds.max(1) {
            one.push(speed(&moi, args, 1)?);
            several.push(speed(&moi, args, args.threads)?);
        }
        let (one, several) = (median(&mut one), median(&mut several));
        println!(
            "beside {processes} busy processes: {one:.1} tokens/s with 1 thread, {several:.1} with {} ({:.2}x)",
            args.threads,
            several / one
        );
    }
    Ok(())
}

/// The speed of a generation, in tokens per second.
fn speed(moi: &std::path::Path, args: &BusyArgs, threads: u16) -> Result<f64> {
    let threads = threads.to_string();
    let fixed = ["--quantize", "file", "-p", "0", "-n", "64", "-r", "3", "--rules", "token"];
    let out = Command::new(moi)
        .args(["bench", "--format", "json", "--threads", &threads, "--model", &args.model])
        .args(fixed)
        .stderr(Stdio::null())
        .output()
        .context("moi cannot be run")?;
    if !out.status.success() {
        bail!("moi bench failed ({})", out.status);
    }
    let rows: Value = serde_json::from_slice(&out.stdout)?;
    rows[0]["tokens_per_second"].as_f64().context("moi bench gave no speed")
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A process that keeps the CPU busy until this is dropped.
struct Beside(Child);

impl Beside {
    fn start() -> Result<Self> {
        let own = std::env::current_exe().context("this program's file is unknown")?;
        // The child's stdin closes when this process ends, in whatever way.
        let child = Command::new(own).arg("spin").stdin(Stdio::piped()).spawn();
        Ok(Self(child.context("a busy process cannot be started")?))
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        // If this fails, the child ends when its stdin closes.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Keeps the CPU busy until stdin closes.
pub(crate) fn spin() -> Result<()> {
    let waiting = thread::spawn(|| std::io::stdin().read_to_end(&mut Vec::new()));
    let mut number = 1u64;
    while !waiting.is_finished() {
        for _ in 0..1 << 16 {
            number = std::hint::black_box(number.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1));
        }
    }
    Ok(())
}
