//! Problems and their prompts.

use std::{fs, io, path::Path};

use minijinja::{
    Environment,
    value::{Serde, Value as Jinja},
};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::{Countdown, EvalError, Scorer, boxes::boxes, number::Number, number_answer::find_number};

/// A problem.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Problem {
    /// The problem's id, which is unique within the task.
    pub id: String,
    /// The prompt that the model gets.
    pub prompt: String,
    /// The rule by which answers are judged.
    pub scorer: Scorer,
    /// A correct answer, if one is known.
    pub solution: Option<String>,
}

/// A task: a list of problems that are scored.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Task {
    /// The task's name in reports.
    pub name: String,
    /// The problems, in order.
    pub problems: Vec<Problem>,
}

const COUNTDOWN: &str = "Using the numbers {{ numbers | join(', ') }}, write an arithmetic expression that equals {{ target }}. \
     Use each number exactly once, with + - * / and parentheses. Give the final expression as \\boxed{expression}.";
const NUMBER: &str = "{{ question }}\n\nReason step by step, and give the final answer as \\boxed{number}.";
const CHOICE: &str = "{{ question }}\n\n{% for choice in choices %}{{ letters[loop.index0] }}) {{ choice }}\n{% endfor %}\n\
     Reason step by step, and give the letter of the right choice as \\boxed{letter}.";
/// The field names that data sets use for questions.
const QUESTIONS: &[&str] = &["question", "problem", "prompt", "Question", "Problem"];
/// The field names that data sets use for answers. In a worked solution, the number in the last box counts.
const ANSWERS: &[&str] = &["answer", "Answer", "solution", "Solution"];
const IDS: &[&str] = &["id", "ID"];
const LETTERS: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";

impl Task {
    /// Generates a task of CountDown problems.
    pub fn countdown(options: &Countdown, count: usize) -> Self {
        let problems = options.make(count).into_iter().enumerate().map(|(at, made)| {
            let scorer = Scorer::Countdown { numbers: made.numbers.clone(), target: made.target };
            let listed = made.numbers.iter().map(i128::to_string).collect::<Vec<_>>().join(", ");
            let prompt = COUNTDOWN
                .replace("{{ numbers | join(', ') }}", &listed)
                .replace("{{ target }}", &made.target.to_string());
            Problem { id: format!("countdown-{at}"), prompt, scorer, solution: Some(made.solution) }
        });
        Self { name: format!("countdown, {} numbers", options.numbers), problems: problems.collect() }
    }

    /// Reads a JSONL file, in which each line is an object with the fields that the template and the scorer need.
    ///
    /// - CountDown: `numbers`, `target`
    /// - multiple choice: `question`, `choices` (texts), `answer` (a letter, a choice's text, or the index of a
    ///   choice from 0), as in MMLU; `choices` may be named `options`, as in MMLU-Pro, or be columns `A`, `B` and so
    ///   on with a letter as `answer`; or `choices` (`text` and `label`, as two lists or in each choice) and
    ///   `answerKey` (a label), as in ARC
    /// - otherwise a number: `question`, `answer`; in an answer with `####`, as in GSM8K, the text behind it counts,
    ///   and in an answer with boxes the last box
    ///
    /// `id` or `ID` is optional. A question may also be named `problem`, `prompt`, `Question` or `Problem`, and an
    /// answer `Answer`, `solution` or `Solution`. `template` is Jinja with the line's fields as variables. A byte
    /// order mark is skipped.
    ///
    /// # Errors
    /// If the file cannot be read, or a line is no problem; the error names the line. For answers that are no
    /// numbers, the error counts them.
    pub fn read(path: &Path, template: Option<&str>) -> Result<Self, EvalError> {
        let io_error = |error| EvalError::Io { path: path.to_owned(), error };
        let bytes = fs::read(path).map_err(io_error)?;
        let text = moi_files::text(bytes).map_err(|error| io_error(io::Error::other(error)))?;
        // Jinja reads every line end as `\n`, but minijinja does not.
        let template = template.map(|source| source.replace("\r\n", "\n").replace('\r', "\n"));
        let mut problems = Vec::new();
        let mut without_number: Vec<(usize, String)> = Vec::new();
        for (at, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let wrong = |what: String| EvalError::Line { path: path.to_owned(), line: at + 1, what };
            let fields: Map<String, Value> = moi_files::json(line.as_bytes())
                .map_err(|error| wrong(format!("no JSON object: {error}")))?;
            match problem(fields, at + 1, template.as_deref()) {
                Ok(problem) => problems.push(problem),
                Err(Wrong::Field(what)) => return Err(wrong(what)),
                Err(Wrong::NoNumber(answer)) => without_number.push((at + 1, answer)),
                Err(Wrong::Template(error)) => return Err(EvalError::Template(error)),
            }
        }
        if let Some((line, answer)) = without_number.first() {
            let (count, all) = (without_number.len(), without_number.len() + problems.len());
            let what = format!(
                "its answer `{answer}` is no number; of the file's {all} problems {count} have such answers, which \
                 cannot be judged: leave these lines out"
            );
            return Err(EvalError::Line { path: path.to_owned(), line: *line, what });
        }
        if problems.is_empty() {
            return Err(EvalError::Empty(path.to_owned()));
        }
        let name = path.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
        Ok(Self { name, problems })
    }
}

