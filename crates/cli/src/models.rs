//! `moi models`.

use anyhow::Result;
use moi_hub::{CATALOGUE, Cache, DEFAULT_MODEL};
use serde::Serialize;

use crate::{
    args::{Format, ModelsArgs},
    output,
};

#[derive(Serialize)]
struct Row {
    name: &'static str,
    parameters_millions: u32,
    size_bytes: u64,
    licence: &'static str,
    cached: bool,
    default: bool,
}

/// Prints the catalogue.
pub(crate) fn run(args: &ModelsArgs) -> Result<()> {
    let cache = Cache::from_env()?;
    let rows: Vec<Row> = CATALOGUE
        .iter()
        .map(|entry| Row {
            name: entry.name,
            parameters_millions: entry.parameters_millions,
            size_bytes: entry.size,
            licence: entry.licence.name,
            cached: cache.has(entry),
            default: entry.name == DEFAULT_MODEL,
        })
        .collect();
    if args.format == Format::Json {
        return output::print_json(&rows);
    }
    let width = rows.iter().map(|row| row.name.len()).max().unwrap_or(0);
    let mut text =
        format!("{:width$}  {:>10}  {:>8}  {:10}  {}\n", "NAME", "PARAMETERS", "FILE", "LICENCE", "CACHED");
    for row in &rows {
        let parameters = format!("{} M", row.parameters_millions);
        let size = format!("{} MB", row.size_bytes / 1_000_000);
        let cached = if row.cached { "yes" } else { "no" };
        let default = if row.default { " (default)" } else { "" };
        text += &format!(
            "{:width$}  {parameters:>10}  {size:>8}  {:10}  {cached}{default}\n",
            row.name, row.licence
        );
    }
    output::print_bytes(text.as_bytes())
}
