//! `cargo xtask gpu-report`: runs all checks that need a GPU in one call, if necessary from a prepared directory on a
//! machine without Rust.

mod golden;
mod run;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result};
use moi_hub::{Cache, DEFAULT_MODEL};

use crate::{
    build::{feature, root},
    dist, fetched, parity,
};

/// Models that are decoded end to end.
const MODELS: [&str; 2] = [DEFAULT_MODEL, "gemma-3-270m"];

/// What to check, and where the files come from.
#[derive(Debug, clap::Args)]
pub(crate) struct GpuReportArgs {
    /// Devices to check
    #[arg(long = "device", value_name = "NAME", default_values_t = ["cuda".to_owned(), "vulkan".to_owned()])]
    devices: Vec<String>,
    /// Only collect what the report needs in a directory, including this program
    ///
    /// Copy the directory to the machine with the GPU, and run `DIR/xtask gpu-report --from DIR` there.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["from", "output"])]
    carry: Option<PathBuf>,
    /// With --carry: include the models (350 MB)
    #[arg(long, requires = "carry")]
    with_models: bool,
    /// Run from this prepared directory, without building
    #[arg(long, value_name = "DIR")]
    from: Option<PathBuf>,
    /// Also measure the speed of Qwen2 7B and 32B and of SmolLM2 with random weights, and of transformers
    #[arg(long)]
    bench: bool,
    /// Also write the report to this file
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// The programs and files of the report.
struct Tools {
    moi: PathBuf,
    parity: PathBuf,
    golden: PathBuf,
    /// The script that measures transformers.
    eager: PathBuf,
    /// The cache of models and kernels, unless it is the user's cache.
    cache: Option<PathBuf>,
    /// The start of the checks.
    begun: Instant,
}

impl Tools {
    fn built(devices: &[String]) -> Result<Self> {
        let others = devices.iter().map(|device| feature(device));
        let mut features: Vec<String> = dist::FEATURES.map(String::from).into_iter().chain(others).collect();
        features.sort();
        features.dedup();
        let moi = dist::run(&features)?;
        let parity = parity::build(devices, &[])?;
        let (golden, eager) = (root().join("tests/golden"), root().join("benches/peers/eager.py"));
        Ok(Self { moi, parity, golden, eager, cache: None, begun: Instant::now() })
    }

    fn carried(directory: &Path) -> Self {
        let cache = Some(directory.join("cache")).filter(|cache| cache.is_dir());
        let [moi, parity, golden, eager] =
            ["moi", "parity", "golden", "eager.py"].map(|name| directory.join(name));
        Self { moi, parity, golden, eager, cache, begun: Instant::now() }
    }
}

/// Collects the files, or runs the checks and reports.
pub(crate) fn run(args: &GpuReportArgs) -> Result<()> {
    if let Some(directory) = &args.carry {
        return gather(args, directory);
    }
    let tools = match &args.from {
        Some(directory) => Tools::carried(directory),
        None => {
            for name in MODELS {
                fetched(name, Cache::from_env()?)?;
            }
            Tools::built(&args.devices)?
        }
    };
    let report = run::report(&tools, &args.devices, args.bench);
    print!("{report}");
    if let Some(output) = &args.output {
        fs::write(output, &report).with_context(|| format!("{} cannot be written", output.display()))?;
    }
    Ok(())
}

fn gather(args: &GpuReportArgs, directory: &Path) -> Result<()> {
    let tools = Tools::built(&args.devices)?;
    fs::create_dir_all(directory)?;
    let own = std::env::current_exe()?;
    for (from, name) in
        [(&tools.moi, "moi"), (&tools.parity, "parity"), (&tools.eager, "eager.py"), (&own, "xtask")]
    {
        fs::copy(from, directory.join(name)).with_context(|| format!("{name} cannot be gathered"))?;
    }
    for part in ["tiny", "real"] {
        copy_directory(&tools.golden.join(part), &directory.join("golden").join(part))?;
    }
    if args.with_models {
        for name in MODELS {
            fetched(name, Cache::new(directory.join("cache")))?;
        }
    }
    eprintln!("xtask: carry {0}, and there run {0}/xtask gpu-report --from {0}", directory.display());
    Ok(())
}

fn copy_directory(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        match entry.file_type()?.is_dir() {
            true => copy_directory(&entry.path(), &to)?,
            false => drop(fs::copy(entry.path(), to)?),
        }
    }
    Ok(())
}
