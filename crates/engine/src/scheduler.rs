//! Decides which request runs when: admission, fairness between owners, cancelling. The scheduler has no threads and
//! no clock: its caller calls [`Scheduler::round`] again and again, and may submit and cancel in between.

use std::{collections::BTreeMap, sync::Arc};

use burn::tensor::backend::Backend;
use moi_models::{CausalLm, is_gpu};

use self::queue::{Queue, Queued};
use crate::{
    Batch, Engine, EngineError, PreparedRequest, PromptReport, Request, SequenceError, SequenceId, TokenEvent,
};

/// Limits of a [`Scheduler`].
///
/// # Examples
/// ```
/// use moi_engine::SchedulerOptions;
///
/// // Eight sequences at a time, whose keys and values take 64 MiB at most.
/// let options = SchedulerOptions { max_running: 8, cache_bytes: Some(64 << 20), ..SchedulerOptions::default() };
/// assert_eq!((options.max_queued, options.foreseen_tokens), (1024, 256));
/// ```
#[derive(Clone, Debug)]
pub struct SchedulerOptions {
    /// The most sequences that run together.
    pub max_running: usize,
    /// The most requests that wait, of all owners.
    pub max_queued: usize,
    /// The most prompt tokens of all waiting requests. A request is accepted whatever its length if no other one
    /// waits.
    pub max_queued_tokens: usize,
    /// Bytes of the keys and values of all running requests; `None` is no limit. A request counts with its prompt and
    /// [`Self::foreseen_tokens`]. If requests need more than there is, those that came last are parked until there is
    /// room again: keys and values of a GPU are copied to the host and back, those of the CPU are dropped and
    /// computed again from the stored inputs, mixtures included. The request that came first always continues. The
    /// prefix cache is not counted.
    pub cache_bytes: Option<usize>,
    /// Tokens that a request is expected to generate, if it may generate that many; whenever it reaches them, as many
    /// are added. With the largest number no request is ever parked, and fewer run together.
    pub foreseen_tokens: usize,
}

impl Default for SchedulerOptions {
    fn default() -> Self {
        Self {
            max_running: 64,
            max_queued: 1024,
            max_queued_tokens: usize::MAX,
            cache_bytes: None,
            foreseen_tokens: 256,
        }
    }
}

/// Identifies a request of a [`Scheduler`].
///
/// # Examples
/// ```
/// use moi_engine::{Engine, Prompt, Request, Scheduler, SchedulerOptions};
/// # use moi_models::Architecture;
/// # let config = serde_json::json!({
/// #     "model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
/// #     "num_hidden_layers": 2, "num_attention_heads": 4,
/// # });
/// # let device = Default::default();
/// # let model = Architecture::from_config(&config)?.config.init::<burn_flex::Flex>(&device);
/// let engine = Engine::new(model, device);
/// let mut scheduler = Scheduler::new(&engine, SchedulerOptions::default());
/// let first = scheduler.submit("ann", Request::new(Prompt::Ids(vec![1, 2, 3])))?;
/// let second = scheduler.submit("ben", Request::new(Prompt::Ids(vec![4, 5])))?;
/// assert!(first < second);
/// assert!(scheduler.cancel(second).is_some());
/// assert_eq!(scheduler.queued(), 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(u64);

/// Why a request is refused.
///
/// # Examples
/// ```
/// use moi_engine::{Engine, Prompt, Refusal, Request, Scheduler, SchedulerOptions};
/// # use moi_models::Architecture;
/// # let config = serde_json::json!({
/// #     "model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
/// #     "num_hidden_layers": 2, "num_attention_heads": 4,
/// # });
/// # let device = Default::default();
/// # let model = Architecture::from_config(&config)?.config.init::<burn_flex::Flex>(&device);
/// let engine = Engine::new(model, device);
/// let options = SchedulerOptions { max_queued: 1, ..SchedulerOptions::default() };
/// let mut scheduler = Scheduler::new(&engine, options);
/// scheduler.submit("ann", Request::new(Prompt::Ids(vec![1, 2, 3])))?;
/// let refused = scheduler.submit("ben", Request::new(Prompt::Ids(vec![4, 5])));
/// assert!(matches!(refused, Err(Refusal::QueueFull { queued: 1, tokens: 3 })));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The request is invalid.
    #[error(transparent)]
    Request(#[from] EngineError),
    /// The request can never fit, whatever else runs.
    #[error(
        "the request needs {needed} bytes of key/value cache, but the limit is {budget}; ask for fewer tokens, or give a shorter prompt"
    )]
    TooLarge {
        /// Bytes of its keys and values, with all tokens that it may generate.
        needed: usize,
        /// The limit for all requests together.
        budget: usize,
    },
    /// The group has more generations, or more prompt tokens, than may ever wait.
    #[error(
        "the request is of {asked} generations with {tokens} tokens in their prompts, more than may wait at once; ask for \
         fewer at a time"
    )]
    TooMany {
        /// Number of its generations.
        asked: usize,
        /// Tokens of their prompts.
        tokens: usize,
    },
    /// Too many requests wait already.
    #[error("{queued} requests with {tokens} tokens in their prompts wait already; try again later")]
    QueueFull {
        /// How many wait.
        queued: usize,
        /// Tokens of their prompts.
        tokens: usize,
    },
}

