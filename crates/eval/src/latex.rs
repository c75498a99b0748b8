//! Rewrites LaTeX and typographic characters as plain arithmetic operators.

use crate::ExpressionError::{self, Syntax};

/// Most bytes of a text, which is more than any answer has; the limit is needed because rewriting takes quadratic
/// time.
pub(crate) const MAX_BYTES: usize = 2000;
/// The character put before the fraction of a mixed number, because `1\frac{1}{2}` is a sum. This and the next two
/// are private-use characters of Unicode.
pub(crate) const MIXED: char = '\u{E010}';
/// The character put before a root's degree and radicand, both in parentheses.
pub(crate) const ROOT: char = '\u{E011}';
/// The character put before the two numbers of a binomial coefficient, both in parentheses.
pub(crate) const BINOMIAL: char = '\u{E012}';

const SIGNS: &[(&str, &str)] = &[
    ("\\times", "*"),
    ("\\cdot", "*"),
    ("\\div", "/"),
    ("\\left", ""),
    ("\\right", ""),
    ("\\{", "("),
    ("\\}", ")"),
];

/// Replaces commands by operators, and braces and brackets by parentheses. With `extended`, mixed numbers, roots,
/// binomial coefficients and `\over` are supported, too.
pub(crate) fn plain(text: &str, extended: bool) -> Result<String, ExpressionError> {
    if text.len() > MAX_BYTES {
        return Err(Syntax);
    }
    let mut text = text.replace(['×', '·', '∗', '⋅'], "*").replace('÷', "/").replace(['−', '–'], "-");
    text = text.replace('√', "\\sqrt");
    for (latex, sign) in SIGNS {
        text = text.replace(*latex, sign);
    }
    if extended {
        text = rewrite_over(text);
    }
    text = rewrite_fractions(text, extended)?;
    if extended {
        text = rewrite_binomials(text)?;
        text = rewrite_roots(text)?;
    }
    Ok(text.replace(['[', '{'], "(").replace([']', '}'], ")"))
}

fn rewrite_fractions(mut text: String, extended: bool) -> Result<String, ExpressionError> {
    for command in ["\\dfrac", "\\tfrac", "\\cfrac", "\\frac"] {
        while let Some(at) = text.find(command) {
            let before = &text[..at];
            let (above, rest) = argument(&text[at + command.len()..], false).ok_or(Syntax)?;
            let (below, rest) = argument(rest, true).ok_or(Syntax)?;
            let is_mixed = extended && ends_in_whole(before) && is_whole(above) && is_whole(below);
            let mixed = if is_mixed { MIXED.to_string() } else { String::new() };
            text = format!("{before}{mixed}(({above})/({below})){rest}");
        }
    }
    Ok(text)
}

fn rewrite_binomials(mut text: String) -> Result<String, ExpressionError> {
    for command in ["\\dbinom", "\\tbinom", "\\binom"] {
        while let Some(at) = text.find(command) {
            let (above, rest) = argument(&text[at + command.len()..], false).ok_or(Syntax)?;
            let (below, rest) = argument(rest, false).ok_or(Syntax)?;
            text = format!("{}{BINOMIAL}({above})({below}){rest}", &text[..at]);
        }
    }
    Ok(text)
}

fn rewrite_roots(mut text: String) -> Result<String, ExpressionError> {
    const COMMAND: &str = "\\sqrt";
    while let Some(at) = text.find(COMMAND) {
        let mut rest = text[at + COMMAND.len()..].trim_start();
        let mut degree = "2";
        if let Some(behind) = rest.strip_prefix('[') {
            (degree, rest) = behind.split_once(']').ok_or(Syntax)?;
        }
        let before = &text[..at];
        text = if rest.starts_with('(') {
            format!("{before}{ROOT}({degree}){rest}")
        } else {
            let (radicand, behind) = argument(rest, false).ok_or(Syntax)?;
            // TeX would only take the first digit of `\sqrt16` as the radicand, which is not what authors mean.
            if !rest.trim_start().starts_with('{') && behind.starts_with(|c: char| c.is_ascii_digit()) {
                return Err(Syntax);
            }
            format!("{before}{ROOT}({degree})({radicand}){behind}")
        };
    }
    Ok(text)
}

