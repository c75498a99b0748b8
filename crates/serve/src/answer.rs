//! The answer to a request for generations: whole, or as a stream of events.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{body::Body, http::Response};
use moi_engine::{PromptReport, Step};
use serde_json::Value;

use crate::{
    choice::{Choice, End, Piece},
    error::ApiError,
    events::{Writer, event_stream, frames},
    log::Served,
    metrics::Finish,
    model::Loaded,
    plan::Plan,
    server::{Active, Charge},
    tokens::TokenNames,
    worker::{RunEvent, Runs},
};

/// How an answer is written by one of the APIs.
pub(crate) trait Format: Send + Sync + 'static {
    /// Whether what a choice begins with is known only with the report of its prompt's first choice.
    fn waits(&self, choice: usize) -> bool;

    /// What a stream begins with.
    fn begin(&mut self, about: &About<'_>) -> Vec<Event>;

    /// What the prompt of a choice adds to a stream, or to the whole.
    fn prompt(&mut self, about: &About<'_>, choice: usize, report: &PromptReport) -> Vec<Event>;

    /// What a piece adds to a choice of a stream.
    fn piece(&mut self, about: &About<'_>, choice: usize, piece: &Piece) -> Vec<Event>;

    /// What a stream ends with when all choices have ended.
    fn end(&mut self, about: &About<'_>) -> Vec<Event>;

    /// What a stream ends with that failed.
    fn error(&mut self, about: &About<'_>, error: &ApiError) -> Vec<Event>;

    /// The last text of every stream.
    fn closing(&self) -> &'static str;

    /// Adds a piece to a whole choice.
    fn add(&mut self, about: &About<'_>, choice: usize, piece: &Piece);

    /// The whole answer.
    fn whole(&mut self, about: &About<'_>, wholes: Vec<Whole>) -> Value;
}

/// An event of a stream.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Event {
    /// What it is called, where the API has names for events.
    pub(crate) name: Option<&'static str>,
    pub(crate) data: Value,
}

impl Event {
    /// One without a name.
    pub(crate) fn of(data: Value) -> Self {
        Self { name: None, data }
    }

    /// One whose data has its name as its `type`.
    pub(crate) fn named(name: &'static str, mut data: Value) -> Self {
        data["type"] = Value::from(name);
        Self { name: Some(name), data }
    }
}

/// What is known of an answer under way.
pub(crate) struct About<'a> {
    pub(crate) options: &'a AnswerOptions,
    pub(crate) created: u64,
    /// So far.
    pub(crate) usage: Usage,
    pub(crate) names: TokenNames<'a>,
    pub(crate) choices: usize,
}

/// What a whole choice has beside its text.
#[derive(Clone, Debug, Default)]
pub(crate) struct Whole {
    pub(crate) end: Option<End>,
    pub(crate) ids: Vec<u32>,
    pub(crate) traces: Vec<Value>,
}

/// What is counted of an answer.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    pub(crate) prompt: usize,
    pub(crate) cached: usize,
    pub(crate) completion: usize,
    pub(crate) reasoning: usize,
}

/// How an answer is told.
#[derive(Clone, Debug)]
pub(crate) struct AnswerOptions {
    pub(crate) id: String,
    pub(crate) plan: Plan,
    /// Tokens of all prompts.
    pub(crate) prompt_tokens: usize,
    /// The prompts themselves, where they are to be told.
    pub(crate) prompts: Vec<Vec<u32>>,
    /// Whether tokens that are generated are none of the answer: one is where a prompt is scored alone.
    pub(crate) prompt_only: bool,
    /// How long a stream may be silent.
    pub(crate) ping: Duration,
    pub(crate) stall_timeout: Duration,
}

/// An answer under way.
pub(crate) struct Answer<F> {
    loaded: Arc<Loaded>,
    format: F,
    options: AnswerOptions,
    runs: Runs,
    choices: Vec<Choice>,
    /// Events of choices that wait for what they begin with.
    early: VecDeque<(usize, RunEvent)>,
    /// As long as it is there the server waits for it.
    _active: Active,
    charge: Charge,
    cached: usize,
    /// How long the first token took.
    first_token: Option<Duration>,
    created: u64,
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

impl<F> Drop for Answer<F> {
    /// However it ended, what was generated was used.
    fn drop(&mut self) {
        self.charge.add(self.choices.iter().map(|choice| choice.generated).sum());
        let usage = self.usage();
        let mut finish: Vec<&str> =
            self.choices.iter().map(|choice| choice.finish.unwrap_or(Finish::Abort.name())).collect();
        finish.sort_unstable();
        finish.dedup();
        let served = Served {
            prompt_tokens: usage.prompt,
            cached_tokens: usage.cached,
            completion_tokens: usage.completion,
            first_token: self.first_token.filter(|_| !self.options.prompt_only),
            finish,
        };
        self.charge.caller.record.note(|line| line.served = Some(served));
    }
}

impl<F> Answer<F> {
    fn usage(&self) -> Usage {
        let choices: &[Choice] = if self.options.prompt_only { &[] } else { &self.choices };
        Usage {
            prompt: self.options.prompt_tokens,
            cached: self.cached,
            completion: choices.iter().map(|choice| choice.generated).sum(),
            reasoning: choices.iter().map(|choice| choice.reasoning).sum(),
        }
    }
}

impl<F: Format> Answer<F> {
    pub(crate) fn new(
        (loaded, active, charge): (Arc<Loaded>, Active, Charge),
        format: F,
        options: AnswerOptions,
        runs: Runs,
        choices: Vec<Choice>,
    ) -> Self {
        let (early, created) = (VecDeque::new(), now());
        Self {
            loaded,
            format,
            options,
            runs,
            choices,
            early,
            _active: active,
            charge,
            cached: 0,
            first_token: None,
            created,
        }
    }

    /// Has the format say something of the answer.
    fn tell<T>(&mut self, say: impl FnOnce(&mut F, &About<'_>) -> T) -> T {
        let usage = self.usage();
        let names =
            TokenNames { tokenizer: &self.loaded.model.tokenizer, as_ids: self.options.plan.tokens_as_ids };
        let (created, choices) = (self.created, self.choices.len());
        say(&mut self.format, &About { options: &self.options, created, usage, names, choices })
    }

    fn count_prompt(&mut self, choice: usize, report: &PromptReport) {
        // What has run is used.
        self.charge.prompt = 0;
        if choice.is_multiple_of(self.options.plan.per_prompt()) {
            self.cached += report.reused;
        }
    }

    /// What a step adds to a choice: where a prompt alone is asked for, nothing but the end.
    fn piece(&mut self, at: usize, step: &Step) -> Piece {
        self.first_token.get_or_insert_with(|| self.charge.caller.record.begun.elapsed());
        let names =
            TokenNames { tokenizer: &self.loaded.model.tokenizer, as_ids: self.options.plan.tokens_as_ids };
        let piece = self.choices[at].step(step, names);
        if self.options.prompt_only { piece.without_token() } else { piece }
    }

    /// The next event of one of the choices; none when all have ended.
    async fn next(&mut self) -> Result<Option<(usize, RunEvent)>, ApiError> {
        if self.choices.iter().all(|choice| choice.finish.is_some()) {
            return Ok(None);
        }
        let is_due = |(at, _): &(usize, RunEvent)| !self.format.waits(*at);
        if let Some(at) = self.early.iter().position(is_due) {
            return Ok(self.early.remove(at));
        }
        loop {
            match self.runs.events.recv().await {
                Some((at, event)) if self.format.waits(at) => self.early.push_back((at, event)),
                Some(event) => return Ok(Some(event)),
                None => {
                    self.fail_all();
                    return Err(ApiError::unavailable(GIVEN_UP));
                }
            }
        }
    }

    /// What has not ended has failed.
    fn fail_all(&mut self) {
        self.choices.iter_mut().for_each(|choice| {
            choice.finish.get_or_insert(Finish::Error.name());
        });
    }

    /// The whole answer.
    ///
    /// # Errors
    /// If a generation failed.
    pub(crate) async fn whole(mut self) -> Result<Value, ApiError> {
        let mut wholes = vec![Whole::default(); self.choices.len()];
        while let Some((at, event)) = self.next().await? {
            match event {
                RunEvent::Prompt(report) => {
                    self.count_prompt(at, &report);
                    self.tell(|format, about| format.prompt(about, at, &report));
                }
                RunEvent::Step(step) => {
                    let piece = self.piece(at, &step);
                    if !self.options.prompt_only {
                        wholes[at].ids.push(step.token);
                        self.tell(|format, about| format.add(about, at, &piece));
                    }
                    wholes[at].traces.extend(piece.trace);
                    wholes[at].end = piece.end.or(wholes[at].end.take());
                }
                RunEvent::Failed(error, _) => {
                    self.fail_all();
                    return Err(error);
                }
            }
        }
        Ok(self.tell(|format, about| format.whole(about, wholes)))
    }

    /// The answer as a stream of events, which ends by itself when its client leaves.
    pub(crate) fn stream(self) -> Response<Body> {
        let (frames, receiver) = frames();
        tokio::spawn(async move {
            let writer = Writer::new(frames, self.options.stall_timeout);
            // None where nobody reads any more; the generations are cancelled as they are dropped.
            let _ = self.write(&writer).await;
        });
        event_stream(receiver)
    }

    async fn write(mut self, writer: &Writer) -> Option<()> {
        let ping = self.options.ping;
        let first = self.tell(|format, about| format.begin(about));
        writer.send(&first).await?;
        loop {
            // Tokens whose text is held back break no silence.
            let silent = tokio::time::sleep_until(writer.wrote() + ping);
            let next = tokio::select! {
                next = self.next() => next,
                () = writer.closed() => return None,
                () = silent => {
                    writer.comment().await?;
                    continue;
                }
            };
            let (events, is_last) = match next {
                Ok(Some((at, RunEvent::Prompt(report)))) => {
                    self.count_prompt(at, &report);
                    (self.tell(|format, about| format.prompt(about, at, &report)), false)
                }
                Ok(Some((at, RunEvent::Step(step)))) => {
                    let piece = self.piece(at, &step);
                    (self.tell(|format, about| format.piece(about, at, &piece)), false)
                }
                Ok(Some((at, RunEvent::Failed(error, text)))) => {
                    let piece = self.choices[at].fail(&text);
                    let mut events = self.tell(|format, about| format.piece(about, at, &piece));
                    events.extend(self.tell(|format, about| format.error(about, &error)));
                    (events, true)
                }
                Ok(None) => (self.tell(|format, about| format.end(about)), true),
                Err(error) => (self.tell(|format, about| format.error(about, &error)), true),
            };
            writer.send(&events).await?;
            if is_last {
                break;
            }
        }
        writer.text(self.format.closing()).await
    }
}

/// What a client is told whose request was cancelled by the server.
const GIVEN_UP: &str = "the request was given up: the server stops, or its answer was not read in time";
