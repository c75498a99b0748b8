//! `moi compare` and `moi trace`.

use std::{io::Write, path::Path};

use anyhow::{Context, Result};

use crate::{
    Ended,
    args::{CompareArgs, CompareFormat, TraceArgs, TraceFormat},
    file, output, plots,
    runs::{self, Runs},
    ui,
};

/// Number of weights and tokens per step that a page shows.
const COMPARED: usize = 10;

/// `moi compare`: one prompt under several rules, side by side.
pub(crate) fn run(args: &CompareArgs) -> Result<Ended> {
    if let Some(path) = &args.output {
        file::check(path)?;
    }
    let runs = runs::run(&args.runs, &args.rules, COMPARED)?;
    let text = match args.format.unwrap_or_else(|| CompareFormat::of(args.output.as_deref())) {
        CompareFormat::Json => serde_json::to_string_pretty(&runs)? + "\n",
        CompareFormat::Html => runs::page(&runs)?,
        CompareFormat::Table if args.output.is_some() => plain(&runs::table(&runs, 120))?,
        CompareFormat::Table => {
            let width = console::Term::stdout().size_checked().map_or(100, |(_, columns)| columns.into());
            // `anstream` removes colours if stdout is not a terminal, or if NO_COLOR is set.
            let mut out = anstream::stdout().lock();
            out.write_all(runs::table(&runs, width).as_bytes()).context("cannot write to stdout")?;
            return ended(runs);
        }
    };
    written(&text, args.output.as_deref())?;
    ended(runs)
}

/// `moi trace`: what the model is fed at each step.
pub(crate) fn trace(args: &TraceArgs) -> Result<Ended> {
    if let Some(path) = &args.output {
        file::check(path)?;
    }
    let format = args.format.unwrap_or_else(|| TraceFormat::of(args.output.as_deref()));
    if format == TraceFormat::Svg {
        plots::check()?;
    }
    let runs = runs::run(&args.runs, &args.rules, args.top)?;
    let text = match format {
        TraceFormat::Html => runs::page(&runs)?,
        TraceFormat::Json => serde_json::to_string_pretty(&runs)? + "\n",
        TraceFormat::Csv => runs::csv(&runs),
        #[cfg(feature = "plots")]
        TraceFormat::Svg => runs::svg(&runs)?,
        #[cfg(not(feature = "plots"))]
        TraceFormat::Svg => anyhow::bail!(plots::MISSING),
    };
    written(&text, args.output.as_deref())?;
    if let Some(path) = &args.output {
        ui::note(&format!("wrote {}", path.display()));
    }
    ended(runs)
}

fn written(text: &str, path: Option<&Path>) -> Result<()> {
    match path {
        Some(path) => file::write_whole(path, text.as_bytes()),
        None => output::print_bytes(text.as_bytes()),
    }
}

/// The text without colours.
fn plain(text: &str) -> Result<String> {
    Ok(anstream::adapter::strip_str(text).to_string())
}

fn ended(runs: Runs) -> Result<Ended> {
    match runs.failed {
        Some(error) => Err(error),
        None => Ok(if runs.interrupted { Ended::Interrupted } else { Ended::Normally }),
    }
}

/// The extension of a file's name.
fn extension(path: Option<&Path>) -> &str {
    path.and_then(Path::extension).and_then(|extension| extension.to_str()).unwrap_or_default()
}

impl CompareFormat {
    /// The format that belongs to the file's extension.
    fn of(path: Option<&Path>) -> Self {
        match extension(path) {
            "json" => Self::Json,
            "html" | "htm" => Self::Html,
            _ => Self::Table,
        }
    }
}

impl TraceFormat {
    /// The format that belongs to the file's extension.
    fn of(path: Option<&Path>) -> Self {
        match extension(path) {
            "json" => Self::Json,
            "csv" => Self::Csv,
            "svg" => Self::Svg,
            _ => Self::Html,
        }
    }
}
