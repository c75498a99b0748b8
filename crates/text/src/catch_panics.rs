//! Panics of the tokenizer library, made errors: its models are built from untrusted files, and not all that such a file
//! can say is checked by it (tokenizers 0.22).
//!
//! What a panic prints is for the process to decide, so no hook is set here: one that wants to be quiet about panics that
//! become errors asks [`catches_panics`] in its own.

use std::{
    any::Any,
    cell::Cell,
    panic::{self, AssertUnwindSafe},
};

use crate::{TextError, error::brief};

thread_local! {
    static CATCHING: Cell<bool> = const { Cell::new(false) };
}

/// Whether a panic on this thread becomes a [`TextError`] now, so that a panic hook need not report it.
pub fn catches_panics() -> bool {
    CATCHING.get()
}

/// Runs calls of the library; a panic in it is an error.
pub(crate) fn catch_panics<T>(work: impl FnOnce() -> Result<T, TextError>) -> Result<T, TextError> {
    let outer = CATCHING.replace(true);
    // What the library had half done is dropped with its error, or is a cache of whole entries.
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