enum Wrong {
    Field(String),
    /// The answer is no number.
    NoNumber(String),
    Template(minijinja::Error),
}

impl From<minijinja::Error> for Wrong {
    fn from(error: minijinja::Error) -> Self {
        Self::Template(error)
    }
}

fn problem(mut fields: Map<String, Value>, line: usize, template: Option<&str>) -> Result<Problem, Wrong> {
    let id = match IDS.iter().find_map(|name| fields.get(*name)) {
        Some(Value::String(id)) => id.clone(),
        Some(id) => id.to_string(),
        None => line.to_string(),
    };
    if !fields.contains_key("question")
        && let Some(question) = QUESTIONS.iter().find_map(|name| fields.get(*name).cloned())
    {
        fields.insert("question".to_owned(), question);
    }
    find_choices(&mut fields);
    let (scorer, usual) = if fields.contains_key("numbers") {
        (countdown(&fields)?, COUNTDOWN)
    } else if fields.contains_key("choices") {
        (choice(&mut fields)?, CHOICE)
    } else {
        (Scorer::Number { answer: number(&fields)? }, NUMBER)
    };
    if template.is_none() && !matches!(scorer, Scorer::Countdown { .. }) && !fields.contains_key("question") {
        return Err(Wrong::Field("it has no `question`, so a template is needed".to_owned()));
    }
    let letters: Vec<String> = LETTERS.chars().map(String::from).collect();
    fields.insert("letters".to_owned(), letters.into());
    let prompt = Environment::new().render_str(template.unwrap_or(usual), Jinja::from(Serde(&fields)))?;
    Ok(Problem { id, prompt, scorer, solution: None })
}

fn countdown(fields: &Map<String, Value>) -> Result<Scorer, Wrong> {
    let wrong = || Wrong::Field("`numbers` must be whole numbers, and `target` one".to_owned());
    let whole = |value: &Value| value.as_i64().map(i128::from).ok_or_else(wrong);
    let numbers = fields.get("numbers").and_then(Value::as_array).ok_or_else(wrong)?;
    let numbers = numbers.iter().map(whole).collect::<Result<_, _>>()?;
    Ok(Scorer::Countdown { numbers, target: whole(fields.get("target").ok_or_else(wrong)?)? })
}

fn wrong_choice() -> Wrong {
    Wrong::Field("`choices` must be texts, and `answer` the letter or the number of one".to_owned())
}

/// Moves choices to the field `choices` if a data set has them elsewhere.
fn find_choices(fields: &mut Map<String, Value>) {
    // ARC has the choices inside the question.
    let nested = fields.get("question").and_then(|question| {
        let (stem, choices) = (question.get("stem")?, question.get("choices")?);
        Some((stem.clone(), choices.clone()))
    });
    if let Some((stem, choices)) = nested {
        fields.insert("question".to_owned(), stem);
        fields.insert("choices".to_owned(), choices);
    }
    if fields.contains_key("choices") {
        return;
    }
    let options =
        fields.get("options").filter(|options| options.as_array().is_some_and(|list| list.len() > 1));
    let columns: Vec<Value> =
        LETTERS.chars().map_while(|letter| given(fields, letter.encode_utf8(&mut [0; 4]))).cloned().collect();
    // Fields named `A` and `B` can be anything, so they only count if the answer is one of these names.
    let answer = given(fields, "answer").and_then(Value::as_str).unwrap_or_default().trim();
    let is_column =
        answer.len() == 1 && LETTERS.chars().take(columns.len()).any(|letter| answer.starts_with(letter));
    let choices = options.cloned().or_else(|| (is_column && columns.len() > 1).then(|| columns.into()));
    if let Some(choices) = choices {
        fields.insert("choices".to_owned(), choices);
    }
}

