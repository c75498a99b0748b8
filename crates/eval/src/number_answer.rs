//! Finds the number that a text gives as its answer.
//!
//! The order of precedence follows math-verify where it defines one:
//!
//! 1. the first `#### N` (later ones belong to questions that a model adds on its own),
//! 2. "final answer is N" behind the last box, else the last box; a box that is no single number never counts by some
//!    of its digits,
//! 3. "Answer: N", "answer is N": if there is no box, or behind a box without a number,
//! 4. if there is no box, the last number.

use std::sync::LazyLock;

use regex::{Captures, Match, Regex};

use crate::{
    boxes::{Marked, boxes},
    number::Number,
    pattern::regex,
    statement::{ANSWER, COLON},
};

/// Most characters of a statement that are searched.
const STATEMENT: usize = 400;
/// Most bytes between a statement and its number.
const DISTANCE: usize = 50;

const GROUPED: &str = r"(?:[0-9]{1,3}(?:(?:,\\!|\{,\}|\\,|\\!|\\ |[, \x{A0}\x{2009}\x{202F}_])[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+";
const SIGN: &str = r"[-−–+]?(?:\\?\$|[€£¥₹])?";
const POWER: &str = r"\^(?:\{[-−+]?[0-9]+\}|[-−+]?[0-9]+)";
const FRACTION: &str =
    r"\\[dtc]?frac\s*(?:\{[^{}]*\}\s*\{[^{}]*\}|[0-9]\s*[0-9]+|[0-9]\s*\{[^{}]*\}|\{[^{}]*\}\s*[0-9]+)";

static NUMBER: LazyLock<Regex> = LazyLock::new(|| {
    let plain = [
        "(?:",
        GROUPED,
        r")(?:[eE][-+]?[0-9]+\b)?(?:\s*(?:\\times|\\cdot|×|\*|·)\s*10",
        POWER,
        "|",
        POWER,
        r")?(?:\s*/\s*[0-9]+(?:\.[0-9]+)?|\s*",
        FRACTION,
        ")?",
    ]
    .concat();
    let rest = r"|\\sqrt(?:\[[0-9]+\])?\{[^{}]*\})(?:\s*(?:\\?%|％|percent\b))?";
    regex(&[SIGN, "(?:", &plain, "|", FRACTION, rest].concat())
});
static FORMULA: LazyLock<Regex> = LazyLock::new(|| {
    regex(r"\$\$([^$]+)\$\$|\$([^\s$](?:[^$\n]*[^\s$])?)\$|\\\((.+?)\\\)|\\\[((?s:.+?))\\\]")
});
static FINAL: LazyLock<Regex> =
    LazyLock::new(|| regex(r"(?i)\bfinal\s+answer\b[^.:\n]{0,100}?\s(?:is|are)\b"));
static STATED: LazyLock<Regex> = LazyLock::new(|| {
    let parts = [
        "(?i)",
        ANSWER,
        r"(?:[^.:：\n=]{0,60}?\s(?:is|are|was|be|equals)\b|[\s*_]*(?:是|为|為|は)|[^.:：\n=]{0,60}?",
        COLON,
        ")",
    ];
    regex(&parts.concat())
});
static SENTENCE_END: LazyLock<Regex> = LazyLock::new(|| {
    regex(r"[.;,]\s|[.]$|\s(?:because|since|as|and|so|which|where|with|for|from|when|after|if)\s")
});
static HASHES: LazyLock<Regex> = LazyLock::new(|| regex(r"(?:^|[^#])####[ \t]*([^\s#][^\n#]*)"));
static WORDS: LazyLock<Regex> = LazyLock::new(|| regex(r"[A-Za-z]{2,}\s+[A-Za-z]{2,}"));
static LIST_ITEM: LazyLock<Regex> = LazyLock::new(|| regex(r"^[.):]\s*\S"));
static FUNCTION: LazyLock<Regex> =
    LazyLock::new(|| regex(r"^\\(?:sqrt|[dtc]?frac|pi|cdot|times|sum|int|alpha|theta|log|ln|sin|cos|tan)"));
