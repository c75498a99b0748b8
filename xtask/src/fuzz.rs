//! `cargo xtask fuzz`.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::build::root;

/// The fuzz targets of `tests/fuzz`.
const TARGETS: [&str; 5] = ["safetensors", "gguf", "gguf_tokenizer", "tokenizer_json", "chat_template"];

/// Which targets to run, and for how long.
#[derive(Debug, Args)]
pub(crate) struct FuzzArgs {
    /// Targets to run [default: all]
    #[arg(value_parser = clap::builder::PossibleValuesParser::new(TARGETS))]
    targets: Vec<String>,
    /// Seconds per target
    #[arg(long, default_value_t = 600)]
    seconds: u32,
}

/// Creates the corpus, then runs the targets one after the other.
pub(crate) fn run(args: &FuzzArgs) -> Result<()> {
    let fuzz = root().join("tests/fuzz");
    let out = root().join("target/fuzz");
    let corpus = out.join("corpus");
    fs::create_dir_all(&corpus).with_context(|| format!("cannot write {}", corpus.display()))?;
    let mut make = nightly(&out);
    make.args(["run", "--release", "--bin", "corpus", "--manifest-path"]).arg(fuzz.join("Cargo.toml"));
    done(make.arg("--").arg(root().join("tests/golden")).arg(&corpus), "making the corpus")?;
    let targets: Vec<&str> = match args.targets.is_empty() {
        true => TARGETS.to_vec(),
        false => args.targets.iter().map(String::as_str).collect(),
    };
    for target in targets {
        let mut command = nightly(&out);
        command.current_dir(&fuzz).args(["fuzz", "run", "--fuzz-dir", ".", target]);
        command.arg(corpus.join(target)).arg("--");
        // A case may take 1 GB of memory and ten seconds; anything above is a finding.
        command.arg(format!("-max_total_time={}", args.seconds));
        command.args(["-print_final_stats=1", "-rss_limit_mb=2048", "-malloc_limit_mb=1024", "-timeout=10"]);
        done(&mut command, target)?;
    }
    Ok(())
}

fn nightly(out: &Path) -> Command {
    let mut command = Command::new("cargo");
    command.arg("+nightly").env("CARGO_TARGET_DIR", out.join("target"));
    command
}

fn done(command: &mut Command, what: &str) -> Result<()> {
    let status = command.status().context("cargo cannot be run")?;
    if !status.success() {
        bail!(
            "{what} failed ({status}); fuzzing needs a nightly Rust (rustup toolchain install nightly) and \
             cargo-fuzz (cargo install cargo-fuzz)"
        );
    }
    Ok(())
}
