//! `moi models`.

use std::path::PathBuf;

use anyhow::{Result, bail};
use moi_hub::{CATALOGUE, Cache, DEFAULT_MODEL, Fetcher, HUB_MODELS};
use serde::Serialize;

use crate::{
    args::{Format, ModelsArgs},
    config::nearest,
    output, ui,
};

#[derive(Serialize)]
struct ModelRow {
    name: &'static str,
    parameters_millions: u32,
    size_bytes: u64,
    licence: &'static str,
    cached: bool,
    /// The path of a catalogue model, if it is in the cache.
    path: Option<PathBuf>,
    default: bool,
    /// Whether moi knows the sha256 of its file. Otherwise it is a hub repository, and its size is that of bfloat16
    /// weights.
    catalogue: bool,
    /// The parameters that compute a token, in millions, for a mixture-of-experts model.
    active_millions: Option<u32>,
}

/// Prints the catalogue, or removes a model.
pub(crate) fn run(args: &ModelsArgs) -> Result<()> {
    let fetcher = Fetcher::new(Cache::from_env()?);
    if let Some(name) = &args.remove {
        return remove(&fetcher, name);
    }
    let rows = rows(&fetcher);
    if args.format == Format::Json {
        return output::print_json(&rows);
    }
    output::print_bytes(table(&rows).as_bytes())
}

fn rows(fetcher: &Fetcher) -> Vec<ModelRow> {
    let catalogue = CATALOGUE.iter().map(|entry| {
        let path = fetcher.found(entry);
        ModelRow {
            name: entry.name,
            parameters_millions: entry.parameters_millions,
            size_bytes: entry.size,
            licence: entry.licence.name,
            cached: path.is_some(),
            path,
            default: entry.name == DEFAULT_MODEL,
            catalogue: true,
            active_millions: None,
        }
    });
    let hub = HUB_MODELS.iter().map(|model| ModelRow {
        name: model.repository,
        parameters_millions: model.parameters_millions,
        size_bytes: model.num_bytes(),
        licence: model.licence.unwrap_or("see its card"),
        cached: fetcher.has_repository(model.repository),
        path: None,
        default: false,
        catalogue: false,
        active_millions: model.active_millions,
    });
    catalogue.chain(hub).collect()
}

fn table(rows: &[ModelRow]) -> String {
    let width = rows.iter().map(|row| row.name.len()).max().unwrap_or(0);
    let heading = |name: &str| {
        format!("{name:width$}  {:>17}  {:>8}  {:12}  {}\n", "PARAMETERS", "FILE", "LICENCE", "CACHED")
    };
    let line = |row: &ModelRow| {
        let parameters = match (row.parameters_millions, row.active_millions) {
            (all @ 0..1000, _) => format!("{all} M"),
            (all, None) => billions(all),
            (all, Some(active)) => format!("{} ({})", billions(all), billions(active)),
        };
        let size = match row.size_bytes / 1_000_000 {
            size @ 0..10_000 => format!("{size} MB"),
            size => format!("{} GB", size / 1000),
        };
        let cached = match (&row.path, row.cached) {
            (Some(path), _) => path.display().to_string(),
            (None, true) => "yes".to_owned(),
            (None, false) => "no".to_owned(),
        };
        let default = if row.default { " (default)" } else { "" };
        format!("{:width$}  {parameters:>17}  {size:>8}  {:12}  {cached}{default}\n", row.name, row.licence)
    };
    let (catalogue, hub): (Vec<&ModelRow>, Vec<&ModelRow>) = rows.iter().partition(|row| row.catalogue);
    let mut text = heading("NAME");
    text.extend(catalogue.into_iter().map(line));
    text += &format!("\n{}", heading("HUGGING FACE HUB"));
    text.extend(hub.into_iter().map(line));
    text += "\nOf the hub these are some of those that run: any repository of these families does. Sizes are those of bfloat16; \
             behind parameters stand those\nthat compute a token. GGUF repositories are named alike: owner/name:Q4_K_M.\n";
    text
}

fn billions(millions: u32) -> String {
    format!("{:.1} B", f64::from(millions) / 1000.0)
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
