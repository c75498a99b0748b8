//! The functions that transformers adds to Jinja.

use minijinja::{Environment, Error, ErrorKind, Value};

use crate::texts;

/// Adds these functions to the environment.
pub(crate) fn add(environment: &mut Environment<'_>) {
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
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
