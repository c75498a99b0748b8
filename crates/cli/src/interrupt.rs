//! Ctrl-C, and what a system sends to end a process (SIGTERM, SIGHUP): noticed between two tokens, so that what was
//! generated is kept, and the terminal left as it was found.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use anyhow::Result;

use crate::{INTERRUPTED, signals, ui};

/// Whether the process shall end.
#[derive(Clone, Debug)]
pub(crate) struct Interrupt(Arc<State>);

#[derive(Debug)]
struct State {
    seen: AtomicBool,
    /// Whether there may be something to keep, and a loop that looks whether it shall end.
    begun: AtomicBool,
    /// Whether a line is being read from the terminal, which nothing but a key ends.
    reads: AtomicBool,
    terminal: Terminal,
}

impl Interrupt {
    /// From here on a signal ends the process at once, tidily, and from [`Interrupt::begin`] on the first is noticed; a
    /// second one before [`Interrupt::clear`], or one while a line is read, ends at once.
    ///
    /// # Errors
    /// If the system refuses.
    pub(crate) fn install() -> Result<Self> {
        let state = Arc::new(State {
            seen: AtomicBool::new(false),
            begun: AtomicBool::new(false),
            reads: AtomicBool::new(false),
            terminal: Terminal::now(),
        });
        let own = state.clone();
        signals::on_end(move || {
            let again = own.seen.swap(true, Ordering::Relaxed);
            if !own.begun.load(Ordering::Relaxed) {
                ui::end_bars();
                own.terminal.restore(false);
                signals::exit_at_once(INTERRUPTED);
            }
            if again || own.reads.load(Ordering::Relaxed) {
                own.terminal.restore(true);
                std::process::exit(INTERRUPTED.into());
            }
        })?;
        Ok(Self(state))
    }

    /// From here on the process ends by itself when it is told to.
    pub(crate) fn begin(&self) {
        self.0.begun.store(true, Ordering::Relaxed);
    }

    /// Whether there was one.
    pub(crate) fn is_set(&self) -> bool {
        self.0.seen.load(Ordering::Relaxed)
    }

    /// Forgets it.
    pub(crate) fn clear(&self) {
        self.0.seen.store(false, Ordering::Relaxed);
    }

    /// Reads a line from the terminal.
    pub(crate) fn while_reading<T>(&self, read: impl FnOnce() -> T) -> T {
        self.0.reads.store(true, Ordering::Relaxed);
        let line = read();
        self.0.reads.store(false, Ordering::Relaxed);
        line
    }
}

/// How the terminal was set: an editor of lines takes its keys one by one.
#[derive(Debug)]
struct Terminal {
    #[cfg(unix)]
    mode: Option<rustix::termios::Termios>,
}

#[cfg(unix)]
impl Terminal {
    fn now() -> Self {
        // None where stdin is no terminal.
        Self { mode: rustix::termios::tcgetattr(std::io::stdin()).ok() }
    }

    /// As it was; `is_amid`, whether the cursor stands behind a text that is to be kept.
    fn restore(&self, is_amid: bool) {
        if let Some(mode) = &self.mode {
            // The process ends whether or not that can be done.
            let _ = rustix::termios::tcsetattr(std::io::stdin(), rustix::termios::OptionalActions::Now, mode);
            if is_amid {
                ui::say!("");
            }
        }
    }
}

#[cfg(not(unix))]
impl Terminal {
    fn now() -> Self {
        Self {}
    }

    /// The console's modes end with the process.
    fn restore(&self, _: bool) {}
}
