//! The `moi` binary: parses the arguments, chooses a backend at run time, and prints.

#![warn(clippy::print_stderr)]

mod args;
mod backend;
mod bench;
mod chat;
mod command_line;
mod compare;
mod config;
mod convert;
mod decoding;
mod devices;
mod doctor;
mod draft_model;
mod draft_table;
mod eval;
mod file;
mod generate;
mod inspect;
mod interrupt;
mod likely;
mod logits;
mod memory;
mod model;
mod models;
mod output;
mod pass_costs;
mod plots;
mod prompt;
mod rules;
mod runner;
mod runs;
mod score;
#[cfg(feature = "serve")]
mod serve;
#[cfg(feature = "serve")]
mod service;
mod show_config;
mod signals;
mod ui;
mod version;
mod warmup;

use std::{panic, process::ExitCode};

use anyhow::Context;

use args::{Args, Command};

/// The allocator mimalloc keeps large blocks. glibc's allocator returns them to the system when they are freed, and
/// each layer of a prompt maps them again page by page, which took a third of the time of a prompt.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The exit code that a shell gives to an interrupted process.
const INTERRUPTED: u8 = 130;

/// Prints panics, except those in libraries that become errors, which would otherwise be printed twice.
fn report_uncaught_panics() {
    let report = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        if !moi_text::catches_panics() && !moi_backends::records_panic(panic) {
            report(panic);
        }
    }));
}

fn main() -> ExitCode {
    report_uncaught_panics();
    // SAFETY: no other thread has started.
    unsafe { moi_backends::quiet_drivers() };
    if version::is_asked(std::env::args_os()) {
        return match output::print_bytes(version::about().as_bytes()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        };
    }
    let ended = command_line::args().and_then(run).and_then(|ended| draft_table::save().map(|()| ended));
    match ended {
        Ok(Ended::Normally) => ExitCode::SUCCESS,
        Ok(Ended::Unwell) => ExitCode::FAILURE,
        Ok(Ended::Interrupted) => ExitCode::from(INTERRUPTED),
        // The reader has closed stdout, as `head` does, which is not worth a message.
        Err(error) if output::is_broken_pipe(&error) => ExitCode::FAILURE,
        Err(error) => {
            ui::say!("moi: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> anyhow::Result<Ended> {
    let Args { command, global } = args;
    ui::set_level(global.quiet, global.verbose);
    let normally = |done: anyhow::Result<()>| done.map(|()| Ended::Normally);
    match command {
        Command::Generate(args) => generate::run(*args),
        Command::Chat(args) => chat::run(*args),
        Command::Compare(args) => compare::run(&args),
        Command::Trace(args) => compare::trace(&args),
        Command::Eval(args) => eval::run(&args),
        Command::Score(args) => normally(score::run(&args)),
        Command::Logits(args) => normally(logits::run(&args)),
        Command::Inspect(args) => normally(inspect::run(&args)),
        Command::Convert(args) => normally(convert::run(&args)),
        Command::Models(args) => normally(models::run(&args)),
        Command::Devices(args) => normally(devices::run(&args)),
        Command::Doctor(args) => doctor::run(&args),
        Command::Warmup(args) => normally(warmup::run(&args)),
        Command::Bench(args) => bench::run(&args),
        #[cfg(feature = "serve")]
        Command::Serve(args) => serve::run(*args),
        Command::Rules(args) => normally(rules::run(&args)),
        Command::Config(args) => normally(show_config::run(&args, &global)),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut args::command(), "moi", &mut script);
            normally(output::print_bytes(&script))
        }
        Command::Man { directory } => normally(man(&directory)),
    }
}

/// Writes the manual pages `moi.1`, `moi-generate.1` and so on.
fn man(directory: &std::path::Path) -> anyhow::Result<()> {
    let cannot = || format!("cannot write manual pages into {}", directory.display());
    std::fs::create_dir_all(directory).with_context(cannot)?;
    clap_mangen::generate_to(args::command(), directory).with_context(cannot)
}

/// How a command without an error ended.
enum Ended {
    Normally,
    /// The command reported that something is wrong.
    Unwell,
    /// Ctrl-C ended the command.
    Interrupted,
}
