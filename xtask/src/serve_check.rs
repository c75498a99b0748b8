//! `cargo xtask serve-check`: clients that others wrote, against the binary. See tests/clients.

use std::{
    env, fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail};
use moi_hub::{Cache, DEFAULT_MODEL};

use crate::{
    build::{executable, root},
    fetched,
};

/// What `cargo xtask serve-check` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct ServeCheckArgs {
    /// The checks; all where none is named
    names: Vec<String>,
    /// Those that take little time, in their short forms
    #[arg(long)]
    short: bool,
    /// The binary, built where not given
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Within a network of its own already
    #[arg(long, hide = true)]
    inside: bool,
}

/// A check: its name, its script, and whether the short form has it.
struct Check {
    name: &'static str,
    script: &'static str,
    is_short: bool,
}

const CHECKS: &[Check] = &[
    Check { name: "openai", script: "openai_python.py", is_short: true },
    Check { name: "lm-eval", script: "lm_eval_harness.py", is_short: true },
    Check { name: "schemathesis", script: "schema.py", is_short: true },
];

/// Sets up what is needed, then runs the checks where nothing but this machine can be reached.
pub(crate) fn run(args: &ServeCheckArgs) -> Result<()> {
    let names: Vec<&str> = CHECKS.iter().map(|check| check.name).collect();
    if let Some(unknown) = args.names.iter().find(|name| !names.contains(&name.as_str())) {
        bail!("there is no check `{unknown}`, but {}", names.join(", "));
    }
    if args.inside {
        return checks(args);
    }
    // Asked for first: the build below may replace this program, and the name it then has on Linux is no file.
    let own = env::current_exe()?;
    fetched(DEFAULT_MODEL, Cache::from_env()?)?;
    let python = environment(args.short)?;
    let binary = match &args.binary {
        Some(binary) => binary.clone(),
        None => {
            let args = ["build", "--release", "--workspace", "--exclude", "moi-gpu", "--bins"];
            executable(&args, "moi")?
        }
    };
    let mut inside = match can_unshare() {
        true => {
            let mut command = Command::new("unshare");
            command.args(["--map-root-user", "--net", "sh", "-c"]);
            command.arg("ip link set lo up && exec \"$0\" \"$@\"").arg(own);
            command
        }
        false => {
            eprintln!(
                "xtask: networks cannot be unshared here: clients could reach others than this machine"
            );
            Command::new(own)
        }
    };
    inside.args(["serve-check", "--inside", "--binary"]).arg(&binary).args(&args.names);
    if args.short {
        inside.arg("--short");
    }
    let status = inside.env("MOI_PYTHON", python).status().context("the checks cannot be run")?;
    if !status.success() {
        bail!("the checks failed ({status})");
    }
    Ok(())
}

fn can_unshare() -> bool {
    let mut test = Command::new("unshare");
    test.args(["--map-root-user", "--net", "sh", "-c", "ip link set lo up"]).stderr(Stdio::null());
    test.status().is_ok_and(|status| status.success())
}

/// The interpreter of a Python environment in the cache, made at first use.
fn environment(short: bool) -> Result<PathBuf> {
    /// Packages that the short form needs, the first of the list.
    const SHORT: usize = 3;
    let list = fs::read_to_string(root().join("tests/clients/requirements.txt"))?;
    let packages = list.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    let packages: Vec<&str> = packages.take(if short { SHORT } else { usize::MAX }).collect();
    let name = if short { "clients-short" } else { "clients" };
    let directory = Cache::from_env()?.kernels().with_file_name(name);
    let (python, done) = (directory.join("bin/python"), directory.join("packages"));
    if fs::read_to_string(&done).is_ok_and(|known| known == packages.join("\n")) {
        return Ok(python);
    }
    eprintln!("xtask: installing {} in {}", packages.join(", "), directory.display());
    let call = |program: &Path, args: &[&str]| -> Result<()> {
        let status = Command::new(program).args(args).status();
        let status = status.with_context(|| format!("{} cannot be run", program.display()))?;
        if !status.success() {
            bail!("{} {} failed ({status})", program.display(), args.join(" "));
        }
        Ok(())
    };
    let path = directory.to_str().context("the cache's name is no text")?;
    call(Path::new("python3"), &["-m", "venv", "--clear", path])?;
    call(
        &python,
        &[&["-m", "pip", "install", "--quiet", "--disable-pip-version-check"], &packages[..]].concat(),
    )?;
    fs::write(done, packages.join("\n"))?;
    Ok(python)
}

/// A server of the binary, which ends with this.
struct Serving {
    child: Child,
    url: String,
}

impl Serving {
    fn start(binary: &Path) -> Result<Self> {
        let mut command = Command::new(binary);
        command.args(["serve", "--port", "0", "--rule", "token", "--max-tokens", "64"]);
        let mut child = command.stderr(Stdio::piped()).spawn().context("the server cannot be run")?;
        let stderr = child.stderr.take().context("the server has no stderr")?;
        let mut lines = BufReader::new(stderr).lines();
        let mut said = String::new();
        for line in lines.by_ref() {
            let line = line?;
            said += &format!("{line}\n");
            if let Some((_, url)) = line.split_once("ready: ") {
                let url = url.to_owned();
                // What it says later is of no use, but a full pipe would stop it.
                std::thread::spawn(move || lines.for_each(drop));
                return Ok(Self { child, url });
            }
        }
        bail!("the server has ended: {said}")
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs the checks, one line for each.
fn checks(args: &ServeCheckArgs) -> Result<()> {
    let python = PathBuf::from(env::var_os("MOI_PYTHON").context("MOI_PYTHON is not set")?);
    let binary = args.binary.clone().context("--binary is not given")?;
    let is_asked = |check: &&Check| match args.names.is_empty() {
        true => check.is_short || !args.short,
        false => args.names.iter().any(|name| name == check.name),
    };
    let (mut passed, mut failed) = (0, 0);
    for check in CHECKS.iter().filter(is_asked) {
        let serving = Serving::start(&binary)?;
        let begun = Instant::now();
        let mut command = Command::new(&python);
        command.arg(root().join("tests/clients").join(check.script));
        command.env("MOI_URL", &serving.url).env("MOI_BINARY", &binary).env("NO_PROXY", "*");
        if args.short {
            command.env("MOI_SHORT", "1");
        }
        let out = command.output().with_context(|| format!("{} cannot be run", python.display()))?;
        let (stdout, stderr) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        let seconds = begun.elapsed().as_secs();
        match out.status.success() {
            true => {
                passed += 1;
                println!(
                    "{}: ok, {seconds} s: {}",
                    check.name,
                    stdout.trim().lines().last().unwrap_or_default()
                );
            }
            false => {
                failed += 1;
                println!("{}: FAILED, {seconds} s\n{stdout}\n{stderr}", check.name);
            }
        }
    }
    println!("{passed} passed, {failed} failed");
    if failed > 0 {
        bail!("{failed} of {} checks failed", passed + failed);
    }
    Ok(())
}
