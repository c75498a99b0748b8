//! `moi bench`: how fast a model is, by device, type, rule, batch, depth and threads.

mod accuracy;
mod args;
mod bandwidth;
mod child;
mod compare;
mod energy;
mod launches;
mod machine;
mod merge;
#[cfg(any(feature = "cuda", feature = "vulkan", feature = "wgpu"))]
mod nvml;
mod page;
mod parent;
mod plan;
#[cfg(feature = "plots")]
mod plot;
mod references;
mod row;
#[cfg(feature = "plots")]
mod series;
mod shape;
mod statistics;
mod table;
mod targets;
mod timing;

use std::path::Path;

use anyhow::{Result, bail};
use moi_hub::DEFAULT_MODEL;
use tempfile::TempDir;

pub(crate) use args::BenchArgs;
pub(crate) use machine::{cores, processor};

use crate::{Ended, model, plots, ui};
pub(crate) use args::split_rules;
use args::{BenchCommand, TableFormat};
use plan::Source;
use row::BenchRow;

/// Measures and writes the results, or merges earlier results.
pub(crate) fn run(args: &BenchArgs) -> Result<Ended> {
    if let Some(group) = &args.group {
        return child::run(group);
    }
    if let Some(BenchCommand::Merge(merge)) = &args.command {
        return merge::run(merge);
    }
    let rules = split_rules(&args.rules)?;
    // Before a model is downloaded.
    for path in [&args.output, &args.plot, &args.page].into_iter().flatten() {
        crate::file::check(path)?;
    }
    if args.plot.is_some() {
        plots::check()?;
    }
    let mut groups = plan::groups(args, &targets::targets(args)?, &sources(args)?, &rules)?;
    let earlier = args.compare.as_deref().map(compare::read).transpose()?;
    let scratch = match args.compare_devices {
        true => Some(TempDir::with_prefix("moi-bench-")?),
        false => None,
    };
    if let Some(scratch) = &scratch {
        if !args.shape.is_empty() {
            ui::note("random weights differ between devices, so their accuracy is not compared");
        }
        groups = references::with_references(groups, scratch.path());
    }
    let (mut rows, whole) = parent::measure(&groups, scratch.as_ref().map(TempDir::path))?;
    drop(scratch);
    if rows.is_empty() {
        // The error was printed where it occurred.
        return Ok(Ended::Unwell);
    }
    if let Some(earlier) = &earlier {
        for line in compare::compare(&mut rows, earlier) {
            ui::say!("moi: {line}");
        }
    }
    write(&rows, args.format, args.output.as_deref(), args.page.as_deref())?;
    #[cfg(feature = "plots")]
    if let Some(path) = &args.plot {
        crate::file::write_whole(path, plot::svg(&rows)?.as_bytes())?;
    }
    Ok(if whole { Ended::Normally } else { Ended::Unwell })
}

/// Writes the rows to a file or stdout, and as a page.
fn write(rows: &[BenchRow], format: TableFormat, output: Option<&Path>, page: Option<&Path>) -> Result<()> {
    let text = table::render(rows, format)?;
    match output {
        Some(path) => crate::file::write_whole(path, text.as_bytes())?,
        None => crate::output::print_bytes(text.as_bytes())?,
    }
    match page {
        Some(path) => crate::file::write_whole(path, page::page(rows)?.as_bytes()),
        None => Ok(()),
    }
}

/// Finds the models to measure, and downloads them if necessary, which is not part of any measurement.
fn sources(args: &BenchArgs) -> Result<Vec<Source>> {
    let mut sources = Vec::new();
    for name in &args.shape {
        let name = shape::find(name)?.name.to_owned();
        sources.push(Source::Shape { name });
    }
    if !sources.is_empty() && args.forms().iter().any(Option::is_some) {
        bail!(shape::NO_PACKED_FORM);
    }
    let default = [DEFAULT_MODEL.to_owned()];
    let models = if args.model.is_empty() && sources.is_empty() { &default[..] } else { &args.model[..] };
    for name in models {
        sources.push(Source::Model { name: name.clone(), path: model::find(name, None)? });
    }
    Ok(sources)
}
