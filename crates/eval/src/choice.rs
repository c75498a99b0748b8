//! Finds the choice that a text gives as its answer.
//!
//! The last explicit statement counts, either a box with a letter or "Answer: D"; boxes without a letter are ignored.
//! If there is no statement, the last letter that stands alone counts: in parentheses, on a line of its own, or
//! before its choice's text.

use std::sync::LazyLock;

use regex::Regex;

use crate::{
    boxes::boxes,
    pattern::regex,
    statement::{ANSWER, COLON},
};

const LETTER: &str = r"([A-Za-zＡ-Ｚ]|[أبجد]|[অবডঢ])";
/// Markup, quotes and brackets before a letter. Longer commands come first, because the first matching alternative is
/// taken.
const MARKUP: &str = concat!(
    r#"(?:[\s*_`"'“”‘’«「『(\[{<$:：]|\\(?:boxed|fbox|textbf|textit|textrm|text|mathrm|mathbf|mathsf|mathit|boldsymbol|bm"#,
    r"|left|quad|displaystyle|[,;:! (\[]))*",
);
const KIND: &str = r"(?:(?:option|choice|letter|alternative|statement)\b)?";
const IS: &str = concat!(
    r"(?:\b(?:is|are|was|would be|should be|must be|has to be|will be|seems to be|est|es|é|è|ist|lautet|adalah|ni|هي|هو)\b",
    r"|是|为|為|は)",
);
const ADVERB: &str =
    "(?:definitely|clearly|therefore|indeed|likely|probably|simply|thus|actually|most likely)";
const ADJECTIVE: &str = concat!(
    r"(?:choice|option|letter|here|above|correcta|correta|corretta|correcte|final|finale|النهائية|الصحيحة|النهائي)",
    r"\b",
);
const SUBJECT: &str =
    r"|(?:correct|right|best|final|chosen|selected|my)\s+(?:option|choice|letter|alternative)";

