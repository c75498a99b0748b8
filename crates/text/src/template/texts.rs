//! What a chat template may make of little. minijinja counts what its operators and filters make (its fuel); here is what
//! it does not count: lists that are put together or repeated only when they are read, their texts, and Python's methods.

use std::{fmt, io};

use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::weigh::weigh;

/// Longest text that one step makes.
const MOST_BYTES: usize = 4 << 20;
/// Longest list that one step walks: as many as `range` gives.
const MOST_ITEMS: usize = 100_000;

/// Text that grows up to the limit.
#[derive(Default)]
struct Text(String);

impl fmt::Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.0.len() + text.len() > MOST_BYTES {
            return Err(fmt::Error);
        }
        self.0.push_str(text);
        Ok(())
    }
}

/// Bytes that grow up to the limit.
#[derive(Default)]
pub(super) struct Bytes(pub(super) Vec<u8>);

impl io::Write for Bytes {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MOST_BYTES {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn too_long() -> Error {
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
    weigh(a)?;
    weigh(b)?;
    let mut joined = Text::default();
    fmt::Write::write_fmt(&mut joined, format_args!("{a}{b}")).map_err(|_| too_long())?;
    Ok(Value::from(joined.0))
}

/// The text of a value.
pub(super) fn text(value: &Value) -> Result<String, Error> {
    weigh(value)?;
    let mut text = Text::default();
    fmt::Write::write_fmt(&mut text, format_args!("{value}")).map_err(|_| too_long())?;
    Ok(text.0)
}

/// Python's methods, as minijinja-contrib has them.
pub(super) fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    weigh(value)?;
    args.iter().try_for_each(weigh)?;
    if let Some(own) = value.as_str() {
        match (name, args) {
            ("join", [list]) => return joined(own, list),
            ("replace", [old, new, ..]) => {
                let (old, new) = (old.as_str().unwrap_or_default(), new.as_str().unwrap_or_default());
                let bytes = own.matches(old).count().saturating_mul(new.len());
                if bytes.saturating_add(own.len()) > MOST_BYTES {
                    return Err(too_long());
                }
            }
            // A width or a precision: `'{:9}'.format(x)`.
            ("format", _) if longest_number(own) > 4 => return Err(too_long()),
            _ => {}
        }
    }
    unknown_method_callback(state, value, name, args)
}

/// Digits of the longest number in a text.
fn longest_number(text: &str) -> usize {
    text.split(|c: char| !c.is_ascii_digit()).map(str::len).max().unwrap_or(0)
}

/// `separator.join(list)`
fn joined(separator: &str, list: &Value) -> Result<Value, Error> {
    let mut text = Text::default();
    for (at, item) in list.try_iter()?.enumerate() {
        let separator = if at == 0 { "" } else { separator };
        if at == MOST_ITEMS {
            return Err(too_many());
        }
        fmt::Write::write_fmt(&mut text, format_args!("{separator}{item}")).map_err(|_| too_long())?;
    }
    Ok(Value::from(text.0))
}
