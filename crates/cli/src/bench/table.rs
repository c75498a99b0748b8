//! Writes rows as text: a Markdown table of the columns that vary, or every field for programs.

use std::path::Path;

use anyhow::Result;
use serde_json::Value;

use super::{accuracy::Accuracy, args::TableFormat, machine::Machine, row::BenchRow};

/// Writes all rows in a format.
///
/// # Errors
/// If a number cannot be written as JSON, such as NaN.
pub(super) fn render(rows: &[BenchRow], format: TableFormat) -> Result<String> {
    match format {
        TableFormat::Md => Ok(markdown(rows)),
        TableFormat::Csv => csv(rows),
        TableFormat::Json => Ok(serde_json::to_string_pretty(rows)? + "\n"),
        TableFormat::Jsonl => {
            rows.iter().map(|row| Ok(serde_json::to_string(row)? + "\n")).collect::<Result<String>>()
        }
    }
}

/// A column of the Markdown table.
struct Column {
    title: &'static str,
    is_number: bool,
    /// Whether to omit the column if all rows have the same value.
    is_varied: bool,
    cell: fn(&BenchRow) -> String,
}

const fn text(title: &'static str, cell: fn(&BenchRow) -> String) -> Column {
    Column { title, is_number: false, is_varied: false, cell }
}

const fn number(title: &'static str, cell: fn(&BenchRow) -> String) -> Column {
    Column { title, is_number: true, is_varied: false, cell }
}

const fn varied(title: &'static str, cell: fn(&BenchRow) -> String) -> Column {
    Column { title, is_number: false, is_varied: true, cell }
}

/// The columns of the table. A column without any value is omitted.
const COLUMNS: &[Column] = &[
    text("model", |row| short_name(&row.model)),
    varied("machine", BenchRow::machine_name),
    number("GB", |row| format!("{:.2}", row.weight_bytes as f64 / 1e9)),
    text("device", |row| row.device.clone()),
    number("threads", |row| row.threads.map(|threads| threads.to_string()).unwrap_or_default()),
    text("kernels", |row| row.instruction_set.clone().unwrap_or_default()),
    text("weights", BenchRow::weights),
    text("rule", |row| row.rule.clone()),
    text("drafts", |row| row.speculate.clone().unwrap_or_default()),
    text("test", |row| row.test.clone()),
    number("tokens/s", mean),
    number("best", |row| match row.repetitions {
        0 | 1 => String::new(),
        _ => short(row.best_tokens_per_second),
    }),
    number("GB/s read", |row| row.read_gb_per_second.map(short).unwrap_or_default()),
    number("of copy", |row| percent(row.share_of_copy)),
    number("launches", |row| row.launches_per_step.map(|count| format!("{count:.0}")).unwrap_or_default()),
    number("tokens a pass", |row| row.tokens_per_pass.map(short).unwrap_or_default()),
    text("accepted by depth", |row| row.accepted_by_depth.clone().unwrap_or_default()),
    text("best possible", |row| row.optimal_by_depth.clone().unwrap_or_default()),
    number("rule's share", |row| percent(row.rule_share)),
    number("first token cold, s", |row| format!("{:.2}", row.first_token_cold_seconds)),
    number("warm, s", |row| format!("{:.3}", row.first_token_warm_seconds)),
    number("peak GB", |row| {
        row.peak_memory_bytes.map(|bytes| format!("{:.2}", bytes as f64 / 1e9)).unwrap_or_default()
    }),
    number("J/token", |row| row.energy_j_per_token.map(short).unwrap_or_default()),
    number("KL", |row| {
        row.accuracy.as_ref().map(|found| format!("{:.1e}", found.kl_mean)).unwrap_or_default()
    }),
    number("largest KL", |row| {
        row.accuracy.as_ref().map(|found| format!("{:.1e}", found.kl_max)).unwrap_or_default()
    }),
    text("first difference", first_difference),
    number("earlier", |row| row.earlier_tokens_per_second.map(short).unwrap_or_default()),
    number("ratio", |row| row.ratio.map(|ratio| format!("{ratio:.2}")).unwrap_or_default()),
];

/// The first token that differs from the reference, and the number of compared tokens.
fn first_difference(row: &BenchRow) -> String {
    let Some(found) = &row.accuracy else { return String::new() };
    match found.first_difference {
        Some(index) => format!("{index} of {}", found.tokens_compared),
        None => format!("none of {}", found.tokens_compared),
    }
}