static STATED: LazyLock<Regex> = LazyLock::new(|| {
    let subject = ["(?i)(?:", ANSWER, SUBJECT, r")(?:\s+", ADJECTIVE, ")?"].concat();
    let of = [r"(?:\s+(?:to|for|of)\b[^.:：\n]{0,60}?(?:", IS, "|", COLON, "))?"].concat();
    let is = [r#"[\s*_`"]*"#, IS, r"?[\s*_`]*", ADVERB, r"?[\s*_`]*(?:", COLON, "|[-–—→]+>?)?"].concat();
    regex(&[subject.as_str(), of.as_str(), is.as_str(), MARKUP, KIND, MARKUP, LETTER].concat())
});
static CHOSEN: LazyLock<Regex> = LazyLock::new(|| {
    let verb = r"(?i)\b(?:choose|pick|select|go with|going with|choosing)\s+";
    regex(&[verb, MARKUP, KIND, MARKUP, LETTER].concat())
});
static IS_RIGHT: LazyLock<Regex> = LazyLock::new(|| {
    regex(concat!(
        r#"(?i)(?:^|[\s(\[*_`"'])([A-Za-z])[)\]*_`"'.]*\s+(?:is|are|would be|must be|seems)\s+"#,
        r"(?:the\s+|therefore\s+|indeed\s+|clearly\s+)?\**(?:correct|right|best|true answer|answer)\b",
    ))
});
static IN_PARENTHESES: LazyLock<Regex> = LazyLock::new(|| regex(r"\(([A-Z])\)"));
static ALONE: LazyLock<Regex> = LazyLock::new(|| {
    regex(concat!(
        r#"(?mi)^[\s>#*_`"'(\[$\-]*(?:(?:option|choice|letter)\s*:?\s*[*_`]*)?([A-Z])[)\]]*[*_`"'$)\]]*\s*[.:,!]?"#,
        r#"[*_`"'$]*\s*$"#,
    ))
});
static OPTION_AT_END: LazyLock<Regex> =
    LazyLock::new(|| regex(r"(?mi)\b(?:option|choice)\s+[*_`(\[]*([A-Z])[)\]*_`]*[.!]?[*_`]*\s*$"));
/// A letter followed by its choice's text: `B) Paris`, `**B.** Paris`.
static LED: LazyLock<Regex> = LazyLock::new(|| {
    regex(r"(?m)^[\s>#*_`\-]*(?:(?:Option|Choice)\s+)?[*_`(\[]*([A-Z])(?:[*_`]*[)\].:]+[*_`]*|[*_`]+)\s*\S")
});
static BOXED: LazyLock<Regex> = LazyLock::new(|| {
    regex(concat!(
        r"(?i)^(?:(?:the\s+)?(?:correct\s+|final\s+|right\s+)?(?:answer|option|choice|letter)\s*(?:is|:|=)?\s*)*",
        r"[(\[*_`]*\s*([A-ZＡ-Ｚ])\s*[*_`]*(?:$|\s*[)\].:]+)",
    ))
});
/// A letter followed by a space and its choice's text. `A` and `I` are excluded because they are words.
static SPACED: LazyLock<Regex> = LazyLock::new(|| regex(r"^[(\[]*\s*([B-HJ-Z])\s+[A-Za-z][a-z]"));
static SPACES: LazyLock<Regex> = LazyLock::new(|| regex(r"\\[,;:! ]|\\q?quad|~|\s"));
static FONTS: LazyLock<Regex> = LazyLock::new(|| {
    regex(concat!(
        r"\\(?:text|textbf|textit|textrm|textsf|texttt|textnormal|mathrm|mathbf|mathsf|mathit|mathtt|mathnormal|mathcal",
        r"|boldsymbol|bm|mbox|hbox|operatorname|emph|underline|boxed|fbox)\s*\{",
        r"|\\(?:left|right|displaystyle|bf|rm|Large|large)\b|\\[()]|\$",
    ))
});
/// Words that may follow a letter that is also a word, as in "the answer is A because".
const CONJUNCTIONS: &[&str] = &[
    "because", "since", "as", "for", "which", "that", "with", "and", "or", "but", "so", "in", "from", "if",
    "due", "given", "based", "not", "though", "although", "while", "where", "when", "is",
];

/// The letter of the choice that a text gives as its answer. `choices` are the texts of the choices, if known.
pub(crate) fn find_choice(text: &str, choices: &[String]) -> Option<char> {
    let is_choice = |letter: &char| {
        let at = usize::from(*letter as u8 - b'A');
        choices.is_empty() || at < choices.len()
    };
    let letter_of = |written: &str| capital(written).filter(is_choice);
    let mut found: Vec<(usize, char)> = Vec::new();
    for marked in boxes(text) {
        found.extend(
            boxed_letter(marked.inner, choices).filter(is_choice).map(|letter| (marked.start, letter)),
        );
    }
    for statement in [&STATED, &CHOSEN] {
        for written in statement.captures_iter(text).filter_map(|captures| captures.get(1)) {
            if stands_alone(written.as_str(), &text[written.end()..]) {
                found.extend(letter_of(written.as_str()).map(|letter| (written.start(), letter)));
            }
        }
    }
    for written in IS_RIGHT.captures_iter(text).filter_map(|captures| captures.get(1)) {
        if written.as_str().starts_with(|c: char| c.is_ascii_uppercase()) {
            found.extend(letter_of(written.as_str()).map(|letter| (written.start(), letter)));
        }
    }
    if found.is_empty() {
        for pattern in [&IN_PARENTHESES, &ALONE, &OPTION_AT_END] {
            for written in pattern.captures_iter(text).filter_map(|captures| captures.get(1)) {
                found.extend(letter_of(written.as_str()).map(|letter| (written.start(), letter)));
            }
        }
        found.extend(led_letter(text).filter(|(_, letter)| is_choice(letter)));
    }
    found.into_iter().max_by_key(|(at, _)| *at).map(|(_, letter)| letter)
}

/// The capital that names the choice, for a letter of this alphabet or of those used in the choices of multilingual
/// MMLU.
fn capital(written: &str) -> Option<char> {
    let letter = written.chars().next()?;
    let capital = match letter {
        'أ' | 'অ' | 'Ａ' => 'A',
        'ب' | 'ব' | 'Ｂ' => 'B',
        'ج' | 'ড' | 'Ｃ' => 'C',
        'د' | 'ঢ' | 'Ｄ' => 'D',
        'Ｅ'..='Ｚ' => char::from_u32(u32::from(letter) - u32::from('Ａ') + u32::from('A'))?,
        _ => letter.to_ascii_uppercase(),
    };
    capital.is_ascii_uppercase().then_some(capital)
}

/// Whether a letter followed by this text names a choice, and does not begin a word, a formula or a sentence.
fn stands_alone(letter: &str, behind: &str) -> bool {
    let mut next = behind.chars();
    let (first, second) = (next.next(), next.next());
    let is_part = match first {
        Some('_' | '\'' | '’' | '-' | '+' | '^' | '=' | '/') => second.is_some_and(char::is_alphanumeric),
        _ => first.is_some_and(char::is_alphanumeric),
    };
    if is_part {
        return false;
    }
    let spaced = behind.trim_start_matches([' ', '\t']);
    if spaced.len() == behind.len() {
        return true;
    }
    let is_formula = spaced.starts_with(['=', '+', '^', '<', '>', '\\']);
    if is_formula && !["\\)", "\\]", "\\text"].iter().any(|end| spaced.starts_with(*end)) {
        return false;
    }
    let length = spaced.bytes().take_while(u8::is_ascii_alphabetic).count();
    let word = spaced[..length].to_ascii_lowercase();
    let is_lower = letter.starts_with(|c: char| c.is_ascii_lowercase());
    let is_word = matches!(letter, "A" | "I") && !CONJUNCTIONS.contains(&word.as_str());
    word.is_empty() || !(is_lower || is_word)
}

/// The letter in a box, alone or with its choice's text, or the letter of the choice whose text the box holds.
fn boxed_letter(inner: &str, choices: &[String]) -> Option<char> {
    let text = without_markup(inner);
    if let Some(letter) = BOXED.captures(&text).and_then(|captures| captures.get(1)) {
        return capital(letter.as_str());
    }
    let plain = comparable(&text);
    let mut same =
        choices.iter().enumerate().filter(|(_, choice)| !plain.is_empty() && comparable(choice) == plain);
    if let (Some((at, _)), None) = (same.next(), same.next()) {
        return u8::try_from(at).ok().filter(|at| *at < 26).map(|at| char::from(b'A' + at));
    }
    if let Some(letter) = SPACED.captures(&text).and_then(|captures| captures.get(1)) {
        return capital(letter.as_str());
    }
    let (letter, rest) = text.split_once(' ')?;
    let letter = capital(letter).filter(|_| letter.len() == 1)?;
    let choice = choices.get(usize::from(letter as u8 - b'A'))?;
    (comparable(choice) == comparable(rest)).then_some(letter)
}

fn without_markup(text: &str) -> String {
    let text = FONTS.replace_all(text, " ");
    let text = SPACES.replace_all(&text, " ").replace(['{', '}'], " ");
    text.trim_matches(|c: char| c.is_whitespace() || "*_`\"'“”‘’«».,;:".contains(c)).to_owned()
}

/// A text in the form in which texts are compared: without markup, in lower case, and with single spaces.
fn comparable(text: &str) -> String {
    let text = without_markup(text).to_lowercase();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The letter at the beginning of the last line that begins with one, unless the line belongs to a list of the
/// choices.
fn led_letter(text: &str) -> Option<(usize, char)> {
    let led: Vec<(usize, char)> = LED
        .captures_iter(text)
        .filter_map(|captures| captures.get(1))
        .filter_map(|letter| Some((letter.start(), letter.as_str().chars().next()?)))
        .collect();
    let &(at, last) = led.last()?;
    if led.iter().all(|(_, letter)| *letter == last) {
        return Some((at, last));
    }
    let (_, before) = led[led.len() - 2];
    let is_last_line = text.trim_end().lines().next_back().is_some_and(|line| LED.is_match(line));
    (is_last_line && last as u32 != before as u32 + 1).then_some((at, last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_found() {
        let choices: Vec<String> = ["London", "Paris", "Rome", "Berlin"].map(String::from).to_vec();
        for text in [
            "\\boxed{\\text{(B) Paris}}",
            "\\boxed{\\textbf{B}}",
            "\\boxed{Paris}",
            "\\boxed{12}\n**Answer: B**",
            "\\boxed{A}\nThe final answer is $\\boxed{B}$",
            "The answer is option B",
            "答案：B",
            "الإجابة: ب",
            "answer: b",
            "B) Paris",
            "**B.** Paris",
            "A) London\nB) Paris\nC) Rome\nD) Berlin\n\nB) Paris",
        ] {
            assert_eq!(find_choice(text, &choices), Some('B'), "{text}");
        }
        for text in [
            "The answer is a city",
            "Answer: I do not know",
            "\\boxed{E = mc^2}",
            "\\boxed{A, B}",
            "A) London\nB) Paris",
            "Answer: F",
        ] {
            assert_eq!(find_choice(text, &choices), None, "{text}");
        }
    }
}
