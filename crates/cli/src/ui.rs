//! What is said beside the answer: notes and progress.

use std::sync::atomic::{AtomicU8, Ordering};

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

/// Says something worth knowing, unless all shall be quiet.
pub(crate) fn note(text: &str) {
    if level() > QUIET {
        eprintln!("moi: {text}");
    }
}

/// Says a detail, where these are wanted.
pub(crate) fn detail(text: &str) {
    if level() >= VERBOSE {
        eprintln!("moi: {text}");
    }
}

/// A bar or spinner on stderr; nothing where that is no terminal, or all shall be quiet.
pub(crate) fn progress(total: Option<u64>, template: &str) -> Result<ProgressBar> {
    let target = if level() == QUIET { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
    let bar = ProgressBar::with_draw_target(total, target);
    Ok(bar.with_style(ProgressStyle::with_template(template)?))
}
