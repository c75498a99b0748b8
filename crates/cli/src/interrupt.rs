//! Handles Ctrl-C and the signals SIGTERM and SIGHUP. Commands check for them between two tokens, keep the text so
//! far, and restore the terminal.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use anyhow::Result;

use crate::{INTERRUPTED, signals, ui};

/// Whether the process was asked to end.
#[derive(Clone, Debug)]
pub(crate) struct Interrupt(Arc<State>);

#[derive(Debug)]
struct State {
    seen: AtomicBool,
    /// Whether a loop is running that checks for signals, and that may have text to keep.
    begun: AtomicBool,
    /// Whether the process waits for a line from the terminal, which only a key press can end.
    reads: AtomicBool,
    terminal: Terminal,
}

impl Interrupt {
    /// Installs the signal handler. Until [`Interrupt::begin`], a signal ends the process at once and restores the
    /// terminal. After it, the first signal only sets a flag. A second signal before [`Interrupt::clear`], or a
    /// signal while a line is read, ends the process at once.
    ///
    /// # Errors
    /// If the system refuses the handler.
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

    /// From now on, the first signal only sets the flag, and the caller has to check it.
    pub(crate) fn begin(&self) {
        self.0.begun.store(true, Ordering::Relaxed);
    }

    /// Whether a signal has arrived.
    pub(crate) fn is_set(&self) -> bool {
        self.0.seen.load(Ordering::Relaxed)
    }

    /// Clears the flag.
    pub(crate) fn clear(&self) {
        self.0.seen.store(false, Ordering::Relaxed);
    }

    /// Reads a line from the terminal; a signal meanwhile ends the process.
    pub(crate) fn while_reading<T>(&self, read: impl FnOnce() -> T) -> T {
        self.0.reads.store(true, Ordering::Relaxed);
        let line = read();
        self.0.reads.store(false, Ordering::Relaxed);
        line
    }
}

/// The mode of the terminal at the start. A line editor changes it to read single keys.
#[derive(Debug)]
struct Terminal {
    #[cfg(unix)]
    mode: Option<rustix::termios::Termios>,
}

#[cfg(unix)]
impl Terminal {
    fn now() -> Self {
        // `None` if stdin is not a terminal.
        Self { mode: rustix::termios::tcgetattr(std::io::stdin()).ok() }
    }

    /// Restores the mode. `is_amid` is whether the cursor stands after text that should be kept, so that a new line
    /// is needed.
    fn restore(&self, is_amid: bool) {
        if let Some(mode) = &self.mode {
            // The process ends even if that fails.
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

    /// The console resets its modes when the process ends.
    fn restore(&self, _: bool) {}
}
