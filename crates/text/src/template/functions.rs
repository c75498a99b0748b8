//! What transformers adds to Jinja.

use std::io;

use minijinja::{Environment, Error, ErrorKind, Value, value::Kwargs};
use serde::Serialize;
use serde_json::ser::Formatter;

use super::{texts, weigh};

/// Adds these functions and filters.
pub(super) fn add(environment: &mut Environment<'_>) {
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
    environment.add_filter("tojson", to_json);
}

fn raise_exception(message: &Value) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, texts::text(message)?))
}

fn strftime_now(format: &Value) -> Result<String, Error> {
    use std::fmt::Write;
    let mut text = String::new();
    match write!(text, "{}", chrono::Local::now().format(&texts::text(format)?)) {
        Ok(()) => Ok(text),
        Err(_) => {
            Err(Error::new(ErrorKind::InvalidOperation, format!("time format {format:?} is not valid")))
        }
    }
}

/// JSON as Python's `json.dumps(value, ensure_ascii=False, indent=indent)` writes it, as transformers has the
/// filter; minijinja's own escapes for HTML. The other options of `json.dumps` are refused where they would
/// change the text.
fn to_json(value: &Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    for option in ["ensure_ascii", "sort_keys"] {
        if options.get::<Option<bool>>(option)? == Some(true) {
            let what = format!("tojson with {option} is not supported");
            return Err(Error::new(ErrorKind::InvalidOperation, what));
        }
    }
    options.assert_all_used()?;
    weigh::weigh(value)?;
    let mut out = texts::Bytes::default();
    let written = match indent {
        Some(width) => {
            let indent = " ".repeat(width.min(64));
            let pretty = serde_json::ser::PrettyFormatter::with_indent(indent.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, pretty))
        }
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, OneLine)),
    };
    let text = written.ok().and_then(|()| String::from_utf8(out.0).ok());
    let text = text.ok_or_else(|| {
        Error::new(ErrorKind::BadSerialization, "a value has no JSON form, or one of many megabytes")
    })?;
    Ok(Value::from_safe_string(text))
}

/// Python's `", "` and `": "`.
struct OneLine;

impl Formatter for OneLine {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.begin_array_value(writer, first)
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}
