//! Reads the constants of a template as Python reads them.

use minijinja::Error;

use crate::adapt::refuse;

/// Decodes a string constant as Python's `unicode_escape` does.
///
/// # Errors
/// If an escape is cut short or names no character.
pub(crate) fn decoded(constant: &str) -> Result<String, Error> {
    let mut out = String::with_capacity(constant.len());
    let mut rest = constant;
    while let Some(at) = rest.find('\\') {
        out += &rest[..at];
        let escape = &rest[at + 1..];
        let Some(c) = escape.chars().next() else { return refuse("a text constant ends in `\\`") };
        let mut length = c.len_utf8();
        match c {
            '\n' => {}
            '\\' | '\'' | '"' => out.push(c),
            'a' => out.push('\x07'),
            'b' => out.push('\x08'),
            'f' => out.push('\x0c'),
            'n' => out.push('\n'),
            'r' => out.push('\r'),
            't' => out.push('\t'),
            'v' => out.push('\x0b'),
            '0'..='7' => {
                length = escape.bytes().take(3).take_while(|byte| (b'0'..=b'7').contains(byte)).count();
                out.push(character(&escape[..length], 8)?);
            }
            'x' | 'u' | 'U' => {
                let digits = match c {
                    'x' => 2,
                    'u' => 4,
                    _ => 8,
                };
                length = 1 + digits;
                out.push(character(escape.get(1..length).unwrap_or_default(), 16)?);
            }
            'N' => return refuse("a character by its name, `\\N{...}`, is not supported"),
            // Jinja first writes a non-ASCII character as an escape, and the `\` before it then escapes the escape's
            // own `\`.
            c if !c.is_ascii() => {
                let code = u32::from(c);
                out += &match code {
                    ..=0xff => format!("\\x{code:02x}"),
                    0x100..=0xffff => format!("\\u{code:04x}"),
                    _ => format!("\\U{code:08x}"),
                };
            }
            c => {
                out.push('\\');
                out.push(c);
            }
        }
        rest = &escape[length..];
    }
    Ok(out + rest)
}

/// The character with the code that these digits give.
fn character(digits: &str, radix: u32) -> Result<char, Error> {
    let is_number = !digits.is_empty() && digits.chars().all(|digit| digit.is_digit(radix));
    let code = if is_number { u32::from_str_radix(digits, radix).ok() } else { None };
    match code.map(char::from_u32) {
        Some(Some(c)) => Ok(c),
        Some(None) => refuse("an escape in a text constant names no character (half of a pair?)"),
        None => refuse("an escape in a text constant has too few digits"),
    }
}

/// A string constant that minijinja reads as this text.
pub(crate) fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// The length of a number in bytes.
///
/// # Errors
/// If Jinja reads no number there, or reads two.
pub(crate) fn number_length(rest: &str, is_index: bool) -> Result<usize, Error> {
    let run = |from: usize| {
        let digits = |c: char| c.is_ascii_digit() || c == '_';
        from + rest[from..].find(|c: char| !digits(c)).unwrap_or(rest.len() - from)
    };
    let is_digit = |at: usize| rest[at..].starts_with(|c: char| c.is_ascii_digit());
    let digits = if rest.get(1..2).is_some_and(|radix| "xXoObB".contains(radix)) && rest.starts_with('0') {
        rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(rest.len())
    } else {
        run(0)
    };
    let integer = &rest[..digits];
    if integer.contains("__") || integer.ends_with('_') {
        return refuse("a number has a `_` that is not between digits");
    }
    if is_index || digits > 1 && integer.as_bytes()[1].is_ascii_alphabetic() {
        return Ok(digits);
    }
    let mut end = digits;
    if rest[end..].starts_with('.') {
        if is_digit(end + 1) {
            end = run(end + 1);
        } else if !rest[end + 1..].starts_with(|c: char| c.is_alphabetic() || c == '_') {
            return refuse("a number ends in a point");
        }
    }
    if rest[end..].starts_with(['e', 'E']) {
        let sign = usize::from(rest[end + 1..].starts_with(['+', '-']));
        if is_digit(end + 1 + sign) {
            end = run(end + 1 + sign);
        }
    }
    let is_zero = integer.bytes().all(|byte| byte == b'0' || byte == b'_');
    match end == digits && integer.starts_with('0') && !is_zero {
        true => refuse("a number begins with 0"),
        false => Ok(end),
    }
}
