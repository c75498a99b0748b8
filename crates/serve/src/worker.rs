//! The thread that owns the engine's rounds: requests come by messages, and what comes of them goes out by bounded channels.
//!
//! HTTP threads prepare requests, which takes no part in a round, and then send `Add` or `Cancel`. A request whose
//! reader does not read is paused when its channel is full, and cancelled when that lasts. No lock is held over a round.

use std::{
    fmt,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel},
    },
    time::{Duration, Instant},
};

use burn::tensor::backend::Backend;
use moi_engine::{
    Engine, EngineError, Event, PreparedRequest, PromptReport, Refusal, RequestId, Scheduler,
    SchedulerOptions, Step,
};
use moi_models::CausalLm;
use tokio::sync::{mpsc, oneshot};

use crate::{
    error::ApiError,
    job::Job,
    metrics::RequestInfo,
    readers::Readers,
    server::Caller,
    status::{Phase, Progress, Status},
};

/// Events that wait for a reader of a request, at most, before the request is paused.
const EVENTS: usize = 64;

/// What came of a generation.
#[derive(Debug)]
pub(crate) enum RunEvent {
    /// Its prompt has run.
    Prompt(PromptReport),
    /// A token; with a reason to stop, the last.
    Step(Step),
    /// It failed: why, and the text that it had held back.
    Failed(ApiError, String),
}

/// Generations of one HTTP request. They are cancelled when this is dropped before they have ended.
pub(crate) struct Runs {
    /// What came of each, by its place among the jobs.
    pub(crate) events: mpsc::Receiver<(usize, RunEvent)>,
    ids: Vec<RequestId>,
    cancel: Cancel,
}

impl Drop for Runs {
    fn drop(&mut self) {
        // Those that have ended are not known any more, and cancelling them does nothing.
        (self.cancel)(std::mem::take(&mut self.ids));
    }
}

impl fmt::Debug for Runs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Runs({:?})", self.ids)
    }
}

/// What HTTP needs of an engine.
pub(crate) trait Service: Send + Sync {
    /// Checks jobs, which may take long: not to be called where others wait.
    fn prepare(&self, caller: &Caller, jobs: Vec<Job>) -> Result<Prepared, ApiError>;

    /// Has all that has not ended fail, and no more begin.
    fn end(&self);
}

/// Jobs that were checked and can be sent to the engine.
pub(crate) struct Prepared(Box<dyn FnOnce() -> Submitted + Send>);

type Submitted =
    (oneshot::Receiver<Result<Vec<RequestId>, Refusal>>, mpsc::Receiver<(usize, RunEvent)>, Cancel);
type Cancel = Box<dyn Fn(Vec<RequestId>) + Send + Sync>;

impl Prepared {
    /// Has them queued, all or none.
    ///
    /// # Errors
    /// If they can never fit, or too many wait.
    pub(crate) async fn submit(self) -> Result<Runs, ApiError> {
        let (answer, events, cancel) = (self.0)();
        let mut runs = Runs { events, ids: Vec::new(), cancel };
        runs.ids = answer.await.map_err(|_| stopped())??;
        Ok(runs)
    }
}

fn stopped() -> ApiError {
    ApiError::unavailable("the server is stopping")
}

/// A message to the thread of the engine.
enum Message<B: Backend> {
    Add {
        owner: String,
        /// The id of the HTTP request.
        id: String,
        requests: Vec<(PreparedRequest<B>, RequestInfo)>,
        answer: oneshot::Sender<Result<Vec<RequestId>, Refusal>>,
        events: mpsc::Sender<(usize, RunEvent)>,
    },
    Cancel(Vec<RequestId>),
    /// All that has not ended fails, and the thread ends.
    End,
}

/// Sends messages to the thread of an engine.
pub(crate) struct Client<B: Backend, M> {
    engine: Arc<Engine<B, M>>,
    device: B::Device,
    messages: Sender<Message<B>>,
}

impl<B: Backend, M: CausalLm<B> + Send + Sync + 'static> Service for Client<B, M> {
    fn prepare(&self, caller: &Caller, jobs: Vec<Job>) -> Result<Prepared, ApiError> {
        let rules: Vec<&str> = jobs.iter().map(|job| job.rule.name()).collect();
        let prepare = |(job, rule): (Job, _)| {
            let request = self.engine.prepare(job.request::<B>(&self.device))?;
            let (prompt, max_tokens) = (request.prompt_positions(), request.stop().max_tokens);
            Ok::<_, EngineError>((request, RequestInfo { prompt, max_tokens, rule }))
        };
        let requests = jobs.into_iter().zip(rules).map(prepare).collect::<Result<Vec<_>, _>>()?;
        let (owner, id, messages) = (caller.owner.clone(), caller.record.id(), self.messages.clone());
        let cancelling = messages.clone();
        // Where the thread has ended, so has all that could be cancelled.
        let cancel: Cancel = Box::new(move |ids| {
            let _ = cancelling.send(Message::Cancel(ids));
        });
        Ok(Prepared(Box::new(move || {
            let (answer, answered) = oneshot::channel();
            let (events, receiver) = mpsc::channel(EVENTS * requests.len());
            // Where the thread has ended, the answer's sender is dropped with the message.
            let _ = messages.send(Message::Add { owner, id, requests, answer, events });
            (answered, receiver, cancel)
        })))
    }

    fn end(&self) {
        // Where the thread has ended, nothing is left to be done.
        let _ = self.messages.send(Message::End);
    }
}

