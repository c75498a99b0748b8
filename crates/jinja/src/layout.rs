//! Filters that lay out a text: widths, lines and words.

use minijinja::{Error, State, Value, value::Kwargs};

use crate::{
    args::{bind, integer, is_true, text},
    python::{is_space, refuse},
    texts::{MAX_BYTES, text as text_of, too_long},
};

/// Pads a text on the left and on the right with this many fill characters.
///
/// # Errors
/// If the result is too long.
pub(crate) fn padded(text: &str, left: usize, right: usize, fill: char) -> Result<Value, Error> {
    let added = left.saturating_add(right).saturating_mul(fill.len_utf8());
    if added.saturating_add(text.len()) > MAX_BYTES {
        return Err(too_long());
    }
    let mut out = String::with_capacity(added + text.len());
    out.extend(std::iter::repeat_n(fill, left));
    out += text;
    out.extend(std::iter::repeat_n(fill, right));
    Ok(Value::from(out))
}

/// Pads a text on both sides, distributed as by `str.center`.
///
/// # Errors
/// If the result is too long.
pub(crate) fn centered(text: &str, width: i64, fill: char) -> Result<Value, Error> {
    let width = usize::try_from(width).unwrap_or(0);
    let missing = width.saturating_sub(text.chars().count());
    // If one more is needed on one side, it stands on the left where the width is odd.
    let left = missing / 2 + (missing & width & 1);
    padded(text, left, missing - left, fill)
}

pub(crate) fn center(
    _: &mut State<'_, '_>,
    value: &Value,
    more: &[Value],
    named: &Kwargs,
) -> Result<Value, Error> {
    let [width] = bind("center", ["width"], more, named)?;
    centered(&text_of(value)?, integer("center", width.as_ref(), 80)?, ' ')
}

/// Splits a text into lines as `str.splitlines` does: each line, and its line end.
pub(crate) fn lines(text: &str) -> Vec<(&str, &str)> {
    let is_end = |c: char| matches!(c, '\n'..='\r' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}');
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(is_end) {
        let behind = &rest[at..];
        let length = match behind.starts_with("\r\n") {
            true => 2,
            false => behind.chars().next().map_or(1, char::len_utf8),
        };
        lines.push((&rest[..at], &behind[..length]));
        rest = &behind[length..];
    }
    if !rest.is_empty() {
        lines.push((rest, ""));
    }
    lines
}

pub(crate) fn indent(
    _: &mut State<'_, '_>,
    value: &Value,
    more: &[Value],
    named: &Kwargs,
) -> Result<Value, Error> {
    let [width, first, blank] = bind("indent", ["width", "first", "blank"], more, named)?;
    let source = text("indent", Some(value))?;
    let indentation = match width.as_ref().and_then(Value::as_str) {
        Some(text) => text.to_owned(),
        None => {
            let width = usize::try_from(integer("indent", width.as_ref(), 4)?).unwrap_or(0);
            if width > MAX_BYTES {
                return Err(too_long());
            }
            " ".repeat(width)
        }
    };
    // Jinja appends a line end, so that a last empty line counts.
    let ended = source.to_owned() + "\n";
    let lines = lines(&ended);
    let added = lines.len().saturating_add(1).saturating_mul(indentation.len());
    if added.saturating_add(ended.len()) > MAX_BYTES {
        return Err(too_long());
    }
    let mut out = String::with_capacity(added + ended.len());
    for (at, (line, _)) in lines.iter().enumerate() {
        if at > 0 {
            out.push('\n');
        }
        let is_indented =
            if at == 0 { is_true(first.as_ref()) } else { is_true(blank.as_ref()) || !line.is_empty() };
        if is_indented {
            out += &indentation;
        }
        out += line;
    }
    Ok(Value::from(out))
}

pub(crate) fn truncate(
    _: &mut State<'_, '_>,
    value: &Value,
    more: &[Value],
    named: &Kwargs,
) -> Result<Value, Error> {
    let [length, killwords, end, leeway] =
        bind("truncate", ["length", "killwords", "end", "leeway"], more, named)?;
    let source = text("truncate", Some(value))?;
    let end = end.as_ref().map_or(Ok("..."), |end| text("truncate", Some(end)))?;
    let length = integer("truncate", length.as_ref(), 255)?;
    let leeway = integer("truncate", leeway.as_ref().filter(|leeway| !leeway.is_none()), 5)?;
    let kept = length - i64::try_from(end.chars().count()).unwrap_or(i64::MAX);
    if kept < 0 || leeway < 0 {
        return refuse("truncate takes a length that its end fits in, and a leeway that is not negative");
    }
    if source.chars().count() as i64 <= length.saturating_add(leeway) {
        return Ok(value.clone());
    }
    let cut = source.char_indices().nth(kept as usize).map_or(source, |(at, _)| &source[..at]);
    let cut = match is_true(killwords.as_ref()) {
        true => cut,
        false => cut.rsplit_once(' ').map_or(cut, |(words, _)| words),
    };
    Ok(Value::from(format!("{cut}{end}")))
}

