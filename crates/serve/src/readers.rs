//! The readers of generations, which get their events. Requests whose readers do not read are paused or cancelled.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    time::{Duration, Instant},
};

use burn::tensor::backend::Backend;
use moi_engine::{Event, RequestId, Scheduler};
use moi_models::CausalLm;
use tokio::sync::mpsc::{self, error::TrySendError};

use crate::{
    error::ApiError,
    metrics::{Finish, RequestInfo, Times},
    status::{Phase, Status},
    worker::{RunEvent, failed},
};

/// The receiver of a request's events.
struct Reader {
    /// Its index among the generations of its HTTP request.
    at: usize,
    /// The first of these generations.
    group: RequestId,
    /// Whether any of these generations has begun.
    group_has_begun: bool,
    events: mpsc::Sender<(usize, RunEvent)>,
    /// Events that did not fit into the channel.
    backlog: VecDeque<RunEvent>,
    /// Since when the channel is full.
    full_since: Option<Instant>,
    /// How long the channel was full before, in total.
    full: Duration,
    /// Whether the request is paused until its events are read.
    is_paused: bool,
    times: Times,
}

/// How many times the stall timeout a reader's channel may be full in total.
const SILENCES: u32 = 10;

impl Reader {
    /// Whether the channel has been full for longer than `longest`, or many times for nearly as long.
    fn is_stalled(&self, longest: Duration) -> bool {
        let now = self.full_since.map_or(Duration::ZERO, |since| since.elapsed());
        now > longest || self.full + now > longest.saturating_mul(SILENCES)
    }

    /// Sends the events that there is room for. Returns whether the receiver still exists.
    fn send(&mut self) -> bool {
        while let Some(event) = self.backlog.pop_front() {
            match self.events.try_send((self.at, event)) {
                Ok(()) => self.full += self.full_since.take().map_or(Duration::ZERO, |since| since.elapsed()),
                Err(TrySendError::Full((_, event))) => {
                    self.backlog.push_front(event);
                    self.full_since.get_or_insert_with(Instant::now);
                    return true;
                }
                Err(TrySendError::Closed(_)) => return false,
            }
        }
        true
    }
}

/// The readers of all requests that have not ended, or whose last events have not been read yet.
pub(crate) struct Readers {
    readers: HashMap<RequestId, Reader>,
    /// The readers of requests that have ended.
    ended: Vec<Reader>,
    stall_timeout: Duration,
}

impl Readers {
    pub(crate) fn new(stall_timeout: Duration) -> Self {
        Self { readers: HashMap::new(), ended: Vec::new(), stall_timeout }
    }

    /// Whether all events of requests that have ended are sent.
    pub(crate) fn is_settled(&self) -> bool {
        self.ended.is_empty()
    }

    /// Adds a waiting request: the generation with index `at` of an HTTP request, whose first generation is `group`.
    pub(crate) fn add(
        &mut self,
        id: RequestId,
        (at, group): (usize, RequestId),
        events: mpsc::Sender<(usize, RunEvent)>,
        about: RequestInfo,
    ) {
        let (backlog, times, full) = (VecDeque::new(), Times::new(about), Duration::ZERO);
        let reader = Reader {
            at,
            group,
            group_has_begun: false,
            events,
            backlog,
            full_since: None,
            full,
            is_paused: false,
            times,
        };
        self.readers.insert(id, reader);
    }

    /// Refuses requests that have waited for their turn for longer than `longest`, unless another generation of the
    /// same HTTP request has begun.
    pub(crate) fn expire<B: Backend, M: CausalLm<B>>(
        &mut self,
        longest: Duration,
        scheduler: &mut Scheduler<'_, B, M>,
        status: &Status,
    ) {
        let is_late = |reader: &Reader| reader.times.waited() > longest && !reader.group_has_begun;
        let late: Vec<RequestId> =
            self.readers.iter().filter(|(_, reader)| is_late(reader)).map(|(&id, _)| id).collect();
        let groups: HashSet<RequestId> =
            late.iter().filter_map(|id| Some(self.readers.get(id)?.group)).collect();
        status.metrics.waited_too_long(groups.len());
        for id in late {
            let message = format!(
                "the request has waited for {} s and its turn has not come; try again later",
                longest.as_secs_f64()
            );
            self.fail(id, ApiError::rate_limited(message, 1), scheduler, status);
        }
    }

    /// Ends a request with an error.
    fn fail<B: Backend, M: CausalLm<B>>(
        &mut self,
        id: RequestId,
        error: ApiError,
        scheduler: &mut Scheduler<'_, B, M>,
        status: &Status,
    ) {
        let text = scheduler.cancel(id).unwrap_or_default();
        let Some(mut reader) = self.readers.remove(&id) else { return };
        status.ended(id);
        status.metrics.finished(&reader.times, Finish::Abort);
        reader.backlog.push_back(RunEvent::Failed(error, text));
        if reader.send() && !reader.backlog.is_empty() {
            self.ended.push(reader);
        }
    }

