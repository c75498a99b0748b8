//! Arguments in the format of Qwen3-Coder and Qwen3.5: `<parameter=p>\nvalue\n</parameter>`.

use serde_json::{Map, Value};

use super::{
    Function,
    cursor::{Cursor, Stop},
};

pub(super) const FUNCTION: &str = "<function=";
pub(super) const FUNCTION_END: &str = "</function>";
pub(super) const PARAMETER: &str = "<parameter=";
pub(super) const PARAMETER_END: &str = "</parameter>";

/// The name and the arguments of a call, from the text between its markers.
pub(super) fn parsed(body: &str, functions: &[Function]) -> Option<(String, Value)> {
    let mut cursor = Cursor::new(body);
    call(&mut cursor, functions).ok()
}

fn call(cursor: &mut Cursor<'_>, functions: &[Function]) -> Result<(String, Value), Stop> {
    cursor.literal(FUNCTION)?;
    let name = cursor.until(">")?;
    let function = functions.iter().find(|function| function.name == name).ok_or(Stop::Wrong)?;
    let mut arguments = Map::new();
    while cursor.literal(PARAMETER).is_ok() {
        let parameter = cursor.until(">")?;
        // Line ends around a value belong to the markers. The value may contain text that looks like the end of a
        // parameter.
        let rest = cursor.rest();
        let text = match rest.strip_prefix('\n') {
            Some(_) => cursor.until("\n").and_then(|_| whole_lines(cursor))?,
            None => cursor.until(PARAMETER_END)?,
        };
        arguments.insert(parameter.to_owned(), value(text, function.parameter(parameter)));
    }
    cursor.literal(FUNCTION_END)?;
    cursor.space();
    if cursor.rest().is_empty() { Ok((name.to_owned(), Value::Object(arguments))) } else { Err(Stop::Wrong) }
}

/// Reads the text up to an end marker on a line of its own. The line end before the marker may have been read
/// already.
fn whole_lines<'a>(cursor: &mut Cursor<'a>) -> Result<&'a str, Stop> {
    if cursor.rest().starts_with(PARAMETER_END) {
        return cursor.until(PARAMETER_END);
    }
    cursor.until(&format!("\n{PARAMETER_END}\n"))
}

/// Whether values of a schema are written as plain text instead of JSON.
pub(super) fn is_text(schema: Option<&Value>) -> bool {
    let Some(schema) = schema else { return true };
    match schema.get("type") {
        Some(Value::String(kind)) => kind == "string",
        Some(Value::Array(kinds)) => kinds.iter().any(|kind| kind == "string"),
        _ => match ["anyOf", "oneOf"].iter().find_map(|key| schema.get(key)?.as_array()) {
            Some(options) => options.iter().any(|option| is_text(Some(option))),
            None => match schema.get("enum").and_then(Value::as_array) {
                Some(values) => values.iter().any(Value::is_string),
                None => schema.get("$ref").is_none(),
            },
        },
    }
}

fn value(text: &str, schema: Option<&Value>) -> Value {
    let as_text = || Value::String(text.to_owned());
    let is_nullable = schema.is_some_and(|schema| schema.to_string().contains("\"null\""));
    match is_text(schema) {
        true if is_nullable && text == "null" => Value::Null,
        true => as_text(),
        false => serde_json::from_str(text).unwrap_or_else(|_| as_text()),
    }
}
