//! `cargo xtask serve-check`: runs third-party clients against the binary, see tests/clients.

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

/// The arguments of `cargo xtask serve-check`.
#[derive(Debug, clap::Args)]
pub(crate) struct ServeCheckArgs {
    /// Checks to run [default: all]
    names: Vec<String>,
    /// Run only the quick checks, in their short forms
    #[arg(long)]
    short: bool,
    /// Server to check: moi, or another one on the default model's file for comparison
    #[arg(long, value_enum, value_name = "NAME", default_value_t = Server::Moi)]
    server: Server,
    /// Binary to check [default: build it]
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Run inside a separate network namespace already
    #[arg(long, hide = true)]
    inside: bool,
}

/// The server that the clients are run against.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Server {
    Moi,
    LlamaServer,
}

/// A check.
struct Check {
    name: &'static str,
    /// The script in tests/clients.
    script: &'static str,
    /// Whether `--short` includes this check.
    is_short: bool,
    /// Largest number of tokens in an answer.
    max_tokens: &'static str,
    /// Whether every server with OpenAI's API should pass this check.
    is_common: bool,
}

const fn check(name: &'static str, script: &'static str) -> Check {
    Check { name, script, is_short: false, max_tokens: "200", is_common: true }
}

const fn short(name: &'static str, script: &'static str) -> Check {
    Check { is_short: true, ..check(name, script) }
}

/// A check that starts its own servers, or that is about moi's chat page.
const fn own(check: Check) -> Check {
    Check { is_common: false, ..check }
}

const CHECKS: &[Check] = &[
    short("openai", "openai_python.py"),
    short("lm-eval", "lm_eval_harness.py"),
    own(short("schemathesis", "schema.py")),
    own(Check { max_tokens: "4000", ..short("page", "chat_page.py") }),
    own(short("page-store", "page_store.py")),
    own(short("cross-origin", "cross_origin.py")),
    check("anthropic", "anthropic_python.py"),
    check("litellm", "litellm_library.py"),
    check("instructor", "instructor_library.py"),
    check("pydantic-ai", "pydantic_ai_agent.py"),
    check("llm", "llm_shell.py"),
    check("openai-node", "node/openai_node.mjs"),
    check("anthropic-node", "node/anthropic_node.mjs"),
    check("ai-sdk", "node/ai_sdk.mjs"),
    own(short("soak", "soak.py")),
    own(check("operations", "operations.py")),
    own(check("replicas", "replicas.py")),
    own(check("ray", "ray_replicas.py")),
];

impl Check {
    fn is_node(&self) -> bool {
        self.script.ends_with(".mjs")
    }
}

/// The requested checks.
fn asked(args: &ServeCheckArgs) -> Vec<&'static Check> {
    let is_asked = |check: &&Check| match args.names.is_empty() {
        true => (check.is_short || !args.short) && (check.is_common || args.server == Server::Moi),
        false => args.names.iter().any(|name| name == check.name),
    };
    CHECKS.iter().filter(is_asked).collect()
}

