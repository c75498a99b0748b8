//! `moi bench merge`: combines the rows of several runs or machines into one table, one file and one page.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use super::{args::TableFormat, compare, row::BenchRow};
use crate::{Ended, file};

/// Combine the rows of several runs or machines, without measuring
///
/// Reads files of `moi bench --format jsonl` or json. A row that is in several files counts once. Without --output,
/// the table goes to stdout.
#[derive(Debug, clap::Args)]
pub(crate) struct MergeArgs {
    /// Files with rows, as jsonl or json
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// HTML page to write, with a table and charts of all rows; it works from a local disk
    #[arg(long, value_name = "FILE")]
    page: Option<PathBuf>,
    /// File to write all rows to; moi creates it only when the content is complete
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Format of the rows [default: jsonl with --output, else md]
    #[arg(long, value_enum)]
    format: Option<TableFormat>,
}

/// Reads the files, combines their rows and writes the results.
pub(super) fn run(args: &MergeArgs) -> Result<Ended> {
    for path in [&args.output, &args.page].into_iter().flatten() {
        file::check(path)?;
    }
    let rows = merged(&args.files)?;
    let default = if args.output.is_some() { TableFormat::Jsonl } else { TableFormat::Md };
    let format = args.format.unwrap_or(default);
    super::write(&rows, format, args.output.as_deref(), args.page.as_deref())?;
    Ok(Ended::Normally)
}

/// The rows of all files, in file order, without duplicates.
fn merged(files: &[PathBuf]) -> Result<Vec<BenchRow>> {
    let mut rows: Vec<BenchRow> = Vec::new();
    for path in files {
        for row in read(path)? {
            if !rows.contains(&row) {
                rows.push(row);
            }
        }
    }
    Ok(rows)
}

/// Reads the rows of a file. A file of an older version may lack fields, but not those that every version has.
fn read(path: &Path) -> Result<Vec<BenchRow>> {
    let rows = compare::read(path)?;
    if rows.iter().any(|row| row.model.is_empty() || row.test.is_empty()) {
        bail!("{} contains lines that `moi bench` did not write", path.display());
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::table;

    fn row(device: &str, tokens_per_second: f64) -> BenchRow {
        let (model, test) = ("m".to_owned(), "tg8".to_owned());
        BenchRow { model, test, device: device.to_owned(), tokens_per_second, ..BenchRow::default() }
    }

    #[test]
    fn rows_of_all_files_are_there_once() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, rows: &[BenchRow]| {
            let path = directory.path().join(name);
            std::fs::write(&path, table::render(rows, TableFormat::Jsonl).unwrap()).unwrap();
            path
        };
        let [one, other, later] = [row("cpu", 1.0), row("cuda:0", 2.0), row("cpu", 3.0)];
        let first = write("first.jsonl", &[one.clone(), other.clone()]);
        let second = write("second.jsonl", &[other.clone(), later.clone()]);
        assert_eq!(merged(&[first, second]).unwrap(), [one, other, later]);
        let empty = write("empty.jsonl", &[]);
        assert!(merged(&[empty]).is_err());
        let path = directory.path().join("other.json");
        std::fs::write(&path, "{\"colour\": \"red\"}").unwrap();
        let error = merged(&[path]).unwrap_err().to_string();
        assert!(error.contains("other.json contains lines that `moi bench` did not write"), "{error}");
    }
}