/// Makes the scorer of a multiple-choice problem, and leaves `choices` as a list of texts for the template.
fn choice(fields: &mut Map<String, Value>) -> Result<Scorer, Wrong> {
    let given_choices = fields.get("choices").ok_or_else(wrong_choice)?;
    let labels = parts(given_choices, "label").unwrap_or_default();
    let listed = parts(given_choices, "text").or_else(|| given_choices.as_array().cloned());
    let listed = listed.filter(|list| !list.is_empty()).ok_or_else(wrong_choice)?;
    let (labels, choices) = (texts(&labels), texts(&listed));
    let answer =
        ["answer", "Answer", "answerKey", "answer_index"].iter().find_map(|name| given(fields, name));
    let at = match answer {
        Some(Value::String(answer)) => chosen(answer.trim(), &labels, &choices),
        // Some tables write the index of a choice as 1.0.
        Some(Value::Number(at)) => {
            (0..26u8).find(|index| at.as_f64() == Some(f64::from(*index))).map(usize::from)
        }
        _ => None,
    };
    let letter = at.filter(|at| *at < choices.len()).and_then(|at| LETTERS.chars().nth(at));
    let answer = letter.ok_or_else(wrong_choice)?;
    fields.insert("choices".to_owned(), listed.into());
    Ok(Scorer::Choice { answer, choices })
}

/// A field that is present and not null.
fn given<'a>(fields: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    fields.get(name).filter(|value| !value.is_null())
}

/// The texts or labels of choices in ARC's form: two lists, or fields of each choice.
fn parts(choices: &Value, name: &str) -> Option<Vec<Value>> {
    match choices {
        Value::Array(list) => list.iter().map(|choice| choice.get(name).cloned()).collect(),
        _ => choices.get(name)?.as_array().cloned(),
    }
}

fn texts(list: &[Value]) -> Vec<String> {
    list.iter().map(|item| item.as_str().map_or_else(|| item.to_string(), str::to_owned)).collect()
}

/// The index of the choice that an answer names: by its label, its letter, its text if that is unique, or its index.
fn chosen(answer: &str, labels: &[String], choices: &[String]) -> Option<usize> {
    if let Some(at) = labels.iter().position(|label| label == answer) {
        return Some(at);
    }
    let letter = answer.trim_start_matches('(').trim_end_matches([')', '.', ':']);
    let letter = LETTERS.find(&letter.to_ascii_uppercase()).filter(|_| letter.len() == 1);
    if let Some(at) = letter.filter(|at| *at < choices.len()) {
        return Some(at);
    }
    let mut same = choices.iter().enumerate().filter(|(_, choice)| choice.trim() == answer);
    match (same.next(), same.next()) {
        (Some((at, _)), None) => Some(at),
        (None, _) => answer.parse().ok(),
        _ => None,
    }
}

fn number(fields: &Map<String, Value>) -> Result<String, Wrong> {
    let given = ANSWERS.iter().find_map(|name| Some((*name, given(fields, name)?)));
    let text = match given {
        Some((_, Value::String(text))) => text.rsplit("####").next().unwrap_or(text).trim().to_owned(),
        Some((_, Value::Number(number))) => number.to_string(),
        Some((name, _)) => return Err(Wrong::Field(format!("its `{name}` is no number"))),
        None => return Err(Wrong::Field("it has no `answer`".to_owned())),
    };
    // A worked solution has its number in a box.
    let number = match boxes(&text).is_empty() {
        true => Number::parse(&text).map(|_| text.clone()),
        false => find_number(&text),
    };
    number.ok_or_else(|| Wrong::NoNumber(shortened(&text)))
}

