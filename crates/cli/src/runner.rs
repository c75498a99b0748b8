//! Runs requests together and shows their progress.

use std::time::{Duration, Instant};

use anyhow::Result;
use burn::tensor::backend::Backend;
use indicatif::ProgressBar;
use moi_engine::{Engine, EngineError, Event, Request, RequestId, Scheduler, SchedulerOptions, TokenEvent};
use moi_models::CausalLm;

use crate::{interrupt::Interrupt, output::StopReason, ui};

/// The results of requests that ran together.
#[derive(Debug)]
pub(crate) struct Ran {
    /// The steps of each request, in the order of the requests.
    pub(crate) rows: Vec<Vec<TokenEvent>>,
    /// Positions of the prompts that were already cached.
    pub(crate) reused: usize,
    /// The time until the first token.
    pub(crate) prefill: Duration,
    /// The time after the first token.
    pub(crate) decode: Duration,
    pub(crate) interrupted: bool,
    /// Per request, the error that ended it early, if it failed alone. `rows` holds the steps until then.
    pub(crate) errors: Vec<Option<EngineError>>,
    /// The error that ended all unfinished requests, if the model or the device failed.
    pub(crate) failed: Option<EngineError>,
}

impl Ran {
    /// The reason why a row ended without a last step.
    pub(crate) fn early(&self, row: usize) -> StopReason {
        match self.failed.is_some() || self.errors.get(row).is_some_and(Option::is_some) {
            true => StopReason::Failed,
            false => StopReason::Interrupted,
        }
    }

    /// Combines all failures into one error, if there are any. If there are several rows, `name` describes the failed
    /// one.
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

/// Runs requests together until all have ended, or until Ctrl-C. A terminal shows the token count, the rate and the
/// remaining time.
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
    let mut rows: Vec<Vec<TokenEvent>> = vec![Vec::new(); ids.len()];
    let mut errors: Vec<Option<EngineError>> = ids.iter().map(|_| None).collect();
    let (mut prefill, mut failed) = (None, None);
    while !scheduler.is_idle() && !interrupt.is_set() {
        let events = scheduler.round();
        for event in events {
            let (Event::Admitted(id) | Event::Prompt(id, _) | Event::Token(id, _) | Event::Failed(id, ..)) =
                &event;
            // The ids are in ascending order, because requests are numbered in the order of their submission.
            let Ok(row) = ids.binary_search(id) else { continue };
            match event {
                Event::Token(_, step) => {
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

/// A scheduler for requests that are all known at the start; `running` of them run at the same time.
pub(crate) fn all_at_once<B: Backend, M: CausalLm<B>>(
    engine: &Engine<B, M>,
    running: usize,
) -> Scheduler<'_, B, M> {
    let options =
        SchedulerOptions { max_running: running, max_queued: usize::MAX, ..SchedulerOptions::default() };
    Scheduler::new(engine, options)
}

/// A progress line with tokens and their rate; with a bar and the remaining time if there is a limit.
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

/// A progress bar for an engine's prompt.
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
