//! Writes and orders values as Python does.

use std::{borrow::Cow, cmp::Ordering, fmt, sync::LazyLock};

use minijinja::{Error, ErrorKind, Value, value::ValueKind};
use regex_syntax::hir::{Class, HirKind};

use crate::{
    cost::charge_value,
    lists::Group,
    objects::{Generator, Range, View},
};

/// An error of a template.
pub(crate) fn refuse<T>(what: impl Into<Cow<'static, str>>) -> Result<T, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, what))
}

/// Whether `str.isspace` holds for a character.
pub(crate) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// Whether a value is a dictionary in Python; minijinja keeps other objects as maps, too.
pub(crate) fn is_dictionary(value: &Value) -> bool {
    let others = ["::Namespace", "::Loop", "::Macro", "::Module"];
    let is_other = |name: &str| others.iter().any(|other| name.ends_with(other));
    value.kind() == ValueKind::Map && !value.as_object().is_some_and(|object| is_other(object.type_name()))
}

/// Whether a value is a namespace.
pub(crate) fn is_namespace(value: &Value) -> bool {
    value.as_object().is_some_and(|object| object.type_name().ends_with("::Namespace"))
}

/// Whether a value can be called.
pub(crate) fn is_callable(value: &Value) -> bool {
    value.kind() == ValueKind::Plain
        || value.as_object().is_some_and(|object| object.type_name().ends_with("::Macro"))
}

/// Whether a value has no hash in Python, so that it cannot be a key of a dictionary.
pub(crate) fn is_unhashable(value: &Value) -> bool {
    match value.kind() {
        ValueKind::Map => true,
        ValueKind::Seq if value.is_tuple() => {
            value.try_iter().is_ok_and(|mut items| items.any(|item| is_unhashable(&item)))
        }
        ValueKind::Seq => true,
        _ => false,
    }
}

/// The name of a value's type in Python.
pub(crate) fn type_name(value: &Value) -> &'static str {
    match value.kind() {
        ValueKind::Undefined => "undefined",
        ValueKind::None => "None",
        ValueKind::Bool => "bool",
        ValueKind::Number if value.is_integer() => "int",
        ValueKind::Number => "float",
        ValueKind::String => "str",
        ValueKind::Seq if value.is_tuple() => "tuple",
        ValueKind::Seq => "list",
        ValueKind::Map if is_dictionary(value) => "dict",
        ValueKind::Iterable => "generator",
        _ => "object",
    }
}

/// A float as `repr` writes it.
pub(crate) fn float_text(value: f64) -> String {
    if value.is_nan() {
        return "nan".to_owned();
    }
    if value.is_infinite() {
        return if value < 0.0 { "-inf" } else { "inf" }.to_owned();
    }
    // Rust's `Debug` switches to an exponent at the same bounds as Python, but writes the exponent otherwise.
    let text = format!("{value:?}");
    match text.split_once('e') {
        Some((mantissa, exponent)) => {
            let exponent: i32 = exponent.parse().unwrap_or_default();
            format!("{mantissa}e{exponent:+03}")
        }
        None => text,
    }
}

/// The float in a value, if it is one.
pub(crate) fn float(value: &Value) -> Option<f64> {
    match value.kind() == ValueKind::Number && !value.is_integer() {
        true => f64::try_from(value.clone()).ok(),
        false => None,
    }
}

fn put(out: &mut dyn fmt::Write, text: &str) -> Result<(), Error> {
    out.write_str(text).map_err(|_| crate::texts::too_long())
}

/// Writes a value as `str` does. The value must have been counted by [`charge_value`].
///
/// # Errors
/// If the text is too long, or Python would write an address.
pub(crate) fn write_text(out: &mut dyn fmt::Write, value: &Value) -> Result<(), Error> {
    match value.kind() {
        ValueKind::String => put(out, value.as_str().unwrap_or_default()),
        ValueKind::Undefined => Ok(()),
        _ => write_repr(out, value),
    }
}

