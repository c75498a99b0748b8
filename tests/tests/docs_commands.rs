//! Runs every `moi` command that the documentation shows, with the changes in `tables.rs`.
//!
//! The commands of a page run in order and in one directory, as a reader would run them, so that later commands find
//! the files of earlier ones. A `cargo xtask ...` must be an existing task. A `cargo check ...` and a run of the apps
//! in examples/ must be a step of ci.yml or .ci/run.

#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure must end the test")]

#[path = "docs_commands/tables.rs"]
mod tables;

use std::{
    collections::BTreeSet,
    env,
    fs::{self, File},
    iter, mem,
    os::unix::fs::symlink,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use moi_tests::{
    bytes,
    process::{binary, has_feature},
    real::model_file,
    server::{TEST_TIMEOUT, TestServer},
};
use tables::{CHANGES, ENVIRONMENT, FILES, Made, NEEDS, NOT_RUN, PROGRAMS};
use tempfile::TempDir;

/// The default address of a server.
const ADDRESS: &str = "127.0.0.1:8080";

/// Reads a file of the repository.
fn read(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The README and the pages of the book; a test in `docs.rs` checks that the summary lists all pages.
fn pages() -> Vec<String> {
    let summary = read("docs/SUMMARY.md");
    let links = summary.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
    let book = links.map(|(link, _)| format!("docs/{link}"));
    ["README.md", "models/README.md"].map(str::to_owned).into_iter().chain(book).collect()
}

/// The commands of a page in order: those in code blocks, and those in the text.
fn shown(page: &str) -> Vec<String> {
    let page = page.replace("\\\n", " ");
    let (mut found, mut prose, mut language) = (Vec::new(), String::new(), None);
    for line in page.lines() {
        match (line.trim_start().strip_prefix("```"), language) {
            (Some(begun), None) => {
                found.extend(in_text(&mem::take(&mut prose)));
                language = Some(begun.trim());
            }
            (Some(_), Some(_)) => language = None,
            (None, Some(language)) => found.extend(in_block(language, line)),
            (None, None) => {
                prose.push_str(line);
                prose.push(' ');
            }
        }
    }
    found.extend(in_text(&prose));
    found
}

/// The command on a line of a code block, without its prompt and its comment. In a block that also shows output,
/// commands begin with a prompt, or with `moi` or `cargo`.
fn in_block(language: &str, line: &str) -> Option<String> {
    let line = line.trim();
    let line = match (language, line.strip_prefix("$ ")) {
        ("sh" | "bash" | "console" | "text" | "", Some(line)) => line,
        ("sh" | "bash", None) => line,
        ("console" | "", None) if line.starts_with("moi ") || line.starts_with("cargo run ") => line,
        ("console" | "text" | "", None) if line.starts_with("cargo xtask ") => line,
        _ => return None,
    };
    let line = line.split("  #").next().unwrap_or_default().trim();
    if line.is_empty() || line.starts_with('#') {
        return None;
    }
    // The same command with the built binary.
    let of_cargo = line.strip_prefix("cargo run --release -- ");
    Some(of_cargo.map_or_else(|| line.to_owned(), |rest| format!("moi {rest}")))
}

/// Our commands between backticks. A command without arguments becomes a call of its help, so it must exist.
fn in_text(prose: &str) -> Vec<String> {
    let spans = prose.split('`').skip(1).step_by(2);
    let ours = spans.filter(|span| span.starts_with("moi ") || span.starts_with("cargo xtask "));
    let whole = |span: &str| match span.starts_with("moi ") && span.split_whitespace().count() == 2 {
        true => format!("{span} --help"),
        false => span.to_owned(),
    };
    ours.map(whole).collect()
}

/// The word after the first `moi`.
fn command_of(line: &str) -> Option<&str> {
    line.split_whitespace().skip_while(|&word| word != "moi").nth(1)
}

fn asks_for_help(line: &str) -> bool {
    line.ends_with("--help")
}

fn serves(line: &str) -> bool {
    command_of(line) == Some("serve") && !asks_for_help(line)
}

fn is_installed(program: &str) -> bool {
    let found =
        Command::new("sh").args(["-c", &format!("command -v {program}")]).stdout(Stdio::null()).status();
    found.unwrap().success()
}

/// The tasks that `cargo xtask --help` lists, parsed from the source.
fn tasks() -> BTreeSet<String> {
    let source = read("xtask/src/main.rs");
    let (_, rest) = source.split_once("\nenum Task {\n").unwrap();
    let (variants, _) = rest.split_once("\n}\n").unwrap();
    let (mut tasks, mut is_hidden) = (BTreeSet::new(), false);
    for line in variants.lines().filter_map(|line| line.strip_prefix("    ")) {
        if line.starts_with("#[") {
            is_hidden = line.contains("hide = true");
        } else if line.starts_with(char::is_uppercase) {
            let name = line.split(|c: char| !c.is_alphanumeric()).next().unwrap();
            if !mem::take(&mut is_hidden) {
                tasks.insert(in_kebab_case(name));
            }
        }
    }
    tasks
}

fn in_kebab_case(name: &str) -> String {
    let mut text = String::new();
    for (at, letter) in name.chars().enumerate() {
        if at > 0 && letter.is_uppercase() {
            text.push('-');
        }
        text.push(letter.to_ascii_lowercase());
    }
    text
}

/// The end of a program's output.
fn tail(path: &Path) -> String {
    const LETTERS: usize = 1500;
    let bytes = fs::read(path).unwrap();
    let text = String::from_utf8_lossy(&bytes);
    let all = text.chars().count();
    text.chars().skip(all.saturating_sub(LETTERS)).collect()
}

/// The state of a run through the documentation.
struct Runs {
    /// A directory with `moi` and the settings of curl.
    home: TempDir,
    /// The model that stands for all models except the default one.
    model: TempDir,
    tasks: BTreeSet<String>,
    /// The CI scripts, with single spaces.
    ci: String,
    /// The entries of the tables that were needed.
    used: BTreeSet<&'static str>,
    wrong: Vec<String>,
    count: usize,
}

impl Runs {
    fn new() -> Self {
        // Download the model first: nothing may be downloaded from here on.
        model_file("smollm2-135m-instruct");
        let home = tempfile::tempdir().unwrap();
        symlink(fs::canonicalize(binary()).unwrap(), home.path().join("moi")).unwrap();
        // A request with an error status must fail.
        fs::write(home.path().join(".curlrc"), "fail-with-body\nsilent\nshow-error\n").unwrap();
        let ci = [read(".github/workflows/ci.yml"), read(".ci/run")].concat();
        Self {
            home,
            model: bytes::model("llama", &[], None),
            tasks: tasks(),
            ci: ci.split_whitespace().collect::<Vec<_>>().join(" "),
            used: BTreeSet::new(),
            wrong: Vec::new(),
            count: 0,
        }
    }

    /// Runs the commands of a page.
    fn page(&mut self, page: &str) {
        let directory = tempfile::tempdir().unwrap();
        let mut servers: Vec<TestServer> = Vec::new();
        for found in shown(&read(page)) {
            if self.is_left_out(page, &found) {
                continue;
            }
            let mut line = self.changed(&found);
            self.prepare(&line, directory.path());
            if let Some(server) = servers.first() {
                line = line.replace(ADDRESS, &server.address.to_string());
            }
            println!("{page}: {line}");
            self.count += 1;
            if serves(&line) {
                // `start_as` appends arguments to the line, which the shell ignores.
                let command = self.shell(&format!("exec {line}"), directory.path());
                servers.push(TestServer::start_as(command, &[]));
            } else if let Err(why) = self.ends_well(&line, directory.path()) {
                self.wrong.push(format!("{page}: {found}\nwas run as: {line}\n{why}"));
            }
        }
        for server in servers {
            assert_eq!(server.stop(), Some(0), "{page}: a server did not end well");
        }
    }

    /// Whether a line is not run here. Lines that can be checked in another way are checked.
    fn is_left_out(&mut self, page: &str, line: &str) -> bool {
        if let Some(&(known, why)) = NOT_RUN.iter().find(|(known, _)| *known == line) {
            println!("{page}: {line} is not run: {why}");
            self.used.insert(known);
            return true;
        }
        for &program in
            PROGRAMS.iter().filter(|program| line.split_whitespace().any(|word| word == **program))
        {
            self.used.insert(program);
            if !is_installed(program) {
                assert!(env::var_os("CI").is_none(), "{program} is needed where CI is set");
                println!("{page}: {line} is not run: there is no {program}");
                return true;
            }
        }
        let task = line.strip_prefix("cargo xtask ").and_then(|rest| rest.split_whitespace().next());
        if let Some(task) = task {
            if !self.tasks.contains(task) {
                self.wrong.push(format!("{page}: {line}\nthere is no such task, but {:?}", self.tasks));
            }
            return true;
        }
        let of_ci = ["cargo check ", "cargo run --release --manifest-path "];
        let Some(at) = of_ci.iter().find_map(|start| line.find(start)) else { return false };
        // The arguments of a program may differ in CI.
        let command = line[at..].split(" -- ").next().unwrap_or_default();
        if !self.ci.contains(command) {
            self.wrong.push(format!("{page}: {line}\nneither ci.yml nor .ci/run runs it"));
        }
        true
    }

    /// The line with the changes of the tables.
    fn changed(&mut self, line: &str) -> String {
        let mut line = line.to_owned();
        for &(part, instead) in CHANGES {
            if line.contains(part) {
                self.used.insert(part);
                line = line.replace(part, instead);
            }
        }
        line
    }

    /// Creates the files that a line names.
    fn prepare(&mut self, line: &str, directory: &Path) {
        for (name, made) in FILES.iter().filter(|(name, _)| line.contains(name)) {
            self.used.insert(name);
            let path = directory.join(name);
            if path.exists() {
                continue;
            }
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            match made {
                Made::Text(text) => fs::write(path, text).unwrap(),
                Made::Model => symlink(self.model.path(), path).unwrap(),
            }
        }
    }

    /// A shell command for a line, in which `moi` is the tested binary. A pipe fails if any of its commands fails.
    fn shell(&mut self, line: &str, directory: &Path) -> Command {
        let others = env::var_os("PATH").unwrap_or_default();
        let places = iter::once(self.home.path().to_owned()).chain(env::split_paths(&others));
        let mut command = Command::new("bash");
        command.args(["-o", "pipefail", "-c", line]).current_dir(directory).stdin(Stdio::null());
        command.env("PATH", env::join_paths(places).unwrap()).env("CURL_HOME", self.home.path());
        command.env("HF_HUB_OFFLINE", "1");
        for &(commands, variable, value) in ENVIRONMENT {
            let is_meant = commands.split(' ').any(|name| command_of(line) == Some(name));
            if is_meant && !asks_for_help(line) {
                self.used.insert(variable);
                command.env(variable, value);
            }
        }
        command
    }

    /// Runs a line until it ends.
    ///
    /// # Errors
    /// If it does not end as expected; the text says how it ended.
    fn ends_well(&mut self, line: &str, directory: &Path) -> Result<(), String> {
        let [stdout, stderr] = ["stdout", "stderr"].map(|name| self.home.path().join(name));
        let mut command = self.shell(line, directory);
        command.stdout(File::create(&stdout).unwrap()).stderr(File::create(&stderr).unwrap());
        let begun = Instant::now();
        let mut child = command.spawn().unwrap();
        let code = loop {
            match child.try_wait().unwrap() {
                Some(status) => break status.code(),
                None if begun.elapsed() > TEST_TIMEOUT => {
                    child.kill().unwrap();
                    child.wait().unwrap();
                    break None;
                }
                None => thread::sleep(Duration::from_millis(5)),
            }
        };
        let (stdout, stderr) = (tail(&stdout), tail(&stderr));
        let mut expected = 0;
        let mut must_say = String::new();
        for &(part, feature) in NEEDS.iter().filter(|(part, _)| line.contains(part)) {
            self.used.insert(part);
            if !has_feature(feature) {
                expected = 1;
                must_say = format!("--features {feature}");
            }
        }
        match code == Some(expected) && stderr.contains(&must_say) {
            true => Ok(()),
            false => Err(format!(
                "ended with {code:?} instead of {expected} {must_say} after {:.1} s; stdout:\n{stdout}\nstderr:\n{stderr}",
                begun.elapsed().as_secs_f64()
            )),
        }
    }

    /// The entries of the tables that no line needed.
    fn stale(&self) -> Vec<&'static str> {
        let mut all: Vec<&str> = PROGRAMS.to_vec();
        all.extend([CHANGES, NEEDS, NOT_RUN].concat().into_iter().map(|(key, _)| key));
        all.extend(FILES.iter().map(|(name, _)| *name));
        all.extend(ENVIRONMENT.iter().map(|(_, variable, _)| *variable));
        all.into_iter().filter(|key| !self.used.contains(key)).collect()
    }
}

#[test]
fn every_command_that_is_shown_runs() {
    let mut runs = Runs::new();
    for page in pages() {
        runs.page(&page);
    }
    assert!(runs.wrong.is_empty(), "{} commands are wrong:\n\n{}", runs.wrong.len(), runs.wrong.join("\n\n"));
    let stale = runs.stale();
    assert!(stale.is_empty(), "nothing that is shown needs these entries of tables.rs: {stale:#?}");
    assert!(runs.count > 60, "{} commands were found", runs.count);
}

#[test]
fn commands_are_found_in_blocks_and_in_text() {
    let page = "See `moi rules`, `moi man DIR` and `token`.\n\n```sh\n# A comment.\nmoi chat   # talks\n\
                curl A \\\n  -d '{}'\ncargo run --release -- models\n```\n`cargo xtask\ntest`\n\n\
                ```text\n$ moi devices\nmoi 24\ncargo xtask soak\n```\n```rust\nlet moi = 1;\n```\n```\nmoi doctor\nfine\n```\n";
    let found = [
        "moi rules --help",
        "moi man DIR",
        "moi chat",
        "curl A    -d '{}'",
        "moi models",
        "cargo xtask test",
        "moi devices",
        "cargo xtask soak",
        "moi doctor",
    ];
    assert_eq!(shown(page), found);
}

#[test]
fn tasks_are_those_of_the_help() {
    let tasks = tasks();
    for name in ["fetch", "gpu-report", "serve-check", "test"] {
        assert!(tasks.contains(name), "{tasks:?} have no {name}");
    }
    assert!(!tasks.contains("spin"), "it is hidden");
}