/// What happened to a request in a round.
///
/// # Examples
/// ```
/// use moi_engine::{Engine, Event, Prompt, Request, Scheduler, SchedulerOptions};
/// # use moi_models::Architecture;
/// # let config = serde_json::json!({
/// #     "model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
/// #     "num_hidden_layers": 2, "num_attention_heads": 4,
/// # });
/// # let device = Default::default();
/// # let model = Architecture::from_config(&config)?.config.init::<burn_flex::Flex>(&device);
/// let engine = Engine::new(model, device);
/// let mut scheduler = Scheduler::new(&engine, SchedulerOptions::default());
/// let id = scheduler.submit("ann", Request::new(Prompt::Ids(vec![1, 2, 3])))?;
/// let events = scheduler.round();
/// assert!(matches!(events[0], Event::Admitted(admitted) if admitted == id));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub enum Event {
    /// The request takes part from now on.
    Admitted(RequestId),
    /// The request's prompt has run.
    Prompt(RequestId, PromptReport),
    /// The request got a token. If the event has a reason to stop, the token is its last.
    Token(RequestId, TokenEvent),
    /// The request failed, by itself or with all others; the text is what it had held back.
    Failed(RequestId, EngineError, String),
}

/// Positions that are launched before a request that needs more room can be parked, besides those of its drafts.
const AHEAD: usize = 2;

