//! Who runs when: admission, fairness between owners, cancelling. No threads and no clock: whoever drives it calls
//! [`Scheduler::round`] again and again, and may submit and cancel in between.

use std::collections::{BTreeMap, VecDeque};

use burn::tensor::backend::Backend;
use moi_models::CausalLm;

use crate::{Batch, Engine, EngineError, Request, RowError, RowId, Step};

/// Limits of a [`Scheduler`].
#[derive(Clone, Debug)]
pub struct SchedulerOptions {
    /// Sequences that run together at most.
    pub max_running: usize,
    /// Requests that wait at most, of all owners.
    pub max_queued: usize,
    /// Bytes of the keys and values of all that run, with all tokens that they may generate; no limit where `None`. A request
    /// that has no limit of tokens counts with what it has and 256 positions more, and goes on where it comes to more than
    /// was foreseen: others then wait for longer. What is kept of prompts for others that begin alike is not counted.
    pub cache_bytes: Option<usize>,
}

impl Default for SchedulerOptions {
    fn default() -> Self {
        Self { max_running: 64, max_queued: 1024, cache_bytes: None }
    }
}

/// A request of a [`Scheduler`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(u64);

/// Why a request is not taken.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// It is wrong.
    #[error(transparent)]
    Request(#[from] EngineError),
    /// It can never fit, whatever else runs.
    #[error(
        "the request needs {needed} bytes of the cache, which has {budget}; ask for fewer tokens, or give a shorter prompt"
    )]
    TooLarge {
        /// Bytes of its keys and values, with all tokens that it may generate.
        needed: usize,
        /// The limit of all.
        budget: usize,
    },
    /// Too many wait already.
    #[error("{queued} requests wait already; try again later")]
    QueueFull {
        /// How many wait.
        queued: usize,
    },
}

/// What came of a request in a round.
#[derive(Debug)]
pub enum Event {
    /// A token. With a reason to stop in it, it was the last.
    Step(RequestId, Step),
    /// It failed by itself, or with all others; the text that it had held back.
    Failed(RequestId, EngineError, String),
}

/// Positions that a request without a limit of tokens is counted with behind its prompt, to begin with.
const OPEN_ENDED: usize = 256;
/// Tokens by which an owner's turn grows at each visit.
const QUANTUM: usize = 512;
/// Prompt positions that a request seems shorter by for each round that it has waited.
const AGEING: usize = 16;

/// A request that waits.
struct Queued<B: Backend> {
    id: RequestId,
    request: Request<B>,
    prompt: usize,
    /// Positions that it may come to.
    positions: usize,
    waited: usize,
}

/// The requests of an owner that wait, and how many tokens of its turn are left (deficit round robin, Shreedhar and
/// Varghese, 1996).
struct Owner<B: Backend> {
    name: String,
    queue: Vec<Queued<B>>,
    deficit: usize,
}

/// Sequences that run, and requests that wait for their turn.
pub struct Scheduler<'e, B: Backend, M> {
    batch: Batch<'e, B, M>,
    options: SchedulerOptions,
    owners: VecDeque<Owner<B>>,
    running: BTreeMap<RowId, Running>,
    submitted: u64,
}

/// A request that runs.
#[derive(Clone, Copy, Debug)]
struct Running {
    id: RequestId,
    /// Bytes of the cache that are counted for it, and how many positions these are for.
    bytes: usize,
    counted: usize,
    /// Positions that it has.
    positions: usize,
}

impl<'e, B: Backend, M: CausalLm<B>> Scheduler<'e, B, M> {
    /// A scheduler for an engine, which nothing runs in yet.
    pub fn new(engine: &'e Engine<B, M>, options: SchedulerOptions) -> Self {
        let (owners, running) = (VecDeque::new(), BTreeMap::new());
        let options = SchedulerOptions { max_running: options.max_running.max(1), ..options };
        Self { batch: engine.batch(), options, owners, running, submitted: 0 }
    }

    /// Takes a request of an owner, to be run when it is its turn.
    ///
    /// # Errors
    /// If it is wrong, can never fit, or too many wait.
    pub fn submit(&mut self, owner: &str, request: Request<B>) -> Result<RequestId, Refusal> {
        let engine = self.batch.engine();
        let (request, prompt) = self.batch.check(request)?;
        let room = engine.model().context_length().saturating_sub(prompt);
        let positions = prompt + request.stop.max_tokens.unwrap_or(OPEN_ENDED).min(room);
        if let Some(budget) = self.options.cache_bytes {
            let needed = self.bytes_for(positions);
            if needed > budget {
                return Err(Refusal::TooLarge { needed, budget });
            }
        }
        let queued = self.queued();
        if queued >= self.options.max_queued {
            return Err(Refusal::QueueFull { queued });
        }
        self.submitted += 1;
        let id = RequestId(self.submitted);
        let new = Queued { id, request, prompt, positions, waited: 0 };
        match self.owners.iter_mut().find(|known| known.name == owner) {
            Some(known) => known.queue.push(new),
            None => self.owners.push_back(Owner { name: owner.to_owned(), queue: vec![new], deficit: 0 }),
        }
        Ok(id)
    }

