//! What a chat template may make of little. minijinja counts what its operators and filters make (its fuel); here is what
//! it does not count: lists that are put together or repeated only when they are read, and their texts.

use std::fmt;

use minijinja::{Error, ErrorKind, Value};

use super::{python::write_text, weigh::weigh};

/// Longest text that one step makes.
pub(super) const MOST_BYTES: usize = 4 << 20;
/// Longest list that one step walks: as many as `range` gives.
const MOST_ITEMS: usize = 100_000;

/// Text that grows up to the limit.
#[derive(Default)]
pub(super) struct Text(pub(super) String);

impl fmt::Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.0.len() + text.len() > MOST_BYTES {
            return Err(fmt::Error);
        }
        self.0.push_str(text);
        Ok(())
    }
}

/// The error of a text that would be longer.
pub(super) fn too_long() -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("a text grows beyond {MOST_BYTES} bytes"))
}

/// Refuses a list of so many items, or a text of so many bytes at least.
pub(super) fn check(length: Option<usize>, a: &Value, b: &Value) -> Result<(), Error> {
    let is_text = a.as_str().is_some() || b.as_str().is_some();
    match length {
        Some(length) if is_text && length > MOST_BYTES => Err(too_long()),
        Some(length) if !is_text && length > MOST_ITEMS => Err(too_many()),
        _ => Ok(()),
    }
}

fn too_many() -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("a list grows beyond {MOST_ITEMS} items"))
}

/// `a ~ b`
pub(super) fn concatenated(a: &Value, b: &Value) -> Result<Value, Error> {
    let mut joined = Text::default();
    for value in [a, b] {
        weigh(value)?;
        write_text(&mut joined, value)?;
    }
    Ok(Value::from(joined.0))
}

/// The text of a value, as Python's `str` has it.
pub(super) fn text(value: &Value) -> Result<String, Error> {
    weigh(value)?;
    let mut text = Text::default();
    write_text(&mut text, value)?;
    Ok(text.0)
}
