//! Converts panics of the `tokenizers` library into errors. The library builds models from untrusted files and does
//! not check everything in such a file (tokenizers 0.22), so it can panic.
//!
//! No panic hook is set here, because what a panic prints is for the process to decide. A process that does not want
//! to report panics that become errors calls [`catches_panics`] in its own hook.

use std::{
    any::Any,
    cell::Cell,
    panic::{self, AssertUnwindSafe},
};

use moi_files::brief;

use crate::TextError;

thread_local! {
    static CATCHING: Cell<bool> = const { Cell::new(false) };
}

/// Whether a panic on this thread currently becomes a [`TextError`], so that a panic hook need not report it.
///
/// # Examples
/// ```
/// use std::panic;
///
/// let default = panic::take_hook();
/// panic::set_hook(Box::new(move |panic| {
///     if !moi_text::catches_panics() {
///         default(panic);
///     }
/// }));
/// assert!(!moi_text::catches_panics()); // no tokenizer is at work here
/// ```
pub fn catches_panics() -> bool {
    CATCHING.get()
}

/// Runs calls of the `tokenizers` library; a panic in them becomes an error.
pub(crate) fn catch_panics<T>(work: impl FnOnce() -> Result<T, TextError>) -> Result<T, TextError> {
    let outer = CATCHING.replace(true);
    // Unwind safety: what the library had half built is dropped with its error, and its cache holds only whole
    // entries.
    let done = panic::catch_unwind(AssertUnwindSafe(work));
    CATCHING.set(outer);
    done.unwrap_or_else(|payload| {
        let what = format!("its parts contradict each other: {}", message(payload.as_ref()));
        Err(TextError::Tokenizer(brief(&what)))
    })
}

fn message(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("no reason given")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::panic, reason = "what is caught")]
    fn a_panic_is_an_error() {
        let seen = Cell::new(false);
        let error = catch_panics::<()>(|| {
            seen.set(catches_panics());
            panic!("no such piece")
        });
        let error = error.unwrap_err().to_string();
        assert!(error.contains("the tokenizer failed") && error.contains("no such piece"), "{error}");
        assert!(seen.get() && !catches_panics());
        assert_eq!(catch_panics(|| Ok(1)).unwrap(), 1);
    }
}
