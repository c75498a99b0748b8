//! Request bodies: read within limits, and parsed with the paths of errors and of ignored fields.

use std::{collections::BTreeSet, time::Duration};

use axum::{
    body::Body,
    http::{HeaderMap, header},
};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;

use crate::error::ApiError;

/// How long a client may take from one piece of a body to the next.
const IDLE: Duration = Duration::from_secs(30);

/// Reads a JSON body of at most `most` bytes.
pub(crate) async fn read(headers: &HeaderMap, mut body: Body, most: usize) -> Result<Bytes, ApiError> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let is_json = kind == "application/json" || (kind.starts_with("application/") && kind.ends_with("+json"));
    // Some clients send no content type.
    if !is_json && !kind.is_empty() {
        return Err(ApiError::not_json());
    }
    let encoding = headers.get(header::CONTENT_ENCODING).map(|value| value.as_bytes());
    if encoding.is_some_and(|encoding| !encoding.eq_ignore_ascii_case(b"identity")) {
        return Err(ApiError::encoded());
    }
    let declared = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    if declared.is_some_and(|declared: usize| declared > most) {
        return Err(ApiError::too_large(most));
    }
    let mut bytes = BytesMut::new();
    loop {
        let frame = tokio::time::timeout(IDLE, body.frame()).await.map_err(|_| ApiError::slow_body())?;
        let Some(frame) = frame else { return Ok(bytes.freeze()) };
        let frame = frame.map_err(|error| {
            ApiError::invalid("invalid_body", format!("the body could not be read: {error}"))
        })?;
        if let Ok(data) = frame.into_data() {
            if bytes.len() + data.len() > most {
                return Err(ApiError::too_large(most));
            }
            bytes.extend_from_slice(&data);
        }
    }
}

/// Fields of a body that nothing reads. A body is read once for each type that describes a part of it, and a
/// top-level field counts as ignored only if none of these types has it.
#[derive(Debug, Default)]
pub(crate) struct Ignored {
    /// Top-level fields that all types so far have ignored; `None` before the first type.
    top: Option<BTreeSet<String>>,
    nested: BTreeSet<String>,
}

impl Ignored {
    fn add(&mut self, paths: BTreeSet<String>) {
        let (nested, top): (BTreeSet<String>, BTreeSet<String>) =
            paths.into_iter().partition(|path| path.contains(['.', '[']));
        self.nested.extend(nested);
        self.top = Some(match self.top.take() {
            Some(before) => before.intersection(&top).cloned().collect(),
            None => top,
        });
    }

    /// Removes top-level fields that are read in another way.
    pub(crate) fn known(&mut self, fields: impl IntoIterator<Item = String>) {
        if let Some(top) = &mut self.top {
            fields.into_iter().for_each(|field| {
                top.remove(&field);
            });
        }
    }

    /// The paths of ignored fields, in order, up to a limit.
    pub(crate) fn paths(&self) -> Vec<&str> {
        const LISTED: usize = 32;
        self.top.iter().flatten().chain(&self.nested).map(String::as_str).take(LISTED).collect()
    }
}

/// The most values of a body, and of a body that may contain lists of token ids. Each value takes some hundred bytes
/// while the body is read.
pub(crate) const MAX_VALUES: usize = 1 << 20;
pub(crate) const MAX_LISTED_VALUES: usize = 1 << 23;

/// Refuses a body of too many values before they take memory.
///
/// # Errors
/// If the body has more than `most` values.
pub(crate) fn check_values(body: &[u8], most: usize) -> Result<(), ApiError> {
    let (mut values, mut is_text, mut is_escaped) = (0, false, false);
    for &byte in body {
        match (is_text, byte) {
            (true, _) if is_escaped => is_escaped = false,
            (true, b'\\') => is_escaped = true,
            (_, b'"') => is_text = !is_text,
            (false, b',' | b'[' | b'{') => values += 1,
            _ => {}
        }
    }
    match values > most {
        true => Err(ApiError::invalid("invalid_value", format!("the body has more than {most} values"))),
        false => Ok(()),
    }
}

/// Parses a body.
///
/// # Errors
/// An error with the path of the wrong value.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8], ignored: &mut Ignored) -> Result<T, ApiError> {
    // serde would also accept a list of values for a structure.
    let first = bytes.iter().find(|byte| !byte.is_ascii_whitespace());
    if first.is_some_and(|first| b"[\"-0123456789tfn".contains(first)) {
        return Err(ApiError::invalid("invalid_type", "the body must be a JSON object"));
    }
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let mut paths = BTreeSet::new();
    let mut note = |path: serde_ignored::Path<'_>| {
        if paths.len() < 1024 {
            paths.insert(shown(&path.to_string()));
        }
    };
    let noting = serde_ignored::Deserializer::new(&mut deserializer, &mut note);
    let parsed = serde_path_to_error::deserialize(noting).map_err(|error| {
        let path = error.path().to_string();
        wrong(error.into_inner(), (path != ".").then_some(path))
    })?;
    deserializer.end().map_err(|error| wrong(error, None))?;
    ignored.add(paths);
    Ok(parsed)
}

fn wrong(error: serde_json::Error, path: Option<String>) -> ApiError {
    let message = error.to_string();
    if !error.is_data() {
        return ApiError::invalid("invalid_json", format!("the body is no JSON: {message}"));
    }
    let code = if message.starts_with("invalid type") { "invalid_type" } else { "invalid_value" };
    // The path says more than the position in the body, which is left out.
    let message = message.rsplit_once(" at line ").map_or(message.as_str(), |(what, _)| what);
    let missing = message.strip_prefix("missing field `").and_then(|rest| rest.split('`').next());
    match (path, missing) {
        (Some(path), Some(field)) => {
            ApiError::invalid(code, format!("{path}: {message}")).of(format!("{path}.{field}"))
        }
        (Some(path), None) => ApiError::invalid(code, format!("{path}: {message}")).of(path),
        (None, Some(field)) => ApiError::invalid(code, message).of(field),
        (None, None) => ApiError::invalid(code, message),
    }
}

/// Writes a path of serde_ignored, such as `messages.0.name`, as `messages[0].name`.
fn shown(path: &str) -> String {
    let mut out = String::new();
    for part in path.split('.').filter(|part| *part != "?") {
        match part.bytes().all(|byte| byte.is_ascii_digit()) && !part.is_empty() && !out.is_empty() {
            true => out += &format!("[{part}]"),
            false if out.is_empty() => out += part,
            false => out += &format!(".{part}"),
        }
    }
    out
}
