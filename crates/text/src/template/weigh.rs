//! What a chat template may walk through. minijinja counts steps and what is made of them; here is counted what a single
//! step looks at: a comparison, a key, a filter or a text of a value walks through all of it, which a few steps can make
//! endless. A list of the same list twice, and that forty times over, is small and stands for more than anything can
//! read; a namespace can hold itself.

use std::cell::Cell;

use minijinja::{Error, ErrorKind, Value, value::ValueKind};

use super::objects::{Generator, is_lazy};

/// Deepest value in a value; conversations with tools need ten.
const DEEPEST: usize = 64;
/// What a rendering may look at, in values and pieces of texts.
const MOST: u64 = 10_000_000;
/// Namespaces of a rendering: each can hold the one before.
const MOST_NAMESPACES: usize = 500;
/// Bytes of a text that count as one value.
const PIECE: usize = 64;

thread_local! {
    static LEFT: Cell<u64> = const { Cell::new(MOST) };
    static NAMESPACES: Cell<usize> = const { Cell::new(0) };
}

/// A rendering begins on this thread.
pub(super) fn begin() {
    LEFT.set(MOST);
    NAMESPACES.set(0);
}

/// Counts a value that is to be walked through.
///
/// # Errors
/// If it is nested too deeply, or too much was walked through.
pub(super) fn weigh(value: &Value) -> Result<(), Error> {
    inner(value, 0)
}

/// Counts what a step looks at beside whole values, in values.
///
/// # Errors
/// If too much was walked through.
pub(super) fn charge(cost: usize) -> Result<(), Error> {
    match LEFT.get().checked_sub(cost as u64) {
        Some(left) => {
            LEFT.set(left);
            Ok(())
        }
        None => refuse("it compares and walks through more than a template needs"),
    }
}

fn refuse<T>(what: &'static str) -> Result<T, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, what))
}

fn inner(value: &Value, depth: usize) -> Result<(), Error> {
    if depth > DEEPEST {
        return refuse("a value is nested more than 64 deep, or holds itself");
    }
    charge(1 + value.as_str().map_or(0, |text| text.len() / PIECE))?;
    if let Some(generator) = value.downcast_object_ref::<Generator>() {
        // Looking at it must not read it.
        return generator.left().iter().try_for_each(|item| inner(item, depth + 1));
    }
    match value.kind() {
        ValueKind::Map => value.try_iter()?.try_for_each(|key| {
            inner(&key, depth + 1)?;
            inner(&value.get_item(&key)?, depth + 1)
        }),
        ValueKind::Seq | ValueKind::Iterable => {
            value.try_iter()?.try_for_each(|item| inner(&item, depth + 1))
        }
        _ => Ok(()),
    }
}

/// Counts a namespace that is made.
///
/// # Errors
/// If there are too many.
pub(super) fn count_namespace() -> Result<(), Error> {
    NAMESPACES.set(NAMESPACES.get() + 1);
    match NAMESPACES.get() > MOST_NAMESPACES {
        true => refuse("it makes more namespaces than a template needs"),
        false => Ok(()),
    }
}

/// Items that are made when they are read, as a list: such a thing of such a thing, and so on, would be deep.
pub(super) fn listed(value: Value) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::Iterable if !is_lazy(&value) => {
            weigh(&value)?;
            Ok(value.try_iter()?.collect())
        }
        _ => Ok(value),
    }
}