/// How the thread of an engine works.
#[derive(Clone, Debug)]
pub(crate) struct WorkerOptions {
    pub(crate) scheduler: SchedulerOptions,
    /// How long a request may wait for its reader.
    pub(crate) stall_timeout: Duration,
    /// How long a request may wait for its turn.
    pub(crate) queue_timeout: Option<Duration>,
}

/// The messages of a thread that has not begun.
pub(crate) struct Worker<B: Backend, M> {
    engine: Arc<Engine<B, M>>,
    messages: Receiver<Message<B>>,
}

/// An engine's two sides: what HTTP threads use, and what the thread runs.
pub(crate) fn worker<B: Backend, M: CausalLm<B>>(
    engine: Arc<Engine<B, M>>,
    device: B::Device,
) -> (Client<B, M>, Worker<B, M>) {
    let (sender, messages) = channel();
    (Client { engine: Arc::clone(&engine), device, messages: sender }, Worker { engine, messages })
}

/// Whether the thread goes on.
enum Next {
    GoOn,
    End,
}

impl<B: Backend, M: CausalLm<B>> Worker<B, M> {
    /// Runs rounds until it is told to end, or nobody can send anything any more.
    pub(crate) fn run(self, options: &WorkerOptions, status: &Status) {
        let mut scheduler = Scheduler::new(&self.engine, options.scheduler.clone());
        let mut readers = Readers::new(options.stall_timeout);
        let mut is_waiting = false;
        loop {
            let is_idle = scheduler.is_idle();
            status.turn(&scheduler, !is_idle);
            let mut message = match (is_idle, readers.is_settled()) {
                (true, true) => self.messages.recv().map_err(|_| TryRecvError::Disconnected),
                (true, false) => self.nap(),
                (false, _) if is_waiting => self.nap(),
                (false, _) => self.messages.try_recv(),
            };
            while let Ok(received) = message {
                if let Next::End = self.handle(received, &mut scheduler, &mut readers, status) {
                    return;
                }
                message = self.messages.try_recv();
            }
            if message.is_err_and(|error| error == TryRecvError::Disconnected) {
                return;
            }
            status.turn(&scheduler, !scheduler.is_idle());
            is_waiting = false;
            if !scheduler.is_idle() {
                let begun = Instant::now();
                let events = scheduler.round();
                let tokens = events.iter().filter(|event| matches!(event, Event::Step(..))).count();
                status.metrics.round(begun.elapsed(), tokens);
                is_waiting = events.is_empty() && scheduler.active() == 0;
                for event in events {
                    readers.take(event, begun, &mut scheduler, status);
                }
            }
            readers.retry(&mut scheduler, status);
            if let Some(longest) = options.queue_timeout {
                readers.expire(longest, &mut scheduler, status);
            }
        }
    }

    /// Waits a moment for a message, where all that runs waits for its readers.
    fn nap(&self) -> Result<Message<B>, TryRecvError> {
        const NAP: Duration = Duration::from_millis(5);
        self.messages.recv_timeout(NAP).map_err(|error| match error {
            RecvTimeoutError::Timeout => TryRecvError::Empty,
            RecvTimeoutError::Disconnected => TryRecvError::Disconnected,
        })
    }

    fn handle(
        &self,
        message: Message<B>,
        scheduler: &mut Scheduler<'_, B, M>,
        readers: &mut Readers,
        status: &Status,
    ) -> Next {
        match message {
            Message::Add { owner, id, requests, answer, events } => {
                let (requests, about): (Vec<_>, Vec<RequestInfo>) = requests.into_iter().unzip();
                let submitted = scheduler.submit_group(&owner, requests);
                if let Ok(ids) = &submitted {
                    for (at, (&of, about)) in ids.iter().zip(about).enumerate() {
                        let progress = Progress {
                            request: id.clone(),
                            owner: owner.clone(),
                            phase: Phase::Queued,
                            prompt_tokens: about.prompt,
                            generated_tokens: 0,
                        };
                        status.queued(of, progress);
                        readers.add(of, (at, ids[0]), events.clone(), about);
                    }
                }
                if let Err(refusal) = &submitted {
                    status.metrics.refused(refusal);
                }
                if let Err(Ok(ids)) = answer.send(submitted) {
                    // Whoever asked is gone already.
                    ids.into_iter().for_each(|id| readers.cancel(id, scheduler, status));
                }
            }
            Message::Cancel(ids) => {
                ids.into_iter().for_each(|id| readers.cancel(id, scheduler, status));
            }
            Message::End => {
                readers.end(scheduler, status, &stopped());
                status.turn(scheduler, false);
                return Next::End;
            }
        }
        Next::GoOn
    }
}

/// An error of the engine in the words of a client.
pub(crate) fn failed(error: EngineError) -> ApiError {
    match error {
        // Limits of the request that leave no token.
        EngineError::Sampling(_) | EngineError::Grammar(_) => error.into(),
        error => ApiError::internal(error.to_string()),
    }
}