/// Sequences that run, and requests that wait for their turn.
///
/// # Examples
/// ```
/// use moi_engine::{Engine, Event, Prompt, Request, Scheduler, SchedulerOptions};
/// # use moi_models::Architecture;
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let config = serde_json::json!({
/// #     "model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
/// #     "num_hidden_layers": 2, "num_attention_heads": 4,
/// # });
/// # let device = Default::default();
/// # let model = Architecture::from_config(&config)?.config.init::<burn_flex::Flex>(&device);
/// let engine = Engine::new(model, device);
/// let options = SchedulerOptions { max_running: 8, ..SchedulerOptions::default() };
/// let mut scheduler = Scheduler::new(&engine, options);
/// for owner in ["ann", "ben"] {
///     let mut request = Request::new(Prompt::Ids(vec![1, 2, 3]));
///     request.stop.max_tokens = Some(2);
///     scheduler.submit(owner, request)?;
/// }
/// let mut tokens = 0;
/// while !scheduler.is_idle() {
///     for event in scheduler.round() {
///         match event {
///             Event::Token(..) => tokens += 1,
///             Event::Failed(_, error, _) => return Err(error.into()),
///             Event::Admitted(_) | Event::Prompt(..) => {}
///         }
///     }
/// }
/// assert_eq!(tokens, 4);
/// # Ok(())
/// # }
/// ```
pub struct Scheduler<'e, B: Backend, M> {
    batch: Batch<'e, B, M>,
    options: SchedulerOptions,
    queue: Queue<B>,
    running: BTreeMap<SequenceId, Running>,
    submitted: u64,
    preempted: usize,
}

/// A request that runs.
#[derive(Clone, Copy, Debug)]
struct Running {
    id: RequestId,
    /// Bytes of the cache that are counted for it, the number of positions that they are for, and the most positions
    /// that it may reach.
    bytes: usize,
    counted: usize,
    limit: usize,
    /// Positions that it has.
    positions: usize,
    /// Positions of drafts that a pass may run for it.
    drafts: usize,
    /// Whether it is parked, or about to be.
    is_parked: bool,
    /// Whether it is paused until its output is read.
    is_paused: bool,
}

impl Running {
    fn is_active(&self) -> bool {
        !self.is_parked && !self.is_paused
    }
}

impl<'e, B: Backend, M: CausalLm<B>> Scheduler<'e, B, M> {
    /// A scheduler for an engine, with nothing running yet.
    pub fn new(engine: &'e Engine<B, M>, options: SchedulerOptions) -> Self {
        let (queue, running) = (Queue::new(), BTreeMap::new());
        let options = SchedulerOptions { max_running: options.max_running.max(1), ..options };
        // Keys and values of the CPU are in the host's memory already, so copying them there would gain nothing, and
        // inputs are kept instead. Inputs are not enough where keys and values depend on the length of the sequence
        // when they were computed, or where states depend on the pieces in which they were computed.
        let model = engine.model();
        let inputs_determine_cache =
            model.shares_prefixes() && !model.has_states() && model.recompute_beyond().is_none();
        let replays = !is_gpu::<B>() && inputs_determine_cache;
        let mut batch = match options.cache_bytes {
            Some(_) if replays => Batch::replaying(engine),
            _ => engine.batch(),
        };
        batch.reports_prompts = true;
        Self { batch, options, queue, running, submitted: 0, preempted: 0 }
    }

    /// Takes a request of an owner, to be run when it is its turn.
    ///
    /// # Errors
    /// If it is invalid, can never fit, or too many requests wait.
    pub fn submit(&mut self, owner: &str, request: Request<B>) -> Result<RequestId, Refusal> {
        let request = self.batch.engine().prepare(request)?;
        self.submit_prepared(owner, request)
    }

    /// Like [`Scheduler::submit`], for a request that was prepared before, on this or another thread: see
    /// [`Engine::prepare`].
    ///
    /// # Errors
    /// If another engine has prepared it, it can never fit, or too many requests wait.
    pub fn submit_prepared(
        &mut self,
        owner: &str,
        request: PreparedRequest<B>,
    ) -> Result<RequestId, Refusal> {
        let submitted = self.submit_group(owner, vec![request])?;
        Ok(submitted[0])
    }

    /// Takes several requests of an owner, all or none of them.
    ///
    /// # Errors
    /// As [`Scheduler::submit_prepared`], if one is refused.
    pub fn submit_group(
        &mut self,
        owner: &str,
        requests: Vec<PreparedRequest<B>>,
    ) -> Result<Vec<RequestId>, Refusal> {
        let new =
            requests.into_iter().map(|request| self.queueable(request)).collect::<Result<Vec<_>, _>>()?;
        let (queued, tokens) = (self.queued(), self.queued_tokens());
        let more: usize = new.iter().map(|new| new.prompt).sum();
        let (asked, options) = (new.len(), &self.options);
        if asked > 1 && (asked > options.max_queued || more > options.max_queued_tokens) {
            return Err(Refusal::TooMany { asked, tokens: more });
        }
        let is_long = queued > 0 && tokens.saturating_add(more) > self.options.max_queued_tokens;
        if queued + new.len() > self.options.max_queued || is_long {
            return Err(Refusal::QueueFull { queued, tokens });
        }
        Ok(new.into_iter().map(|new| self.enqueue(owner, new)).collect())
    }

    /// Computes what a request counts with, and refuses it if it can never run.
    fn queueable(&self, request: PreparedRequest<B>) -> Result<Queued<B>, Refusal> {
        self.batch.engine().owns(&request)?;
        let prompt = request.prompt_positions();
        let room = self.batch.engine().model().context_length().saturating_sub(prompt);
        let tokens = request.stop().max_tokens;
        let (limit, foreseen) = (prompt + tokens.unwrap_or(room).min(room), self.options.foreseen_tokens);
        let counted = prompt.saturating_add(foreseen).min(limit);
        if let Some(budget) = self.options.cache_bytes {
            let most = if tokens.is_some() { limit } else { counted };
            let needed = self.bytes_for(most + request.drafts());
            if needed > budget {
                return Err(Refusal::TooLarge { needed, budget });
            }
        }
        Ok(Queued { id: RequestId(0), request, prompt, counted, limit, waited: 0 })
    }

    fn enqueue(&mut self, owner: &str, new: Queued<B>) -> RequestId {
        self.submitted += 1;
        let id = RequestId(self.submitted);
        self.queue.push(owner, Queued { id, ..new });
        id
    }

    /// Number of waiting requests.
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Tokens of the prompts of requests that wait.
    pub fn queued_tokens(&self) -> usize {
        self.queue.tokens()
    }

    /// Number of running requests, including paused ones.
    pub fn running(&self) -> usize {
        self.running.len() - self.parked()
    }

    /// Number of requests that take part in rounds: neither parked nor paused.
    pub fn active(&self) -> usize {
        self.running.values().filter(|running| running.is_active()).count()
    }

    /// Bytes of the cache that are counted for running requests, out of [`SchedulerOptions::cache_bytes`].
    pub fn cache_bytes_in_use(&self) -> usize {
        self.used()
    }

    /// Pauses a request whose output nobody reads: it keeps its KV cache and waits for [`Scheduler::resume_paused`].
    /// A step that is already being computed is still reported. Returns whether the request runs and was not paused
    /// before.
    pub fn pause(&mut self, id: RequestId) -> bool {
        let running = self.running.iter_mut().find(|(_, running)| running.id == id && !running.is_paused);
        let Some((&row, running)) = running else { return false };
        running.is_paused = true;
        if !running.is_parked {
            self.batch.pause(row);
        }
        true
    }

    /// Lets a paused request go on.
    pub fn resume_paused(&mut self, id: RequestId) -> Option<Event> {
        let (&row, running) = self.running.iter_mut().find(|(_, running)| running.id == id)?;
        if !std::mem::take(&mut running.is_paused) || running.is_parked {
            return None;
        }
        let SequenceError { error, text, .. } = self.batch.unpark(row).err()?;
        self.running.remove(&row);
        Some(Event::Failed(id, error, text))
    }

    /// Number of requests that had begun and are parked until there is room for them again.
    pub fn parked(&self) -> usize {
        self.running.values().filter(|running| running.is_parked).count()
    }

    /// How often a request was parked for others, so far.
    pub fn preemptions(&self) -> usize {
        self.preempted
    }

    /// Prompt positions that were already cached, of all requests so far.
    pub fn reused_positions(&self) -> usize {
        self.batch.reused_positions()
    }

    /// Whether nothing runs or waits.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.queue.is_empty()
    }

    /// Ends a request in any stage, without effect on the others. Returns the text that it held back; `None` if there
    /// is no such request any more.
    pub fn cancel(&mut self, id: RequestId) -> Option<String> {
        if self.queue.remove(id) {
            return Some(String::new());
        }
        let row = self.running.iter().find_map(|(&row, running)| (running.id == id).then_some(row))?;
        self.running.remove(&row);
        self.batch.cancel(row)
    }

    /// Admits the requests that fit, then runs the next inputs of all running requests and pieces of prompts through
    /// the model, once.
    pub fn round(&mut self) -> Vec<Event> {
        self.preempt();
        let mut events = self.resume();
        events.extend(self.admit().into_iter().map(Event::Admitted));
        let ran = self.batch.round();
        for (row, report) in std::mem::take(&mut self.batch.prompts) {
            events.extend(self.running.get(&row).map(|running| Event::Prompt(running.id, report)));
        }
        match ran {
            Ok(steps) => events.extend(steps.into_iter().filter_map(|step| self.event(step))),
            // The round failed as a whole. Requests that wait or are parked took no part in it.
            Err(error) => {
                let (error, left) = (Arc::new(error), self.batch.take_left());
                let batch = &self.batch;
                for (row, running) in self.running.extract_if(.., |row, _| !batch.has(*row)) {
                    let text: String =
                        left.iter().filter(|(of, _)| *of == row).map(|(_, text)| text.as_str()).collect();
                    let error = EngineError::Round(Arc::clone(&error));
                    events.push(Event::Failed(running.id, error, text));
                }
            }
        }
        events
    }

    fn event(&mut self, step: Result<TokenEvent, SequenceError>) -> Option<Event> {
        match step {
            Ok(step) => {
                let mut running = self.running.remove(&step.row)?;
                if step.stop.is_none() {
                    running.positions += 1;
                    let ahead = AHEAD + running.drafts;
                    if running.positions + ahead > running.counted && running.counted < running.limit {
                        let more = self.options.foreseen_tokens.max(ahead);
                        running.counted = (running.counted + more).min(running.limit);
                        running.bytes = self.bytes_for(running.counted + running.drafts);
                    }
                    self.running.insert(step.row, running);
                }
                Some(Event::Token(running.id, step))
            }
            Err(SequenceError { row, error, text }) => {
                let running = self.running.remove(&row)?;
                Some(Event::Failed(running.id, error, text))
            }
        }
    }

    /// Lets requests begin as long as there is room.
    fn admit(&mut self) -> Vec<RequestId> {
        let mut admitted = Vec::new();
        self.queue.age();
        // Paused requests do not keep others out, unless there are very many.
        while self.running.values().filter(|running| !running.is_paused).count() < self.options.max_running
            && self.running.len() < self.options.max_running.saturating_mul(2)
            && let Some(positions) = self.queue.next().map(|next| next.counted + next.request.drafts())
        {
            let bytes = self.bytes_for(positions);
            self.make_room(bytes);
            let used = self.used();
            let waits = self.running.values().any(|running| running.is_parked && !running.is_paused);
            if waits || self.options.cache_bytes.is_some_and(|budget| used + bytes > budget) {
                // No other request overtakes the next one, because it might otherwise wait for ever.
                break;
            }
            let Some(Queued { id, request, prompt, counted, limit, .. }) = self.queue.take() else { break };
            let drafts = request.drafts();
            let row = self.batch.join(request);
            let (positions, is_parked, is_paused) = (prompt, false, false);
            let new = Running { id, bytes, counted, limit, positions, drafts, is_parked, is_paused };
            self.running.insert(row, new);
            admitted.push(id);
        }
        admitted
    }
}

mod memory;
mod queue;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "a failure must end the test")]
mod tests;
