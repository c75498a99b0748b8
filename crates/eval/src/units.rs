//! Removes what stands beside the number in an answer: units, percent signs, currencies and labels.

use std::sync::LazyLock;

use regex::Regex;

use crate::{latex::braced, pattern::regex};

/// Private-use characters that enclose the text of a `\text{}` without a number.
const NOTE_START: char = '\u{E000}';
const NOTE_END: char = '\u{E001}';
/// Deepest nesting of groups.
const DEPTH: usize = 8;
/// Most parts of a unit.
const MAX_PARTS: usize = 16;

/// Commands whose argument is plain text.
const FONTS: &[&str] = &[
    "text",
    "mathrm",
    "mathbf",
    "mathit",
    "mathsf",
    "mathtt",
    "mathnormal",
    "textbf",
    "textit",
    "textrm",
    "textsf",
    "texttt",
    "textnormal",
    "textup",
    "mbox",
    "hbox",
    "operatorname",
    "boldsymbol",
    "bm",
    "pmb",
    "emph",
    "underline",
    "ensuremath",
    "boxed",
    "fbox",
];
const COLORS: &[&str] = &["color", "textcolor"];
const CURRENCIES: &[char] = &['$', '€', '£', '¥', '₹', '₩', '₽', '₪', '฿', '₫', '₴', '₦'];
/// Units that may follow a number without a space, or are shorter than words.
const UNITS: &[&str] = &[
    "mm", "cm", "dm", "km", "m", "s", "h", "g", "kg", "mg", "lb", "lbs", "oz", "ft", "in", "yd", "mi", "hr",
    "hrs", "min", "sec", "ms", "l", "ml", "L", "mL", "kL", "J", "kJ", "N", "W", "kW", "V", "A", "K", "Pa",
    "kPa", "Hz", "kHz", "MHz", "mph", "kmh", "kmph", "rpm", "C", "F", "mol", "M", "eV", "MeV", "GeV", "GB",
    "MB", "KB", "TB", "kB", "th", "st", "nd", "rd", "cc", "rs", "Rs", "am", "pm", "a.m", "p.m", "dB",
];
/// Words that join or compute; a text with one of them behind a number is no unit.
const NOT_UNITS: &[&str] = &[
    "and", "or", "pi", "sqrt", "sin", "cos", "tan", "log", "ln", "exp", "infinity", "inf", "times", "plus",
    "minus", "over", "to", "not",
];

static SIGN_OF_UNIT: LazyLock<Regex> = LazyLock::new(|| {
    regex(
        r"(?:\x{E000}[^\x{E000}\x{E001}]*\x{E001}|\^\s*\{?\s*(?:\\circ|\\degree)\s*\}?|°|\\degree|\\circ|[℃℉]|\^\s*\{\s*(?:th|st|nd|rd)\s*\}|\^\s*\{?\s*\x{E000}[^\x{E000}\x{E001}]*\x{E001}\s*\}?)$",
    )
});
static PERCENT: LazyLock<Regex> = LazyLock::new(|| regex(r"(?i)(?:\\?%|\bper\s?cent(?:age)?|\bpct\b|％)$"));
static PERCENT_IN_NOTE: LazyLock<Regex> = LazyLock::new(|| regex(r"(?i)\bper\s?cent|%|\bpct\b"));
static WORD: LazyLock<Regex> = LazyLock::new(|| regex(r"(?:^|[^\\A-Za-z])([A-Za-z][A-Za-z.]*)$"));
static EXPONENT: LazyLock<Regex> = LazyLock::new(|| regex(r"(?:\^\s*(?:\{\s*-?[0-9]\s*\}|-?[0-9])|[²³])$"));
static BETWEEN_UNITS: LazyLock<Regex> = LazyLock::new(|| regex(r"(?:/|\\cdot|\\times|·|\*|⋅|-)$"));
static SUBSCRIPT: LazyLock<Regex> =
    LazyLock::new(|| regex(r"([0-9])_(?:\{[0-9]+\}|[0-9]+|\{?\x{E000}[^\x{E000}\x{E001}]*\x{E001}\}?)$"));
static REMARK: LazyLock<Regex> = LazyLock::new(|| regex(r"\(([^()0-9+*/^=]*)\)$"));
static LABEL: LazyLock<Regex> = LazyLock::new(|| {
    regex(
        r"^\s*(?:\x{E000}[^\x{E000}\x{E001}]*(?:\b(?:is|are|USD|Rs)\.?|[:=€£¥₹])\s*\x{E001}|(?i:USD|EUR|GBP|INR|Rs\.?|approximately|about|approx\.|roughly|exactly|only)\s|\\sim|≈)\s*",
    )
});

/// Replaces `\text{...}` and similar commands by their content, which is enclosed in [`NOTE_START`] and [`NOTE_END`]
/// if it has no number; colours are dropped.
pub(crate) fn unwrap_fonts(text: &str) -> String {
    unwrap_to(text, DEPTH)
}

fn unwrap_to(text: &str, depth: usize) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let command = &rest[at + 1..];
        let letters = command.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (name, behind) = command.split_at(letters);
        match braced(behind).filter(|_| depth > 0) {
            Some((_, behind)) if COLORS.contains(&name) => rest = behind,
            Some((inner, behind)) if FONTS.contains(&name) => {
                let inner = unwrap_to(inner, depth - 1);
                if is_note(&inner) {
                    out.push(NOTE_START);
                    out.extend(inner.chars().filter(|&c| c != NOTE_START && c != NOTE_END));
                    out.push(NOTE_END);
                } else {
                    out.push_str(&inner);
                }
                rest = behind;
            }
            _ => {
                // A command is a backslash followed by letters, or by one other character.
                let other = behind.chars().next().map_or(0, char::len_utf8);
                let length = if letters > 0 { letters } else { other };
                out.push('\\');
                out.push_str(&command[..length]);
                rest = &command[length..];
            }
        }
    }
    out.push_str(rest);
    out
}

