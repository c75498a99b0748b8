//! The `moi` binary: parses, picks a backend at run time, prints.

mod args;
mod backend;
mod bench;
mod convert;
mod devices;
mod doctor;
mod file;
mod generate;
mod inspect;
mod logits;
mod model;
mod models;
mod output;
mod prompt;
mod warmup;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use args::{Args, Command};

/// What a shell gives to a process that was interrupted.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    // SAFETY: nothing else has run.
    unsafe { moi_backends::quiet_drivers() };
    let done = match Args::parse().command {
        Command::Generate(args) => generate::run(*args),
        Command::Logits(args) => logits::run(&args).map(|()| Ended::Normally),
        Command::Inspect(args) => inspect::run(&args).map(|()| Ended::Normally),
        Command::Convert(args) => convert::run(&args).map(|()| Ended::Normally),
        Command::Models(args) => models::run(&args).map(|()| Ended::Normally),
        Command::Devices(args) => devices::run(&args).map(|()| Ended::Normally),
        Command::Doctor(args) => doctor::run(&args),
        Command::Warmup(args) => warmup::run(&args).map(|()| Ended::Normally),
        Command::Bench(args) => bench::run(&args),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Args::command(), "moi", &mut script);
            output::print_bytes(&script).map(|()| Ended::Normally)
        }
    };
    match done {
        Ok(Ended::Normally) => ExitCode::SUCCESS,
        Ok(Ended::Unwell) => ExitCode::FAILURE,
        Ok(Ended::Interrupted) => ExitCode::from(INTERRUPTED),
        // Nobody reads on: a pipe into `head` is no failure worth a word.
        Err(error) if output::is_broken_pipe(&error) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("moi: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// How a command that did not fail came to its end.
enum Ended {
    Normally,
    /// With a report of something that is wrong.
    Unwell,
    /// By Ctrl-C.
    Interrupted,
}
