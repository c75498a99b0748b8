//! Jinja's filters of texts that the engine lacks or has otherwise.

use minijinja::{
    Environment, Error, State, Value,
    value::{Kwargs, ValueKind},
};

use super::{
    args::{Filter, add_all, bind, integer, is_true, text},
    objects::items_of,
    printf,
    python::{self, escaped, is_dictionary, is_space, refuse, type_name},
    texts::{MOST_BYTES, text as text_of, too_long},
};

const FILTERS: [(&str, Filter); 14] = [
    ("tojson", super::json::to_json),
    ("center", center),
    ("e", escape),
    ("escape", escape),
    ("forceescape", |_, value, _, _| Ok(Value::from_safe_string(bounded(escaped(&text_of(value)?))?))),
    ("format", format),
    ("indent", indent),
    ("striptags", strip_tags),
    ("trim", trim),
    ("truncate", truncate),
    ("urlencode", url_encode),
    ("wordcount", word_count),
    ("wordwrap", word_wrap),
    ("xmlattr", xml_attributes),
];
/// Filters of the engine that Jinja has not, or that give nothing that a test could expect.
const NOT_JINJA: [&str; 6] = ["bool", "chain", "lines", "pprint", "split", "zip"];

/// Adds them, and takes away those that Jinja has not.
pub(super) fn add(environment: &mut Environment<'_>) {
    add_all(environment, &FILTERS);
    NOT_JINJA.iter().for_each(|name| environment.remove_filter(name));
}

/// A text that is not too long.
fn bounded(text: String) -> Result<String, Error> {
    if text.len() > MOST_BYTES { Err(too_long()) } else { Ok(text) }
}

/// Blanks or other characters on the left and on the right of a text, up to a width.
///
/// # Errors
/// If that is too wide.
pub(super) fn padded(text: &str, left: usize, right: usize, fill: char) -> Result<Value, Error> {
    let added = left.saturating_add(right).saturating_mul(fill.len_utf8());
    if added.saturating_add(text.len()) > MOST_BYTES {
        return Err(too_long());
    }
    let mut out = String::with_capacity(added + text.len());
    out.extend(std::iter::repeat_n(fill, left));
    out += text;
    out.extend(std::iter::repeat_n(fill, right));
    Ok(Value::from(out))
}

/// Blanks on both sides, as `str.center` gives them out.
///
/// # Errors
/// If that is too wide.
pub(super) fn centered(text: &str, width: i64, fill: char) -> Result<Value, Error> {
    let width = usize::try_from(width).unwrap_or(0);
    let missing = width.saturating_sub(text.chars().count());
    // The odd one stands on the left where the width is odd.
    let left = missing / 2 + (missing & width & 1);
    padded(text, left, missing - left, fill)
}

fn center(_: &mut State<'_, '_>, value: &Value, more: &[Value], named: &Kwargs) -> Result<Value, Error> {
    let [width] = bind("center", ["width"], more, named)?;
    centered(&text_of(value)?, integer("center", width.as_ref(), 80)?, ' ')
}

fn escape(_: &mut State<'_, '_>, value: &Value, more: &[Value], named: &Kwargs) -> Result<Value, Error> {
    let [] = bind("escape", [], more, named)?;
    match value.is_safe() {
        true => Ok(value.clone()),
        false => Ok(Value::from_safe_string(bounded(escaped(&text_of(value)?))?)),
    }
}

fn format(_: &mut State<'_, '_>, value: &Value, more: &[Value], named: &Kwargs) -> Result<Value, Error> {
    let mut names: Vec<(Value, Value)> = Vec::new();
    for name in named.args() {
        names.push((Value::from(name), named.peek::<Value>(name)?));
    }
    if !names.is_empty() && !more.is_empty() {
        return refuse("format takes values by place or by name, not both");
    }
    let format = text_of(value)?;
    match names.is_empty() {
        true => printf::printf(&format, more, None),
        false => printf::printf(&format, &[], Some(&Value::from_pairs(names))),
    }
}