/// The beginning of a text, for an error message.
fn shortened(text: &str) -> String {
    const LENGTH: usize = 80;
    match text.char_indices().nth(LENGTH) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &str, template: Option<&str>) -> Result<Task, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), lines).unwrap();
        Task::read(file.path(), template).map_err(|error| error.to_string())
    }

    #[test]
    fn problems_of_every_kind_are_read() {
        let task = read(
            "{\"question\": \"1+1?\", \"answer\": \"It is\\n#### 2\"}\n\n\
             {\"id\": 7, \"problem\": \"AIME\", \"answer\": 204}\n\
             {\"question\": \"Which?\", \"choices\": [\"this\", \"that\"], \"answer\": \"b\"}\n\
             {\"question\": \"Which?\", \"choices\": [\"this\", \"that\"], \"answer\": 0}\n\
             {\"numbers\": [3, 8, 3, 8], \"target\": 24}\n",
            None,
        )
        .unwrap();
        let choices = vec!["this".to_owned(), "that".to_owned()];
        let scorers: Vec<&Scorer> = task.problems.iter().map(|problem| &problem.scorer).collect();
        assert_eq!(*scorers[0], Scorer::Number { answer: "2".into() });
        assert_eq!(*scorers[1], Scorer::Number { answer: "204".into() });
        assert_eq!(
            (scorers[2], scorers[3]),
            (
                &Scorer::Choice { answer: 'B', choices: choices.clone() },
                &Scorer::Choice { answer: 'A', choices: choices.clone() }
            )
        );
        assert_eq!(*scorers[4], Scorer::Countdown { numbers: vec![3, 8, 3, 8], target: 24 });
        assert_eq!((task.problems[0].id.as_str(), task.problems[1].id.as_str()), ("1", "7"));
        assert!(task.problems[2].prompt.contains("A) this\nB) that\n"), "{}", task.problems[2].prompt);
        assert!(
            task.problems[4].prompt.contains("3, 8, 3, 8")
                && task.problems[4].prompt.contains("\\boxed{expression}")
        );
        // The built-in problems have the same prompt.
        let made = Task::countdown(&Countdown::default(), 1);
        let Scorer::Countdown { numbers, target } = &made.problems[0].scorer else { panic!() };
        let line = serde_json::json!({"numbers": numbers.iter().map(|&n| n as i64).collect::<Vec<_>>(), "target": *target as i64});
        assert_eq!(read(&line.to_string(), None).unwrap().problems[0].prompt, made.problems[0].prompt);
        let own = read("{\"a\": 1, \"answer\": 2}", Some("What is {{ a }} + {{ a }}?")).unwrap();
        assert_eq!(own.problems[0].prompt, "What is 1 + 1?");
    }

    #[test]
    fn published_sets_are_read_as_they_are() {
        let number = |line: &str| match &read(line, None).unwrap().problems[0].scorer {
            Scorer::Number { answer } => answer.clone(),
            other => panic!("{line}: {other:?}"),
        };
        for (line, expected) in [
            ("{\"ID\": \"2024-II-4\", \"Problem\": \"x\", \"Solution\": \"y\", \"Answer\": 33}", "33"),
            (
                "{\"ID\": \"1983-1\", \"Year\": 1983, \"Question\": \"x\", \"Answer\": \"60\", \"Part\": null}",
                "60",
            ),
            ("{\"question\": \"x\", \"answer\": \"1 + 1 = <<1+1=2>>2\\n#### 1,234\"}", "1,234"),
            (
                "{\"problem\": \"x\", \"solution\": \"y\", \"answer\": \"\\\\frac{14}{3}\", \"unique_id\": \"t/1\"}",
                "\\frac{14}{3}",
            ),
            ("{\"problem\": \"x\", \"solution\": \"So $2 + 2 = \\\\boxed{4}$.\"}", "4"),
            ("{\"problem\": \"x\", \"answer\": null, \"solution\": \"\\\\boxed{5}\"}", "5"),
            ("\u{FEFF}{\"question\": \"x\", \"answer\": \".5\"}\r\n", ".5"),
            ("{\"question\": \"x\", \"answer\": \"$1{,}234$\"}", "$1{,}234$"),
            ("{\"question\": \"x\", \"answer\": \"-\\\\frac{1}{2}\"}", "-\\frac{1}{2}"),
        ] {
            assert_eq!(number(line), expected, "{line}");
        }
        let letter = |line: &str| {
            let task = read(line, None).unwrap();
            assert!(task.problems[0].prompt.contains("A) p\nB) q\nC) r\n"), "{}", task.problems[0].prompt);
            match &task.problems[0].scorer {
                Scorer::Choice { answer, .. } => *answer,
                other => panic!("{line}: {other:?}"),
            }
        };
        for (choices, answer) in [
            ("[\"p\", \"q\", \"r\"]", "\"answer\": 1"),
            ("[\"p\", \"q\", \"r\"]", "\"answer\": 1.0"),
            ("[\"p\", \"q\", \"r\"]", "\"answer\": \"1\""),
            ("[\"p\", \"q\", \"r\"]", "\"answer\": \"(b)\""),
            ("[\"p\", \"q\", \"r\"]", "\"answer\": \"B\", \"subject\": \"s\""),
            ("[\"p\", \"q\", \"r\"]", "\"answer\": null, \"answerKey\": \"q\""),
            ("{\"text\": [\"p\", \"q\", \"r\"], \"label\": [\"A\", \"B\", \"C\"]}", "\"answerKey\": \"B\""),
            ("{\"text\": [\"p\", \"q\", \"r\"], \"label\": [\"1\", \"2\", \"3\"]}", "\"answerKey\": \"2\""),
        ] {
            assert_eq!(
                letter(&format!("{{\"question\": \"x\", \"choices\": {choices}, {answer}}}")),
                'B',
                "{answer}"
            );
        }
        for line in [
            "{\"question\": {\"stem\": \"x\", \"choices\": [{\"text\": \"p\", \"label\": \"A\"}, {\"text\": \"q\", \"label\": \"B\"}, \
             {\"text\": \"r\", \"label\": \"C\"}]}, \"answerKey\": \"B\"}",
            "{\"question\": \"x\", \"options\": [\"p\", \"q\", \"r\"], \"answer\": \"B\", \"answer_index\": 1}",
            "{\"question\": \"x\", \"options\": [\"p\", \"q\", \"r\"], \"answer_index\": 1}",
            "{\"question\": \"x\", \"A\": \"p\", \"B\": \"q\", \"C\": \"r\", \"answer\": \"B\"}",
        ] {
            assert_eq!(letter(line), 'B', "{line}");
        }
        // A text or a label that is a number takes precedence over the index of a choice.
        let digits = "{\"question\": \"x\", \"choices\": [\"3\", \"2\", \"1\"], \"answer\": \"1\"}";
        let scorer = &read(digits, None).unwrap().problems[0].scorer;
        assert!(matches!(scorer, Scorer::Choice { answer: 'C', .. }), "{scorer:?}");
    }

    #[test]
    fn templates_have_the_line_ends_of_jinja() {
        let task = read("{\"answer\": 2}", Some("a\r\nb\rc{{ answer }}\r\n")).unwrap();
        assert_eq!(task.problems[0].prompt, "a\nb\nc2");
    }

    #[test]
    fn lines_that_are_none_are_named() {
        for (lines, part) in [
            ("", "has no problems"),
            ("{\"question\": \"x\", \"answer\": 1}\n[]", "line 2: no JSON object"),
            ("{\"answer\": 1}", "line 1: it has no `question`"),
            ("{\"question\": \"x\"}", "no `answer`"),
            ("{\"question\": \"x\", \"answer\": \"some\"}", "`some` is no number"),
            ("{\"question\": \"x\", \"answer\": \"x^2\"}", "`x^2` is no number"),
            ("{\"question\": \"x\", \"answer\": [1]}", "`answer` is no number"),
            ("{\"numbers\": [1, \"2\"], \"target\": 3}", "must be whole numbers"),
            ("{\"question\": \"x\", \"choices\": [\"a\"], \"answer\": \"C\"}", "the letter or the number"),
        ] {
            let said = read(lines, None).unwrap_err();
            assert!(said.contains(part), "{said}");
        }
        let golds = ["5", "\\\\sqrt{51}", "7", "(3,4)"]
            .map(|gold| format!("{{\"question\": \"x\", \"answer\": \"{gold}\"}}"))
            .join("\n");
        let said = read(&golds, None).unwrap_err();
        assert!(said.contains("line 2") && said.contains("4 problems 2 have"), "{said}");
        assert!(read("{\"answer\": 1}", Some("{% if %}")).unwrap_err().contains("template"));
    }
}
