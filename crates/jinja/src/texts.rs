//! Limits the size of texts and lists. minijinja's fuel counts what its operators and filters make; this module
//! limits what fuel does not count: lists that are joined or repeated only when they are read, and their texts.

use std::fmt;

use minijinja::{Error, ErrorKind, Value};

use crate::{cost::charge_value, python::write_text};

/// Most bytes of a text that one step makes.
pub(crate) const MAX_BYTES: usize = 4 << 20;
/// Most items of a list that one step reads: as many as `range` can give.
const MAX_ITEMS: usize = 100_000;

/// A text that can grow up to the limit.
#[derive(Default)]
pub(crate) struct Text(pub(crate) String);

impl fmt::Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.0.len() + text.len() > MAX_BYTES {
            return Err(fmt::Error);
        }
        self.0.push_str(text);
        Ok(())
    }
}

/// The error for a text that would exceed the limit.
pub(crate) fn too_long() -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("a text grows beyond {MAX_BYTES} bytes"))
}

/// Refuses a list of at least this many items, or a text of at least this many bytes.
pub(crate) fn check(length: Option<usize>, a: &Value, b: &Value) -> Result<(), Error> {
    let is_text = a.as_str().is_some() || b.as_str().is_some();
    match length {
        Some(length) if is_text && length > MAX_BYTES => Err(too_long()),
        Some(length) if !is_text && length > MAX_ITEMS => Err(too_many()),
        _ => Ok(()),
    }
}

fn too_many() -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("a list grows beyond {MAX_ITEMS} items"))
}

/// `a ~ b`
pub(crate) fn concatenated(a: &Value, b: &Value) -> Result<Value, Error> {
    let mut joined = Text::default();
    for value in [a, b] {
        charge_value(value)?;
        write_text(&mut joined, value)?;
    }
    Ok(Value::from(joined.0))
}

/// The text of a value, as Python's `str` gives it.
pub(crate) fn text(value: &Value) -> Result<String, Error> {
    charge_value(value)?;
    let mut text = Text::default();
    write_text(&mut text, value)?;
    Ok(text.0)
}
