//! `moi models`.

use std::path::PathBuf;

use anyhow::{Result, bail};
use moi_hub::{CATALOGUE, Cache, DEFAULT_MODEL, Fetcher};
use serde::Serialize;

use crate::{
    args::{Format, ModelsArgs},
    config::nearest,
    output, ui,
};

#[derive(Serialize)]
struct Row {
    name: &'static str,
    parameters_millions: u32,
    size_bytes: u64,
    licence: &'static str,
    cached: bool,
    /// Where it lies, if it is cached.
    path: Option<PathBuf>,
    default: bool,
}

/// Prints the catalogue, or removes a model.
pub(crate) fn run(args: &ModelsArgs) -> Result<()> {
    let fetcher = Fetcher::new(Cache::from_env()?);
    if let Some(name) = &args.remove {
        return remove(&fetcher, name);
    }
    let rows: Vec<Row> = CATALOGUE
        .iter()
        .map(|entry| (entry, fetcher.found(entry)))
        .map(|(entry, path)| Row {
            name: entry.name,
            parameters_millions: entry.parameters_millions,
            size_bytes: entry.size,
            licence: entry.licence.name,
            cached: path.is_some(),
            path,
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
        let cached = row.path.as_ref().map_or_else(|| "no".to_owned(), |path| path.display().to_string());
        let default = if row.default { " (default)" } else { "" };
        text += &format!(
            "{:width$}  {parameters:>10}  {size:>8}  {:10}  {cached}{default}\n",
            row.name, row.licence
        );
    }
    output::print_bytes(text.as_bytes())
}

fn remove(fetcher: &Fetcher, name: &str) -> Result<()> {
    let Some(entry) = moi_hub::find(name) else {
        let names: Vec<&str> = CATALOGUE.iter().map(|entry| entry.name).collect();
        bail!(
            "there is no model `{name}` in the catalogue ({}){}; other hub repositories are in the hub's own cache, which \
             other tools use too: `hf cache` removes them",
            names.join(", "),
            nearest(name, names.iter().copied())
        );
    };
    if fetcher.cache().remove(entry)? {
        ui::note(&format!("removed {name} ({} MB)", entry.size / 1_000_000));
        return Ok(());
    }
    match fetcher.found(entry) {
        Some(path) => {
            bail!("{name} lies in the hub's own cache, which other tools use too: {}", path.display())
        }
        None => bail!("{name} is not in the cache"),
    }
}