    /// Sends an event of a round, which began at `begun`, to its reader. A request whose reader has no room is
    /// paused, and one without a reader is cancelled.
    pub(crate) fn take<B: Backend, M: CausalLm<B>>(
        &mut self,
        event: Event,
        begun: Instant,
        scheduler: &mut Scheduler<'_, B, M>,
        status: &Status,
    ) {
        let (Event::Admitted(id) | Event::Prompt(id, _) | Event::Token(id, _) | Event::Failed(id, ..)) =
            event;
        let Some(reader) = self.readers.get_mut(&id) else { return };
        let mut finish = None;
        match event {
            Event::Admitted(_) => {
                reader.times.admitted(begun);
                status.now(id, Phase::Prompt, 0);
                let group = reader.group;
                let siblings = self.readers.values_mut().filter(|reader| reader.group == group);
                siblings.for_each(|reader| reader.group_has_begun = true);
                return;
            }
            Event::Prompt(_, report) => {
                status.metrics.prompt(&reader.times, report.reused);
                reader.backlog.push_back(RunEvent::Prompt(report));
            }
            Event::Token(_, step) => {
                status.metrics.token(&mut reader.times, step.gate > 0.0);
                status.now(id, Phase::Decoding, reader.times.tokens);
                finish = step.stop.map(Finish::of);
                reader.backlog.push_back(RunEvent::Token(step));
            }
            Event::Failed(_, error, text) => {
                finish = Some(Finish::Error);
                reader.backlog.push_back(RunEvent::Failed(failed(error), text));
            }
        }
        // This comes before the last event is sent, so that a client that has read it does not see the request in
        // /v1/moi/runs.
        if let Some(finish) = finish {
            status.metrics.finished(&reader.times, finish);
            status.ended(id);
        }
        let is_read = reader.send();
        if finish.is_some() {
            if let Some(reader) = self.readers.remove(&id)
                && is_read
                && !reader.backlog.is_empty()
            {
                self.ended.push(reader);
            }
        } else if !is_read {
            self.cancel(id, scheduler, status);
        } else if reader.full_since.is_some() {
            reader.is_paused = true;
            status.now(id, Phase::Paused, reader.times.tokens);
            scheduler.pause(id);
        }
    }

    /// Sends events that did not fit before, resumes requests whose readers have room again, and gives up on readers
    /// that have not read for too long.
    pub(crate) fn retry<B: Backend, M: CausalLm<B>>(
        &mut self,
        scheduler: &mut Scheduler<'_, B, M>,
        status: &Status,
    ) {
        let longest = self.stall_timeout;
        self.ended
            .retain_mut(|reader| reader.send() && !reader.backlog.is_empty() && !reader.is_stalled(longest));
        let waits =
            |reader: &Reader| reader.is_paused || !reader.backlog.is_empty() || reader.events.is_closed();
        let waiting = self.readers.iter().filter(|(_, reader)| waits(reader)).map(|(&id, _)| id);
        for id in waiting.collect::<Vec<_>>() {
            let Some(reader) = self.readers.get_mut(&id) else { continue };
            if reader.events.is_closed() || !reader.send() || reader.is_stalled(longest) {
                self.cancel(id, scheduler, status);
            } else if reader.backlog.is_empty()
                && std::mem::take(&mut reader.is_paused)
                && let Some(event) = scheduler.resume_paused(id)
            {
                self.take(event, Instant::now(), scheduler, status);
            }
        }
    }

    /// Cancels a request that nobody reads, if it has not ended.
    pub(crate) fn cancel<B: Backend, M: CausalLm<B>>(
        &mut self,
        id: RequestId,
        scheduler: &mut Scheduler<'_, B, M>,
        status: &Status,
    ) {
        scheduler.cancel(id);
        if let Some(reader) = self.readers.remove(&id) {
            status.ended(id);
            status.metrics.finished(&reader.times, Finish::Abort);
        }
    }

    /// Ends all requests that have not ended, with an error.
    pub(crate) fn end<B: Backend, M: CausalLm<B>>(
        &mut self,
        scheduler: &mut Scheduler<'_, B, M>,
        status: &Status,
        error: &ApiError,
    ) {
        // A reader without room does not get the error, because the thread ends.
        for id in self.readers.keys().copied().collect::<Vec<_>>() {
            self.fail(id, error.clone(), scheduler, status);
        }
    }
}
