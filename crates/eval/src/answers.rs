//! Whether an answer solves a problem.

use std::{str::FromStr, sync::LazyLock};

use num_rational::Ratio;
use num_traits::CheckedMul;
use regex::Regex;
use serde::{Deserialize, Serialize};

use crate::expression::{braced, evaluate};

/// How answers to a problem are judged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "scorer", rename_all = "kebab-case")]
pub enum Scorer {
    /// The last `\boxed{}`, else the last number of the text, is this number.
    Number {
        /// As text, such as `42`, `1,234.5` or `3/4`.
        answer: String,
    },
    /// The option that is chosen is this letter.
    Choice {
        /// A capital letter.
        answer: char,
    },
    /// An expression of all these numbers, each once, with this value.
    Countdown {
        /// The numbers.
        numbers: Vec<i128>,
        /// The value.
        target: i128,
    },
}

/// What came of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Score {
    /// Whether it solves the problem.
    pub correct: bool,
    /// What was taken for the answer, if anything was found.
    pub found: Option<String>,
}

#[allow(clippy::unwrap_used, reason = "the expressions are written here")]
fn regex(text: &str) -> Regex {
    Regex::new(text).unwrap()
}

static NUMBER: LazyLock<Regex> = LazyLock::new(|| {
    regex(
        r"[-−+]?\$?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:\s*/\s*\d+)?|\\[dt]?frac\s*\{\s*[-−]?\d+\s*\}\s*\{\s*\d+\s*\}",
    )
});
static CHOSEN: LazyLock<Regex> = LazyLock::new(|| {
    regex(r"(?i:answer|(?:correct|right)\s+(?:option|choice))(?i:\s+is)?\s*[:=]?\s*[*_(\[`]*([A-Z])\b")
});
static ALONE: LazyLock<Regex> =
    LazyLock::new(|| regex(r"\(([A-Z])\)|(?m:^\s*[*_`]*([A-Z])[*_`]*\s*[.):]?\s*$)"));
static ARITHMETIC: LazyLock<Regex> =
    LazyLock::new(|| regex(r"[\d(\[][\d\s+\-*/×÷·−()\[\]]*[+\-*/×÷·−][\d\s+\-*/×÷·−()\[\]]*[\d)\]]"));

impl Scorer {
    /// Judges an answer.
    pub fn score(&self, text: &str) -> Score {
        let text = behind_thoughts(text);
        let found = match self {
            Self::Number { .. } => number_of(text),
            Self::Choice { .. } => choice_of(text),
            Self::Countdown { .. } => expression_of(text),
        };
        let correct = found.as_deref().is_some_and(|found| match self {
            Self::Number { answer } => match (number(found), number(answer)) {
                (Some(found), Some(answer)) => found == answer,
                _ => false,
            },
            Self::Choice { answer } => found.chars().eq([*answer]),
            Self::Countdown { numbers, target } => solves(found, numbers, *target),
        });
        Score { correct, found }
    }
}

/// What stands behind the last thoughts, if there are such. Of thoughts that were cut off all is judged.
fn behind_thoughts(text: &str) -> &str {
    text.rsplit_once("</think>").map_or(text, |(_, answer)| answer)
}

/// What the last `\boxed{}` or `<answer>` holds.
fn boxed(text: &str) -> Option<&str> {
    let latex = text.rfind("\\boxed").and_then(|at| Some((at, braced(&text[at + "\\boxed".len()..])?.0)));
    let tag = text.rfind("<answer>").map(|at| {
        let inner = &text[at + "<answer>".len()..];
        (at, inner.split("</answer>").next().unwrap_or(inner))
    });
    let last = [latex, tag].into_iter().flatten().max_by_key(|(at, _)| *at);
    last.map(|(_, inner)| inner.trim())
}

fn number_of(text: &str) -> Option<String> {
    let of = |text: &str| NUMBER.find_iter(text).last().map(|found| found.as_str().trim().to_owned());
    match boxed(text) {
        Some(inner) => of(inner),
        None => of(text),
    }
}

/// A number as a fraction.
fn number(text: &str) -> Option<Ratio<i128>> {
    let text = text.replace([',', '$', ' ', '\\', '{'], "").replace('−', "-").replace('}', "/");
    let text = text.trim_start_matches(['d', 't']).trim_start_matches("frac").trim_end_matches('/');
    let (above, below) = text.split_once('/').unwrap_or((text, "1"));
    let below = i128::from_str(below).ok().filter(|&below| below != 0)?;
    let (whole, part) = above.split_once('.').unwrap_or((above, ""));
    let scale = 10i128.checked_pow(part.len().try_into().ok()?)?;
    let digits = i128::from_str(&format!("{whole}{part}")).ok()?;
    let scale = Ratio::from_integer(scale).checked_mul(&Ratio::from_integer(below))?;
    Some(Ratio::from_integer(digits) / scale)
}

fn choice_of(text: &str) -> Option<String> {
    if let Some(inner) = boxed(text) {
        let letters = inner.strip_prefix("\\text").and_then(braced).map_or(inner, |(letter, _)| letter);
        let letter = letters.trim_matches(|c: char| !c.is_ascii_alphanumeric()).to_uppercase();
        return (letter.len() == 1).then_some(letter);
    }
    let last = |expression: &Regex| {
        let captures = expression.captures_iter(text).last()?;
        captures.iter().skip(1).flatten().next().map(|letter| letter.as_str().to_owned())
    };
    last(&CHOSEN).or_else(|| last(&ALONE))
}

