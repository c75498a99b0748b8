//! Jinja's number filters where minijinja's behave otherwise.

use std::borrow::Cow;

use minijinja::{
    Environment, Error, State, Value,
    value::{Kwargs, ValueKind},
};

use crate::{
    args::{Filter, add_all, bind, integer, text},
    python::{ascii_digit, float, is_space, refuse, type_name},
};

const FILTERS: [(&str, Filter); 5] =
    [("int", int), ("float", to_float), ("abs", abs), ("round", round), ("filesizeformat", file_size)];

/// Adds these filters.
pub(crate) fn add(environment: &mut Environment<'_>) {
    add_all(environment, &FILTERS);
}

/// A text with the decimal digits of all scripts replaced by ASCII digits, because Python's number parsing accepts
/// them.
fn with_ascii_digits(text: &str) -> Cow<'_, str> {
    match text.is_ascii() {
        true => Cow::Borrowed(text),
        false => Cow::Owned(text.chars().map(|c| ascii_digit(c).unwrap_or(c)).collect()),
    }
}

/// Parses a text as Python's `float` does.
fn parsed_float(text: &str) -> Option<f64> {
    let ascii = with_ascii_digits(text);
    let text = ascii.trim_matches(is_space);
    let is_between = |at: usize| {
        let digit = |at: Option<usize>| {
            at.and_then(|at| text.as_bytes().get(at)).is_some_and(|byte| byte.is_ascii_digit())
        };
        digit(at.checked_sub(1)) && digit(at.checked_add(1))
    };
    match text.match_indices('_').all(|(at, _)| is_between(at)) {
        true => text.replace('_', "").parse().ok(),
        false => None,
    }
}

/// Parses a text as Python's `int` does. A number beyond minijinja's range is an error.
fn parsed_integer(text: &str, base: u32) -> Result<Option<i128>, Error> {
    let ascii = with_ascii_digits(text);
    let text = ascii.trim_matches(is_space);
    let (sign, digits) = match text.strip_prefix(['-', '+']) {
        Some(digits) => (&text[..1], digits),
        None => ("", text),
    };
    let prefix = match base {
        2 => "0b",
        8 => "0o",
        16 => "0x",
        _ => "",
    };
    let has_prefix =
        !prefix.is_empty() && digits.get(..2).is_some_and(|start| start.eq_ignore_ascii_case(prefix));
    let digits = if has_prefix { &digits[2..] } else { digits };
    let digits = if has_prefix { digits.strip_prefix('_').unwrap_or(digits) } else { digits };
    let is_number = !digits.is_empty()
        && !digits.starts_with('_')
        && !digits.ends_with('_')
        && !digits.contains("__")
        && digits.chars().all(|c| c == '_' || c.is_digit(base));
    if !is_number {
        return Ok(None);
    }
    match i128::from_str_radix(&format!("{sign}{}", digits.replace('_', "")), base) {
        Ok(number) => Ok(Some(number)),
        Err(_) => refuse("an integer is too large"),
    }
}

/// The integer part of a float.
fn truncated(float: f64) -> Result<Option<Value>, Error> {
    /// Floats up to this magnitude fit into minijinja's integers.
    const LARGEST: f64 = 1e38;
    match float.is_finite() {
        false => Ok(None),
        true if float.abs() < LARGEST => Ok(Some(Value::from(float.trunc() as i128))),
        true => refuse("an integer is too large"),
    }
}

fn int(_: &mut State<'_, '_>, value: &Value, more: &[Value], named: &Kwargs) -> Result<Value, Error> {
    let [default, base] = bind("int", ["default", "base"], more, named)?;
    let default = default.unwrap_or_else(|| Value::from(0));
    let base = integer("int", base.as_ref(), 10)?;
    let Some(base) = u32::try_from(base).ok().filter(|base| (2..=36).contains(base)) else {
        return refuse("int takes a base from 2 to 36");
    };
    let found = match value.kind() {
        ValueKind::Undefined => return refuse("int is applied to what is undefined"),
        ValueKind::Bool => Some(Value::from(i64::from(value.is_true()))),
        ValueKind::Number => match float(value) {
            Some(float) if float.is_infinite() => return refuse("infinity is no integer"),
            Some(float) => truncated(float)?,
            None => Some(value.clone()),
        },
        ValueKind::String => {
            let text = value.as_str().unwrap_or_default();
            match parsed_integer(text, base)? {
                Some(number) => Some(Value::from(number)),
                None => parsed_float(text).map_or(Ok(None), truncated)?,
            }
        }
        _ => None,
    };
    Ok(found.unwrap_or(default))
}

