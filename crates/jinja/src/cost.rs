//! Limits how much a chat template may read. minijinja's fuel counts steps and what they make; this module counts
//! what a single step reads. A comparison, a key, a filter or the text of a value reads the whole value, which a few
//! steps can make practically endless: a list that holds the same list twice, nested forty times, is small in memory
//! but has more items than anything can read, and a namespace can hold itself.

use std::cell::Cell;

use minijinja::{Error, ErrorKind, Value, value::ValueKind};

use crate::objects::{Generator, is_lazy};

/// Deepest nesting of values; conversations with tools need ten levels.
const MAX_DEPTH: usize = 64;
/// Most values and pieces of strings that a rendering may read.
const MAX_COST: u64 = 10_000_000;
/// Most namespaces of a rendering: each can hold the one before, and so nest deeper.
const MAX_NAMESPACES: usize = 500;
/// Bytes of a string that count as one value.
const PIECE: usize = 64;

thread_local! {
    static LEFT: Cell<u64> = const { Cell::new(MAX_COST) };
    static NAMESPACES: Cell<usize> = const { Cell::new(0) };
}

/// Resets the counters when a rendering begins on this thread.
pub(crate) fn begin() {
    LEFT.set(MAX_COST);
    NAMESPACES.set(0);
}

/// Counts a value that is about to be read.
///
/// # Errors
/// If the value is nested too deeply, or the rendering has read too much.
pub(crate) fn charge_value(value: &Value) -> Result<(), Error> {
    inner(value, 0)
}

/// Counts what a step reads besides whole values, in units of values.
///
/// # Errors
/// If the rendering has read too much.
pub(crate) fn charge(cost: usize) -> Result<(), Error> {
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
    if depth > MAX_DEPTH {
        return refuse("a value is nested more than 64 deep, or holds itself");
    }
    charge(1 + value.as_str().map_or(0, |text| text.len() / PIECE))?;
    if let Some(generator) = value.downcast_object_ref::<Generator>() {
        // Counting a generator must not consume it.
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

/// Counts a new namespace.
///
/// # Errors
/// If the rendering has made too many namespaces.
pub(crate) fn count_namespace() -> Result<(), Error> {
    NAMESPACES.set(NAMESPACES.get() + 1);
    match NAMESPACES.get() > MAX_NAMESPACES {
        true => refuse("it makes more namespaces than a template needs"),
        false => Ok(()),
    }
}

/// Turns lazy items into a list, because lazy items of lazy items could otherwise be nested deeply.
pub(crate) fn listed(value: Value) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::Iterable if !is_lazy(&value) => {
            charge_value(&value)?;
            Ok(value.try_iter()?.collect())
        }
        _ => Ok(value),
    }
}
