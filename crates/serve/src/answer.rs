//! The answer to a request for generations: whole, or as a stream of events.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{body::Body, http::Response};
use moi_engine::{PromptReport, Step};
use serde_json::{Value, json};

use crate::{
    choice::{Choice, Piece},
    error::ApiError,
    events::{Writer, event_stream, frames},
    model::Loaded,
    plan::Plan,
    server::Active,
    tokens::TokenNames,
    worker::{RunEvent, Runs},
};

/// What tells one kind of answer from another.
pub(crate) trait Shape: Send + Sync + 'static {
    /// `object` of a whole answer and of a chunk.
    fn objects(&self) -> [&'static str; 2];

    /// What a choice begins with in a stream, if it begins with anything.
    fn opening(&self, choice: usize) -> Option<Value>;

    /// Whether what a choice begins with is known only with the report of its prompt's first choice.
    fn waits(&self, choice: usize) -> bool;

    /// What the prompt adds to a choice, where it does.
    fn prompt(&mut self, choice: usize, report: &PromptReport, names: TokenNames<'_>) -> Option<Value>;

    /// What a piece adds to a choice of a stream, without its end.
    fn chunk(&mut self, choice: usize, piece: &Piece, names: TokenNames<'_>) -> Value;

    /// What the end of a choice looks like in a stream.
    fn closing(&self) -> Value;

    /// Adds a piece to a whole choice.
    fn add(&mut self, choice: usize, piece: &Piece, names: TokenNames<'_>);

    /// A whole choice.
    fn whole(&mut self, choice: usize) -> Value;
}

/// What is counted of an answer.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    pub(crate) prompt: usize,
    pub(crate) cached: usize,
    pub(crate) completion: usize,
    pub(crate) reasoning: usize,
}

impl Usage {
    fn json(self) -> Value {
        let Self { prompt, cached, completion, reasoning } = self;
        json!({
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": cached},
            "completion_tokens_details": {"reasoning_tokens": reasoning},
        })
    }
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
pub(crate) struct Answer<S> {
    pub(crate) loaded: Arc<Loaded>,
    pub(crate) shape: S,
    pub(crate) options: AnswerOptions,
    pub(crate) runs: Runs,
    pub(crate) choices: Vec<Choice>,
    /// Events of choices that wait for what they begin with.
    early: VecDeque<(usize, RunEvent)>,
    /// As long as it is there the server waits for it.
    _active: Active,
    cached: usize,
    created: u64,
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

impl<S: Shape> Answer<S> {
    pub(crate) fn new(
        (loaded, active): (Arc<Loaded>, Active),
        shape: S,
        options: AnswerOptions,
        runs: Runs,
        choices: Vec<Choice>,
    ) -> Self {
        Self {
            loaded,
            shape,
            options,
            runs,
            choices,
            early: VecDeque::new(),
            _active: active,
            cached: 0,
            created: now(),
        }
    }

    fn names(loaded: &Loaded, as_ids: bool) -> TokenNames<'_> {
        TokenNames { tokenizer: &loaded.model.tokenizer, as_ids }
    }

    fn usage(&self) -> Usage {
        let choices: &[Choice] = if self.options.prompt_only { &[] } else { &self.choices };
        Usage {
            prompt: self.options.prompt_tokens,
            cached: self.cached,
            completion: choices.iter().map(|choice| choice.generated).sum(),
            reasoning: choices.iter().map(|choice| choice.reasoning).sum(),
        }
    }

    fn head(&self, object: &str, choices: Vec<Value>) -> Value {
        json!({
            "id": self.options.id,
            "object": object,
            "created": self.created,
            "model": self.options.plan.model,
            "system_fingerprint": FINGERPRINT,
            "choices": choices,
        })
    }

    fn count_prompt(&mut self, choice: usize, report: &PromptReport) {
        if choice.is_multiple_of(self.options.plan.per_prompt()) {
            self.cached += report.reused;
        }
    }

    /// What a step adds to a choice: where a prompt alone is asked for, nothing but the end.
    fn piece(&mut self, at: usize, step: &Step, names: TokenNames<'_>) -> Piece {
        let piece = self.choices[at].step(step, names);
        if self.options.prompt_only { piece.without_token() } else { piece }
    }

    /// The next event of one of the choices; none when all have ended.
    async fn next(&mut self) -> Result<Option<(usize, RunEvent)>, ApiError> {
        if self.choices.iter().all(|choice| choice.has_ended) {
            return Ok(None);
        }
        let is_due = |(at, _): &(usize, RunEvent)| !self.shape.waits(*at);
        if let Some(at) = self.early.iter().position(is_due) {
            return Ok(self.early.remove(at));
        }
        loop {
            match self.runs.events.recv().await {
                Some((at, event)) if self.shape.waits(at) => self.early.push_back((at, event)),
                Some(event) => return Ok(Some(event)),
                None => return Err(ApiError::unavailable(GIVEN_UP)),
            }
        }
    }

    /// The whole answer.
    ///
    /// # Errors
    /// If a generation failed.
    pub(crate) async fn whole(mut self) -> Result<Value, ApiError> {
        let loaded = Arc::clone(&self.loaded);
        let names = Self::names(&loaded, self.options.plan.tokens_as_ids);
        let mut ends = vec![None; self.choices.len()];
        let mut ids: Vec<Vec<u32>> = vec![Vec::new(); self.choices.len()];
        let mut traces: Vec<Vec<Value>> = vec![Vec::new(); self.choices.len()];
        while let Some((at, event)) = self.next().await? {
            match event {
                RunEvent::Prompt(report) => {
                    self.count_prompt(at, &report);
                    self.shape.prompt(at, &report, names);
                }
                RunEvent::Step(step) => {
                    let piece = self.piece(at, &step, names);
                    if !self.options.prompt_only {
                        ids[at].push(step.token);
                        self.shape.add(at, &piece, names);
                    }
                    traces[at].extend(piece.trace);
                    ends[at] = piece.end.or(ends[at].take());
                }
                RunEvent::Failed(error, _) => return Err(error),
            }
        }
        let mut choices = Vec::with_capacity(self.choices.len());
        for (at, end) in ends.into_iter().enumerate() {
            let mut choice = self.shape.whole(at);
            choice["index"] = json!(at);
            if let Some(mut end) = end {
                choice["finish_reason"] = json!(end.finish);
                choice["stop_reason"] = end.stop_reason;
                if !traces[at].is_empty() {
                    end.moi["steps"] = Value::Array(std::mem::take(&mut traces[at]));
                }
                choice["moi"] = end.moi;
            }
            if self.options.plan.return_token_ids {
                choice["token_ids"] = json!(ids[at]);
                choice["prompt_token_ids"] = json!(self.options.prompts[at / self.options.plan.per_prompt()]);
            }
            choices.push(choice);
        }
        let mut answer = self.head(self.shape.objects()[0], choices);
        answer["usage"] = self.usage().json();
        Ok(answer)
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
        let loaded = Arc::clone(&self.loaded);
        let (names, ping) = (Self::names(&loaded, self.options.plan.tokens_as_ids), self.options.ping);
        for at in 0..self.choices.len() {
            if let Some(opening) = self.shape.opening(at) {
                writer.send(&self.chunk(at, opening)).await?;
            }
        }
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
            match next {
                Ok(Some((at, RunEvent::Prompt(report)))) => {
                    self.count_prompt(at, &report);
                    if let Some(added) = self.shape.prompt(at, &report, names) {
                        writer.send(&self.chunk(at, added)).await?;
                    }
                }
                Ok(Some((at, RunEvent::Step(step)))) => {
                    let piece = self.piece(at, &step, names);
                    self.write_piece(at, &piece, names, writer).await?;
                }
                Ok(Some((at, RunEvent::Failed(error, text)))) => {
                    let piece = self.choices[at].fail(&text);
                    self.write_piece(at, &piece, names, writer).await?;
                    writer.send(&error.body()).await?;
                    break;
                }
                Ok(None) => {
                    if self.options.plan.include_usage {
                        let mut last = self.head(self.shape.objects()[1], Vec::new());
                        last["usage"] = self.usage().json();
                        writer.send(&last).await?;
                    }
                    break;
                }
                Err(error) => {
                    writer.send(&error.body()).await?;
                    break;
                }
            }
        }
        writer.text("data: [DONE]\n\n").await
    }

    async fn write_piece(
        &mut self,
        at: usize,
        piece: &Piece,
        names: TokenNames<'_>,
        writer: &Writer,
    ) -> Option<()> {
        let says = !piece.thought.is_empty() || !piece.answer.is_empty() || !piece.tokens.is_empty();
        if says {
            let mut choice = self.shape.chunk(at, piece, names);
            if let Some(trace) = &piece.trace {
                choice["moi"] = trace.clone();
            }
            if self.options.plan.return_token_ids {
                choice["token_ids"] = piece.tokens.iter().map(|token| token.token).collect();
            }
            writer.send(&self.chunk(at, choice)).await?;
        }
        if let Some(end) = &piece.end {
            let mut choice = self.shape.closing();
            choice["finish_reason"] = json!(end.finish);
            choice["stop_reason"] = end.stop_reason.clone();
            choice["moi"] = end.moi.clone();
            writer.send(&self.chunk(at, choice)).await?;
        }
        Some(())
    }

    /// A chunk with one choice.
    fn chunk(&self, at: usize, mut choice: Value) -> Value {
        choice["index"] = json!(at);
        let mut chunk = self.head(self.shape.objects()[1], vec![choice]);
        if self.options.plan.continuous_usage {
            chunk["usage"] = self.usage().json();
        } else if self.options.plan.include_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }
}

/// What a client is told whose request was cancelled by the server.
const GIVEN_UP: &str = "the request was given up: the server stops, or its answer was not read in time";

/// What the answers of one version of the server have in common.
const FINGERPRINT: &str = concat!("moi-", env!("CARGO_PKG_VERSION"));
