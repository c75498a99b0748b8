//! The `%` operator of a string: formats values as Python does.

use std::fmt::Write;

use minijinja::{
    Error, Value,
    formatting::{FormatStyle, format},
    value::ValueKind,
};

use crate::{
    python::{self, float, refuse, type_name, write_repr, write_text},
    texts::{Text, too_long},
};

/// `text % value`: a tuple holds the values, a dictionary holds them by name.
///
/// # Errors
/// As [`printf`].
pub(crate) fn operator(text: &str, value: &Value) -> Result<Value, Error> {
    if value.is_tuple() {
        let values: Vec<Value> = value.try_iter()?.collect();
        return printf(text, &values, None);
    }
    match python::is_dictionary(value) {
        true => printf(text, std::slice::from_ref(value), Some(value)),
        false => printf(text, std::slice::from_ref(value), None),
    }
}

/// Formats the values into a text.
///
/// # Errors
/// If a value is missing, left over or of the wrong type, or the text grows too long.
pub(crate) fn printf(text: &str, values: &[Value], named: Option<&Value>) -> Result<Value, Error> {
    let mut out = Text::default();
    let mut next = 0;
    let mut rest = text;
    while let Some(at) = rest.find('%') {
        out.write_str(&rest[..at]).map_err(|_| too_long())?;
        rest = &rest[at + 1..];
        let mut name = None;
        if let Some(inside) = rest.strip_prefix('(') {
            let Some((found, behind)) = inside.split_once(')') else {
                return refuse("a name in a format has no end");
            };
            name = Some(found);
            rest = behind;
        }
        let is_flag = |c: char| "#0- +.123456789".contains(c);
        let length = rest.find(|c: char| !is_flag(c)).unwrap_or(rest.len());
        let (flags, conversion) = rest.split_at(length);
        let Some(kind) = conversion.chars().next() else { return refuse("a format ends in `%`") };
        rest = &conversion[kind.len_utf8()..];
        if kind == '%' {
            out.write_str("%").map_err(|_| too_long())?;
            continue;
        }
        let value = match (name, named) {
            (Some(name), Some(named)) => {
                let value = named.get_item(&Value::from(name))?;
                if value.is_undefined() {
                    return refuse(format!("a format names {name}, which is not given"));
                }
                value
            }
            (Some(_), None) => return refuse("a format with names takes a dictionary"),
            (None, _) => {
                next += 1;
                match values.get(next - 1) {
                    Some(value) => value.clone(),
                    None => return refuse("there are not enough values for a format"),
                }
            }
        };
        convert(&mut out, flags, kind, &value)?;
    }
    out.write_str(rest).map_err(|_| too_long())?;
    match named.is_none() && next < values.len() {
        true => refuse("there are more values than a format takes"),
        false => Ok(Value::from(out.0)),
    }
}

fn convert(out: &mut Text, flags: &str, kind: char, value: &Value) -> Result<(), Error> {
    let longest = flags.split(|c: char| !c.is_ascii_digit()).map(str::len).max().unwrap_or(0);
    if longest > 4 {
        return Err(too_long());
    }
    let mut shown = Text::default();
    let (kind, value) = match kind {
        's' => {
            write_text(&mut shown, value)?;
            ('s', Value::from(shown.0))
        }
        'r' => {
            write_repr(&mut shown, value)?;
            ('s', Value::from(shown.0))
        }
        'd' | 'i' | 'u' => match float(value) {
            Some(number) if number.abs() < 1e38 => ('d', Value::from(number.trunc() as i128)),
            Some(_) => return refuse("a float is too large for `%d`"),
            None => ('d', value.clone()),
        },
        'x' | 'X' | 'o' if float(value).is_some() => return refuse("an integer is needed, not a float"),
        'c' if value.kind() == ValueKind::String => ('c', value.clone()),
        'x' | 'X' | 'o' | 'e' | 'E' | 'f' | 'F' | 'g' | 'G' | 'c' => (kind, value.clone()),
        _ => return refuse(format!("`%{kind}` in a format is not supported")),
    };
    if kind != 's' && kind != 'c' && !matches!(value.kind(), ValueKind::Number | ValueKind::Bool) {
        return refuse(format!("`%{kind}` in a format takes a number, not {}", type_name(&value)));
    }
    let written = format(FormatStyle::Printf, &format!("%{flags}{kind}"), &[value])?;
    out.write_str(&written).map_err(|_| too_long())
}