fn mean(row: &BenchRow) -> String {
    match row.repetitions {
        0 | 1 => short(row.tokens_per_second),
        _ => format!("{} ± {}", short(row.tokens_per_second), short(row.deviation)),
    }
}

/// The last part of a path; other names unchanged.
pub(super) fn short_name(model: &str) -> String {
    let path = Path::new(model);
    match path.file_name() {
        Some(name) if path.is_absolute() || model.starts_with('.') => name.to_string_lossy().into_owned(),
        _ => model.to_owned(),
    }
}

/// The number with three or four significant digits.
pub(super) fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn percent(share: Option<f64>) -> String {
    share.map(|share| format!("{:.1}%", 100.0 * share)).unwrap_or_default()
}

fn markdown(rows: &[BenchRow]) -> String {
    let is_empty = |cell: &String| cell.is_empty() || cell == "-";
    // The first two lines are the titles and the rule below them; the rows follow.
    let mut lines = vec![String::from("|"); rows.len() + 2];
    for &Column { title, is_number, is_varied, cell } in COLUMNS {
        let cells: Vec<String> = rows.iter().map(cell).collect();
        let is_same = is_varied && cells.iter().all(|cell| *cell == cells[0]);
        if is_same || cells.iter().all(is_empty) {
            continue;
        }
        let width = cells.iter().map(|cell| cell.chars().count()).chain([title.len()]).max().unwrap_or(0);
        let rule = if is_number { "-".repeat(width + 1) + ":" } else { "-".repeat(width + 2) };
        let padded = |cell: &str| match is_number {
            true => format!(" {cell:>width$} |"),
            false => format!(" {cell:<width$} |"),
        };
        lines[0] += &padded(title);
        lines[1] += &format!("{rule}|");
        for (line, cell) in lines[2..].iter_mut().zip(&cells) {
            *line += &padded(cell);
        }
    }
    lines.join("\n") + "\n\n" + &footer(rows)
}

/// The lines below the table: each device with its copy bandwidth, and the machine, without duplicates.
fn footer(rows: &[BenchRow]) -> String {
    let mut lines: Vec<String> = Vec::new();
    for row in rows {
        let description = row.device_description.iter().chain(&row.driver).map(|what| format!(", {what}"));
        let copy = row.copy_gb_per_second.map(|copy| format!("; copy {} GB/s read and written", short(copy)));
        let passes = [row.pass_cost_2, row.pass_cost_4, row.pass_cost_8].map(|cost| cost.map(short));
        let passes = match passes {
            [Some(two), Some(four), Some(eight)] => {
                format!("; passes over 2, 4, 8 positions cost {two}, {four}, {eight} of one")
            }
            _ => String::new(),
        };
        let device = format!(
            "{} {}, {}: {}{}{}{passes}",
            short_name(&row.model),
            row.weights(),
            row.device,
            row.backend,
            description.collect::<String>(),
            copy.unwrap_or_default()
        );
        let processor = row.processor.as_deref().unwrap_or("a processor without a name");
        let machine = format!("{processor}, cores: {}, {}, moi {}", row.cores, row.system, row.version);
        for line in [device, machine] {
            if !lines.contains(&line) {
                lines.push(line);
            }
        }
    }
    // The line of the machine comes after those of all devices.
    lines.sort_by_key(|line| line.contains(", cores: "));
    lines.into_iter().map(|line| format!("- {line}\n")).collect()
}

fn csv(rows: &[BenchRow]) -> Result<String> {
    let mut text = String::new();
    for row in rows {
        let fields = flat(row)?;
        if text.is_empty() {
            text = fields.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(",") + "\n";
        }
        let cells: Vec<String> = fields.iter().map(|(_, value)| csv_cell(value)).collect();
        text += &(cells.join(",") + "\n");
    }
    Ok(text)
}

/// All fields of a row. Fields of nested objects get names such as `accuracy.kl_mean`; they are empty if the row
/// lacks the object.
fn flat(row: &BenchRow) -> Result<Vec<(String, Value)>> {
    let (machine, accuracy) = (Some(Machine::default()), Some(Accuracy::default()));
    let whole = serde_json::to_value(BenchRow { machine, accuracy, ..row.clone() })?;
    let values = serde_json::to_value(row)?;
    let Value::Object(fields) = whole else { return Ok(Vec::new()) };
    let of_field = |(name, value): (String, Value)| match value {
        Value::Object(parts) => {
            parts.keys().map(|part| (format!("{name}.{part}"), values[&name][part].clone())).collect()
        }
        other => vec![(name, other)],
    };
    Ok(fields.into_iter().flat_map(of_field).collect())
}

