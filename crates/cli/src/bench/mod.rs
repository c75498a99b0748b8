//! `moi bench`: how fast a model is, by device, type, rule, batch, depth and threads.

mod args;
mod bandwidth;
mod child;
mod compare;
mod launches;
mod machine;
mod parent;
mod plan;
mod plot;
mod row;
mod series;
mod shape;
mod statistics;
mod table;
mod timing;

use anyhow::{Result, bail};
use moi_hub::DEFAULT_MODEL;

pub(crate) use args::BenchArgs;
pub(crate) use machine::{cores, processor};

use crate::{Ended, model, output, ui};
pub(crate) use args::split_rules;
use plan::Source;

/// Measures and writes.
pub(crate) fn run(args: &BenchArgs) -> Result<Ended> {
    if let Some(group) = &args.group {
        return child::run(group);
    }
    let rules = split_rules(&args.rules)?;
    let groups = plan::groups(args, &sources(args)?, &rules)?;
    let earlier = args.compare.as_deref().map(compare::read).transpose()?;
    for path in [&args.output, &args.plot].into_iter().flatten() {
        crate::file::check(path)?;
    }
    let (mut rows, whole) = parent::measure(&groups)?;
    if rows.is_empty() {
        // Why was said where it happened.
        return Ok(Ended::Unwell);
    }
    if let Some(earlier) = &earlier {
        for line in compare::compare(&mut rows, earlier) {
            ui::say!("moi: {line}");
        }
    }
    let text = table::render(&rows, args.format)?;
    match &args.output {
        Some(path) => crate::file::write_whole(path, text.as_bytes())?,
        None => output::print_bytes(text.as_bytes())?,
    }
    if let Some(path) = &args.plot {
        crate::file::write_whole(path, plot::svg(&rows)?.as_bytes())?;
    }
    Ok(if whole { Ended::Normally } else { Ended::Unwell })
}

/// What is measured, found and fetched if need be: that is no part of any measurement.
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