/// Rewrites `{a \over b}`: each side is everything in the group, or in the text, on that side.
fn rewrite_over(mut text: String) -> String {
    const COMMAND: &str = "\\over";
    let is_command =
        |text: &str, at: usize| !text[at + COMMAND.len()..].starts_with(|c: char| c.is_ascii_alphabetic());
    while let Some(at) = text.find(COMMAND).filter(|&at| is_command(&text, at)) {
        let behind = at + COMMAND.len();
        let (mut open, mut depth) = (0, 0);
        for (place, c) in text[..at].char_indices().rev() {
            match c {
                '}' => depth += 1,
                '{' if depth == 0 => {
                    open = place + 1;
                    break;
                }
                '{' => depth -= 1,
                _ => {}
            }
        }
        let (mut close, mut depth) = (text.len(), 0);
        for (place, c) in text[behind..].char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => {
                    close = behind + place;
                    break;
                }
                '}' => depth -= 1,
                _ => {}
            }
        }
        let (above, below) = (&text[open..at], &text[behind..close]);
        text = format!("{}(({above})/({below})){}", &text[..open], &text[close..]);
    }
    text
}

/// The argument of a command, and the text behind it. The argument is a group in braces, or a digit; with `run`, it
/// is all adjacent digits, because `\frac123` is read as 1/23.
fn argument(text: &str, run: bool) -> Option<(&str, &str)> {
    if let Some(group) = braced(text) {
        return Some(group);
    }
    let text = text.trim_start();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let end = if run { digits } else { digits.min(1) };
    (end > 0).then(|| text.split_at(end))
}

/// The content of the braces at the start, and the text behind them.
pub(crate) fn braced(text: &str) -> Option<(&str, &str)> {
    let inner = text.trim_start().strip_prefix('{')?;
    let mut depth = 1;
    for (at, c) in inner.char_indices() {
        depth += match c {
            '{' => 1,
            '}' => -1,
            _ => 0,
        };
        if depth == 0 {
            return Some((&inner[..at], &inner[at + 1..]));
        }
    }
    None
}

fn is_whole(text: &str) -> bool {
    let text = text.trim();
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether the text ends in an integer that is no exponent, index or decimal.
fn ends_in_whole(text: &str) -> bool {
    let text = text.trim_end();
    let before = text.trim_end_matches(|c: char| c.is_ascii_digit());
    before.len() < text.len() && !before.ends_with(['.', ',', '^', '_', '}'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_become_signs() {
        for (text, expected) in [
            ("\\frac{1}{2}", "((1)/(2))"),
            ("\\frac34", "((3)/(4))"),
            ("\\frac 3{4}", "((3)/(4))"),
            ("\\frac123", "((1)/(23))"),
            ("{1 \\over 2}", "(((1 )/( 2)))"),
            ("1\\frac12", "1\u{E010}((1)/(2))"),
            ("1.5\\frac12", "1.5((1)/(2))"),
            ("\\sqrt{16}", "\u{E011}(2)(16)"),
            ("\\sqrt[3]{27}", "\u{E011}(3)(27)"),
            ("\\binom{5}{2}", "\u{E012}(5)(2)"),
        ] {
            assert_eq!(plain(text, true).as_deref(), Ok(expected), "{text}");
        }
        for text in ["\\frac", "\\frac{1}", "\\sqrt16", "\\sqrt[3", "\\binom{1}"] {
            assert_eq!(plain(text, true), Err(Syntax), "{text}");
        }
        assert_eq!(plain(&"{".repeat(MAX_BYTES + 1), true), Err(Syntax));
    }
}