/// The expression that is given as the answer, without what it is said to equal.
fn expression_of(text: &str) -> Option<String> {
    // `24 = 8 / (3 - 8 / 3)` as well as the other way round: what computes something is the expression.
    let side = |text: &str| {
        let sides =
            text.split('=').map(|side| side.trim().trim_matches('$').trim()).filter(|side| !side.is_empty());
        let computes = |side: &&str| evaluate(side).is_ok_and(|(_, numbers)| numbers.len() > 1);
        sides.clone().find(computes).or(sides.clone().next()).map(str::to_owned)
    };
    match boxed(text) {
        Some(inner) => side(inner),
        None => ARITHMETIC.find_iter(text).last().map(|found| found.as_str().trim().to_owned()),
    }
}

fn solves(expression: &str, numbers: &[i128], target: i128) -> bool {
    let Ok((value, mut used)) = evaluate(expression) else { return false };
    let mut given = numbers.to_vec();
    given.sort_unstable();
    used.sort_unstable();
    used == given && value == Ratio::from_integer(target)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_are_found_and_compared_exactly() {
        let correct = |answer: &str, text: &str| Scorer::Number { answer: answer.into() }.score(text).correct;
        for (answer, text) in [
            ("42", "so it is \\boxed{42}."),
            ("42", "first \\boxed{41}, no: \\boxed{42}"),
            ("42", "We get 40, then 42."),
            ("42", "\\boxed{42\\text{ apples}}"),
            ("42", "\\boxed{x = 42}"),
            ("1234", "That makes $1,234."),
            ("1,234.5", "1234.50 in all"),
            ("0.75", "\\boxed{\\frac{3}{4}}"),
            ("3/4", "It is 0.75"),
            ("-5", "x = −5"),
            ("-5", "x = -5"),
            ("7", "<think>maybe 9</think> it is 7"),
            ("18", "<answer> 18 </answer> and 3 more words"),
            ("72", "#### 72"),
            ("0.1", "\\boxed{0.10}"),
        ] {
            assert!(correct(answer, text), "{answer}: {text}");
        }
        for (answer, text) in [
            ("42", ""),
            ("42", "no number"),
            ("42", "\\boxed{}"),
            ("42", "42, no, 43"),
            ("42", "\\boxed{41} though 42 was near"),
            ("42", "4.2"),
            ("42", "142"),
            ("5", "-5"),
            ("0.333", "1/3"),
            ("7", "7 <think> 7 </think> I do not know"),
            ("1", "1/0"),
        ] {
            assert!(!correct(answer, text), "{answer}: {text}");
        }
    }

    #[test]
    fn letters_are_found() {
        let of = |text: &str| Scorer::Choice { answer: 'B' }.score(text).found.unwrap_or_default();
        for text in [
            "\\boxed{B}",
            "\\boxed{\\text{B}}",
            "\\boxed{(b)}",
            "The answer is B.",
            "The answer is (B), as A is wrong.",
            "Answer: **B**",
            "A is tempting.\nB",
            "Not (A) but (B)",
            "Answer: A\nWait.\nAnswer: B",
            "The correct option is B",
            "Option A is wrong.\nAnswer: B",
        ] {
            assert_eq!(of(text), "B", "{text}");
        }
        for text in [
            "",
            "A good question. I think so.",
            "I",
            "\\boxed{AB}",
            "both",
            "Option A is wrong, so it must be another",
        ] {
            assert!(!["A", "B"].contains(&of(text).as_str()), "{text}: {}", of(text));
        }
    }

    #[test]
    fn expressions_are_checked_exactly() {
        let scorer = Scorer::Countdown { numbers: vec![3, 8, 3, 8], target: 24 };
        for text in [
            "8 / (3 - 8 / 3)",
            "\\boxed{8 / (3 - 8 / 3)}",
            "\\boxed{8/(3-8/3) = 24}",
            "\\boxed{24 = 8/(3-8/3)}",
            "$\\boxed{\\frac{8}{3 - \\frac{8}{3}}}$",
            "<answer>8 / (3 - 8/3)</answer>",
            "I try 3 + 8 = 11, no.\nSo: 8 / (3 - 8 / 3) = 24",
            "8 ÷ (3 − 8 ÷ 3)",
        ] {
            let score = scorer.score(text);
            assert!(score.correct, "{text}: {:?}", score.found);
        }
        for text in [
            "",
            "3 * 8",
            "3 * 8 + 3 - 3",
            "8 + 8 + 8",
            "24",
            "\\boxed{24}",
            "8/(3-8/3) is near\n3 + 3",
            "8 / (3 - 3)",
        ] {
            assert!(!scorer.score(text).correct, "{text}");
        }
        let thirds = Scorer::Countdown { numbers: vec![1, 3, 3], target: 1 };
        assert!(thirds.score("1 / 3 * 3").correct);
        assert!(!thirds.score("1 + 3 - 3 = 2").found.is_none_or(|found| found.contains('=')));
    }

    proptest! {
        #[test]
        fn any_text_is_judged(text in "\\PC{0,60}", more in "[0-9+*/(){}\\\\boxed<>answer =.,-]{0,60}") {
            for scorer in [
                Scorer::Number { answer: "1".into() },
                Scorer::Choice { answer: 'A' },
                Scorer::Countdown { numbers: vec![1, 2], target: 3 },
            ] {
                scorer.score(&format!("{text}{more}"));
                scorer.score(&format!("\\boxed{{{more}"));
            }
        }
    }
}