/// Writes a value as `repr` does. The value must have been counted by [`charge_value`].
///
/// # Errors
/// As [`write_text`].
pub(crate) fn write_repr(out: &mut dyn fmt::Write, value: &Value) -> Result<(), Error> {
    match value.kind() {
        ValueKind::Undefined => put(out, "Undefined"),
        ValueKind::None => put(out, "None"),
        ValueKind::Bool => put(out, if value.is_true() { "True" } else { "False" }),
        ValueKind::Number => match float(value) {
            Some(float) => put(out, &float_text(float)),
            None => put(out, &value.to_string()),
        },
        ValueKind::String if value.is_safe() => {
            put(out, "Markup(")?;
            write_quoted(out, value.as_str().unwrap_or_default())?;
            put(out, ")")
        }
        ValueKind::String => write_quoted(out, value.as_str().unwrap_or_default()),
        ValueKind::Seq if value.is_tuple() || value.downcast_object_ref::<Group>().is_some() => {
            write_items(out, "(", value, if value.len() == Some(1) { ",)" } else { ")" })
        }
        ValueKind::Seq => write_items(out, "[", value, "]"),
        ValueKind::Map if is_dictionary(value) => write_map(out, value),
        ValueKind::Map if is_namespace(value) => {
            put(out, "<Namespace ")?;
            write_map(out, value)?;
            put(out, ">")
        }
        ValueKind::Iterable => {
            if let Some(range) = value.downcast_object_ref::<Range>() {
                return put(out, &range.text());
            }
            if let Some(view) = value.downcast_object_ref::<View>() {
                put(out, view.name())?;
                return write_items(out, "([", value, "])");
            }
            if value.downcast_object_ref::<Generator>().is_some() {
                return refuse(
                    "a generator has no text that means anything: put `|list` or `|join` behind it",
                );
            }
            write_items(out, "[", value, "]")
        }
        _ => refuse("a function, macro or loop has no text that means anything"),
    }
}

fn write_items(out: &mut dyn fmt::Write, open: &str, list: &Value, close: &str) -> Result<(), Error> {
    put(out, open)?;
    for (at, item) in list.try_iter()?.enumerate() {
        if at > 0 {
            put(out, ", ")?;
        }
        write_repr(out, &item)?;
    }
    put(out, close)
}

fn write_map(out: &mut dyn fmt::Write, map: &Value) -> Result<(), Error> {
    put(out, "{")?;
    for (at, key) in map.try_iter()?.enumerate() {
        if at > 0 {
            put(out, ", ")?;
        }
        write_repr(out, &key)?;
        put(out, ": ")?;
        write_repr(out, &map.get_item(&key)?)?;
    }
    put(out, "}")
}

/// The first and last characters of the ranges of a character class.
fn ranges(class: &str) -> Vec<(char, char)> {
    let parsed = regex_syntax::parse(class).ok();
    match parsed.as_ref().map(|parsed| parsed.kind()) {
        Some(HirKind::Class(Class::Unicode(class))) => {
            class.ranges().iter().map(|range| (range.start(), range.end())).collect()
        }
        _ => Vec::new(),
    }
}

fn is_within(ranges: &[(char, char)], c: char) -> bool {
    let after = ranges.partition_point(|&(start, _)| start <= c);
    after > 0 && c <= ranges[after - 1].1
}

/// The characters that `repr` escapes, and the space.
static NOT_PRINTED: LazyLock<Vec<(char, char)>> = LazyLock::new(|| ranges(r"[\p{C}\p{Z}]"));
static LETTERS: LazyLock<Vec<(char, char)>> = LazyLock::new(|| ranges(r"[\p{L}]"));
static DECIMALS: LazyLock<Vec<(char, char)>> = LazyLock::new(|| ranges(r"[\p{Nd}]"));

/// Whether `str.isprintable` holds for a character.
pub(crate) fn is_printed(c: char) -> bool {
    c == ' ' || !is_within(&NOT_PRINTED, c)
}

