//! Reads text and JSON files as people and programs write them.
//!
//! Editors and shells put a byte order mark before a text, and Windows PowerShell writes UTF-16 (`Out-File`, `>`).
//! Python writes NaN and infinities into JSON, which does not allow them (`json.dump`). All text that moi reads
//! passes through this crate, so that every file is read in the same way.
//!
//! The file names of split models are also parsed here ([`PartName`]), because the hub needs them before a file
//! exists, without the code that opens model files.

mod part_name;

use std::{borrow::Cow, fmt};

use serde::de::DeserializeOwned;
use serde_json::error::Category;

pub use part_name::PartName;

/// A library's message in a form that is safe to print: without terminal control characters, because it may quote an
/// untrusted file, and of bounded length.
pub fn brief(text: &str) -> String {
    const MAX_LENGTH: usize = 500;
    let mut out = String::new();
    for c in text.chars().take(MAX_LENGTH) {
        match c.is_control() && c != '\n' {
            true => out.extend(c.escape_unicode()),
            false => out.push(c),
        }
    }
    if text.chars().nth(MAX_LENGTH).is_some() {
        out += "...";
    }
    out
}

const UTF8_MARK: &[u8] = b"\xef\xbb\xbf";
const UTF16_LITTLE_ENDIAN_MARK: &[u8] = b"\xff\xfe";
const UTF16_BIG_ENDIAN_MARK: &[u8] = b"\xfe\xff";

/// Why bytes are not text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotText {
    /// The byte at this position, counted from 0, begins no UTF-8 character.
    Utf8(usize),
    /// The bytes behind a UTF-16 byte order mark are not UTF-16.
    Utf16,
    /// A third or more of the text's bytes are NUL, as in UTF-16 or UTF-32 without a byte order mark.
    Nul,
}

impl fmt::Display for NotText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Utf8(at) => write!(f, "it is not UTF-8 text (byte {at}); save it as UTF-8"),
            Self::Nul => {
                f.write_str("it looks like UTF-16 or UTF-32 without a byte order mark; save it as UTF-8")
            }
            Self::Utf16 => f.write_str("it begins as UTF-16 and is not; save it as UTF-8"),
        }
    }
}

impl std::error::Error for NotText {}

/// Decodes a text file: UTF-8, or UTF-16 with a byte order mark. The byte order mark is removed.
///
/// # Errors
/// If the bytes are neither.
pub fn text(bytes: Vec<u8>) -> Result<String, NotText> {
    let wide = |of_pair: fn([u8; 2]) -> u16| {
        let (pairs, rest) = bytes[2..].as_chunks::<2>();
        let units: Vec<u16> = pairs.iter().map(|&pair| of_pair(pair)).collect();
        let text = String::from_utf16(&units).ok().filter(|_| rest.is_empty()).ok_or(NotText::Utf16)?;
        without_nul(text)
    };
    if bytes.starts_with(UTF16_LITTLE_ENDIAN_MARK) {
        return wide(u16::from_le_bytes);
    }
    if bytes.starts_with(UTF16_BIG_ENDIAN_MARK) {
        return wide(u16::from_be_bytes);
    }
    let marked = bytes.starts_with(UTF8_MARK);
    let mut text =
        String::from_utf8(bytes).map_err(|error| NotText::Utf8(error.utf8_error().valid_up_to()))?;
    if marked {
        text.remove(0);
    }
    without_nul(text)
}

/// The text, unless a large part of it is NUL.
fn without_nul(text: String) -> Result<String, NotText> {
    let nul = text.bytes().filter(|&byte| byte == 0).count();
    if nul > 0 && 3 * nul >= text.len() { Err(NotText::Nul) } else { Ok(text) }
}

/// The bytes of a file as UTF-8 without a byte order mark; UTF-16 is decoded. Bytes that begin with a UTF-16 mark but
/// are not UTF-16 stay unchanged, so that the parser refuses them.
pub fn plain(bytes: &[u8]) -> Cow<'_, [u8]> {
    match bytes.starts_with(UTF16_LITTLE_ENDIAN_MARK) || bytes.starts_with(UTF16_BIG_ENDIAN_MARK) {
        true => text(bytes.to_vec()).map_or(Cow::Borrowed(bytes), |text| Cow::Owned(text.into_bytes())),
        false => Cow::Borrowed(bytes.strip_prefix(UTF8_MARK).unwrap_or(bytes)),
    }
}

