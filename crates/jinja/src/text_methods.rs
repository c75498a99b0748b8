//! Python's string methods.

use std::{cmp::Ordering, collections::HashSet};

use minijinja::{
    Error, ErrorKind, State, Value,
    value::{Kwargs, Tuple, ValueKind},
};
use minijinja_contrib::pycompat::unknown_method_callback;

use crate::{
    args::{bind, integer, is_true, text},
    cost::charge,
    layout::{centered, lines, padded},
    python::{self, is_space, refuse, type_name},
    texts::{MAX_BYTES, Text, too_long},
};

/// Calls a string method.
///
/// # Errors
/// As [`crate::methods::method`].
pub(crate) fn call(
    state: &mut State,
    value: &Value,
    name: &str,
    args: &[Value],
    given: &[Value],
    named: &Kwargs,
) -> Result<Value, Error> {
    let own = value.as_str().unwrap_or_default();
    // Most methods take no arguments by name.
    if named.args().next().is_some()
        && !["format", "split", "rsplit", "splitlines", "expandtabs"].contains(&name)
    {
        return refuse(format!("{name} takes no arguments by name"));
    }
    match name {
        "join" => match given {
            [list] => joined(own, list),
            _ => refuse("join takes a list"),
        },
        "replace" => replaced(own, given),
        "format" => {
            // The number is a width or a precision: `'{:9}'.format(x)`.
            if own.split(|c: char| !c.is_ascii_digit()).map(str::len).max().unwrap_or(0) > 4 {
                return Err(too_long());
            }
            unknown_method_callback(state, value, name, args)
        }
        "split" | "rsplit" => split(own, name == "rsplit", given, named),
        "splitlines" => {
            let [keeps] = bind(name, ["keepends"], given, named)?;
            let keeps = is_true(keeps.as_ref());
            let length = |end: &str| if keeps { end.len() } else { 0 };
            let mut at = 0;
            let mut found = Vec::new();
            for (line, end) in lines(own) {
                found.push(Value::from(&own[at..at + line.len() + length(end)]));
                at += line.len() + end.len();
            }
            Ok(Value::from(found))
        }
        "partition" | "rpartition" => partition(own, name == "rpartition", given),
        "strip" | "lstrip" | "rstrip" => strip(own, name, given),
        "startswith" | "endswith" => starts(own, name == "startswith", given),
        "find" | "rfind" | "index" | "rindex" | "count" => find(own, name, given),
        "center" | "ljust" | "rjust" | "zfill" => pad(own, name, given),
        "expandtabs" => {
            let [size] = bind(name, ["tabsize"], given, named)?;
            expanded(own, integer(name, size.as_ref(), 8)?)
        }
        "removeprefix" => Ok(Value::from(own.strip_prefix(text(name, given.first())?).unwrap_or(own))),
        "removesuffix" => Ok(Value::from(own.strip_suffix(text(name, given.first())?).unwrap_or(own))),
        _ if !given.is_empty() => Err(Error::from(ErrorKind::UnknownMethod)),
        "title" => title(state, own),
        // The lower case of a sigma depends on its place in the word.
        "swapcase" if !own.contains('Σ') => Ok(Value::from(swapped(own))),
        "istitle" => Ok(Value::from(is_title(own))),
        "isidentifier" if own.is_ascii() => {
            let is_part = |c: char| c == '_' || c.is_ascii_alphanumeric();
            let is_start = own.starts_with(|c: char| is_part(c) && !c.is_ascii_digit());
            Ok(Value::from(is_start && own.chars().all(is_part)))
        }
        "casefold" if own.is_ascii() => Ok(Value::from(own.to_ascii_lowercase())),
        "upper" | "lower" | "islower" | "isupper" | "isascii" | "capitalize" => {
            unknown_method_callback(state, value, name, args)
        }
        _ => test(own, name),
    }
}