static BETWEEN_BOXES: LazyLock<Regex> = LazyLock::new(|| {
    regex(
        r"^(?:[\s$.]|\\[()\[\]])*(?:,|;|&|\\text\{\s*(?:and|or)\s*\}|,?\s*(?:and|or)\b)(?:[\s$]|\\[()\[\]])*$",
    )
});

/// The number that a text gives as its answer, as the text writes it.
pub(crate) fn find_number(text: &str) -> Option<String> {
    if let Some(found) = behind_hashes(text, true) {
        return Some(found);
    }
    let boxes = boxes(text);
    let Some(last) = boxes.last() else { return without_box(text) };
    if let Some(found) = last_statement(&FINAL, text, last.end) {
        return Some(found);
    }
    if Number::parse(last.inner).is_some() && !is_one_of_two(&boxes, text) {
        return Some(last.inner.to_owned());
    }
    match last.inner.chars().any(char::is_alphanumeric) {
        true => last_statement(&STATED, text, last.end),
        // An empty box is ignored.
        false => without_box(&format!("{} {}", &text[..last.start], &text[last.end..])),
    }
}

fn without_box(text: &str) -> Option<String> {
    behind_hashes(text, false)
        .or_else(|| last_statement(&FINAL, text, 0))
        .or_else(|| last_statement(&STATED, text, 0))
        .or_else(|| last_number(text))
}

/// Whether the last two boxes give two different answers, as in `\boxed{5} or \boxed{6}`.
fn is_one_of_two(boxes: &[Marked<'_>], text: &str) -> bool {
    let [.., first, last] = boxes else { return false };
    let are_joined = first.end <= last.start && BETWEEN_BOXES.is_match(&text[first.end..last.start]);
    are_joined
        && match (Number::parse(first.inner), Number::parse(last.inner)) {
            (Some(first), Some(last)) => !first.equals(&last),
            _ => true,
        }
}

/// The number of the first `#### N`, which ends GSM8K's answers. With `is_bare`, lines with further words are
/// skipped, because they are often headings.
fn behind_hashes(text: &str, is_bare: bool) -> Option<String> {
    HASHES.captures_iter(text).filter_map(|captures| captures.get(1)).find_map(|line| {
        let line = line.as_str().trim();
        if Number::parse(line).is_some() && !WORDS.is_match(line) {
            return Some(line.to_owned());
        }
        let number = NUMBER.find(line).filter(|number| number.start() == 0 && !is_bare)?;
        let behind = &line[number.end()..];
        let ends = behind.is_empty() || behind.starts_with([' ', '.', ',']);
        let is_number = ends && !LIST_ITEM.is_match(behind) && Number::parse(number.as_str()).is_some();
        is_number.then(|| number.as_str().trim().to_owned())
    })
}

/// The number in the last statement from `from` on that has one.
fn last_statement(statement: &Regex, text: &str, from: usize) -> Option<String> {
    let ends: Vec<usize> = statement.find_iter(&text[from..]).map(|found| from + found.end()).collect();
    ends.into_iter().rev().find_map(|end| stated(&text[end..]))
}

/// The number at the beginning of a statement.
fn stated(text: &str) -> Option<String> {
    let text = text.trim_start_matches(|c: char| c.is_whitespace() || "*_`:：=>".contains(c));
    let line = text.lines().next()?;
    let line = line.char_indices().nth(STATEMENT).map_or(line, |(end, _)| &line[..end]);
    let formula = FORMULA.captures(line).and_then(|captures| Some((captures.get(0)?, inside(&captures)?)));
    if let Some((_, inner)) = formula.filter(|(whole, _)| whole.start() == 0) {
        return if_number(inner);
    }
    let sentence = SENTENCE_END.find(line).map_or(line, |end| &line[..end.start()]);
    let right = sentence.rsplit_once('=').map_or(sentence, |(_, right)| right);
    let whole = if_number(line).or_else(|| if_number(sentence)).or_else(|| if_number(right));
    if whole.is_some() {
        return whole;
    }
    for number in NUMBER.find_iter(line).take_while(|number| number.start() <= DISTANCE) {
        if let Some((_, inner)) = formula.filter(|(whole, _)| is_within(&number, whole)) {
            return if_number(inner);
        }
        let found = if_number(clean(line, &number)?);
        if found.is_some() {
            return found;
        }
    }
    None
}

fn if_number(text: &str) -> Option<String> {
    Number::parse(text).map(|_| text.trim().to_owned())
}

/// The text between the delimiters of a formula.
fn inside<'a>(captures: &Captures<'a>) -> Option<&'a str> {
    captures.iter().skip(1).flatten().next().map(|inner| inner.as_str())
}

