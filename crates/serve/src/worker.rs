//! The thread that owns the engine's rounds: requests come as messages, and their events leave through bounded
//! channels.
//!
//! HTTP threads prepare requests, which is independent of rounds, and then send `Add` or `Cancel`. A request whose
//! channel is full is paused, and it is cancelled if its reader does not read for long. No lock is held during a
//! round.

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
    SchedulerOptions, TokenEvent,
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

/// How many events of a request may wait for its reader before the request is paused.
const EVENTS: usize = 64;

/// An event of a generation.
#[derive(Debug)]
pub(crate) enum RunEvent {
    /// Its prompt has run.
    Prompt(PromptReport),
    /// A token. It is the last one if it has a reason to stop.
    Token(TokenEvent),
    /// The generation failed, with this error; the text is what it had held back.
    Failed(ApiError, String),
}

/// The generations of one HTTP request. Those that have not ended are cancelled when this is dropped.
pub(crate) struct Runs {
    /// The events of each generation, with its index among the jobs.
    pub(crate) events: mpsc::Receiver<(usize, RunEvent)>,
    ids: Vec<RequestId>,
    cancel: Cancel,
}

impl Drop for Runs {
    fn drop(&mut self) {
        // Generations that have ended are not known any more, and cancelling them does nothing.
        (self.cancel)(std::mem::take(&mut self.ids));
    }
}

impl fmt::Debug for Runs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Runs({:?})", self.ids)
    }
}

/// What HTTP threads need of an engine.
pub(crate) trait Service: Send + Sync {
    /// Checks jobs, which may take long, so it must not be called where others wait.
    fn prepare(&self, caller: &Caller, jobs: Vec<Job>) -> Result<Prepared, ApiError>;

    /// Makes all generations that have not ended fail, and refuses new ones.
    fn end(&self);
}

/// Jobs that were checked and can be sent to the engine.
pub(crate) struct Prepared(Box<dyn FnOnce() -> Submitted + Send>);

type Submitted =
    (oneshot::Receiver<Result<Vec<RequestId>, Refusal>>, mpsc::Receiver<(usize, RunEvent)>, Cancel);
type Cancel = Box<dyn Fn(Vec<RequestId>) + Send + Sync>;

impl Prepared {
    /// Queues the jobs, all or none of them.
    ///
    /// # Errors
    /// If they can never fit, or too many requests wait.
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

/// A message to the engine's thread.
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
    /// Makes all generations that have not ended fail, and ends the thread.
    End,
}

/// Sends messages to the engine's thread.
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
        // If the thread has ended, all that could be cancelled has ended, too.
        let cancel: Cancel = Box::new(move |ids| {
            let _ = cancelling.send(Message::Cancel(ids));
        });
        Ok(Prepared(Box::new(move || {
            let (answer, answered) = oneshot::channel();
            let (events, receiver) = mpsc::channel(EVENTS * requests.len());
            // If the thread has ended, the sender of the answer is dropped with the message.
            let _ = messages.send(Message::Add { owner, id, requests, answer, events });
            (answered, receiver, cancel)
        })))
    }

    fn end(&self) {
        // If the thread has ended, nothing is left to do.
        let _ = self.messages.send(Message::End);
    }
}

/// Options of the engine's thread.
#[derive(Clone, Debug)]
pub(crate) struct WorkerOptions {
    pub(crate) scheduler: SchedulerOptions,
    /// How long a request may wait for its reader.
    pub(crate) stall_timeout: Duration,
    /// How long a request may wait for its turn.
    pub(crate) queue_timeout: Option<Duration>,
}

/// The engine's thread before it runs.
pub(crate) struct Worker<B: Backend, M> {
    engine: Arc<Engine<B, M>>,
    messages: Receiver<Message<B>>,
}

/// The two sides of an engine: the client for HTTP threads, and the worker for the engine's thread.
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
    /// Runs rounds until the thread is told to end, or until all clients are gone.
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
                let tokens = events.iter().filter(|event| matches!(event, Event::Token(..))).count();
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

    /// Waits a moment for a message, while everything that runs waits for its readers.
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
                    // The client that asked is gone already.
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

/// Converts an error of the engine into an error for clients.
pub(crate) fn failed(error: EngineError) -> ApiError {
    match error {
        // These are limits of the request that leave no token to sample.
        EngineError::Sampling(_) | EngineError::Grammar(_) => error.into(),
        error => ApiError::internal(error.to_string()),
    }
}