/// Whether `str.isalpha` holds for a character.
pub(crate) fn is_letter(c: char) -> bool {
    is_within(&LETTERS, c)
}

/// Whether `str.isdecimal` holds for a character.
pub(crate) fn is_decimal(c: char) -> bool {
    is_within(&DECIMALS, c)
}

/// The digit from 0 to 9 that a decimal digit of any script has.
pub(crate) fn ascii_digit(c: char) -> Option<char> {
    let after = DECIMALS.partition_point(|&(start, _)| start <= c);
    let &(start, end) = DECIMALS.get(after.checked_sub(1)?)?;
    // The ten digits of a script are contiguous, and each range begins with a zero.
    let value = (u32::from(c) - u32::from(start)) % 10;
    if c <= end { char::from_digit(value, 10) } else { None }
}

/// Whether `str.isalnum` holds for a character.
pub(crate) fn is_alphanumeric(c: char) -> bool {
    is_letter(c) || c.is_numeric()
}

fn write_quoted(out: &mut dyn fmt::Write, text: &str) -> Result<(), Error> {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut quoted = String::with_capacity(text.len().min(crate::texts::MAX_BYTES) + 2);
    quoted.push(quote);
    for c in text.chars() {
        match c {
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            c if c == quote => quoted.extend(['\\', c]),
            ' '..='~' => quoted.push(c),
            c if is_printed(c) => quoted.push(c),
            c => {
                let code = u32::from(c);
                quoted.push_str(&match code {
                    ..=0xff => format!("\\x{code:02x}"),
                    0x100..=0xffff => format!("\\u{code:04x}"),
                    _ => format!("\\U{code:08x}"),
                });
            }
        }
    }
    quoted.push(quote);
    put(out, &quoted)
}

/// The order of two values; `None` if one is NaN.
///
/// # Errors
/// If Python does not order such values.
pub(crate) fn order(a: &Value, b: &Value) -> Result<Option<Ordering>, Error> {
    let is_number = |value: &Value| matches!(value.kind(), ValueKind::Number | ValueKind::Bool);
    if is_number(a) && is_number(b) {
        let is_nan = |value: &Value| float(value).is_some_and(f64::is_nan);
        return Ok((!is_nan(a) && !is_nan(b)).then(|| a.cmp(b)));
    }
    match (a.kind(), b.kind()) {
        (ValueKind::String, ValueKind::String) => Ok(Some(a.as_str().cmp(&b.as_str()))),
        (ValueKind::Seq, ValueKind::Seq) if a.is_tuple() == b.is_tuple() => {
            let different = a.try_iter()?.zip(b.try_iter()?).find(|(a, b)| a != b);
            match different {
                Some((a, b)) => order(&a, &b),
                None => Ok(Some(a.len().cmp(&b.len()))),
            }
        }
        _ => refuse(format!("{} and {} have no order", type_name(a), type_name(b))),
    }
}

/// Sorts items by their keys.
///
/// # Errors
/// If two keys have no order, or sorting would read too much.
pub(crate) fn sort(items: &mut [(Value, Value)], reverse: bool) -> Result<(), Error> {
    let rounds = usize::BITS - items.len().leading_zeros();
    for _ in 0..rounds {
        items.iter().try_for_each(|(key, _)| charge_value(key))?;
    }
    let mut failed = None;
    // minijinja's order is total, and agrees with Python's wherever Python has one.
    items.sort_by(|(a, _), (b, _)| {
        if failed.is_none() {
            failed = order(a, b).err();
        }
        if reverse { b.cmp(a) } else { a.cmp(b) }
    });
    failed.map_or(Ok(()), Err)
}

/// A text with HTML's special characters escaped, as markupsafe does.
pub(crate) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\'' => out.push_str("&#39;"),
            '"' => out.push_str("&#34;"),
            c => out.push(c),
        }
    }
    out
}
