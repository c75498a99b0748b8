//! Runs requests together and says how far they are.

use std::time::{Duration, Instant};

use anyhow::Result;
use burn::tensor::backend::Backend;
use indicatif::ProgressBar;
use moi_engine::{Engine, EngineError, Event, Request, RequestId, Scheduler, SchedulerOptions, Step};
use moi_models::CausalLm;

use crate::{interrupt::Interrupt, output::StopReason, ui};

/// What came of requests that ran together.
#[derive(Debug)]
pub(crate) struct Ran {
    /// The steps of each, in the order of the requests.
    pub(crate) rows: Vec<Vec<Step>>,
    /// Positions of the prompts that were cached before.
    pub(crate) reused: usize,
    /// Until the first token.
    pub(crate) prefill: Duration,
    /// From then on.
    pub(crate) decode: Duration,
    pub(crate) interrupted: bool,
    /// Of each, why it ended early, if it failed by itself; what had come until then is in the rows.
    pub(crate) errors: Vec<Option<EngineError>>,
    /// Why all that had not ended did, if the model or the device failed.
    pub(crate) failed: Option<EngineError>,
}

impl Ran {
    /// Why a row without a last step has none.
    pub(crate) fn early(&self, row: usize) -> StopReason {
        match self.failed.is_some() || self.errors.get(row).is_some_and(Option::is_some) {
            true => StopReason::Failed,
            false => StopReason::Interrupted,
        }
    }

    /// What failed as one error, if anything did; `name` says which row is meant, where there are several.
    pub(crate) fn error(self, name: impl Fn(usize) -> String) -> Option<anyhow::Error> {
        if let Some(error) = self.failed {
            return Some(error.into());
        }
        let count = self.errors.len();
        let mut errors = self.errors.into_iter().enumerate().filter_map(|(row, error)| Some((row, error?)));
        let (row, error) = errors.next()?;
        let error = anyhow::Error::from(error);
        Some(match (count, errors.count()) {
            (1, _) => error,
            (_, 0) => error.context(format!("{} failed", name(row))),
            (_, more) => error.context(format!("{} and {more} more failed", name(row))),
        })
    }
}

/// Runs requests together until all have ended, or Ctrl-C. With tokens, their rate and what is left on a terminal.
pub(crate) fn together<B: Backend, M: CausalLm<B>>(
    engine: &Engine<B, M>,
    requests: Vec<Request<B>>,
    interrupt: &Interrupt,
) -> Result<Ran> {
    let limit: Option<usize> = requests.iter().map(|request| request.stop.max_tokens).sum();
    let bar = rate(limit)?;
    let start = Instant::now();
    let mut scheduler = all_at_once(engine, requests.len());
    let prepared = engine.prepare_all(requests)?;
    let submit = |request| scheduler.submit_prepared("", request);
    let ids: Vec<RequestId> = prepared.into_iter().map(submit).collect::<Result<_, _>>()?;
    let mut rows: Vec<Vec<Step>> = vec![Vec::new(); ids.len()];
    let mut errors: Vec<Option<EngineError>> = ids.iter().map(|_| None).collect();
    let (mut prefill, mut failed) = (None, None);
    while !scheduler.is_idle() && !interrupt.is_set() {
        let events = scheduler.round();
        for event in events {
            let (Event::Admitted(id) | Event::Prompt(id, _) | Event::Step(id, _) | Event::Failed(id, ..)) =
                &event;
            // They are numbered in the order in which they came.
            let Ok(row) = ids.binary_search(id) else { continue };
            match event {
                Event::Step(_, step) => {
                    prefill.get_or_insert_with(|| start.elapsed());
                    bar.inc(1);
                    rows[row].push(step);
                }
                Event::Admitted(_) | Event::Prompt(..) => {}
                Event::Failed(_, error, text) => {
                    if let Some(last) = rows[row].last_mut() {
                        last.text += &text;
                    }
                    match error {
                        EngineError::Round(_) => failed = Some(error),
                        _ => errors[row] = Some(error),
                    }
                }
            }
        }
    }
    bar.finish_and_clear();
    let prefill = prefill.unwrap_or_default();
    Ok(Ran {
        rows,
        reused: scheduler.reused_positions(),
        prefill,
        decode: start.elapsed() - prefill,
        interrupted: interrupt.is_set(),
        errors,
        failed,
    })
}

/// A scheduler of requests that are all there from the beginning, of which so many run together.
pub(crate) fn all_at_once<B: Backend, M: CausalLm<B>>(
    engine: &Engine<B, M>,
    running: usize,
) -> Scheduler<'_, B, M> {
    let options =
        SchedulerOptions { max_running: running, max_queued: usize::MAX, ..SchedulerOptions::default() };
    Scheduler::new(engine, options)
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
