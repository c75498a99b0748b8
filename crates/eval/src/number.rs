//! Parses a single number exactly, as answers write it: plain or in LaTeX.

use std::sync::LazyLock;

use num_rational::Ratio;
use num_traits::{CheckedAdd, CheckedMul};
use regex::Regex;

use crate::{
    expression::value,
    pattern::regex,
    units::{strip_units, unwrap_fonts},
};

/// Most bytes of an answer; a longer text is no single number.
const MAX_BYTES: usize = 1000;

const SPACES: &[&str] =
    &["\\,", "\\;", "\\:", "\\ ", "\\quad", "\\qquad", "\\thinspace", "\\enspace", "\\medspace", "~"];
/// Commands that print nothing.
const DROPPED: &[&str] = &[
    "\\!",
    "\\displaystyle",
    "\\textstyle",
    "\\scriptstyle",
    "\\limits",
    "\\Large",
    "\\large",
    "\\LARGE",
    "\\huge",
    "\\Huge",
    "\\bf",
    "\\rm",
    "\\it",
    "\\left",
    "\\right",
    "\\bigl",
    "\\bigr",
    "\\Bigl",
    "\\Bigr",
    "\\big",
    "\\Big",
];
/// Signs and other commands, with their plain characters.
const PLAIN: &[(&str, &str)] = &[
    ("{,}", ","),
    ("{.}", "."),
    ("\\$", ""),
    ("$", ""),
    ("\\(", " "),
    ("\\)", " "),
    ("\\[", " "),
    ("\\]", " "),
    ("\\%", "%"),
];
const COMMANDS: &[(&str, &str)] = &[
    ("\\lvert", "|"),
    ("\\rvert", "|"),
    ("\\vert", "|"),
    ("\\approx", "≈"),
    ("\\simeq", "≈"),
    ("\\equiv", "="),
    ("\\rightarrow", "="),
    ("\\to", "="),
];

/// A variable, or the name of a quantity.
static NAME: LazyLock<Regex> = LazyLock::new(|| {
    regex(r"^(?:[A-Za-z](?:_\{?[A-Za-z0-9]\}?)?(?:\([^()]*\))?|\x{E000}[^\x{E000}\x{E001}]*\x{E001})?$")
});
static CONJUNCTION: LazyLock<Regex> = LazyLock::new(|| regex(r"[,;]|\b(?:and|or)\b"));

/// A number, with the features of its notation that matter for comparing it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Number {
    value: Ratio<i128>,
    is_percent: bool,
    is_decimal: bool,
}

impl Number {
    /// Parses a text that holds one number and nothing else except its name, sign, unit and markup.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let is_private = |c: char| ('\u{E000}'..='\u{E0FF}').contains(&c);
        if text.len() > MAX_BYTES || text.contains(is_private) {
            return None;
        }
        let text = normalize(text);
        let text = text.trim_matches(|c: char| c.is_whitespace() || "*`\"'“”‘’".contains(c));
        let text = merge_groups(text);
        match ["<", ">", "!=", "≠", "≤", "≥"].iter().any(|relation| text.contains(*relation)) {
            true => None,
            false => related(&text),
        }
    }

    /// Whether both numbers are equal. 50% equals 50 as well as 0.5. If one is written with decimals and neither is
    /// an integer, they are compared to six places, so that 0.333333 equals 1/3.
    pub(crate) fn equals(&self, other: &Self) -> bool {
        let is_rounded = self.is_decimal || other.is_decimal || self.is_percent || other.is_percent;
        let values = other.values();
        self.values().iter().any(|a| values.iter().any(|b| a == b || (is_rounded && are_near(a, b))))
    }

    fn values(&self) -> Vec<Ratio<i128>> {
        let share = self.value.checked_mul(&Ratio::new(1, 100)).filter(|_| self.is_percent);
        [Some(self.value), share].into_iter().flatten().collect()
    }
}

fn are_near(a: &Ratio<i128>, b: &Ratio<i128>) -> bool {
    let rounded = |value: &Ratio<i128>| {
        let scaled = value.checked_mul(&Ratio::from_integer(1_000_000))?;
        // Near the end of the range, rounding down could overflow.
        let is_small =
            scaled.numer().unsigned_abs() < 1u128 << 125 && scaled.denom().unsigned_abs() < 1u128 << 120;
        let shifted = scaled.checked_add(&Ratio::new(1, 2)).filter(|_| is_small)?;
        Some(shifted.floor())
    };
    if a.is_integer() || b.is_integer() {
        return false;
    }
    match (rounded(a), rounded(b)) {
        (Some(a), Some(b)) => a == b,
        _ => false,
    }
}

/// Unifies the spelling of signs, spaces and markup.
fn normalize(text: &str) -> String {
    let mut text = text.replace(['−', '–', '﹣', '－'], "-");
    for (from, to) in PLAIN {
        text = text.replace(*from, to);
    }
    for (from, to) in COMMANDS {
        text = replace_command(&text, from, to);
    }
    text = unwrap_fonts(&text);
    for command in DROPPED {
        text = replace_command(&text, command, "");
    }
    for command in SPACES {
        text = replace_command(&text, command, " ");
    }
    text.replace(char::is_whitespace, " ")
}

