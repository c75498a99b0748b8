//! `moi rules`.

use anyhow::Result;
use moi_engine::InputRule;
use serde_json::json;

use crate::{
    args::{Format, RulesArgs},
    output,
    runs::wrapped,
};

/// Prints the input rules and their knobs.
pub(crate) fn run(args: &RulesArgs) -> Result<()> {
    let rules = InputRule::all();
    if args.format == Format::Json {
        let rows = rules.iter().map(|rule| {
            json!({"rule": rule.name(), "help": rule.help(), "thinks": rule.thinks(), "knobs": rule.knobs()})
        });
        return output::print_json(&rows.collect::<Vec<_>>());
    }
    let mut text = String::new();
    for rule in rules {
        text += &format!(
            "{}{}\n{}",
            rule.name(),
            if rule.thinks() { " *" } else { "" },
            indented(rule.help(), 4)
        );
        for knob in rule.knobs() {
            let default =
                knob.default.map_or_else(|| "must be given".to_owned(), |value| format!("default {value}"));
            text += &indented(&format!("{} [{default}]: {}", knob.name, knob.help), 8);
        }
        text.push('\n');
    }
    text += &indented(TOLERANCE, 0);
    text.push('\n');
    text += "* for a model's thinking: where its markers are known, the scope is `thinking` unless --mix-scope says otherwise\n\n\
             On the command line --rule NAME:KNOB=VALUE:..., in JSON {\"rule\": NAME, KNOB: VALUE, ...}\n";
    output::print_bytes(text.as_bytes())
}

/// Wraps a text into lines with this indentation.
fn indented(text: &str, by: usize) -> String {
    let line = |line: String| format!("{}{line}\n", " ".repeat(by));
    wrapped(text, WIDTH - by).into_iter().map(line).collect()
}

/// The text about the tolerance of every mean over the whole vocabulary.
const TOLERANCE: &str = "A mean over the whole vocabulary reads the embeddings of the likeliest tokens. Of an input's weight, \
                         gate times probability, at most --mix-tolerance goes to the mean of all embeddings in the \
                         place of the others. auto is 1e-5 where the embedding is in float32, 2^-10 where weights are \
                         rounded to 16 bits or fewer, and 0, which reads all, for a vocabulary of at most 4,096 tokens";

/// Number of columns of a line.
const WIDTH: usize = 100;
