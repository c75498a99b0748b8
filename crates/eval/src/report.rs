//! Formats a summary for people.

use crate::{Summary, chart};

const CAVEATS: &str = "Intervals are at 95%: Wilson's of a rate, over samples; of a difference a bootstrap over problems. p is of \
    McNemar's exact test on pairs of problem and seed. Wilson and McNemar take samples for independent: several of one problem \
    are not quite, so with few problems and many seeds both say too much.";

/// The tables of a summary as text for a terminal.
pub fn table(summary: &Summary) -> String {
    let width = summary.rules.iter().map(|rule| rule.rule.len()).max().unwrap_or(0).max(4);
    let mut text = format!(
        "{}: {}, {} of each by each rule{}\n\n",
        summary.task,
        counted(summary.problems, "problem"),
        counted(summary.samples, "sample"),
        if summary.complete { "" } else { " (not all are there yet)" }
    );
    text += &format!(
        "{:width$}  {:>8}  {:>16}  {:>9}  {:>7}  {:>7}  {:>7}  {:>9}\n",
        "RULE", "ACCURACY", "95%", "CORRECT", "SOLVED", "TOKENS", "CUT OFF", "NO ANSWER"
    );
    for rule in &summary.rules {
        text += &format!(
            "{:width$}  {:>8}  {:>16}  {:>9}  {:>7}  {:>7.1}  {:>7}  {:>9}\n",
            rule.rule,
            percent(rule.accuracy),
            format!("{} to {}", percent(rule.interval.low), percent(rule.interval.high)),
            format!("{}/{}", rule.correct, rule.samples),
            rule.solved,
            rule.tokens,
            rule.cut_off,
            rule.without_answer,
        );
    }
    if let Some(first) = summary.differences.first() {
        text += &format!("\nbeside {}:\n", first.from);
        for other in &summary.differences {
            let test = &other.mcnemar;
            text += &format!(
                "{:width$}  {} points ({} to {}), {} pairs: {} solved by it alone, {} by {} alone, p = {:.4}\n",
                other.rule,
                points(other.mean),
                points(other.interval.low),
                points(other.interval.high),
                other.pairs,
                test.second_only,
                test.first_only,
                other.from,
                test.p,
            );
        }
    }
    text + "\n" + &budgets(summary) + "\n" + CAVEATS + "\n"
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn percent(rate: f64) -> String {
    format!("{:.1}%", 100.0 * rate)
}

fn points(difference: f64) -> String {
    format!("{:+.1}", 100.0 * difference)
}

fn budgets(summary: &Summary) -> String {
    let counts: Vec<String> =
        summary.configurations.iter().map(|(rule, count)| format!("{rule} {count}")).collect();
    let verdict = match summary.has_equal_budgets() {
        true => "equal budgets",
        false => "UNEQUAL budgets: the best of more configurations looks better by chance alone",
    };
    format!("Configurations tried: {} ({verdict}).", counts.join(", "))
}

/// An HTML page with the tables and a chart. It loads no other files.
pub fn page(summary: &Summary, facts: &[(String, String)]) -> String {
    let rules = summary.rules.iter().map(|rule| {
        format!(
            "<tr><th>{}</th><td>{}</td><td>{} to {}</td><td>{}/{}</td><td>{}</td><td>{:.1}</td><td>{}</td><td>{}</td></tr>",
            escaped(&rule.rule),
            percent(rule.accuracy),
            percent(rule.interval.low),
            percent(rule.interval.high),
            rule.correct,
            rule.samples,
            rule.solved,
            rule.tokens,
            rule.cut_off,
            rule.without_answer
        )
    });
    let differences = summary.differences.iter().map(|other| {
        format!(
            "<tr><th>{}</th><td>{}</td><td>{} to {}</td><td>{}</td><td>{}</td><td>{}</td><td>{:.4}</td></tr>",
            escaped(&other.rule),
            points(other.mean),
            points(other.interval.low),
            points(other.interval.high),
            other.pairs,
            other.mcnemar.second_only,
            other.mcnemar.first_only,
            other.mcnemar.p
        )
    });
    let facts =
        facts.iter().map(|(name, value)| format!("<dt>{}</dt><dd>{}</dd>", escaped(name), escaped(value)));
    let first = summary.rules.first().map_or("", |rule| &rule.rule);
    include_str!("page.html")
        .replace("{{TITLE}}", &escaped(&summary.task))
        .replace(
            "{{COUNTS}}",
            &format!(
                "{}, {} of each by each rule",
                counted(summary.problems, "problem"),
                counted(summary.samples, "sample")
            ),
        )
        .replace("{{STATE}}", if summary.complete { "" } else { "Not all samples are there yet." })
        .replace("{{CHART}}", &chart::svg(summary))
        .replace("{{RULES}}", &rules.collect::<String>())
        .replace("{{FIRST}}", &escaped(first))
        .replace("{{DIFFERENCES}}", &differences.collect::<String>())
        .replace("{{BUDGETS}}", &escaped(&budgets(summary)))
        .replace("{{CAVEATS}}", &escaped(CAVEATS))
        .replace("{{FACTS}}", &facts.collect::<String>())
}

pub(crate) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Sample;

    fn summary(correct: usize) -> Summary {
        let problems: Vec<String> = (0..10).map(|at| at.to_string()).collect();
        let rules = ["token".to_owned(), "moi:beta=0.5".to_owned()];
        let sample = |rule: &String, problem: usize, correct| Sample {
            problem: problem.to_string(),
            digest: String::new(),
            rule: rule.clone(),
            sample: 0,
            seed: 0,
            correct,
            found: None,
            tokens: 5,
            stop: "eos".into(),
            text: String::new(),
        };
        let samples: Vec<Sample> = rules
            .iter()
            .enumerate()
            .flat_map(|(r, rule)| (0..10).map(move |p| sample(rule, p, p < r * correct)))
            .collect();
        Summary::new("a <task>", &problems, &rules, 1, &samples)
    }

    #[test]
    fn tables_say_what_was_found() {
        let text = table(&summary(9));
        for part in [
            "token",
            "0.0%",
            "90.0%",
            "9/10",
            "+90.0 points",
            "p = 0.0039",
            "equal budgets",
            "moi 1, token 1",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains("not all are there"));
    }

    #[test]
    fn a_page_is_whole_and_escapes_what_is_text() {
        let page = page(&summary(3), &[("model".into(), "a<b".into())]);
        assert!(page.contains("a &lt;task&gt;") && page.contains("a&lt;b") && page.contains("<svg"));
        assert!(!page.contains("{{") && !page.contains("<task>"));
    }
}