fn csv_cell(value: &Value) -> String {
    let cell = match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    match cell.contains([',', '"', '\n']) {
        true => format!("\"{}\"", cell.replace('"', "\"\"")),
        false => cell,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<BenchRow> {
        let common = BenchRow {
            model: "/models/m".into(),
            device: "cpu".into(),
            device_description: Some("burn's Flex".into()),
            backend: "flex".into(),
            dtype: "f32".into(),
            threads: Some(2),
            instruction_set: Some("avx2".into()),
            weight_bytes: 538_000_000,
            repetitions: 5,
            copy_gb_per_second: Some(27.71),
            first_token_cold_seconds: 1.5,
            first_token_warm_seconds: 0.0614,
            pass_cost_2: Some(1.125),
            pass_cost_4: Some(1.6),
            pass_cost_8: Some(2.78),
            processor: Some("A \"fast\", small one".into()),
            cores: 2,
            system: "linux x86_64".into(),
            version: "0.1.0".into(),
            ..BenchRow::default()
        };
        let prompt = BenchRow {
            rule: "-".into(),
            test: "pp512".into(),
            tokens_per_second: 309.26,
            deviation: 1.5,
            best_tokens_per_second: 311.0,
            ..common.clone()
        };
        let generation = BenchRow {
            rule: "moi:support=20".into(),
            test: "tg128 b2".into(),
            tokens_per_second: 41.375,
            deviation: 0.25,
            best_tokens_per_second: 41.5,
            read_gb_per_second: Some(22.3),
            share_of_copy: Some(0.8),
            rule_share: Some(0.157),
            ..common
        };
        vec![prompt, generation]
    }

    #[test]
    fn markdown_has_the_columns_in_which_there_is_something() {
        let expected = "\
| model |   GB | device | threads | kernels | weights | rule           | test     |    tokens/s | best | GB/s read | of copy | rule's share | first token cold, s | warm, s |
|-------|-----:|--------|--------:|---------|---------|----------------|----------|------------:|-----:|----------:|--------:|-------------:|--------------------:|--------:|
| m     | 0.54 | cpu    |       2 | avx2    | f32     | -              | pp512    |  309 ± 1.50 |  311 |           |         |              |                1.50 |   0.061 |
| m     | 0.54 | cpu    |       2 | avx2    | f32     | moi:support=20 | tg128 b2 | 41.4 ± 0.25 | 41.5 |      22.3 |   80.0% |        15.7% |                1.50 |   0.061 |

- m f32, cpu: flex, burn's Flex; copy 27.7 GB/s read and written; passes over 2, 4, 8 positions cost 1.12, 1.60, 2.78 of one
- A \"fast\", small one, cores: 2, linux x86_64, moi 0.1.0
";
        assert_eq!(markdown(&rows()), expected);
    }

    #[test]
    fn csv_has_every_field_of_every_row() {
        let rows = rows();
        let text = csv(&rows).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[0].starts_with("model,random_weights,parameters,weight_bytes,"), "{}", lines[0]);
        assert!(
            lines[0].contains(",rule,speculate,prompt,gen,depth,batch,test,repetitions,tokens_per_second,")
        );
        assert!(lines[1].starts_with(
            "/models/m,false,0,538000000,0,cpu,burn's Flex,,flex,f32,,,2,avx2,-,,0,0,0,0,pp512,5,309.26,"
        ));
        // A value with commas and quotes is one CSV cell.
        assert!(
            lines[2].contains(",\"A \"\"fast\"\", small one\",2,,linux x86_64,0.1.0,0,,"),
            "{}",
            lines[2]
        );
    }

    #[test]
    fn json_reads_back() {
        let rows = rows();
        let read: Vec<BenchRow> = serde_json::from_str(&render(&rows, TableFormat::Json).unwrap()).unwrap();
        assert_eq!(read, rows);
        let lines = render(&rows, TableFormat::Jsonl).unwrap();
        let read: Vec<BenchRow> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(read, rows);
    }

    #[test]
    fn numbers_and_names_are_short() {
        assert_eq!([1234.4, 123.4, 12.34, 1.234, 0.0].map(short), ["1234", "123", "12.3", "1.23", "0.00"]);
        let names = ["/models/a.gguf", "./b", "owner/name", "smollm2-135m"].map(short_name);
        assert_eq!(names, ["a.gguf", "b", "owner/name", "smollm2-135m"]);
    }
}
