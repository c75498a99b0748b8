//! Runs requests together and says how far they are.

use std::time::{Duration, Instant};

use anyhow::Result;
use burn::tensor::backend::Backend;
use indicatif::ProgressBar;
use moi_engine::{Engine, EngineError, Request, Step};
use moi_models::CausalLm;

use crate::{interrupt::Interrupt, ui};

/// What came of requests that ran together.
#[derive(Debug)]
pub(crate) struct Ran {
    /// The steps of each, in the order of the requests.
    pub(crate) rows: Vec<Vec<Step>>,
    /// Until the first token.
    pub(crate) prefill: Duration,
    /// From then on.
    pub(crate) decode: Duration,
    pub(crate) interrupted: bool,
    /// Why it ended early, if it failed; what had come until then is in the rows.
    pub(crate) failed: Option<EngineError>,
}

/// Runs requests as one batch until all have ended, or Ctrl-C. With tokens, their rate and what is left on a terminal.
pub(crate) fn together<B: Backend, M: CausalLm<B>>(
    engine: &Engine<B, M>,
    requests: Vec<Request<B>>,
    interrupt: &Interrupt,
) -> Result<Ran> {
    let limit: Option<usize> = requests.iter().map(|request| request.stop.max_tokens).sum();
    let bar = rate(limit)?;
    let start = Instant::now();
    let mut rows = vec![Vec::new(); requests.len()];
    let mut batch = engine.batch();
    let first = batch.add_all(requests)?.first().map_or(0, |row| row.0);
    let mut prefill = None;
    let mut failed = None;
    while !batch.is_empty() && !interrupt.is_set() {
        let steps = match batch.step() {
            Ok(steps) => steps,
            Err(error) => {
                failed = Some(error);
                break;
            }
        };
        prefill.get_or_insert_with(|| start.elapsed());
        bar.inc(steps.len() as u64);
        for step in steps {
            rows[step.row.0 - first].push(step);
        }
    }
    bar.finish_and_clear();
    let prefill = prefill.unwrap_or_default();
    Ok(Ran { rows, prefill, decode: start.elapsed() - prefill, interrupted: interrupt.is_set(), failed })
}

/// A line of tokens and their rate; with a bar and the time that is left where there is a limit.
pub(crate) fn rate(limit: Option<usize>) -> Result<ProgressBar> {
    let bar = match limit {
        Some(limit) => ui::progress(
            Some(limit as u64),
            "decoding [{bar:30}] {pos}/{len} tokens, {per_sec:.1}, at most {eta} left",
        )?,
        None => ui::progress(None, "decoding {spinner} {pos} tokens, {per_sec:.1}")?,
    };
    Ok(bar)
}

/// An engine's prompt as a bar.
pub(crate) fn prefill_bar() -> Result<impl Fn(usize, usize) + Send + Sync + 'static> {
    let bar = ui::progress(Some(0), "reading the prompt [{bar:30}] {pos}/{len} tokens, {eta} left")?;
    Ok(move |done: usize, total: usize| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
        if done == total {
            bar.finish_and_clear();
        }
    })
}
