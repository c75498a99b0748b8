//! Writes runs as CSV, for programs.

use std::fmt::Write;

use super::Runs;

/// One line per step, separated by commas.
pub(crate) fn csv(runs: &Runs) -> String {
    let mut text = String::from("rule,step,token,text,logprob,entropy,gate\n");
    for run in &runs.runs {
        for (at, step) in run.steps.iter().enumerate() {
            // Writing to a string cannot fail.
            let _ = writeln!(
                text,
                "{},{at},{},{},{},{},{}",
                quoted(&run.spec),
                step.token,
                quoted(&step.text),
                step.logprob,
                step.entropy,
                step.gate
            );
        }
    }
    text
}

/// Quotes a value as RFC 4180 requires.
fn quoted(text: &str) -> String {
    match text.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn text_is_quoted_where_it_must_be() {
        assert_eq!(quoted("plain"), "plain");
        assert_eq!(quoted("a,b"), "\"a,b\"");
        assert_eq!(quoted("say \"x\"\n"), "\"say \"\"x\"\"\n\"");
    }
}
