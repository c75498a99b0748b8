//! Answers in the format of OpenAI's completions: choices, whole or in chunks.

use moi_engine::PromptReport;
use serde_json::{Value, json};

use crate::{
    answer::{About, Event, Format, Usage, Whole},
    choice::Piece,
    error::ApiError,
    tokens::TokenNames,
};

/// The differences between choices of chat completions and of text completions.
pub(crate) trait Shape: Send + Sync + 'static {
    /// `object` of a whole answer and of a chunk.
    fn objects(&self) -> [&'static str; 2];

    /// The first chunk of a choice in a stream, if it has one.
    fn opening(&self, choice: usize) -> Option<Value>;

    /// Whether a choice has to wait, because it begins with the report of its prompt, which comes with the prompt's
    /// first choice.
    fn waits(&self, choice: usize) -> bool;

    /// Takes the report of a choice's prompt. Returns what it adds to the choice, if anything.
    fn prompt(&mut self, choice: usize, report: &PromptReport, names: TokenNames<'_>) -> Option<Value>;

    /// What a piece adds to a choice of a stream, without its end.
    fn chunk(&mut self, choice: usize, piece: &Piece, names: TokenNames<'_>) -> Value;

    /// The last chunk of a choice in a stream, without the reason of its end.
    fn closing(&self) -> Value;

    /// Adds a piece to a whole choice.
    fn add(&mut self, choice: usize, piece: &Piece, names: TokenNames<'_>);

    /// A whole choice.
    fn whole(&mut self, choice: usize) -> Value;
}

/// Answers that consist of choices.
pub(crate) struct Chunks<S>(pub(crate) S);

impl<S: Shape> Chunks<S> {
    /// A chunk with one choice.
    fn chunk(&self, about: &About<'_>, at: usize, mut choice: Value) -> Event {
        choice["index"] = json!(at);
        let mut chunk = head(about, self.0.objects()[1], vec![choice]);
        if about.options.plan.continuous_usage {
            chunk["usage"] = usage(about.usage);
        } else if about.options.plan.include_usage {
            chunk["usage"] = Value::Null;
        }
        Event::of(chunk)
    }
}

fn head(about: &About<'_>, object: &str, choices: Vec<Value>) -> Value {
    json!({
        "id": about.options.id,
        "object": object,
        "created": about.created,
        "model": about.options.plan.model,
        "system_fingerprint": FINGERPRINT,
        "choices": choices,
    })
}

fn usage(usage: Usage) -> Value {
    let Usage { prompt, cached, completion, reasoning, accepted, rejected } = usage;
    json!({
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {
            "reasoning_tokens": reasoning,
            "accepted_prediction_tokens": accepted,
            "rejected_prediction_tokens": rejected,
        },
    })
}

/// Identifies the version of the server in all of its answers.
const FINGERPRINT: &str = concat!("moi-", env!("CARGO_PKG_VERSION"));

impl<S: Shape> Format for Chunks<S> {
    fn waits(&self, choice: usize) -> bool {
        self.0.waits(choice)
    }

    fn begin(&mut self, about: &About<'_>) -> Vec<Event> {
        let openings = (0..about.choices).filter_map(|at| Some((at, self.0.opening(at)?)));
        openings.map(|(at, opening)| self.chunk(about, at, opening)).collect()
    }

    fn prompt(&mut self, about: &About<'_>, choice: usize, report: &PromptReport) -> Vec<Event> {
        let added = self.0.prompt(choice, report, about.names);
        added.map(|added| self.chunk(about, choice, added)).into_iter().collect()
    }

    fn piece(&mut self, about: &About<'_>, at: usize, piece: &Piece) -> Vec<Event> {
        let mut events = Vec::new();
        if piece.says() {
            let mut choice = self.0.chunk(at, piece, about.names);
            if let Some(trace) = &piece.trace {
                choice["moi"] = trace.clone();
            }
            if about.options.plan.return_token_ids {
                choice["token_ids"] = piece.tokens.iter().map(|token| token.token).collect();
            }
            events.push(self.chunk(about, at, choice));
        }
        if let Some(end) = &piece.end {
            let mut choice = self.0.closing();
            choice["finish_reason"] = json!(end.finish);
            choice["stop_reason"] = end.stop_reason.clone();
            choice["moi"] = end.moi.clone();
            events.push(self.chunk(about, at, choice));
        }
        events
    }

    fn end(&mut self, about: &About<'_>) -> Vec<Event> {
        if !about.options.plan.include_usage {
            return Vec::new();
        }
        let mut last = head(about, self.0.objects()[1], Vec::new());
        last["usage"] = usage(about.usage);
        vec![Event::of(last)]
    }

    fn error(&mut self, _about: &About<'_>, error: &ApiError) -> Vec<Event> {
        vec![Event::of(error.body())]
    }

    fn closing(&self) -> &'static str {
        "data: [DONE]\n\n"
    }

    fn add(&mut self, about: &About<'_>, choice: usize, piece: &Piece) {
        self.0.add(choice, piece, about.names);
    }

    fn whole(&mut self, about: &About<'_>, wholes: Vec<Whole>) -> Value {
        let plan = &about.options.plan;
        let choice = |(at, whole): (usize, Whole)| {
            let mut choice = self.0.whole(at);
            choice["index"] = json!(at);
            if let Some(mut end) = whole.end {
                choice["finish_reason"] = json!(end.finish);
                choice["stop_reason"] = end.stop_reason;
                if !whole.traces.is_empty() {
                    end.moi["steps"] = Value::Array(whole.traces);
                }
                choice["moi"] = end.moi;
            }
            if plan.return_token_ids {
                choice["token_ids"] = json!(whole.ids);
                choice["prompt_token_ids"] = json!(about.options.prompts[at / plan.per_prompt()]);
            }
            choice
        };
        let choices = wholes.into_iter().enumerate().map(choice).collect();
        let mut answer = head(about, self.0.objects()[0], choices);
        answer["usage"] = usage(about.usage);
        answer
    }
}