/// Methods that test whether all characters of a string are of one kind.
fn test(own: &str, name: &str) -> Result<Value, Error> {
    let all = |is: fn(char) -> bool| Ok(Value::from(!own.is_empty() && own.chars().all(is)));
    let is_unsure = |c: char| !c.is_ascii() && c.is_numeric() && !python::is_decimal(c);
    match name {
        "isspace" => all(is_space),
        "isalpha" => all(python::is_letter),
        "isalnum" => all(python::is_alphanumeric),
        "isdecimal" => all(python::is_decimal),
        "isprintable" => Ok(Value::from(own.chars().all(python::is_printed))),
        "isdigit" => {
            let is_raised = |c: char| matches!(c, '\u{b2}' | '\u{b3}' | '\u{b9}' | '\u{2070}' | '\u{2074}'..='\u{2079}' | '\u{2080}'..='\u{2089}');
            let is_fraction = |c: char| matches!(c, '\u{bc}'..='\u{be}' | '\u{2150}'..='\u{218b}');
            match own.chars().any(|c| is_unsure(c) && !is_raised(c) && !is_fraction(c)) {
                true => refuse("isdigit of such characters is not supported"),
                false => Ok(Value::from(
                    !own.is_empty() && own.chars().all(|c| python::is_decimal(c) || is_raised(c)),
                )),
            }
        }
        "isnumeric" => {
            match own.chars().any(|c| ('\u{3000}'..='\u{3ffff}').contains(&c) && !c.is_numeric()) {
                true => refuse("isnumeric of such characters is not supported"),
                false => all(char::is_numeric),
            }
        }
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}

/// `separator.join(list)`
fn joined(separator: &str, list: &Value) -> Result<Value, Error> {
    use std::fmt::Write;
    crate::lists::each(list)?;
    if list.is_undefined() {
        return Ok(Value::from(""));
    }
    let mut text = Text::default();
    for (at, item) in list.try_iter()?.enumerate() {
        let separator = if at == 0 { "" } else { separator };
        let Some(item) = item.as_str() else {
            return refuse(format!("join takes texts, and item {at} is {}", type_name(&item)));
        };
        text.write_str(separator).and_then(|()| text.write_str(item)).map_err(|_| too_long())?;
    }
    Ok(Value::from(text.0))
}

fn replaced(own: &str, given: &[Value]) -> Result<Value, Error> {
    let (old, new) = (text("replace", given.first())?, text("replace", given.get(1))?);
    let count = integer("replace", given.get(2), -1)?;
    if given.len() > 3 {
        return refuse("replace takes three arguments at most");
    }
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    let found = own.matches(old).take(count).count();
    if found.saturating_mul(new.len()).saturating_add(own.len()) > MAX_BYTES {
        return Err(too_long());
    }
    Ok(Value::from(own.replacen(old, new, count)))
}

fn split(own: &str, backwards: bool, given: &[Value], named: &Kwargs) -> Result<Value, Error> {
    let [separator, most] = bind("split", ["sep", "maxsplit"], given, named)?;
    let most = usize::try_from(integer("split", most.as_ref(), -1)?).unwrap_or(usize::MAX);
    let separator = separator.filter(|separator| !separator.is_none());
    let mut parts: Vec<&str> = match &separator {
        Some(separator) => {
            let separator = text("split", Some(separator))?;
            if separator.is_empty() {
                return refuse("split takes no empty separator");
            }
            let most = most.saturating_add(1);
            match backwards {
                true => own.rsplitn(most, separator).collect(),
                false => own.splitn(most, separator).collect(),
            }
        }
        None => words(own, backwards, most),
    };
    if backwards {
        parts.reverse();
    }
    Ok(parts.into_iter().map(Value::from).collect())
}

/// Splits at white space, from the left or from the right.
fn words(own: &str, backwards: bool, most: usize) -> Vec<&str> {
    let mut parts = Vec::new();
    let trimmed = |rest: &'_ str| -> usize {
        if backwards {
            rest.trim_end_matches(is_space).len()
        } else {
            rest.trim_start_matches(is_space).len()
        }
    };
    let mut rest = own;
    loop {
        let kept = trimmed(rest);
        rest = if backwards { &rest[..kept] } else { &rest[rest.len() - kept..] };
        if rest.is_empty() {
            return parts;
        }
        let cut = if backwards { rest.rfind(is_space) } else { rest.find(is_space) };
        let Some(at) = cut.filter(|_| parts.len() < most) else {
            parts.push(rest);
            return parts;
        };
        if backwards {
            let behind = at + rest[at..].chars().next().map_or(1, char::len_utf8);
            parts.push(&rest[behind..]);
            rest = &rest[..at];
        } else {
            parts.push(&rest[..at]);
            rest = &rest[at..];
        }
    }
}

