//! Prints notes and progress to stderr.

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

/// Sets how much is printed.
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

/// Writes a line to stderr, like `eprintln!`, but without a panic if that fails: a full disk behind a log or a closed
/// terminal must not cost the user an answer.
macro_rules! say {
    ($($text:tt)*) => { $crate::ui::line(format_args!($($text)*)) };
}
pub(crate) use say;

/// Writes a line to stderr, see [`say`].
pub(crate) fn line(text: fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Prints a note, unless --quiet is set.
pub(crate) fn note(text: &str) {
    if level() > QUIET {
        say!("moi: {text}");
    }
}

/// Whether --verbose is set.
pub(crate) fn is_verbose() -> bool {
    level() >= VERBOSE
}

/// Prints a detail if --verbose is set.
pub(crate) fn detail(text: &str) {
    if is_verbose() {
        say!("moi: {text}");
    }
}

static ENDS: AtomicBool = AtomicBool::new(false);

/// Whether the process is ending, so that progress bars must no longer be drawn.
pub(crate) fn ends() -> bool {
    ENDS.load(Ordering::Relaxed)
}

/// Removes the current progress bar from the terminal.
pub(crate) fn end_bars() {
    ENDS.store(true, Ordering::Relaxed);
    let terminal = console::Term::stderr();
    if terminal.is_term() {
        // The process ends even if that fails.
        let _ = terminal.clear_line();
    }
}

/// A progress bar or spinner on stderr; hidden if stderr is not a terminal or --quiet is set.
pub(crate) fn progress(total: Option<u64>, template: &str) -> Result<ProgressBar> {
    let target = if level() == QUIET { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
    let bar = ProgressBar::with_draw_target(total, target);
    Ok(bar.with_style(ProgressStyle::with_template(template)?))
}
