//! The answer to a request for generations: whole, or as a stream of events.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{body::Body, http::Response};
use moi_engine::{PromptReport, TokenEvent};
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

/// How one of the APIs writes an answer.
pub(crate) trait Format: Send + Sync + 'static {
    /// Whether a choice has to wait, because it begins with the report of its prompt, which comes with the prompt's
    /// first choice.
    fn waits(&self, choice: usize) -> bool;

    /// The first events of a stream.
    fn begin(&mut self, about: &About<'_>) -> Vec<Event>;

    /// Takes the report of a choice's prompt. Returns the events that it adds to a stream.
    fn prompt(&mut self, about: &About<'_>, choice: usize, report: &PromptReport) -> Vec<Event>;

    /// The events that a piece adds to a choice of a stream.
    fn piece(&mut self, about: &About<'_>, choice: usize, piece: &Piece) -> Vec<Event>;

    /// The last events of a stream, when all choices have ended.
    fn end(&mut self, about: &About<'_>) -> Vec<Event>;

    /// The last events of a stream that failed.
    fn error(&mut self, about: &About<'_>, error: &ApiError) -> Vec<Event>;

    /// The text that closes every stream.
    fn closing(&self) -> &'static str;

    /// Adds a piece to a choice of a whole answer.
    fn add(&mut self, about: &About<'_>, choice: usize, piece: &Piece);

    /// The whole answer.
    fn whole(&mut self, about: &About<'_>, wholes: Vec<Whole>) -> Value;
}

/// An event of an SSE stream.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Event {
    /// Its name, if the API has names for events.
    pub(crate) name: Option<&'static str>,
    pub(crate) data: Value,
}

impl Event {
    /// An event without a name.
    pub(crate) fn of(data: Value) -> Self {
        Self { name: None, data }
    }

    /// An event with a name, which its data has as `type`.
    pub(crate) fn named(name: &'static str, mut data: Value) -> Self {
        data["type"] = Value::from(name);
        Self { name: Some(name), data }
    }
}

/// What is known of an answer in progress.
pub(crate) struct About<'a> {
    pub(crate) options: &'a AnswerOptions,
    pub(crate) created: u64,
    /// Token counts so far.
    pub(crate) usage: Usage,
    pub(crate) names: TokenNames<'a>,
    pub(crate) choices: usize,
}

/// What a choice of a whole answer has besides its text.
#[derive(Clone, Debug, Default)]
pub(crate) struct Whole {
    pub(crate) end: Option<End>,
    pub(crate) ids: Vec<u32>,
    pub(crate) traces: Vec<Value>,
}

/// Token counts of an answer.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    pub(crate) prompt: usize,
    pub(crate) cached: usize,
    pub(crate) completion: usize,
    pub(crate) reasoning: usize,
    /// Drafted tokens that were accepted, and that were not.
    pub(crate) accepted: usize,
    pub(crate) rejected: usize,
}

/// Settings of an answer.
#[derive(Clone, Debug)]
pub(crate) struct AnswerOptions {
    pub(crate) id: String,
    pub(crate) plan: Plan,
    /// Number of tokens of all prompts.
    pub(crate) prompt_tokens: usize,
    /// The prompts themselves, if the answer includes them.
    pub(crate) prompts: Vec<Vec<u32>>,
    /// Whether only prompts are asked for. The token that the engine generates behind each is then not part of the
    /// answer.
    pub(crate) prompt_only: bool,
    /// How long a stream may be silent before it gets a ping.
    pub(crate) ping: Duration,
    pub(crate) stall_timeout: Duration,
}

/// An answer in progress.
pub(crate) struct Answer<F> {
    loaded: Arc<Loaded>,
    format: F,
    options: AnswerOptions,
    runs: Runs,
    choices: Vec<Choice>,
    /// Events of choices that have to wait: see [`Format::waits`].
    early: VecDeque<(usize, RunEvent)>,
    /// Counts the answer as active, so that the server waits for it.
    _active: Active,
    charge: Charge,
    cached: usize,
    /// Time from the request to the first token.
    first_token: Option<Duration>,
    created: u64,
}

/// The current time in seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

impl<F> Drop for Answer<F> {
    /// Charges and logs the generated tokens, however the answer ended.
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
            accepted: choices.iter().map(|choice| choice.accepted).sum(),
            rejected: choices.iter().map(|choice| choice.drafted - choice.accepted).sum(),
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

    /// Calls the format with what is known of the answer.
    fn tell<T>(&mut self, say: impl FnOnce(&mut F, &About<'_>) -> T) -> T {
        let usage = self.usage();
        let names =
            TokenNames { tokenizer: &self.loaded.model.tokenizer, as_ids: self.options.plan.tokens_as_ids };
        let (created, choices) = (self.created, self.choices.len());
        say(&mut self.format, &About { options: &self.options, created, usage, names, choices })
    }

    fn count_prompt(&mut self, choice: usize, report: &PromptReport) {
        // The prompt has run, so its tokens are not given back to the quota.
        self.charge.prompt = 0;
        if choice.is_multiple_of(self.options.plan.per_prompt()) {
            self.cached += report.reused;
        }
    }

    /// The piece that a token adds to a choice; nothing but the end if only prompts are asked for.
    fn piece(&mut self, at: usize, step: &TokenEvent) -> Piece {
        self.first_token.get_or_insert_with(|| self.charge.caller.record.begun.elapsed());
        let names =
            TokenNames { tokenizer: &self.loaded.model.tokenizer, as_ids: self.options.plan.tokens_as_ids };
        let piece = self.choices[at].step(step, names);
        if self.options.prompt_only { piece.without_token() } else { piece }
    }

    /// The next event of one of the choices; `None` when all have ended.
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

    /// Marks all choices that have not ended as failed.
    fn fail_all(&mut self) {
        self.choices.iter_mut().for_each(|choice| {
            choice.finish.get_or_insert(Finish::Error.name());
        });
    }

    /// Waits for the whole answer.
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
                RunEvent::Token(step) => {
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

    /// The answer as an SSE stream, which ends when its client leaves.
    pub(crate) fn stream(self) -> Response<Body> {
        let (frames, receiver) = frames();
        tokio::spawn(async move {
            let writer = Writer::new(frames, self.options.stall_timeout);
            // `None` means that nobody reads any more. The generations are cancelled when they are dropped.
            let _ = self.write(&writer).await;
        });
        event_stream(receiver)
    }

    async fn write(mut self, writer: &Writer) -> Option<()> {
        let ping = self.options.ping;
        let first = self.tell(|format, about| format.begin(about));
        writer.send(&first).await?;
        loop {
            // The time counts from the last write, because tokens whose text is held back write nothing.
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
                Ok(Some((at, RunEvent::Token(step)))) => {
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

/// The error message for a request that the server has cancelled.
const GIVEN_UP: &str = "the request was given up: the server stops, or its answer was not read in time";
