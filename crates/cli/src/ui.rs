//! What is said beside the answer: notes and progress.

use std::{
    fmt,
    io::Write,
    sync::atomic::{AtomicBool, AtomicU8, Ordering},
};

use anyhow::Result;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

static LEVEL: AtomicU8 = AtomicU8::new(NORMAL);
const QUIET: u8 = 0;
const NORMAL: u8 = 1;
const VERBOSE: u8 = 2;

/// How much is said.
pub(crate) fn set_level(quiet: bool, verbose: bool) {
    LEVEL.store(
        if quiet {
            QUIET
        } else if verbose {
            VERBOSE
        } else {
            NORMAL
        },
        Ordering::Relaxed,
    );
}

fn level() -> u8 {
    LEVEL.load(Ordering::Relaxed)
}

/// Writes a line to stderr as `eprintln!` does, but for its panic where that cannot be written: a full disk under a log
/// or a closed terminal is no reason to lose an answer.
macro_rules! say {
    ($($text:tt)*) => { $crate::ui::line(format_args!($($text)*)) };
}
pub(crate) use say;

/// See [`say`].
pub(crate) fn line(text: fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Says something worth knowing, unless all shall be quiet.
pub(crate) fn note(text: &str) {
    if level() > QUIET {
        say!("moi: {text}");
    }
}

/// Whether details are wanted.
pub(crate) fn is_verbose() -> bool {
    level() >= VERBOSE
}

/// Says a detail, where these are wanted.
pub(crate) fn detail(text: &str) {
    if is_verbose() {
        say!("moi: {text}");
    }
}

static ENDS: AtomicBool = AtomicBool::new(false);

/// Whether the process ends, and bars are not to be drawn any more.
pub(crate) fn ends() -> bool {
    ENDS.load(Ordering::Relaxed)
}

/// Takes a bar off the terminal, whoever has drawn it.
pub(crate) fn end_bars() {
    ENDS.store(true, Ordering::Relaxed);
    let terminal = console::Term::stderr();
    if terminal.is_term() {
        // The process ends whether or not that can be done.
        let _ = terminal.clear_line();
    }
}

/// A bar or spinner on stderr; nothing where that is no terminal, or all shall be quiet.
pub(crate) fn progress(total: Option<u64>, template: &str) -> Result<ProgressBar> {
    let target = if level() == QUIET { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
    let bar = ProgressBar::with_draw_target(total, target);
    Ok(bar.with_style(ProgressStyle::with_template(template)?))
}