/// Prepares the environments, then runs the checks in a network without access to other machines.
pub(crate) fn run(args: &ServeCheckArgs) -> Result<()> {
    let names: Vec<&str> = CHECKS.iter().map(|check| check.name).collect();
    if let Some(unknown) = args.names.iter().find(|name| !names.contains(&name.as_str())) {
        bail!("there is no check `{unknown}`, but {}", names.join(", "));
    }
    if args.inside {
        return checks(args);
    }
    // Get the path before the build, which may replace this program; Linux then reports a path that does not exist.
    let own = env::current_exe()?;
    fetched(DEFAULT_MODEL, Cache::from_env()?)?;
    let python = environment(args.short && args.server == Server::Moi)?;
    let asked = asked(args);
    let node = match asked.iter().any(|check| check.is_node()) {
        true => Some(node_environment()?),
        false => None,
    };
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
    if args.server == Server::LlamaServer {
        inside.args(["--server", "llama-server"]);
    }
    if let Some(node) = node {
        inside.env("MOI_NODE", node);
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

/// The Python interpreter of an environment in the cache, which is created at first use.
fn environment(short: bool) -> Result<PathBuf> {
    /// Number of packages at the beginning of the list that `--short` needs.
    const SHORT: usize = 5;
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

/// A directory with the Node scripts, Node itself and the packages, which is created at first use.
fn node_environment() -> Result<PathBuf> {
    let own = root().join("tests/clients/node");
    let directory = Cache::from_env()?.kernels().with_file_name("clients-node");
    fs::create_dir_all(&directory)?;
    let list = fs::read_to_string(own.join("package.json"))?;
    let done = directory.join("packages");
    if !fs::read_to_string(&done).is_ok_and(|known| known == list) {
        eprintln!("xtask: installing the packages of {} in {}", own.display(), directory.display());
        fs::write(directory.join("package.json"), &list)?;
        let mut npm = Command::new("npm");
        npm.args(["install", "--no-audit", "--no-fund", "--silent"]).current_dir(&directory);
        let status = npm.status().context("npm cannot be run; install Node")?;
        if !status.success() {
            bail!("npm install failed ({status})");
        }
        fs::write(done, list)?;
    }
    // Node searches packages from the directory of a script upwards.
    for script in CHECKS.iter().filter(|check| check.is_node()) {
        let name = Path::new(script.script).file_name().context("a script has no name")?;
        fs::copy(own.join(name), directory.join(name))?;
    }
    Ok(directory)
}

/// A chat template with function calls, which the default model's own template lacks.
fn template() -> PathBuf {
    root().join("tests/clients/tools.jinja")
}

/// A running server, which is stopped on drop.
struct Serving {
    child: Child,
    url: String,
}

impl Serving {
    /// Starts llama-server with the default model's file and sixteen sequences.
    fn peer(python: &Path) -> Result<Self> {
        let file =
            Cache::from_env()?.path(moi_hub::find(DEFAULT_MODEL).context("there is no default model")?);
        let mut command = Command::new(python);
        command.arg(root().join("tests/clients/llama_server.py")).arg(file);
        let threads = std::thread::available_parallelism()?.to_string();
        command.args(["18080", &threads, "16"]).arg(template()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().context("llama-server cannot be run")?;
        let stdout = child.stdout.take().context("llama-server has no stdout")?;
        let mut serving = Self { child, url: String::new() };
        for line in BufReader::new(stdout).lines() {
            if let Some((_, address)) = line?.split_once("ready: ") {
                let address = address.split_whitespace().next().unwrap_or_default();
                serving.url = format!("http://{}", address.trim_start_matches("http://"));
                return Ok(serving);
            }
        }
        bail!("llama-server has ended")
    }

    fn start(binary: &Path, check: &Check) -> Result<Self> {
        let mut command = Command::new(binary);
        command.args(["serve", "--port", "0", "--rule", "token", "--max-tokens", check.max_tokens]);
        // The default model's own template does not support function calls.
        command.arg("--chat-template").arg(template());
        let mut child = command.stderr(Stdio::piped()).spawn().context("the server cannot be run")?;
        let stderr = child.stderr.take().context("the server has no stderr")?;
        let mut lines = BufReader::new(stderr).lines();
        let mut said = String::new();
        for line in lines.by_ref() {
            let line = line?;
            said += &format!("{line}\n");
            if let Some((_, url)) = line.split_once("ready: ") {
                let url = url.to_owned();
                // Keep reading stderr: its later lines are not needed, but a full pipe would block the server.
                std::thread::spawn(move || lines.for_each(drop));
                return Ok(Self { child, url });
            }
        }
        bail!("the server has ended: {said}")
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // The process may already have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs the checks, and prints one line for each.
fn checks(args: &ServeCheckArgs) -> Result<()> {
    let python = PathBuf::from(env::var_os("MOI_PYTHON").context("MOI_PYTHON is not set")?);
    let binary = args.binary.clone().context("--binary is not given")?;
    let (mut passed, mut failed) = (0, 0);
    for check in asked(args) {
        let serving = match args.server {
            Server::Moi => Serving::start(&binary, check)?,
            Server::LlamaServer => Serving::peer(&python)?,
        };
        let begun = Instant::now();
        let mut command = match check.is_node() {
            true => {
                let directory = PathBuf::from(env::var_os("MOI_NODE").context("MOI_NODE is not set")?);
                let mut node = Command::new(directory.join("node_modules/.bin/node"));
                node.arg(directory.join(Path::new(check.script).file_name().unwrap_or_default()));
                node
            }
            false => {
                let mut command = Command::new(&python);
                command.arg(root().join("tests/clients").join(check.script));
                command
            }
        };
        command.env("MOI_URL", &serving.url).env("MOI_BINARY", &binary).env("NO_PROXY", "*");
        command.env("MOI_MODEL", DEFAULT_MODEL).env("MOI_PID", serving.child.id().to_string());
        if args.short {
            command.env("MOI_SHORT", "1");
        }
        if args.server == Server::LlamaServer {
            command.env("MOI_PEER", "1");
        }
        let out = command.output().with_context(|| format!("{} cannot be run", check.script))?;
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
