//! A generation as its client reads it: parts of its text, with the tokens of these parts.

use moi_engine::{InputRule, StopReason, StoppedBy, TokenEvent};
use serde_json::{Value, json};

use crate::{
    metrics::Finish,
    parts::{PartParser, Parts},
    tokens::{TokenLogprob, TokenNames, logprob},
    tools::CallDelta,
};

/// What one or a few steps add to an answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Piece {
    pub(crate) thought: String,
    pub(crate) answer: String,
    pub(crate) calls: Vec<CallDelta>,
    /// The tokens of these parts.
    pub(crate) tokens: Vec<TokenLogprob>,
    /// The step itself, if steps are traced.
    pub(crate) trace: Option<Value>,
    /// How the answer ended, if it did.
    pub(crate) end: Option<End>,
}

impl Piece {
    /// Whether the piece has anything besides an end.
    pub(crate) fn says(&self) -> bool {
        let Self { thought, answer, calls, tokens, .. } = self;
        !thought.is_empty() || !answer.is_empty() || !calls.is_empty() || !tokens.is_empty()
    }

    /// Only the end, for an answer that consists of a prompt: the generated token is not part of it.
    pub(crate) fn without_token(self) -> Self {
        let end = self.end.map(|_| End { finish: "length", stop_reason: Value::Null, moi: Value::Null });
        Self { end, ..Self::default() }
    }
}

/// How an answer ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct End {
    pub(crate) finish: &'static str,
    /// The stop string or token, as vLLM has it.
    pub(crate) stop_reason: Value,
    /// Fields of this server that others do not have.
    pub(crate) moi: Value,
}

/// A generation in progress.
#[derive(Clone, Debug)]
pub(crate) struct Choice {
    parser: PartParser,
    rule: InputRule,
    seed: u64,
    traces: bool,
    /// Tokens whose text has not been given out yet.
    held: Vec<TokenLogprob>,
    /// Number of tokens so far, and of thought tokens among them.
    pub(crate) generated: usize,
    pub(crate) reasoning: usize,
    /// Number of drafted tokens so far, and of accepted ones.
    pub(crate) drafted: usize,
    pub(crate) accepted: usize,
    /// Sums over all tokens so far.
    entropy: f64,
    gate: f64,
    /// Why it ended, if it did.
    pub(crate) finish: Option<&'static str>,
}

impl Choice {
    pub(crate) fn new(parser: PartParser, rule: InputRule, seed: u64, traces: bool) -> Self {
        Self {
            parser,
            rule,
            seed,
            traces,
            held: Vec::new(),
            generated: 0,
            reasoning: 0,
            drafted: 0,
            accepted: 0,
            entropy: 0.0,
            gate: 0.0,
            finish: None,
        }
    }

    /// Takes a token. The piece is empty if the text that it adds is not certain yet.
    pub(crate) fn step(&mut self, step: &TokenEvent, names: TokenNames<'_>) -> Piece {
        self.held.push(TokenLogprob {
            token: step.token,
            logprob: Some(step.logprob),
            likeliest: step.likeliest.clone(),
        });
        let trace = self.traces.then(|| trace(step, self.generated, names));
        self.generated += 1;
        self.reasoning += usize::from(step.thinking);
        if let Some(speculated) = &step.speculated {
            self.drafted += speculated.tree.as_ref().map_or(0, |tree| tree.drafted());
            self.accepted += usize::from(speculated.accepted);
        }
        self.entropy += f64::from(step.entropy);
        self.gate += f64::from(step.gate);
        let parts = self.parser.push(&step.text, step.stop.is_some());
        let end = step.stop.map(|stop| self.end(stop, step.stopped_by.as_ref()));
        self.finish = end.as_ref().map(|end| end.finish);
        let is_due = trace.is_some() || end.is_some() || parts != Parts::default();
        let tokens = if is_due { std::mem::take(&mut self.held) } else { Vec::new() };
        let Parts { thought, answer, calls } = parts;
        Piece { thought, answer, calls, tokens, trace, end }
    }

    /// The last piece of a generation that failed, with the text that it had held back.
    pub(crate) fn fail(&mut self, text: &str) -> Piece {
        self.finish = Some(Finish::Error.name());
        let Parts { thought, answer, calls } = self.parser.push(text, true);
        let tokens = std::mem::take(&mut self.held);
        Piece { thought, answer, calls, tokens, ..Piece::default() }
    }

    fn end(&self, stop: StopReason, by: Option<&StoppedBy>) -> End {
        let stop_reason = match by {
            Some(StoppedBy::String(text)) => json!(text),
            Some(StoppedBy::Token(token)) => json!(token),
            None => Value::Null,
        };
        let count = self.generated.max(1) as f64;
        let moi = json!({
            "rule": self.rule.spec(),
            "support": self.rule.support().to_string(),
            "seed": self.seed,
            "mean_entropy": self.entropy / count,
            "mean_gate": self.gate / count,
            "ended_by": stop,
        });
        let finish = match Finish::of(stop).name() {
            "stop" if self.parser.has_calls() => "tool_calls",
            finish => finish,
        };
        End { finish, stop_reason, moi }
    }
}

/// A step with its mixture, as JSON.
fn trace(step: &TokenEvent, at: usize, names: TokenNames<'_>) -> Value {
    let top = step.top.iter().map(|&(token, weight)| json!([token, names.name(token), weight]));
    let likeliest = step.likeliest.iter().map(|&(token, of)| json!([token, names.name(token), logprob(of)]));
    let mut trace = json!({
        "i": at,
        "token": step.token,
        "text": names.name(step.token),
        "logprob": logprob(step.logprob),
        "entropy": step.entropy,
        "gate": step.gate,
        "top": top.collect::<Vec<_>>(),
    });
    if !step.likeliest.is_empty() {
        trace["likeliest"] = likeliest.collect();
    }
    trace
}
