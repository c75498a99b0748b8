//! Judges whether an answer solves a problem.

use std::sync::LazyLock;

use moi_text::THINKING;
use num_rational::Ratio;
use regex::Regex;
use serde::{Deserialize, Serialize};

use crate::{
    boxes::boxes, choice::find_choice, expression::evaluate, number::Number, number_answer::find_number,
    pattern::regex,
};

/// The rule by which answers to a problem are judged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "scorer", rename_all = "kebab-case")]
pub enum Scorer {
    /// The answer is this number. The candidates, in order of precedence: the first `#### N`; the last `\boxed{}`,
    /// `<answer>` or "final answer is N"; the last "Answer: N"; the last number of the text that is not in a remark
    /// behind another number. A box with more than one number is no answer. `N!` is only a factorial in a box or a
    /// formula.
    Number {
        /// The number as text, such as `42`, `1,234.5`, `3/4` or `-\frac{1}{2}`.
        answer: String,
    },
    /// The chosen option is this letter. The candidates, in order of precedence: the last box with a letter or the
    /// last "Answer: B"; the last "B is correct", "I choose B" or "So B."; the last letter that stands alone.
    Choice {
        /// A capital letter.
        answer: char,
        /// The texts of the choices, if they are known: a box may hold a choice's text instead of its letter. They
        /// are not serialised, because the prompt contains them, and so that runs that were started without them can
        /// continue.
        #[serde(default, skip_serializing)]
        choices: Vec<String>,
    },
    /// The answer is an expression of all these numbers, each used once, with this value.
    Countdown {
        /// The numbers.
        numbers: Vec<i128>,
        /// The value.
        target: i128,
    },
}

/// The result of judging an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Score {
    /// Whether it solves the problem.
    pub correct: bool,
    /// The part of the text that was taken as the answer, if any was found.
    pub found: Option<String>,
}

static ARITHMETIC: LazyLock<Regex> =
    LazyLock::new(|| regex(r"[\d(\[][\d\s+\-*/×÷·−()\[\]]*[+\-*/×÷·−][\d\s+\-*/×÷·−()\[\]]*[\d)\]]"));

impl Scorer {
    /// Judges an answer.
    pub fn score(&self, text: &str) -> Score {
        let text = behind_thoughts(text);
        let found = match self {
            Self::Number { .. } => find_number(text),
            Self::Choice { choices, .. } => find_choice(text, choices).map(String::from),
            Self::Countdown { .. } => expression_of(text),
        };
        let correct = found.as_deref().is_some_and(|found| match self {
            Self::Number { answer } => match (Number::parse(found), Number::parse(answer)) {
                (Some(found), Some(answer)) => found.equals(&answer),
                _ => false,
            },
            Self::Choice { answer, .. } => found.chars().eq([*answer]),
            Self::Countdown { numbers, target } => solves(found, numbers, *target),
        });
        Score { correct, found }
    }
}

/// The text behind the last thoughts, if there are any. If the thoughts were cut off, the whole text is judged.
fn behind_thoughts(text: &str) -> &str {
    // gpt-oss marks its answer by a channel, Muse Glimmer by the user as recipient.
    const FINAL: &str = "<|channel|>final<|message|>";
    const TO_USER: &str = " to=user<|message|>";
    let ends = THINKING.iter().map(|(_, close)| *close).chain([FINAL, TO_USER]);
    let ends = ends.filter_map(|end| Some(text.rfind(end)? + end.len()));
    &text[ends.max().unwrap_or(0)..]
}

/// The expression that is given as the answer, without the value that it is said to equal.
fn expression_of(text: &str) -> Option<String> {
    // `24 = 8 / (3 - 8 / 3)` may be written in either order: the side with a computation is the expression.
    let side = |text: &str| {
        let sides =
            text.split('=').map(|side| side.trim().trim_matches('$').trim()).filter(|side| !side.is_empty());
        let computes = |side: &&str| evaluate(side).is_ok_and(|(_, numbers)| numbers.len() > 1);
        sides.clone().find(computes).or(sides.clone().next()).map(str::to_owned)
    };
    match boxes(text).last() {
        Some(marked) => side(marked.inner),
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
    fn thoughts_of_every_kind_are_not_judged() {
        let scorer = Scorer::Number { answer: "7".into() };
        let channels =
            ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>");
        let recipients = (" to=self<|message|>", "<|eom|><|start|>assistant to=user<|message|>");
        for (open, close) in THINKING.iter().copied().chain([channels, recipients]) {
            let text = format!("{open}\\boxed{{9}}{close}It is 7.");
            assert!(scorer.score(&text).correct, "{text}");
            // If the thoughts were cut off, the whole text is judged.
            assert!(scorer.score(&format!("{open}It is \\boxed{{7}}.")).correct, "{open}");
        }
    }

    #[test]
    fn scorers_of_older_runs_are_read() {
        let scorer = Scorer::Choice { answer: 'B', choices: vec!["a".into(), "b".into()] };
        let written = serde_json::to_string(&scorer).unwrap();
        assert_eq!(written, "{\"scorer\":\"choice\",\"answer\":\"B\"}");
        let read: Scorer = serde_json::from_str(&written).unwrap();
        assert_eq!(read, Scorer::Choice { answer: 'B', choices: Vec::new() });
    }

    #[test]
    fn letters_are_found() {
        let of = |text: &str| {
            Scorer::Choice { answer: 'B', choices: Vec::new() }.score(text).found.unwrap_or_default()
        };
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
                Scorer::Choice { answer: 'A', choices: vec!["1".into()] },
                Scorer::Countdown { numbers: vec![1, 2], target: 3 },
            ] {
                scorer.score(&format!("{text}{more}"));
                scorer.score(&format!("\\boxed{{{more}"));
            }
        }
    }
}
