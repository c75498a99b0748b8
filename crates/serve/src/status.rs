//! The state of the server that is known without asking the engine's thread.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use burn::tensor::backend::Backend;
use moi_engine::{RequestId, Scheduler};
use moi_models::CausalLm;

use serde::Serialize;

use crate::metrics::Metrics;

/// What the engine's thread reported last, and the generations in progress.
#[derive(Debug)]
pub(crate) struct Status {
    begun: Instant,
    running: AtomicUsize,
    waiting: AtomicUsize,
    cache_used: AtomicUsize,
    cache_total: usize,
    /// Milliseconds from `begun` to the last iteration of the engine's thread.
    turned: AtomicU64,
    is_busy: AtomicBool,
    /// Generations that have not ended.
    progress: Mutex<BTreeMap<RequestId, Progress>>,
    pub(crate) metrics: Metrics,
}

/// The phase of a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Phase {
    /// It waits for its turn.
    Queued,
    /// Its prompt runs.
    Prompt,
    /// Tokens are generated.
    Decoding,
    /// It waits for its reader.
    Paused,
}

/// What is known of a generation that has not ended.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Progress {
    /// The id of its HTTP request.
    pub(crate) request: String,
    #[serde(skip)]
    pub(crate) owner: String,
    pub(crate) phase: Phase,
    pub(crate) prompt_tokens: usize,
    pub(crate) generated_tokens: usize,
}

/// How many requests are in progress, and how much of the cache they use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gauges {
    pub(crate) running: usize,
    pub(crate) waiting: usize,
    /// Bytes of the cache that are counted for running requests, and their limit.
    pub(crate) cache_used: usize,
    pub(crate) cache_total: usize,
}

impl Status {
    pub(crate) fn new(metrics: Metrics, cache_total: usize) -> Self {
        Self {
            begun: Instant::now(),
            running: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            cache_used: AtomicUsize::new(0),
            cache_total,
            turned: AtomicU64::new(0),
            is_busy: AtomicBool::new(false),
            progress: Mutex::default(),
            metrics,
        }
    }

    /// Reports an iteration of the engine's thread, and whether it has work.
    pub(crate) fn turn<B: Backend, M: CausalLm<B>>(&self, scheduler: &Scheduler<'_, B, M>, is_busy: bool) {
        self.running.store(scheduler.running(), Relaxed);
        self.waiting.store(scheduler.queued() + scheduler.parked(), Relaxed);
        self.cache_used.store(scheduler.cache_bytes_in_use(), Relaxed);
        self.metrics.preemptions(scheduler.preemptions());
        self.turned.store(self.begun.elapsed().as_millis() as u64, Relaxed);
        self.is_busy.store(is_busy, Relaxed);
    }

    /// How many requests are in progress, and how much of the cache they use.
    pub(crate) fn gauges(&self) -> Gauges {
        Gauges {
            running: self.running.load(Relaxed),
            waiting: self.waiting.load(Relaxed),
            cache_used: self.cache_used.load(Relaxed),
            cache_total: self.cache_total,
        }
    }

    /// Adds a generation that waits for its turn.
    pub(crate) fn queued(&self, id: RequestId, progress: Progress) {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).insert(id, progress);
    }

    /// Sets the phase of a generation.
    pub(crate) fn now(&self, id: RequestId, phase: Phase, generated_tokens: usize) {
        let mut all = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(progress) = all.get_mut(&id) {
            (progress.phase, progress.generated_tokens) = (phase, generated_tokens);
        }
    }

    /// Removes a generation that has ended.
    pub(crate) fn ended(&self, id: RequestId) {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }

    /// The generations that have not ended.
    pub(crate) fn progress(&self) -> Vec<Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Whether the engine's thread has work, but its last iteration is longer ago than `longest`.
    pub(crate) fn is_stuck(&self, longest: Duration) -> bool {
        let turned = Duration::from_millis(self.turned.load(Relaxed));
        self.is_busy.load(Relaxed) && self.begun.elapsed().saturating_sub(turned) > longest
    }
}
