//! Panics of the tokenizer library, made errors: its models are built from files of strangers, and not all that such a
//! file can say is checked by it (tokenizers 0.22).

use std::{
    any::Any,
    cell::Cell,
    panic::{self, AssertUnwindSafe},
    sync::Once,
};

use crate::{TextError, error::brief};

thread_local! {
    static FENCED: Cell<bool> = const { Cell::new(false) };
}

/// Runs calls of the library; a panic in it is an error and prints nothing.
pub(crate) fn fenced<T>(work: impl FnOnce() -> Result<T, TextError>) -> Result<T, TextError> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let others = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !FENCED.get() {
                others(info);
            }
        }));
    });
    let outer = FENCED.replace(true);
    // What the library had half done is dropped with its error, or is a cache of whole entries.
    let done = panic::catch_unwind(AssertUnwindSafe(work));
    FENCED.set(outer);
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
    #[allow(clippy::panic, reason = "what is fenced in")]
    fn a_panic_is_an_error() {
        let error = fenced::<()>(|| panic!("no such piece")).unwrap_err().to_string();
        assert!(error.contains("the tokenizer failed") && error.contains("no such piece"), "{error}");
        assert_eq!(fenced(|| Ok(1)).unwrap(), 1);
        assert!(!FENCED.get());
    }
}
