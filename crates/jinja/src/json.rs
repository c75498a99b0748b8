//! Writes JSON as Python's `json.dumps` does.

use std::fmt::Write;

use minijinja::{
    Error, State, Value,
    value::{Kwargs, ValueKind},
};

use crate::{
    args::bind,
    cost::charge_value,
    objects::is_lazy,
    python::{self, float, float_text, refuse},
    texts::Text,
};

/// The layout of the JSON text.
struct Style {
    ascii: bool,
    indent: Option<String>,
    separators: (String, String),
    sorted: bool,
}

/// The filter `tojson`, as transformers defines it.
pub(crate) fn to_json(
    _: &mut State<'_, '_>,
    value: &Value,
    more: &[Value],
    named: &Kwargs,
) -> Result<Value, Error> {
    charge_value(value)?;
    let names = ["ensure_ascii", "indent", "separators", "sort_keys"];
    let [ascii, indent, separators, sorted] = bind("tojson", names, more, named)?;
    let indent = indent.filter(|value| !value.is_none());
    let separators = separators.filter(|value| !value.is_none());
    let indent = indent.as_ref().map(indent_text).transpose()?;
    let separators = match separators {
        Some(pair) => pair_of(&pair)?,
        None if indent.is_some() => (",".to_owned(), ": ".to_owned()),
        None => (", ".to_owned(), ": ".to_owned()),
    };
    let is_true = |value: Option<Value>| value.is_some_and(|value| value.is_true());
    let style = Style { ascii: is_true(ascii), indent, separators, sorted: is_true(sorted) };
    let mut text = Text::default();
    write_value(&mut text, &style, value, 0)?;
    Ok(Value::from(text.0))
}

fn indent_text(indent: &Value) -> Result<String, Error> {
    /// Largest indentation, which is more than any template needs.
    const WIDEST: i64 = 64;
    match (indent.as_str(), indent.as_i64()) {
        (Some(text), _) if text.len() <= WIDEST as usize => Ok(text.to_owned()),
        (None, Some(width)) if width <= WIDEST && float(indent).is_none() => {
            Ok(" ".repeat(usize::try_from(width).unwrap_or(0)))
        }
        _ => refuse("the indentation of tojson is not a small number or a short text"),
    }
}

fn pair_of(pair: &Value) -> Result<(String, String), Error> {
    let items: Vec<Value> = pair.try_iter()?.collect();
    match &items[..] {
        [item, key] => match (item.as_str(), key.as_str()) {
            (Some(item), Some(key)) => Ok((item.to_owned(), key.to_owned())),
            _ => refuse("the separators of tojson are not two texts"),
        },
        _ => refuse("the separators of tojson are not two texts"),
    }
}

fn put(out: &mut Text, text: &str) -> Result<(), Error> {
    out.write_str(text).map_err(|_| crate::texts::too_long())
}

fn number_text(value: &Value) -> String {
    match float(value) {
        Some(float) if float.is_nan() => "NaN".to_owned(),
        Some(float) if float.is_infinite() => if float < 0.0 { "-Infinity" } else { "Infinity" }.to_owned(),
        Some(float) => float_text(float),
        None => value.to_string(),
    }
}

fn write_value(out: &mut Text, style: &Style, value: &Value, depth: usize) -> Result<(), Error> {
    match value.kind() {
        ValueKind::None => put(out, "null"),
        ValueKind::Bool => put(out, if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => put(out, &number_text(value)),
        ValueKind::String => write_text(out, style, value.as_str().unwrap_or_default()),
        ValueKind::Map if python::is_dictionary(value) => write_map(out, style, value, depth),
        ValueKind::Seq | ValueKind::Iterable if !is_lazy(value) => {
            let items: Vec<Value> = value.try_iter()?.collect();
            if items.is_empty() {
                return put(out, "[]");
            }
            put(out, "[")?;
            for (at, item) in items.iter().enumerate() {
                separate(out, style, at, depth + 1)?;
                write_value(out, style, item, depth + 1)?;
            }
            new_line(out, style, depth)?;
            put(out, "]")
        }
        _ => refuse(format!("{} has no JSON form", python::type_name(value))),
    }
}

fn write_map(out: &mut Text, style: &Style, map: &Value, depth: usize) -> Result<(), Error> {
    let mut pairs: Vec<(Value, Value)> = Vec::new();
    for key in map.try_iter()? {
        let value = map.get_item(&key)?;
        pairs.push((key, value));
    }
    if style.sorted {
        python::sort(&mut pairs, false)?;
    }
    if pairs.is_empty() {
        return put(out, "{}");
    }
    put(out, "{")?;
    for (at, (key, value)) in pairs.iter().enumerate() {
        separate(out, style, at, depth + 1)?;
        let name = match key.kind() {
            ValueKind::String => key.as_str().unwrap_or_default().to_owned(),
            ValueKind::None => "null".to_owned(),
            ValueKind::Bool => key.is_true().to_string(),
            ValueKind::Number => number_text(key),
            _ => return refuse(format!("{} is no key in JSON", python::type_name(key))),
        };
        write_text(out, style, &name)?;
        put(out, &style.separators.1)?;
        write_value(out, style, value, depth + 1)?;
    }
    new_line(out, style, depth)?;
    put(out, "}")
}

fn separate(out: &mut Text, style: &Style, at: usize, depth: usize) -> Result<(), Error> {
    if at > 0 {
        put(out, &style.separators.0)?;
    }
    new_line(out, style, depth)
}

fn new_line(out: &mut Text, style: &Style, depth: usize) -> Result<(), Error> {
    match &style.indent {
        Some(indent) => {
            put(out, "\n")?;
            (0..depth).try_for_each(|_| put(out, indent))
        }
        None => Ok(()),
    }
}

fn write_text(out: &mut Text, style: &Style, text: &str) -> Result<(), Error> {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '\x08' => quoted.push_str("\\b"),
            '\x0c' => quoted.push_str("\\f"),
            c if c < ' ' || (style.ascii && (c > '~')) => {
                let mut units = [0; 2];
                for unit in c.encode_utf16(&mut units) {
                    quoted.push_str(&format!("\\u{unit:04x}"));
                }
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    put(out, &quoted)
}
