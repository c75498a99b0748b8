//! Jinja's string filters that minijinja lacks or implements otherwise.

use minijinja::{
    Environment, Error, State, Value,
    value::{Kwargs, ValueKind},
};

use crate::{
    args::{Filter, add_all, bind, text},
    layout,
    objects::items_of,
    printf,
    python::{self, escaped, is_dictionary, is_space, refuse, type_name},
    text_methods::stripped,
    texts::{MAX_BYTES, text as text_of, too_long},
};

const FILTERS: [(&str, Filter); 14] = [
    ("tojson", crate::json::to_json),
    ("center", layout::center),
    ("e", escape),
    ("escape", escape),
    ("forceescape", |_, value, _, _| Ok(Value::from_safe_string(bounded(escaped(&text_of(value)?))?))),
    ("format", format),
    ("indent", layout::indent),
    ("striptags", strip_tags),
    ("trim", trim),
    ("truncate", layout::truncate),
    ("urlencode", url_encode),
    ("wordcount", word_count),
    ("wordwrap", layout::word_wrap),
    ("xmlattr", xml_attributes),
];
/// minijinja's filters that Jinja lacks, or whose results no test could check.
const NOT_JINJA: [&str; 6] = ["bool", "chain", "lines", "pprint", "split", "zip"];

/// Adds these filters, and removes those that Jinja lacks.
pub(crate) fn add(environment: &mut Environment<'_>) {
    add_all(environment, &FILTERS);
    NOT_JINJA.iter().for_each(|name| environment.remove_filter(name));
}

/// The text, or an error if it is too long.
fn bounded(text: String) -> Result<String, Error> {
    if text.len() > MAX_BYTES { Err(too_long()) } else { Ok(text) }
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

/// Replaces HTML's entities by their characters.
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
            // Only HTML's full list of entities could tell whether this is one, with or without its semicolon.
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
    let chars: Option<Value> = chars.filter(|chars| !chars.is_none());
    let chars: Option<&str> = chars.as_ref().map(|chars| text("trim", Some(chars))).transpose()?;
    let trimmed: &str = stripped(&source, "strip", chars)?;
    match value.is_safe() {
        true => Ok(Value::from_safe_string(trimmed.to_owned())),
        false => Ok(Value::from(trimmed)),
    }
}

/// Percent-encodes a text: characters that URLs do not allow become `%XX`.
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
