//! The arguments of the process: those of the command line, and those from the environment and `moi.toml`.

use std::{
    env,
    ffi::OsString,
    fmt,
    io::{self, Write},
};

use anyhow::{Context, Result, bail};
use clap::FromArgMatches;

use crate::{
    args::{self, Args},
    config::{Config, Setting},
    ui,
};

/// The arguments of this process, including those from the environment and the configuration file. If clap refuses an
/// argument, the process ends with clap's message.
///
/// # Errors
/// If the configuration file cannot be used.
pub(crate) fn args() -> Result<Args> {
    parsed().or_else(|error| match error.downcast_ref::<clap::Error>() {
        Some(refused) => {
            if let Some(Added(sources)) = error.downcast_ref() {
                ui::say!("moi: {sources}");
            }
            leave(refused)
        }
        None => Err(error),
    })
}

/// Whether a configuration file was named, by a flag or by the environment.
#[cfg(feature = "serve")]
pub(crate) fn is_named() -> bool {
    let by_flag = env::args_os()
        .any(|word| word.to_str().is_some_and(|word| word.split('=').next() == Some("--config")));
    by_flag || env::var_os("MOI_CONFIG").is_some_and(|path| !path.is_empty())
}

/// Describes the flags that come from the environment or the configuration file.
#[derive(Debug)]
struct Added(String);

impl fmt::Display for Added {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The arguments as of now; the configuration file may have changed since the process started.
///
/// # Errors
/// If the configuration file cannot be used, or clap refuses a flag. The error is also clap's if help was requested.
pub(crate) fn parsed() -> Result<Args> {
    let argv: Vec<OsString> = env::args_os().collect();
    let mut command = args::command();
    // Build the command first, so that subcommands have the global flags and clap knows the conflicts.
    command.build();
    let matches = command.clone().try_get_matches_from(&argv)?;
    let Some((name, given)) = matches.subcommand() else { return Ok(Args::from_arg_matches(&matches)?) };
    let Some(subcommand) = command.find_subcommand(name) else { bail!("there is no command `{name}`") };
    let config = Config::read(&command, &matches)?;
    let added = config.settings(subcommand, given)?;
    let at = place(&argv, name);
    let words: Vec<OsString> = added.iter().filter_map(Setting::word).collect();
    let whole = argv[..at].iter().cloned().chain(words.iter().cloned()).chain(argv[at..].iter().cloned());
    let parsed = command.try_get_matches_from(whole).and_then(|matches| Args::from_arg_matches(&matches));
    if words.is_empty() {
        return Ok(parsed?);
    }
    parsed.map_err(anyhow::Error::from).with_context(|| {
        let words = words.iter().map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>();
        let sources = match &config.path {
            Some(path) => format!("{} and the environment", path.display()),
            None => "the environment".to_owned(),
        };
        Added(format!("the flags {} come from {sources}", words.join(" ")))
    })
}

/// Ends the process with clap's message: the help, or what is wrong with a flag.
fn leave(error: &clap::Error) -> ! {
    let printed = error.print().and_then(|()| io::stdout().flush());
    std::process::exit(match printed {
        Err(cannot) if !error.use_stderr() => {
            if cannot.kind() != io::ErrorKind::BrokenPipe {
                ui::say!("moi: cannot write to stdout: {cannot}");
            }
            1
        }
        _ => error.exit_code(),
    })
}

/// The index after the command's name, where its flags may be inserted. The name may occur earlier as the value of a
/// global flag.
fn place(argv: &[OsString], name: &str) -> usize {
    let mut at = 1;
    while let Some(word) = argv.get(at) {
        if word == name {
            return at + 1;
        }
        at += if GLOBAL_WITH_VALUE.iter().any(|flag| word == flag) { 2 } else { 1 };
    }
    argv.len()
}

/// Global flags that take a value.
const GLOBAL_WITH_VALUE: &[&str] = &["--config", "--preset"];