/// Ends of lines as `str.splitlines` has them: each line, and its end.
pub(super) fn lines(text: &str) -> Vec<(&str, &str)> {
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

fn indent(_: &mut State<'_, '_>, value: &Value, more: &[Value], named: &Kwargs) -> Result<Value, Error> {
    let [width, first, blank] = bind("indent", ["width", "first", "blank"], more, named)?;
    let source = text("indent", Some(value))?;
    let indentation = match width.as_ref().and_then(Value::as_str) {
        Some(text) => text.to_owned(),
        None => {
            let width = usize::try_from(integer("indent", width.as_ref(), 4)?).unwrap_or(0);
            if width > MOST_BYTES {
                return Err(too_long());
            }
            " ".repeat(width)
        }
    };
    // As Jinja does, so that a last empty line counts.
    let ended = source.to_owned() + "\n";
    let lines = lines(&ended);
    let added = lines.len().saturating_add(1).saturating_mul(indentation.len());
    if added.saturating_add(ended.len()) > MOST_BYTES {
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

fn strip_tags(_: &mut State<'_, '_>, value: &Value, more: &[Value], named: &Kwargs) -> Result<Value, Error> {
    let [] = bind("striptags", [], more, named)?;
    let source = text_of(value)?;
    let mut kept = String::with_capacity(source.len());
    let mut rest: &str = &source;
    while let Some(at) = rest.find("<!--") {
        let Some(length) = rest[at..].find("-->") else { break };
        kept += &rest[..at];
        rest = &rest[at + length + 3..];
    }
    let without = kept + rest;
    let mut kept = String::with_capacity(without.len());
    let mut rest: &str = &without;
    while let Some(at) = rest.find('<') {
        let Some(length) = rest[at..].find('>') else { break };
        kept += &rest[..at];
        rest = &rest[at + length + 1..];
    }
    kept += rest;
    let words: Vec<&str> = kept.split(is_space).filter(|word| !word.is_empty()).collect();
    unescaped(&words.join(" ")).map(Value::from)
}

/// HTML's entities as characters.
fn unescaped(text: &str) -> Result<String, Error> {
    const NAMES: [(&str, &str); 6] =
        [("amp;", "&"), ("lt;", "<"), ("gt;", ">"), ("quot;", "\""), ("apos;", "'"), ("nbsp;", "\u{a0}")];
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        out += &rest[..at];
        rest = &rest[at + 1..];
        if let Some((name, character)) = NAMES.iter().find(|(name, _)| rest.starts_with(name)) {
            out += character;
            rest = &rest[name.len()..];
            continue;
        }
        let number =
            rest.strip_prefix('#').and_then(|number| number.split_once(';')).and_then(|(number, behind)| {
                let code = match number.strip_prefix(['x', 'X']) {
                    Some(digits) => u32::from_str_radix(digits, 16).ok()?,
                    None => number.parse().ok()?,
                };
                Some((
                    char::from_u32(code).filter(|c| *c >= ' ' && !('\x7f'..='\u{9f}').contains(c))?,
                    behind,
                ))
            });
        match number {
            Some((character, behind)) => {
                out.push(character);
                rest = behind;
            }
            // A name, with or without its end, that only the whole list of HTML could tell.
            None if rest.starts_with(|c: char| c == '#' || c.is_ascii_alphabetic()) => {
                return refuse("striptags knows only the common entities of HTML");
            }
            None => out.push('&'),
        }
    }
    Ok(out + rest)
}

fn trim(_: &mut State<'_, '_>, value: &Value, more: &[Value], named: &Kwargs) -> Result<Value, Error> {
    let [chars] = bind("trim", ["chars"], more, named)?;
    let source = text_of(value)?;
    let trimmed = match chars.filter(|chars| !chars.is_none()) {
        Some(chars) => {
            let chars = text("trim", Some(&chars))?.to_owned();
            source.trim_matches(|c: char| chars.contains(c))
        }
        None => source.trim_matches(is_space),
    };
    match value.is_safe() {
        true => Ok(Value::from_safe_string(trimmed.to_owned())),
        false => Ok(Value::from(trimmed)),
    }
}

fn truncate(_: &mut State<'_, '_>, value: &Value, more: &[Value], named: &Kwargs) -> Result<Value, Error> {
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

/// A text with what does not stand in addresses as `%XX`.
fn quoted(text: &str, is_form: bool) -> Result<String, Error> {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
            b'/' if !is_form => out.push('/'),
            b' ' if is_form => out.push('+'),
            byte => out += &format!("%{byte:02X}"),
        }
    }
    bounded(out)
}

fn url_encode(
    state: &mut State<'_, '_>,
    value: &Value,
    more: &[Value],
    named: &Kwargs,
) -> Result<Value, Error> {
    let [] = bind("urlencode", [], more, named)?;
    let pair = |key: &Value, value: &Value| -> Result<String, Error> {
        Ok(format!("{}={}", quoted(&text_of(key)?, true)?, quoted(&text_of(value)?, true)?))
    };
    let mut pairs: Vec<String> = Vec::new();
    if is_dictionary(value) {
        for key in items_of(state, value)? {
            pairs.push(pair(&key, &value.get_item(&key)?)?);
        }
    } else if matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable) {
        for item in items_of(state, value)? {
            let parts: Vec<Value> = item.try_iter()?.collect();
            let [key, value] = &parts[..] else { return refuse("urlencode takes pairs") };
            pairs.push(pair(key, value)?);
        }
    } else {
        return quoted(&text_of(value)?, false).map(Value::from);
    }
    bounded(pairs.join("&")).map(Value::from)
}

