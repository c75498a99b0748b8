//! Arguments in Gemma's format: `p:<|"|>text<|"|>,q:3,r:[1,2],s:{t:true}`, with special quotes around texts.

use serde_json::{Map, Number, Value};

use super::cursor::{Cursor, Stop};

/// The deepest nesting of values.
const MAX_DEPTH: usize = 256;

/// The name and the arguments of a call, from the text between its markers.
pub(super) fn parsed(body: &str, quote: &str) -> Option<(String, Value)> {
    let mut reader = Reader { cursor: Cursor::new(body), quote };
    reader.cursor.literal("call:").ok()?;
    let name = reader.cursor.until("{").ok()?.trim().to_owned();
    let arguments = reader.object(0).ok()?;
    reader.cursor.space();
    reader.cursor.rest().is_empty().then_some((name, arguments))
}

struct Reader<'a> {
    cursor: Cursor<'a>,
    quote: &'a str,
}

impl Reader<'_> {
    /// Reads an object whose opening brace has been read.
    fn object(&mut self, depth: usize) -> Result<Value, Stop> {
        let mut fields = Map::new();
        if self.cursor.literal("}").is_ok() {
            return Ok(Value::Object(fields));
        }
        loop {
            self.cursor.space();
            let key = match self.cursor.literal(self.quote) {
                Ok(()) => {
                    let key = self.cursor.until(self.quote)?;
                    self.cursor.literal(":")?;
                    key
                }
                Err(_) => self.cursor.until(":")?.trim(),
            };
            let value = self.value(depth + 1)?;
            fields.insert(key.to_owned(), value);
            if self.cursor.literal("}").is_ok() {
                return Ok(Value::Object(fields));
            }
            self.cursor.literal(",")?;
        }
    }

    fn value(&mut self, depth: usize) -> Result<Value, Stop> {
        if depth > MAX_DEPTH {
            return Err(Stop::Wrong);
        }
        if self.cursor.literal(self.quote).is_ok() {
            return Ok(Value::String(self.cursor.until(self.quote)?.to_owned()));
        }
        if self.cursor.literal("{").is_ok() {
            return self.object(depth);
        }
        if self.cursor.literal("[").is_ok() {
            let mut values = Vec::new();
            if self.cursor.literal("]").is_ok() {
                return Ok(Value::Array(values));
            }
            loop {
                values.push(self.value(depth + 1)?);
                if self.cursor.literal("]").is_ok() {
                    return Ok(Value::Array(values));
                }
                self.cursor.literal(",")?;
            }
        }
        let rest = self.cursor.rest();
        let word = &rest[..rest.find([',', '}', ']']).unwrap_or(rest.len())];
        self.cursor.at += word.len();
        match word.trim() {
            "true" => Ok(Value::Bool(true)),
            "false" => Ok(Value::Bool(false)),
            "null" => Ok(Value::Null),
            word => word.parse::<Number>().map(Value::Number).map_err(|_| Stop::Wrong),
        }
    }
}
