//! Compares judgements with those of math-verify and published rules; tests/reference/answers.py gives the reasons
//! for differences.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure must end the test")]

use std::{env, fs, path::Path};

use moi_eval::Scorer;
use serde::Deserialize;

#[derive(Deserialize)]
struct Table {
    #[serde(default)]
    numbers: Vec<NumberRow>,
    #[serde(default)]
    letters: Vec<LetterRow>,
}

#[derive(Deserialize)]
struct NumberRow {
    gold: String,
    text: String,
    correct: bool,
}

#[derive(Deserialize)]
struct LetterRow {
    #[serde(default)]
    choices: Vec<String>,
    text: String,
    found: Option<char>,
}

/// The number of rows, and the rows that are judged otherwise.
fn replay(path: &Path) -> (usize, Vec<String>) {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let table: Table =
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut wrong = Vec::new();
    for row in &table.numbers {
        let score = Scorer::Number { answer: row.gold.clone() }.score(&row.text);
        if score.correct != row.correct {
            let (gold, text, found) = (&row.gold, &row.text, score.found);
            wrong.push(format!("{gold}: {text:?} should be {}, found {found:?}", row.correct));
        }
    }
    for row in &table.letters {
        let answer = row.found.unwrap_or('A');
        let score = Scorer::Choice { answer, choices: row.choices.clone() }.score(&row.text);
        let is_found = score.found == row.found.map(String::from);
        if !is_found || score.correct != row.found.is_some() {
            let (text, expected, found) = (&row.text, row.found, score.found);
            wrong.push(format!("{text:?} should give {expected:?}, gave {found:?}"));
        }
    }
    (table.numbers.len() + table.letters.len(), wrong)
}

#[test]
fn answers_are_judged_as_the_references_judge_them() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/answers.json");
    let more = env::var_os("MOI_TEST_VECTORS").map(|directory| Path::new(&directory).join("answers.json"));
    let (mut rows, mut wrong) = replay(&here);
    assert!(rows >= 370, "{rows} rows");
    if let Some(path) = more.filter(|path| path.is_file()) {
        let (more_rows, more_wrong) = replay(&path);
        rows += more_rows;
        wrong.extend(more_wrong);
    }
    assert!(
        wrong.is_empty(),
        "{} of {rows} answers are judged otherwise:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}