fn word_count(_: &mut State<'_, '_>, value: &Value, more: &[Value], named: &Kwargs) -> Result<Value, Error> {
    let [] = bind("wordcount", [], more, named)?;
    let source = text_of(value)?;
    let is_word = |c: char| c == '_' || python::is_alphanumeric(c);
    Ok(Value::from(source.split(|c: char| !is_word(c)).filter(|word| !word.is_empty()).count()))
}

/// As Python's textwrap with Jinja's options, without hyphens.
fn word_wrap(_: &mut State<'_, '_>, value: &Value, more: &[Value], named: &Kwargs) -> Result<Value, Error> {
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
    // Its pieces take many times the memory of the text.
    if source.len() > MOST_BYTES / 16 {
        return Err(too_long());
    }
    let mut out: Vec<String> = Vec::new();
    for (line, _) in lines(source) {
        let mut wrapped = wrapped(line, width, breaks);
        if wrapped.is_empty() {
            // A line without words stays, empty.
            wrapped.push(String::new());
        }
        out.append(&mut wrapped);
    }
    let added = out.len().saturating_mul(end.len());
    match added.saturating_add(source.len()) > MOST_BYTES {
        true => Err(too_long()),
        false => Ok(Value::from(out.join(end))),
    }
}

/// The lines that a paragraph becomes.
fn wrapped(line: &str, width: usize, breaks: bool) -> Vec<String> {
    let is_blank = |c: char| matches!(c, '\t'..='\r' | ' ');
    let mut chunks: Vec<String> = Vec::new();
    for c in line.chars() {
        match chunks.last_mut().filter(|last| last.starts_with(is_blank) == is_blank(c)) {
            Some(last) => last.push(c),
            None => chunks.push(c.to_string()),
        }
    }
    chunks.reverse();
    let is_white = |chunk: &String| chunk.trim_matches(is_space).is_empty();
    let mut lines: Vec<String> = Vec::new();
    while !chunks.is_empty() {
        let mut current: Vec<String> = Vec::new();
        let mut length = 0;
        if !lines.is_empty() && chunks.last().is_some_and(is_white) {
            chunks.pop();
        }
        while let Some(chunk) = chunks.pop() {
            let count = chunk.chars().count();
            if length + count > width {
                chunks.push(chunk);
                break;
            }
            length += count;
            current.push(chunk);
        }
        if let Some(chunk) = chunks.pop() {
            let is_long = chunk.chars().count() > width;
            match is_long && (breaks || current.is_empty()) {
                true if breaks => {
                    let split = chunk.char_indices().nth(width - length).map_or(chunk.len(), |(at, _)| at);
                    current.push(chunk[..split].to_owned());
                    chunks.push(chunk[split..].to_owned());
                }
                true => current.push(chunk),
                false => chunks.push(chunk),
            }
        }
        if current.last().is_some_and(is_white) {
            current.pop();
        }
        if !current.is_empty() {
            lines.push(current.concat());
        }
    }
    lines
}

fn xml_attributes(
    state: &mut State<'_, '_>,
    value: &Value,
    more: &[Value],
    named: &Kwargs,
) -> Result<Value, Error> {
    let [autospace] = bind("xmlattr", ["autospace"], more, named)?;
    if !is_dictionary(value) {
        return refuse(format!("xmlattr takes a dictionary, not {}", type_name(value)));
    }
    let written = |value: &Value| -> Result<String, Error> {
        let text = text_of(value)?;
        Ok(if value.is_safe() { text } else { escaped(&text) })
    };
    let mut items: Vec<String> = Vec::new();
    for key in items_of(state, value)? {
        let item = value.get_item(&key)?;
        if item.is_none() || item.is_undefined() {
            continue;
        }
        let is_bad = |c: char| python::is_space(c) || matches!(c, '/' | '>' | '=');
        if text("xmlattr", Some(&key))?.contains(is_bad) {
            return refuse("an attribute's name has a character that is not allowed");
        }
        items.push(format!("{}=\"{}\"", written(&key)?, written(&item)?));
    }
    let joined = items.join(" ");
    let is_spaced = autospace.is_none_or(|autospace| autospace.is_true()) && !joined.is_empty();
    bounded(if is_spaced { format!(" {joined}") } else { joined }).map(Value::from)
}