    /// Bytes of the cache that a sequence of so many positions comes to.
    fn bytes_for(&self, positions: usize) -> usize {
        let engine = self.batch.engine();
        engine.pool().bytes_for(positions, engine.prefill_chunk())
    }

    /// Requests that wait.
    pub fn queued(&self) -> usize {
        self.owners.iter().map(|owner| owner.queue.len()).sum()
    }

    /// Requests that run.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Whether nothing runs or waits.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.owners.is_empty()
    }

    /// Ends a request, wherever it stands, and disturbs no other: the text that it held back; `None` if there is no such
    /// request any more.
    pub fn cancel(&mut self, id: RequestId) -> Option<String> {
        for owner in &mut self.owners {
            if let Some(at) = owner.queue.iter().position(|queued| queued.id == id) {
                owner.queue.remove(at);
                self.owners.retain(|owner| !owner.queue.is_empty());
                return Some(String::new());
            }
        }
        let row = self.running.iter().find_map(|(&row, running)| (running.id == id).then_some(row))?;
        self.running.remove(&row);
        self.batch.cancel(row)
    }

    /// Admits who fits, and runs the next inputs of all that run and pieces of prompts through the model, once.
    pub fn round(&mut self) -> Vec<Event> {
        let mut events = self.admit();
        match self.batch.round() {
            Ok(steps) => events.extend(steps.into_iter().filter_map(|step| self.event(step))),
            // What all share has failed; those that wait may fare better.
            Err(error) => {
                let (error, mut left) = (error.to_string(), self.batch.take_left());
                for (row, running) in std::mem::take(&mut self.running) {
                    let text =
                        left.iter_mut().find(|(of, _)| *of == row).map(|(_, text)| std::mem::take(text));
                    let error = EngineError::Round(error.clone());
                    events.push(Event::Failed(running.id, error, text.unwrap_or_default()));
                }
            }
        }
        events
    }

    fn event(&mut self, step: Result<Step, RowError>) -> Option<Event> {
        match step {
            Ok(step) => {
                let mut running = self.running.remove(&step.row)?;
                if step.stop.is_none() {
                    running.positions += 1;
                    if running.positions > running.counted {
                        running.counted += OPEN_ENDED;
                        running.bytes = self.bytes_for(running.counted);
                    }
                    self.running.insert(step.row, running);
                }
                Some(Event::Step(running.id, step))
            }
            Err(RowError { row, error, text }) => {
                let running = self.running.remove(&row)?;
                Some(Event::Failed(running.id, error, text))
            }
        }
    }

    /// Lets requests begin as long as there is room: owner after owner, of each the one with the shortest prompt, unless
    /// another one has waited for long.
    fn admit(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        self.owners.iter_mut().flat_map(|owner| &mut owner.queue).for_each(|queued| queued.waited += 1);
        while self.running.len() < self.options.max_running
            && let Some(mut owner) = self.owners.pop_front()
        {
            let shortest = |queued: &Queued<B>| queued.prompt.saturating_sub(AGEING * queued.waited);
            let next =
                (0..owner.queue.len()).min_by_key(|&at| (shortest(&owner.queue[at]), owner.queue[at].id));
            let Some(next) = next else { continue };
            let bytes = self.bytes_for(owner.queue[next].positions);
            let used: usize = self.running.values().map(|running| running.bytes).sum();
            if self.options.cache_bytes.is_some_and(|budget| used + bytes > budget) {
                // Nobody overtakes it, or it might wait for ever.
                self.owners.push_front(owner);
                break;
            }
            let cost = owner.queue[next].positions;
            if owner.deficit < cost && self.owners.is_empty() {
                owner.deficit = cost;
            }
            if owner.deficit < cost {
                owner.deficit += QUANTUM;
                self.owners.push_back(owner);
                continue;
            }
            owner.deficit -= cost;
            let Queued { id, request, prompt, positions, .. } = owner.queue.remove(next);
            match self.batch.add(request) {
                Ok(row) => {
                    self.running.insert(row, Running { id, bytes, counted: positions, positions: prompt });
                }
                Err(error) => events.push(Event::Failed(id, error, String::new())),
            }
            if !owner.queue.is_empty() {
                self.owners.push_front(owner);
            }
        }
        events
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "a failure must end the test")]
mod tests;
