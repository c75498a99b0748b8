//! Rows as text: a Markdown table of what varies, or every field for programs.

use std::path::Path;

use anyhow::Result;
use serde_json::Value;

use super::{args::TableFormat, row::Row};

/// All rows.
///
/// # Errors
/// If a number is none that JSON has.
pub(super) fn render(rows: &[Row], format: TableFormat) -> Result<String> {
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
    cell: fn(&Row) -> String,
}

const fn text(title: &'static str, cell: fn(&Row) -> String) -> Column {
    Column { title, is_number: false, cell }
}

const fn number(title: &'static str, cell: fn(&Row) -> String) -> Column {
    Column { title, is_number: true, cell }
}

/// Those in which no row has anything are left out.
const COLUMNS: &[Column] = &[
    text("model", |row| short_name(&row.model)),
    number("GB", |row| format!("{:.2}", row.weight_bytes as f64 / 1e9)),
    text("device", |row| row.device.clone()),
    number("threads", |row| row.threads.map(|threads| threads.to_string()).unwrap_or_default()),
    text("kernels", |row| row.instruction_set.clone().unwrap_or_default()),
    text("weights", Row::weights),
    text("rule", |row| row.rule.clone()),
    text("test", |row| row.test.clone()),
    number("tokens/s", mean),
    number("best", |row| match row.repetitions {
        0 | 1 => String::new(),
        _ => short(row.best_tokens_per_second),
    }),
    number("GB/s read", |row| row.read_gb_per_second.map(short).unwrap_or_default()),
    number("of copy", |row| percent(row.share_of_copy)),
    number("launches", |row| row.launches_per_step.map(|count| format!("{count:.0}")).unwrap_or_default()),
    number("rule's share", |row| percent(row.rule_share)),
    number("first token cold, s", |row| format!("{:.2}", row.first_token_cold_seconds)),
    number("warm, s", |row| format!("{:.3}", row.first_token_warm_seconds)),
    number("peak GB", |row| {
        row.peak_memory_bytes.map(|bytes| format!("{:.2}", bytes as f64 / 1e9)).unwrap_or_default()
    }),
    number("earlier", |row| row.earlier_tokens_per_second.map(short).unwrap_or_default()),
    number("ratio", |row| row.ratio.map(|ratio| format!("{ratio:.2}")).unwrap_or_default()),
];

fn mean(row: &Row) -> String {
    match row.repetitions {
        0 | 1 => short(row.tokens_per_second),
        _ => format!("{} ± {}", short(row.tokens_per_second), short(row.deviation)),
    }
}

/// A path's last part; other names as they are.
pub(super) fn short_name(model: &str) -> String {
    let path = Path::new(model);
    match path.file_name() {
        Some(name) if path.is_absolute() || model.starts_with('.') => name.to_string_lossy().into_owned(),
        _ => model.to_owned(),
    }
}

/// Three digits or four.
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

fn markdown(rows: &[Row]) -> String {
    let is_empty = |cell: &String| cell.is_empty() || cell == "-";
    // Titles, the rule below them, and the rows.
    let mut lines = vec![String::from("|"); rows.len() + 2];
    for &Column { title, is_number, cell } in COLUMNS {
        let cells: Vec<String> = rows.iter().map(cell).collect();
        if cells.iter().all(is_empty) {
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

/// What was measured on, each once: devices with their copies, and the machine.
fn footer(rows: &[Row]) -> String {
    let mut lines: Vec<String> = Vec::new();
    for row in rows {
        let description = row.device_description.iter().chain(&row.driver).map(|what| format!(", {what}"));
        let copy = row.copy_gb_per_second.map(|copy| format!("; copy {} GB/s read and written", short(copy)));
        let device = format!(
            "{} {}, {}: {}{}{}",
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
    // The machine stands behind all devices.
    lines.sort_by_key(|line| line.contains(", cores: "));
    lines.into_iter().map(|line| format!("- {line}\n")).collect()
}

fn csv(rows: &[Row]) -> Result<String> {
    let mut text = String::new();
    for row in rows {
        let Value::Object(fields) = serde_json::to_value(row)? else { continue };
        if text.is_empty() {
            text = fields.keys().map(String::as_str).collect::<Vec<_>>().join(",") + "\n";
        }
        let cells: Vec<String> = fields.values().map(csv_cell).collect();
        text += &(cells.join(",") + "\n");
    }
    Ok(text)
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

    fn rows() -> Vec<Row> {
        let common = Row {
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
            processor: Some("A \"fast\", small one".into()),
            cores: 2,
            system: "linux x86_64".into(),
            version: "0.1.0".into(),
            ..Row::default()
        };
        let prompt = Row {
            rule: "-".into(),
            test: "pp512".into(),
            tokens_per_second: 309.26,
            deviation: 1.5,
            best_tokens_per_second: 311.0,
            ..common.clone()
        };
        let generation = Row {
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

- m f32, cpu: flex, burn's Flex; copy 27.7 GB/s read and written
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
        assert!(lines[0].contains(",rule,prompt,gen,depth,batch,test,repetitions,tokens_per_second,"));
        assert!(lines[1].starts_with(
            "/models/m,false,0,538000000,0,cpu,burn's Flex,,flex,f32,,,2,avx2,-,0,0,0,0,pp512,5,309.26,"
        ));
        // What holds commas and quotes is one cell.
        assert!(
            lines[2].contains(",\"A \"\"fast\"\", small one\",2,,linux x86_64,0.1.0,0,,"),
            "{}",
            lines[2]
        );
    }

    #[test]
    fn json_reads_back() {
        let rows = rows();
        let read: Vec<Row> = serde_json::from_str(&render(&rows, TableFormat::Json).unwrap()).unwrap();
        assert_eq!(read, rows);
        let lines = render(&rows, TableFormat::Jsonl).unwrap();
        let read: Vec<Row> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(read, rows);
    }

    #[test]
    fn numbers_and_names_are_short() {
        assert_eq!([1234.4, 123.4, 12.34, 1.234, 0.0].map(short), ["1234", "123", "12.3", "1.23", "0.00"]);
        let names = ["/models/a.gguf", "./b", "owner/name", "smollm2-135m"].map(short_name);
        assert_eq!(names, ["a.gguf", "b", "owner/name", "smollm2-135m"]);
    }
}