fn is_within(number: &Match<'_>, formula: &Match<'_>) -> bool {
    (formula.start()..formula.end()).contains(&number.start())
}

/// The last number; if it is part of a formula, the whole formula must be one number.
fn last_number(text: &str) -> Option<String> {
    let numbers: Vec<Match<'_>> = NUMBER.find_iter(text).collect();
    let formulas: Vec<(Match<'_>, &str)> = FORMULA
        .captures_iter(text)
        .filter_map(|captures| Some((captures.get(0)?, inside(&captures)?)))
        .filter(|(whole, _)| whole.as_str().contains(|c: char| c.is_ascii_digit()))
        .collect();
    for number in numbers.iter().rev() {
        let behind = formulas.partition_point(|(whole, _)| whole.start() <= number.start());
        let formula = behind.checked_sub(1).and_then(|at| formulas.get(at));
        if let Some((_, inner)) = formula.filter(|(whole, _)| is_within(number, whole)) {
            return if_number(inner);
        }
        if let Some(found) = clean(text, number) {
            return if_number(found);
        }
    }
    None
}

/// A number without the sign of a difference or a range; `None` if it is part of a name, a power or a product.
fn clean<'a>(text: &'a str, number: &Match<'_>) -> Option<&'a str> {
    let (mut start, end) = (number.start(), number.end());
    let mut before = text[..start].chars().next_back();
    let sign = text[start..end].chars().next().filter(|c| matches!(c, '-' | '−' | '–' | '+'));
    if let Some(sign) = sign
        && before.is_some_and(|c| c.is_alphanumeric() || matches!(c, ')' | '}' | ']' | '%'))
    {
        start += sign.len_utf8();
        before = None;
    }
    let is_part = |c: char| c.is_ascii_alphabetic() || c.is_numeric() || "^√_/.\\{".contains(c);
    let behind = &text[end..];
    let goes_on = behind.starts_with(['^', '√', '(', '{', '!', '_']) || FUNCTION.is_match(behind);
    (!before.is_some_and(is_part) && !goes_on).then(|| &text[start..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_is_found_in_its_order() {
        for (text, expected) in [
            ("#### 18\n\nQuestion: 5\n#### 5", "18"),
            ("#### 1. Compute\n\\boxed{7}", "7"),
            ("\\boxed{12}\nAnswer: 7", "12"),
            ("\\boxed{12}\nThe final answer is 7", "7"),
            ("The final answer is 7\n\\boxed{12}", "12"),
            ("\\boxed{\\text{see below}}\nAnswer: 7", "7"),
            ("\\boxed{}\nIt is 7", "7"),
            ("Answer: 7. There are 3 more words", "7"),
            ("The answer to 3+4 is 7, as 3+4=7", "7"),
            ("The answer is $\\frac{3}{4}$.", "\\frac{3}{4}"),
            ("We get 40, then 42.", "42"),
            ("So $x = 7$ and not $y$", "x = 7"),
            ("5-3", "3"),
        ] {
            assert_eq!(find_number(text).as_deref(), Some(expected), "{text}");
        }
        for text in [
            "",
            "\\boxed{5} and \\boxed{6}",
            "\\boxed{2\\sqrt{3}}",
            "thus $x = 2\\sqrt{3}$",
            "\\boxed{5",
            "1/0",
        ] {
            assert_eq!(find_number(text), None, "{text}");
        }
    }
}