fn partition(own: &str, backwards: bool, given: &[Value]) -> Result<Value, Error> {
    let separator = text("partition", given.first())?;
    if separator.is_empty() {
        return refuse("partition takes no empty separator");
    }
    let cut = if backwards { own.rsplit_once(separator) } else { own.split_once(separator) };
    let parts = match cut {
        Some((before, behind)) => [before, separator, behind],
        None if backwards => ["", "", own],
        None => [own, "", ""],
    };
    Ok(Value::from(Tuple::from(parts.map(Value::from))))
}

fn strip(own: &str, name: &str, given: &[Value]) -> Result<Value, Error> {
    let chars = match given {
        [] => None,
        [chars] if chars.is_none() => None,
        [chars] => Some(text(name, Some(chars))?),
        _ => return refuse(format!("{name} takes one argument")),
    };
    stripped(own, name, chars).map(Value::from)
}

/// The text that `strip`, `lstrip` or `rstrip` leaves. Without `chars` they remove white space.
///
/// # Errors
/// If the rendering has read too many characters.
pub(crate) fn stripped<'a>(own: &'a str, name: &str, chars: Option<&str>) -> Result<&'a str, Error> {
    charge(chars.map_or(0, str::len))?;
    // A set avoids searching `chars` once for each character of the text.
    let set: Option<HashSet<char>> = chars.map(|chars| chars.chars().collect());
    let is_stripped = |c: char| set.as_ref().map_or_else(|| is_space(c), |set| set.contains(&c));
    let left: &str = match name {
        "lstrip" => own.trim_start_matches(is_stripped),
        "rstrip" => own.trim_end_matches(is_stripped),
        _ => own.trim_matches(is_stripped),
    };
    charge(chars.map_or(0, |_| own.len() - left.len()))?;
    Ok(left)
}

/// The part of a text between two positions, and the number of characters before it.
fn window<'a>(name: &str, own: &'a str, bounds: &[Value]) -> Result<Option<(usize, &'a str)>, Error> {
    if bounds.is_empty() {
        return Ok(Some((0, own)));
    }
    let count = i64::try_from(own.chars().count()).unwrap_or(i64::MAX);
    let bound = |at: usize, default: i64| -> Result<i64, Error> {
        let given = bounds.get(at).filter(|value| !value.is_none());
        let found = integer(name, given, default)?;
        Ok(if found < 0 { found.saturating_add(count).max(0) } else { found })
    };
    let (start, end) = (bound(0, 0)?, bound(1, count)?.min(count));
    if start > end || bounds.len() > 2 {
        return Ok(None);
    }
    let byte = |at: i64| own.char_indices().nth(at as usize).map_or(own.len(), |(byte, _)| byte);
    Ok(Some((start as usize, &own[byte(start)..byte(end)])))
}

fn starts(own: &str, is_start: bool, given: &[Value]) -> Result<Value, Error> {
    let Some((what, bounds)) = given.split_first() else { return refuse("startswith takes a text") };
    let part = window("startswith", own, bounds)?;
    let texts: Vec<Value> = match what.kind() {
        ValueKind::String => vec![what.clone()],
        ValueKind::Seq if what.is_tuple() => what.try_iter()?.collect(),
        _ => return refuse(format!("startswith takes a text or a tuple of texts, not {}", type_name(what))),
    };
    for candidate in &texts {
        let candidate = text("startswith", Some(candidate))?;
        let is_there =
            |part: &str| if is_start { part.starts_with(candidate) } else { part.ends_with(candidate) };
        if part.is_some_and(|(_, part)| is_there(part)) {
            return Ok(Value::from(true));
        }
    }
    Ok(Value::from(false))
}