/// Reads JSON as Python's `json` does: NaN and infinities are allowed in fields that nothing reads. Where they are
/// read, each is a string with its name, which does not parse as a number.
///
/// # Errors
/// If the bytes are not JSON, or do not fit `T`.
pub fn json<T: DeserializeOwned>(bytes: &[u8]) -> serde_json::Result<T> {
    let bytes: Cow<'_, [u8]> = plain(bytes);
    serde_json::from_slice(&bytes).or_else(|error| match error.classify() {
        Category::Syntax => match with_quoted_constants(&bytes) {
            Some(quoted) => serde_json::from_slice(&quoted),
            None => Err(error),
        },
        Category::Io | Category::Data | Category::Eof => Err(error),
    })
}

/// Puts Python's `NaN`, `Infinity` and `-Infinity` in quotes where they stand outside of strings; `None` if there are
/// none.
fn with_quoted_constants(bytes: &[u8]) -> Option<Vec<u8>> {
    const CONSTANTS: [&[u8]; 3] = [b"NaN", b"-Infinity", b"Infinity"];
    let mut out = Vec::with_capacity(bytes.len() + 64);
    let (mut at, mut in_string, mut quoted) = (0, false, false);
    while let Some(&byte) = bytes.get(at) {
        let constant = CONSTANTS.iter().find(|constant| !in_string && bytes[at..].starts_with(constant));
        if let Some(constant) = constant {
            out.push(b'"');
            out.extend_from_slice(constant);
            out.push(b'"');
            (at, quoted) = (at + constant.len(), true);
            continue;
        }
        let len = match byte {
            // An escaped quote does not end the string.
            b'\\' if in_string => 2,
            b'"' => {
                in_string = !in_string;
                1
            }
            _ => 1,
        };
        out.extend(bytes[at..].iter().take(len));
        at += len;
    }
    quoted.then_some(out)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    #[allow(clippy::unwrap_used, reason = "a failure must end the test")]
    fn texts_are_read_whatever_wrote_them() {
        let utf16 = |text: &str, order: fn(u16) -> [u8; 2]| -> Vec<u8> {
            format!("\u{feff}{text}").encode_utf16().flat_map(order).collect()
        };
        for written in ["", "plain", "grüße \u{1f600}\r\n", "in\u{feff}side"] {
            for bytes in [
                written.as_bytes().to_vec(),
                [UTF8_MARK, written.as_bytes()].concat(),
                utf16(written, u16::to_le_bytes),
                utf16(written, u16::to_be_bytes),
            ] {
                assert_eq!(&plain(&bytes)[..], written.as_bytes());
                assert_eq!(text(bytes).as_deref(), Ok(written));
            }
        }
        assert_eq!(&plain(b"\xff\xfea")[..], b"\xff\xfea");
        assert_eq!(text(b"ab\xff".to_vec()), Err(NotText::Utf8(2)));
        assert_eq!(text(b"\xff\xfea".to_vec()), Err(NotText::Utf16));
        assert_eq!(text(b"\xff\xfe\x00\xd8".to_vec()), Err(NotText::Utf16));
        assert_eq!(text(b"a\0b\0".to_vec()), Err(NotText::Nul));
        assert_eq!(text(b"\xff\xfe\0\0a\0\0\0".to_vec()), Err(NotText::Nul));
        assert_eq!(text(b"one \0 is text".to_vec()).as_deref(), Ok("one \0 is text"));
    }

    #[test]
    #[allow(clippy::unwrap_used, reason = "a failure must end the test")]
    fn json_is_read_as_python_writes_it() {
        let read = |text: &str| json::<Value>(text.as_bytes()).ok();
        for (written, expected) in [
            ("{\"a\": NaN}", Some(json!({"a": "NaN"}))),
            ("[Infinity, -Infinity, -1]", Some(json!(["Infinity", "-Infinity", -1]))),
            // A constant's name inside a string stays unchanged.
            (
                r#"{"NaN": "NaN \" Infinity \\", "b": NaN}"#,
                Some(json!({"NaN": "NaN \" Infinity \\", "b": "NaN"})),
            ),
            ("\u{feff}{}", Some(json!({}))),
            ("nan", None),
            ("[NaN", None),
            ("{NaN: 1}", Some(json!({"NaN": 1}))),
            ("[1,]", None),
        ] {
            assert_eq!(read(written), expected, "{written}");
        }
        let number = json::<std::collections::BTreeMap<String, f64>>(b"{\"a\": NaN}").unwrap_err();
        assert!(number.to_string().contains("\"NaN\""), "{number}");
    }
}