/// Whether a text has no number of its own: its digits are exponents, as in `m^2`, or belong to a word.
fn is_note(text: &str) -> bool {
    if !text.chars().any(char::is_alphabetic) {
        return text.trim().is_empty();
    }
    let mut before = ' ';
    for c in text.chars() {
        if c.is_ascii_digit() && !matches!(before, '^' | '{' | '-') && !before.is_alphabetic() {
            return false;
        }
        before = c;
    }
    !text.contains('=')
}

/// The number without labels and currencies before it and units behind it, and whether it is a percentage.
pub(crate) fn strip_units(text: &str) -> Option<(String, bool)> {
    let mut text = text.trim();
    for _ in 0..3 {
        let Some(label) = LABEL.find(text) else { break };
        text = &text[label.end()..];
    }
    let text = strip_currency(text);
    let (text, is_percent) = strip_behind(&text)?;
    Some((strip_currency(text), is_percent))
}

/// Removes currency signs before or behind the sign of the number.
fn strip_currency(text: &str) -> String {
    let text = text.trim();
    let (sign, rest) = match text.chars().next() {
        Some('-') => ("-", &text[1..]),
        Some('+') => ("+", &text[1..]),
        _ => ("", text),
    };
    let rest = rest.trim_start_matches(|c: char| c.is_whitespace() || CURRENCIES.contains(&c));
    format!("{sign}{rest}")
}

fn strip_behind(text: &str) -> Option<(&str, bool)> {
    let mut text = text;
    let (mut is_percent, mut has_unit) = (false, false);
    for _ in 0..MAX_PARTS {
        text = trim_end(text);
        if let Some(sign) = PERCENT.find(text) {
            if is_percent {
                return None;
            }
            is_percent = true;
            text = &text[..sign.start()];
        } else if text.ends_with(CURRENCIES) {
            text = text.trim_end_matches(CURRENCIES);
        } else if SUBSCRIPT.is_match(text) {
            // The subscript is the base of a number system.
            text = text.rsplit_once('_').map_or(text, |(number, _)| number);
        } else if let Some(unit) = SIGN_OF_UNIT.find(text) {
            if PERCENT_IN_NOTE.is_match(unit.as_str()) {
                if is_percent {
                    return None;
                }
                is_percent = true;
            }
            has_unit = true;
            text = &text[..unit.start()];
        } else if let Some(before) = before_exponent(text) {
            text = before;
        } else if let Some(before) = before_unit(text) {
            has_unit = true;
            text = before;
        } else if let Some(before) = before_remark(text) {
            text = before;
        } else if let Some(sign) = BETWEEN_UNITS.find(text).filter(|_| has_unit) {
            text = &text[..sign.start()];
        } else {
            break;
        }
    }
    Some((text.trim(), is_percent))
}

fn trim_end(text: &str) -> &str {
    text.trim_end_matches(|c: char| {
        c.is_whitespace() || matches!(c, '.' | ',' | ';' | ':' | '*' | '`' | '"' | '\'' | '\\')
    })
}

/// The text before the exponent of a unit, which still includes the unit.
fn before_exponent(text: &str) -> Option<&str> {
    let exponent = EXPONENT.find(text)?;
    let before = text[..exponent.start()].trim_end();
    (before.ends_with(NOTE_END) || before_unit(before).is_some()).then_some(before)
}

/// The text before a unit that is a plain word.
fn before_unit(text: &str) -> Option<&str> {
    let word = WORD.captures(text)?.get(1)?;
    let before = &text[..word.start()];
    let is_known = UNITS.contains(&word.as_str());
    let is_word = word.len() >= 3 && before.ends_with([' ', NOTE_END]);
    if NOT_UNITS.contains(&word.as_str().to_ascii_lowercase().as_str()) || !(is_known || is_word) {
        return None;
    }
    // `1. Compute` is an item of a list, not a number with a unit.
    let measured = before.trim_end();
    (!measured.is_empty() && !measured.ends_with(['.', ',', ';', ':'])).then_some(before)
}

/// The text before a remark in parentheses that has words and no numbers.
fn before_remark(text: &str) -> Option<&str> {
    let remark = REMARK.captures(text)?;
    let before = text[..remark.get(0)?.start()].trim();
    let has_words = remark.get(1)?.as_str().chars().any(char::is_alphabetic);
    (has_words && !before.is_empty()).then_some(before)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_taken_off() {
        for (text, expected, is_percent) in [
            ("5\\text{ cm}^2", "5", false),
            ("5\\mathrm{m/s}", "5", false),
            ("5 km/h", "5", false),
            ("12 m^2", "12", false),
            ("90^\\circ\\text{C}", "90", false),
            ("$-$5", "-5", false),
            ("\\text{USD }5", "5", false),
            ("50\\text{ percent}", "50", true),
            ("\\text{5 apples}", "5", false),
            ("5x", "5x", false),
            ("5 and", "5 and", false),
            ("101_2", "101", false),
            ("5 (approx)", "5", false),
        ] {
            assert_eq!(strip_units(&unwrap_fonts(text)), Some((expected.to_owned(), is_percent)), "{text}");
        }
        assert_eq!(strip_units("5%%"), None);
    }
}
