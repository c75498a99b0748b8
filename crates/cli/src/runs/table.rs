//! Prints runs side by side on a terminal.

use anstyle::{AnsiColor, Style};

use super::{Run, Runs};

/// Narrowest column that is still readable; with less room, the texts follow each other.
const NARROWEST: usize = 32;
const GAP: &str = "  ";

/// The texts, side by side if the terminal is wide enough, and a table of figures.
pub(crate) fn table(runs: &Runs, width: usize) -> String {
    let count = runs.runs.len().max(1);
    let column = width.saturating_sub(GAP.len() * (count - 1)) / count;
    let mut text = if column >= NARROWEST { beside(&runs.runs, column) } else { behind(&runs.runs, width) };
    text += &figures(runs);
    text
}

fn bold(text: &str) -> String {
    let style = Style::new().bold();
    format!("{style}{text}{style:#}")
}

/// Marks the place where a run begins to differ from the first.
const MARK: &str = "¦";

/// The text of a run, with a mark where it begins to differ from the first.
fn marked(run: &Run) -> String {
    let parts = |(at, _): &(usize, &super::RunStep)| run.parts_at == Some(*at);
    let mut text = String::new();
    for (at, step) in run.steps.iter().enumerate() {
        if parts(&(at, step)) {
            text += MARK;
        }
        text += &step.text;
    }
    if run.parts_at == Some(run.steps.len()) {
        text += MARK;
    }
    text
}

fn coloured(line: &str) -> String {
    let style = Style::new().fg_color(Some(AnsiColor::Magenta.into())).bold();
    line.replace(MARK, &format!("{style}{MARK}{style:#}"))
}

fn beside(runs: &[Run], column: usize) -> String {
    let columns: Vec<Vec<String>> = runs.iter().map(|run| wrapped(&marked(run), column)).collect();
    let lines = columns.iter().map(Vec::len).max().unwrap_or(0);
    let pad = |text: &str, shown: &str| format!("{shown}{}", " ".repeat(column.saturating_sub(length(text))));
    let head = runs.iter().map(|run| pad(&short(&run.spec, column), &bold(&short(&run.spec, column))));
    let mut text = head.collect::<Vec<_>>().join(GAP).trim_end().to_owned() + "\n";
    text += &(vec!["─".repeat(column); runs.len()].join(GAP) + "\n");
    for at in 0..lines {
        let cells = columns.iter().map(|column| column.get(at).map_or("", String::as_str));
        let line: Vec<String> = cells.map(|cell| pad(cell, &coloured(cell))).collect();
        text += &(line.join(GAP).trim_end().to_owned() + "\n");
    }
    text + "\n"
}

fn behind(runs: &[Run], width: usize) -> String {
    let section = |run: &Run| {
        let lines = wrapped(&marked(run), width.max(NARROWEST)).join("\n");
        format!("{}\n{}\n\n", bold(&format!("── {}", run.spec)), coloured(&lines))
    };
    runs.iter().map(section).collect()
}

fn length(text: &str) -> usize {
    console::measure_text_width(text)
}

fn short(text: &str, width: usize) -> String {
    console::truncate_str(text, width, "…").into_owned()
}

/// Splits a text into lines of at most `width` columns, at spaces if possible.
pub(crate) fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    for paragraph in text.split('\n') {
        let mut line = String::new();
        for word in paragraph.split_inclusive(' ') {
            if length(&line) + length(word.trim_end()) > width && !line.is_empty() {
                lines.push(line.trim_end().to_owned());
                line.clear();
            }
            for c in word.chars() {
                if length(&line) >= width && c != ' ' {
                    lines.push(std::mem::take(&mut line));
                }
                line.push(if c.is_control() { ' ' } else { c });
            }
        }
        lines.push(line.trim_end().to_owned());
    }
    lines
}

fn figures(runs: &Runs) -> String {
    let width = runs.runs.iter().map(|run| run.spec.len()).max().unwrap_or(0).max(4);
    let mut text = bold(&format!(
        "{:width$}  {:>6}  {:>9}  {:>9}  {:>9}  {:>6}  {:>8}  {}",
        "RULE", "TOKENS", "SAME", "PARTS AT", "ENTROPY", "OF", "GATE", "ENDED BY"
    )) + "\n";
    for run in &runs.runs {
        let agreement = run.agreement.map_or_else(|| "-".to_owned(), |same| format!("{:.1}%", 100.0 * same));
        let parts = match (run.agreement, run.parts_at) {
            (None, _) => "-".to_owned(),
            (Some(_), None) => "nowhere".to_owned(),
            (Some(_), Some(at)) => at.to_string(),
        };
        text += &format!(
            "{:width$}  {:>6}  {agreement:>9}  {parts:>9}  {:>9.4}  {:>6}  {:>8.4}  {}\n",
            run.spec,
            run.steps.len(),
            run.mean_entropy,
            run.rule.support().to_string(),
            run.mean_gate,
            run.stop_reason
        );
    }
    text + &format!(
        "\n{} on {} {}, {}, seed {}; SAME and PARTS AT beside the first rule; entropy, of so many \
         likeliest tokens, and gate are means\n",
        runs.model, runs.device, runs.dtype, runs.sampled, runs.seed
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_wrapped_at_spaces() {
        assert_eq!(wrapped("one two three", 7), ["one two", "three"]);
        assert_eq!(wrapped("a\n\nlongwordhere", 5), ["a", "", "longw", "ordhe", "re"]);
        assert_eq!(wrapped("", 5), [""]);
        for text in ["some words of 長い文字 in it", "x  y   z"] {
            assert!(wrapped(text, 6).iter().all(|line| length(line) <= 7), "{:?}", wrapped(text, 6));
        }
    }
}