fn to_float(_: &mut State<'_, '_>, value: &Value, more: &[Value], named: &Kwargs) -> Result<Value, Error> {
    let [default] = bind("float", ["default"], more, named)?;
    let found = match value.kind() {
        ValueKind::Undefined => return refuse("float is applied to what is undefined"),
        ValueKind::Bool => Some(if value.is_true() { 1.0 } else { 0.0 }),
        ValueKind::Number => f64::try_from(value.clone()).ok(),
        ValueKind::String => parsed_float(value.as_str().unwrap_or_default()),
        _ => None,
    };
    Ok(found.map(Value::from).or(default).unwrap_or_else(|| Value::from(0.0)))
}

fn abs(_: &mut State<'_, '_>, value: &Value, more: &[Value], named: &Kwargs) -> Result<Value, Error> {
    let [] = bind("abs", [], more, named)?;
    match value.kind() {
        ValueKind::Bool => Ok(Value::from(i64::from(value.is_true()))),
        _ => minijinja::filters::abs(value.clone()),
    }
}

fn round(_: &mut State<'_, '_>, value: &Value, more: &[Value], named: &Kwargs) -> Result<Value, Error> {
    let [precision, method] = bind("round", ["precision", "method"], more, named)?;
    let Ok(precision) = i32::try_from(integer("round", precision.as_ref(), 0)?) else {
        return refuse("round takes a smaller precision");
    };
    let method = method.as_ref().map_or(Ok("common"), |method| text("round", Some(method)))?;
    let number = match value.kind() {
        ValueKind::Bool => Value::from(i64::from(value.is_true())),
        ValueKind::Number => value.clone(),
        _ => return refuse(format!("round takes a number, not {}", type_name(value))),
    };
    // For these methods, Jinja scales the number by a power of ten and divides by it, so the result is a float.
    let scales = method != "common" && number.is_integer();
    let number = if scales { Value::from(f64::try_from(number)?) } else { number };
    minijinja::filters::round(
        number,
        Some(precision),
        Some(method),
        Kwargs::from_iter(Vec::<(String, Value)>::new()),
    )
}

fn file_size(_: &mut State<'_, '_>, value: &Value, more: &[Value], named: &Kwargs) -> Result<Value, Error> {
    let [binary] = bind("filesizeformat", ["binary"], more, named)?;
    let size = match value.kind() {
        ValueKind::Bool => Some(if value.is_true() { 1.0 } else { 0.0 }),
        ValueKind::Number => f64::try_from(value.clone()).ok(),
        ValueKind::String => parsed_float(value.as_str().unwrap_or_default()),
        _ => None,
    };
    let Some(size) = size.filter(|size| size.is_finite()) else {
        return refuse(format!("filesizeformat takes a number, not {}", type_name(value)));
    };
    let is_binary = binary.is_some_and(|binary| binary.is_true());
    let (base, middle, ends) = if is_binary { (1024.0, "i", "KMGTPEZY") } else { (1000.0, "", "kMGTPEZY") };
    if size == 1.0 {
        return Ok(Value::from("1 Byte"));
    }
    if size < base {
        return Ok(Value::from(format!("{} Bytes", size.trunc() as i64)));
    }
    let mut unit = base * base;
    let mut prefixes = ends.chars().peekable();
    while let Some(prefix) = prefixes.next() {
        if size < unit || prefixes.peek().is_none() {
            return Ok(Value::from(format!("{:.1} {prefix}{middle}B", base * size / unit)));
        }
        unit *= base;
    }
    refuse("filesizeformat has no unit for it")
}