fn find(own: &str, name: &str, given: &[Value]) -> Result<Value, Error> {
    let what = text(name, given.first())?;
    let part = window(name, own, &given[1..])?;
    if name == "count" {
        return Ok(Value::from(part.map_or(0, |(_, part)| part.matches(what).count())));
    }
    let found = part.and_then(|(before, part)| {
        let at = if name.starts_with('r') { part.rfind(what) } else { part.find(what) };
        at.map(|at| before + part[..at].chars().count())
    });
    match found {
        Some(at) => Ok(Value::from(at)),
        None if name.ends_with("index") => refuse(format!("{name} finds no such text")),
        None => Ok(Value::from(-1)),
    }
}

fn pad(own: &str, name: &str, given: &[Value]) -> Result<Value, Error> {
    let Some(width) = given.first() else { return refuse(format!("{name} takes a width")) };
    let width = integer(name, Some(width), 0)?;
    let fill = match given.get(1) {
        Some(fill) => {
            let mut characters = text(name, Some(fill))?.chars();
            match (characters.next(), characters.next()) {
                (Some(fill), None) => fill,
                _ => return refuse(format!("{name} fills with one character")),
            }
        }
        None => ' ',
    };
    let missing = usize::try_from(width).unwrap_or(0).saturating_sub(own.chars().count());
    match name {
        "center" => centered(own, width, fill),
        "ljust" => padded(own, 0, missing, fill),
        "rjust" => padded(own, missing, 0, fill),
        _ => {
            let (sign, digits) = own.split_at(usize::from(own.starts_with(['-', '+'])));
            let zeros = padded(digits, missing, 0, '0')?;
            Ok(Value::from(format!("{sign}{}", zeros.as_str().unwrap_or_default())))
        }
    }
}

/// `expandtabs`
fn expanded(own: &str, size: i64) -> Result<Value, Error> {
    let size = usize::try_from(size).unwrap_or(0);
    let mut out = String::with_capacity(own.len());
    let mut column: usize = 0;
    for c in own.chars() {
        if c == '\t' {
            let width = column.checked_rem(size).map_or(0, |behind| size - behind);
            if width > MAX_BYTES.saturating_sub(out.len()) {
                return Err(too_long());
            }
            out.extend(std::iter::repeat_n(' ', width));
            column += width;
        } else {
            out.push(c);
            column = if matches!(c, '\n' | '\r') { 0 } else { column + 1 };
        }
    }
    Ok(Value::from(out))
}

/// `swapcase`
fn swapped(own: &str) -> String {
    let mut out = String::with_capacity(own.len());
    for c in own.chars() {
        match (c.is_uppercase(), c.is_lowercase()) {
            (true, _) => out.extend(c.to_lowercase()),
            (false, true) => out.extend(c.to_uppercase()),
            (false, false) => out.push(c),
        }
    }
    out
}

/// Whether a character is a title-case letter, which only begins words, like `ǅ`.
fn is_title_letter(c: char) -> bool {
    !c.is_uppercase() && !c.is_lowercase() && c.to_lowercase().cmp([c]) != Ordering::Equal
}

/// `istitle`
fn is_title(own: &str) -> bool {
    let mut is_inside = false;
    let mut has_cased = false;
    for c in own.chars() {
        let is_capital = c.is_uppercase() || is_title_letter(c);
        let is_cased = is_capital || c.is_lowercase();
        // A capital must begin a word, and a small letter must not.
        if is_cased && is_capital == is_inside {
            return false;
        }
        has_cased |= is_cased;
        is_inside = is_cased;
    }
    has_cased
}

/// Python's `title`: a letter begins a word if the character before it is no letter.
fn title(state: &mut State, own: &str) -> Result<Value, Error> {
    let mut out = String::with_capacity(own.len());
    let mut is_inside = false;
    for c in own.chars() {
        let is_cased = c.is_uppercase() || c.is_lowercase() || is_title_letter(c);
        match (is_cased, is_inside) {
            (true, false) if !c.is_ascii() => {
                // The filter `capitalize` knows the letters that have a separate title case.
                let capital = state.apply_filter("capitalize", &[Value::from(c.to_string())])?;
                out += capital.as_str().unwrap_or_default();
            }
            (true, false) => out.push(c.to_ascii_uppercase()),
            (true, true) => out.extend(c.to_lowercase()),
            (false, _) => out.push(c),
        }
        is_inside = is_cased;
    }
    Ok(Value::from(out))
}