/// Replaces a command, but not longer commands that begin with its name.
fn replace_command(text: &str, command: &str, by: &str) -> String {
    if !command.starts_with('\\') || !command.ends_with(|c: char| c.is_ascii_alphabetic()) {
        return text.replace(command, by);
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(command) {
        let (before, behind) = (&rest[..at], &rest[at + command.len()..]);
        out.push_str(before);
        let is_longer = behind.starts_with(|c: char| c.is_ascii_alphabetic());
        out.push_str(if is_longer { command } else { by });
        rest = behind;
    }
    out.push_str(rest);
    out
}

/// Joins digits that are separated in groups of three. A list such as `1,234567` stays unchanged.
fn merge_groups(text: &str) -> String {
    let text: Vec<char> = text.chars().collect();
    let is_digit = |at: usize| text.get(at).is_some_and(char::is_ascii_digit);
    let digits_end = |mut at: usize| {
        while is_digit(at) {
            at += 1;
        }
        at
    };
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while let Some(&c) = text.get(at) {
        if !c.is_ascii_digit() {
            out.push(c);
            at += 1;
            continue;
        }
        let end = digits_end(at);
        let is_decimal = at > 0 && text[at - 1] == '.';
        let separator = text.get(end).copied().filter(|c| matches!(c, ',' | ' ' | '_' | '\''));
        let Some(separator) = separator.filter(|_| end - at <= 3 && !is_decimal) else {
            out.extend(&text[at..end]);
            at = end;
            continue;
        };
        let continues = |place: usize| text.get(place) == Some(&separator) && is_digit(place + 1);
        let mut behind = end;
        while continues(behind) && digits_end(behind + 1) == behind + 4 {
            behind += 4;
        }
        if continues(behind) {
            while continues(behind) {
                behind = digits_end(behind + 1);
            }
            out.extend(&text[at..behind]);
        } else {
            out.extend(text[at..behind].iter().filter(|&&c| c != separator));
        }
        at = behind;
    }
    out
}

/// The number in an equation or an approximation.
fn related(text: &str) -> Option<Number> {
    if let Some((exact, approximate)) = text.split_once('≈') {
        let number = equal_side(exact);
        if number.is_some() {
            return number;
        }
        // `x ≈ 3.14` gives a number, while `\pi ≈ 3.14` only approximates a value that is not rational.
        let name = exact.rsplit('=').next().unwrap_or(exact).trim();
        let last = approximate.rsplit('≈').next().unwrap_or(approximate);
        return if NAME.is_match(name) { single(last) } else { None };
    }
    equal_side(text)
}

/// The number on the right-hand side of an equation. Several equations are no single number.
fn equal_side(text: &str) -> Option<Number> {
    let mut sides = text.split('=');
    let last = sides.next_back()?;
    let is_equation = text.contains('=');
    match is_equation && CONJUNCTION.is_match(text) {
        true => None,
        false => single(last),
    }
}

fn single(text: &str) -> Option<Number> {
    let (text, is_percent) = strip_units(text)?;
    let value = value(&text).ok()?;
    Some(Number { value, is_percent, is_decimal: text.contains('.') })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_number_is_read_however_it_is_written() {
        let is = |text: &str, above: i128, below: i128| {
            Number::parse(text).is_some_and(|number| number.value == Ratio::new(above, below))
        };
        for text in [
            "1234",
            "1,234",
            "1{,}234",
            "1\\,234",
            "1\\ 234",
            "1\\!234",
            "1~234",
            "1 234",
            "1\u{2009}234",
            "1_234",
            "$1234$",
            "\\$1,234.00",
            "x = 1234",
            "1234.",
            "1234\\text{ cm}^2",
            "\\text{1234}",
            "(1234)",
            "1.234e3",
            "1.234 \\times 10^{3}",
            "\\mathbf{1234}",
            "\\left(1234\\right)",
            "\\displaystyle 1234",
            "**1234**",
            "f(2) = 1234",
            "x \\approx 1234",
            "\\boxed{1234}",
            "\\{1234\\}",
        ] {
            assert!(is(text, 1234, 1), "{text}: {:?}", Number::parse(text));
        }
        for text in
            ["-3/4", "-\\frac{3}{4}", "-\\frac34", "−\\dfrac 3 4", "\\frac{-3}{4}", "-.75", "x = -0.75"]
        {
            assert!(is(text, -3, 4), "{text}: {:?}", Number::parse(text));
        }
        for text in [
            "",
            "?",
            "12,34",
            "1,234567",
            "1, 234",
            "5, 6",
            "5 or 6",
            "x = 5, y = 6",
            "x > 5",
            "5x",
            "2\\sqrt{3}",
            "\\pi",
            "\\pm 5",
            "1/0",
            "N/A",
            "\\text{5 and 6}",
            "1 1/2",
            "5..6",
            "\u{E010}(1)",
        ] {
            assert_eq!(Number::parse(text), None, "{text}");
        }
    }

    #[test]
    fn hostile_texts_take_no_time() {
        for text in [
            "{".repeat(1_000_000),
            "\\text{".repeat(160),
            "\\frac".repeat(190),
            "(".repeat(900),
            "-".repeat(900),
            "1,".repeat(490),
            "9".repeat(900),
            "\\sqrt{".repeat(160),
            "10^{10^{10^{10}}}".to_owned(),
            "1e999999999".to_owned(),
        ] {
            assert_eq!(Number::parse(&text), None);
        }
    }

    #[test]
    fn numbers_are_equal_as_they_are_meant() {
        let equal = |a: &str, b: &str| Number::parse(a).unwrap().equals(&Number::parse(b).unwrap());
        for (a, b) in [("50%", "50"), ("50%", "0.5"), ("50%", "50\\%"), ("1/3", "0.333333"), ("1.50", "3/2")]
        {
            assert!(equal(a, b) && equal(b, a), "{a} and {b}");
        }
        for (a, b) in [("50%", "5000"), ("1/3", "0.333"), ("1", "0.9999999"), ("5", "-5")] {
            assert!(!equal(a, b) && !equal(b, a), "{a} and {b}");
        }
    }
}