/// Wraps lines as Python's textwrap does with Jinja's options, without breaking at hyphens.
pub(crate) fn word_wrap(
    _: &mut State<'_, '_>,
    value: &Value,
    more: &[Value],
    named: &Kwargs,
) -> Result<Value, Error> {
    let names = ["width", "break_long_words", "wrapstring", "break_on_hyphens"];
    let [width, breaks, wrapstring, hyphens] = bind("wordwrap", names, more, named)?;
    let source = text("wordwrap", Some(value))?;
    let Some(width) =
        usize::try_from(integer("wordwrap", width.as_ref(), 79)?).ok().filter(|&width| width > 0)
    else {
        return refuse("wordwrap takes a width above 0");
    };
    if hyphens.is_none_or(|hyphens| hyphens.is_true()) && source.contains('-') {
        return refuse("wordwrap of a text with hyphens is not supported, but with break_on_hyphens=false");
    }
    let breaks = breaks.is_none_or(|breaks| breaks.is_true());
    let end = match wrapstring.as_ref().filter(|text| !text.is_none()) {
        Some(end) => text("wordwrap", Some(end))?,
        None => "\n",
    };
    // The chunks take many times the memory of the text.
    if source.len() > MAX_BYTES / 16 {
        return Err(too_long());
    }
    let mut out: Vec<&str> = Vec::new();
    for (line, _) in lines(source) {
        let mut wrapped = wrapped(line, width, breaks);
        if wrapped.is_empty() {
            // A line without words stays as an empty line.
            wrapped.push("");
        }
        out.append(&mut wrapped);
    }
    let added = out.len().saturating_mul(end.len());
    match added.saturating_add(source.len()) > MAX_BYTES {
        true => Err(too_long()),
        false => Ok(Value::from(out.join(end))),
    }
}

/// A run of blanks or of other characters in a line, as byte positions.
#[derive(Clone, Copy, Debug)]
struct Chunk {
    start: usize,
    end: usize,
    /// The end of its last character that is not white space.
    solid_end: usize,
}

impl Chunk {
    fn new(line: &str, start: usize, end: usize) -> Self {
        Self { start, end, solid_end: start + line[start..end].trim_end_matches(is_space).len() }
    }

    /// The chunks of a line in reverse order.
    fn all_reversed(line: &str) -> Vec<Self> {
        let is_blank = |c: char| matches!(c, '\t'..='\r' | ' ');
        let mut chunks: Vec<Self> = Vec::new();
        let mut start: usize = 0;
        while let Some(first) = line[start..].chars().next() {
            let length = line[start..].find(|c: char| is_blank(c) != is_blank(first));
            let end = length.map_or(line.len(), |length| start + length);
            chunks.push(Self::new(line, start, end));
            start = end;
        }
        chunks.reverse();
        chunks
    }

    fn is_white(self) -> bool {
        self.solid_end <= self.start
    }

    /// Splits a chunk behind this many characters. Only the first part is read, so that a chunk that becomes many
    /// lines is not read again for each of them.
    fn split(self, line: &str, characters: usize) -> (Self, Self) {
        let length = line[self.start..self.end].char_indices().nth(characters);
        let at = length.map_or(self.end, |(length, _)| self.start + length);
        (Self::new(line, self.start, at), Self { start: at, ..self })
    }
}

/// The lines that a paragraph is wrapped into.
fn wrapped(line: &str, width: usize, breaks: bool) -> Vec<&str> {
    let mut chunks: Vec<Chunk> = Chunk::all_reversed(line);
    // Counting stops behind the width of a line.
    let count = |chunk: Chunk| line[chunk.start..chunk.end].chars().take(width.saturating_add(1)).count();
    let mut lines: Vec<&str> = Vec::new();
    while !chunks.is_empty() {
        let mut current: Vec<Chunk> = Vec::new();
        let mut length: usize = 0;
        if !lines.is_empty() && chunks.last().is_some_and(|chunk| chunk.is_white()) {
            chunks.pop();
        }
        while let Some(chunk) = chunks.pop() {
            let count = count(chunk);
            if length + count > width {
                chunks.push(chunk);
                break;
            }
            length += count;
            current.push(chunk);
        }
        if let Some(chunk) = chunks.pop() {
            let is_long = count(chunk) > width;
            match is_long && (breaks || current.is_empty()) {
                true if breaks => {
                    let (first, rest) = chunk.split(line, width - length);
                    current.push(first);
                    chunks.push(rest);
                }
                true => current.push(chunk),
                false => chunks.push(chunk),
            }
        }
        if current.last().is_some_and(|chunk| chunk.is_white()) {
            current.pop();
        }
        // The chunks of a line are contiguous.
        if let (Some(first), Some(last)) = (current.first(), current.last()) {
            lines.push(&line[first.start..last.end]);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_wrapped() {
        for (line, width, breaks, expected) in [
            ("aa bb cc", 5, true, vec!["aa bb", "cc"]),
            ("  aa   bb ", 4, true, vec!["  aa", "bb"]),
            ("abcdefg hi", 3, true, vec!["abc", "def", "g", "hi"]),
            ("a bcdefg", 4, true, vec!["a bc", "defg"]),
            ("abcdefg hi", 3, false, vec!["abcdefg", "hi"]),
            ("\u{e4}\u{f6}\u{fc}\u{df}", 3, true, vec!["\u{e4}\u{f6}\u{fc}", "\u{df}"]),
            ("   ", 2, true, vec![]),
        ] {
            assert_eq!(wrapped(line, width, breaks), expected, "{line}");
        }
    }

    /// If the rest of a long word were copied or counted for each line, the time would be quadratic.
    #[test]
    fn long_words_become_many_lines() {
        const LENGTH: usize = 2_000_000;
        assert_eq!(wrapped(&"a".repeat(LENGTH), 1, true).len(), LENGTH);
        // No-break spaces are white space, but they belong to words.
        let spaces = "\u{a0}".repeat(LENGTH);
        assert_eq!(wrapped(&format!("a{spaces}b{spaces}"), 1, true), ["a", "b"]);
    }
}
