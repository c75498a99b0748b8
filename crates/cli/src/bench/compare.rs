//! Compares a run with an earlier one.

use std::path::Path;

use anyhow::{Context, Result, bail};

use super::row::BenchRow;
use crate::file;

/// The rows of an earlier run, written as json or jsonl.
///
/// # Errors
/// If the file cannot be read or holds something else.
pub(super) fn read(path: &Path) -> Result<Vec<BenchRow>> {
    let text = file::read_text(path).with_context(|| format!("{} cannot be read", path.display()))?;
    let rows = parse(&text)
        .with_context(|| format!("{} holds no rows of `moi bench` as json or jsonl", path.display()))?;
    if rows.is_empty() {
        bail!("{} holds no rows to compare with", path.display());
    }
    Ok(rows)
}

fn parse(text: &str) -> Result<Vec<BenchRow>> {
    match text.trim_start().starts_with('[') {
        true => Ok(serde_json::from_str(text)?),
        false => {
            let lines = text.lines().filter(|line| !line.trim().is_empty());
            lines.map(|line| Ok(serde_json::from_str(line)?)).collect()
        }
    }
}

/// Gives every row its ratio to the same row of the earlier run, and returns a message for each row of either run
/// without a partner.
pub(super) fn compare(rows: &mut [BenchRow], earlier: &[BenchRow]) -> Vec<String> {
    let mut said = Vec::new();
    for row in rows.iter_mut() {
        let key = row.key();
        match earlier.iter().find(|old| old.key() == key) {
            Some(old) => {
                let before = old.tokens_per_second;
                row.earlier_tokens_per_second = Some(before);
                row.ratio = (before > 0.0).then(|| row.tokens_per_second / before);
            }
            None => said.push(format!("not in the earlier run: {key}")),
        }
    }
    let keys: Vec<String> = rows.iter().map(BenchRow::key).collect();
    let gone = earlier.iter().map(BenchRow::key).filter(|key| !keys.contains(key));
    said.extend(gone.map(|key| format!("in the earlier run alone: {key}")));
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(test: &str, rule: &str, tokens_per_second: f64) -> BenchRow {
        BenchRow {
            model: "m".into(),
            device: "cpu".into(),
            dtype: "f32".into(),
            threads: Some(2),
            test: test.into(),
            rule: rule.into(),
            tokens_per_second,
            ..BenchRow::default()
        }
    }

    #[test]
    fn rows_are_matched_by_what_they_are_of() {
        let mut rows = [row("tg4", "token", 30.0), row("tg4", "moi", 8.0), row("pp8", "-", 5.0)];
        let earlier = [row("pp8", "-", 4.0), row("tg4", "token", 20.0), row("tg8", "token", 1.0)];
        let said = compare(&mut rows, &earlier);
        assert_eq!(rows.each_ref().map(|row| row.ratio), [Some(1.5), None, Some(1.25)]);
        assert_eq!(rows[0].earlier_tokens_per_second, Some(20.0));
        assert_eq!(
            said,
            [
                "not in the earlier run: m, cpu, f32, threads 2, moi, tg4",
                "in the earlier run alone: m, cpu, f32, threads 2, token, tg8"
            ]
        );
    }

    #[test]
    fn what_distinguishes_rows_is_in_their_keys() {
        let one = row("tg4", "token", 1.0);
        let others = [
            BenchRow { model: "n".into(), ..one.clone() },
            BenchRow { device: "cuda:0".into(), ..one.clone() },
            BenchRow { dtype: "bf16".into(), ..one.clone() },
            BenchRow { quantize: Some("q8_0".into()), ..one.clone() },
            BenchRow { activations: Some("int8".into()), ..one.clone() },
            BenchRow { threads: Some(1), ..one.clone() },
        ];
        assert!(others.iter().all(|other| other.key() != one.key()));
        let later = BenchRow { tokens_per_second: 2.0, unix_time: 7, version: "9".into(), ..one.clone() };
        assert_eq!(later.key(), one.key());
    }

    #[test]
    fn both_kinds_of_json_are_read() {
        let rows = [row("tg4", "token", 30.0), row("tg4", "moi", 8.0)];
        let lines: Vec<String> = rows.iter().map(|row| serde_json::to_string(row).unwrap()).collect();
        assert_eq!(parse(&lines.join("\n")).unwrap(), rows);
        assert_eq!(parse(&serde_json::to_string_pretty(&rows).unwrap()).unwrap(), rows);
        // Fields that this version does not know or that are missing are ignored.
        assert_eq!(parse("{\"model\": \"m\", \"colour\": \"red\"}").unwrap()[0].model, "m");
        assert!(parse("tokens").is_err());
    }
}
