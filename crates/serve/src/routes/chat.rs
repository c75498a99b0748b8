//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::{body::Body, http::Response};
use bytes::Bytes;
use moi_engine::PromptReport;
use serde_json::{Value, json};

use super::{Asked, answered};
use crate::{
    choice::Piece,
    chunks::{Chunks, Shape},
    conversation,
    error::ApiError,
    job::{Job, JobPrompt},
    json::{self, Ignored},
    knobs::Knobs,
    model::Loaded,
    parts::PartParser,
    plan::{MAX_LOGPROBS, Plan},
    server::{Caller, Server},
    tokens::TokenNames,
    tools::{CallDelta, Calls, grammar},
    wire::{chat::Chat, generation::Generation},
};

/// Answers a conversation.
pub(crate) async fn chat(
    server: Arc<Server>,
    caller: Caller,
    body: Bytes,
) -> Result<Response<Body>, ApiError> {
    answered(&server, caller, (body.len(), &[]), move |server| read(&body, server)).await
}

fn read(body: &[u8], server: &Server) -> Result<Asked<Chunks<ChatShape>>, ApiError> {
    let loaded = server.loaded()?;
    let mut ignored = Ignored::default();
    let generation: Generation = json::parse(body, &mut ignored)?;
    let chat: Chat = json::parse(body, &mut ignored)?;
    let knobs: Knobs = json::parse(body, &mut Ignored::default())?;
    ignored.known(knobs.fields());
    refuse_unsupported(&chat)?;
    let top = chat.top_logprobs.unwrap_or(0) as usize;
    let logprobs = chat.logprobs.unwrap_or(false);
    if chat.top_logprobs.is_some_and(|top| top > 0) && !logprobs {
        return Err(ApiError::value("top_logprobs", "`top_logprobs` needs `logprobs: true`"));
    }
    if top > MAX_LOGPROBS {
        let message = format!("`top_logprobs` is {top}, and at most {MAX_LOGPROBS}");
        return Err(ApiError::value("top_logprobs", message));
    }
    let plan = Plan::new(&generation, &knobs, &loaded, None)?.with_logprobs(if logprobs { top } else { 0 });
    if plan.max_tokens() == Some(0) {
        return Err(ApiError::value("max_tokens", "max_tokens must be 1 or more, got 0"));
    }
    let (plan, jobs, parser) = generations(&chat, plan, &loaded, server)?;
    let (messages, thought_fields) =
        (vec![Message::default(); jobs.len()], server.options.thought_fields.clone());
    let format = Chunks(ChatShape { messages, logprobs, thought_fields });
    let parsers = vec![parser];
    Ok(Asked { id: "chatcmpl-", plan, jobs, parsers, format, prompt_only: false, ignored })
}

/// The generations that answer a conversation, and the parser of their parts.
///
/// # Errors
/// If the conversation or its tools are not allowed.
pub(crate) fn generations(
    chat: &Chat,
    plan: Plan,
    loaded: &Loaded,
    server: &Server,
) -> Result<(Plan, Vec<Job>, PartParser), ApiError> {
    let (prompt, tools) = conversation::prompt(chat, loaded, server.options.trust_request_templates)?;
    super::check_length(prompt.len(), loaded, "messages")?;
    let mut shown = loaded.shown();
    let plan = match &tools {
        Some(tools) => {
            shown.extend(tools.tokens.iter().map(|(_, token)| *token));
            let grammar = grammar(tools, plan.grammar())?;
            plan.following("tools", grammar)
        }
        None => plan,
    };
    let plan = plan.showing(shown);
    let parser = PartParser::new(loaded.thoughts(&prompt), Calls::new(tools));
    let jobs = plan.jobs(vec![JobPrompt::Ids(prompt)], None, loaded.model.context_length)?;
    Ok((plan, jobs, parser))
}

/// Refuses fields that are known but not implemented, and that would change the answer.
fn refuse_unsupported(chat: &Chat) -> Result<(), ApiError> {
    let given = [
        ("audio", chat.audio.is_some()),
        ("web_search_options", chat.web_search_options.is_some()),
        ("prediction", chat.prediction.is_some()),
        ("functions", chat.functions.is_some()),
        ("function_call", chat.function_call.is_some()),
    ];
    if let Some((name, _)) = given.into_iter().find(|(_, given)| *given) {
        return Err(ApiError::unsupported(name, format!("`{name}` is not supported")));
    }
    if let Some(modality) = chat.modalities.iter().flatten().find(|modality| *modality != "text") {
        let message = format!("`modalities`: `{modality}` is not supported, text alone is");
        return Err(ApiError::unsupported("modalities", message));
    }
    Ok(())
}

/// The content of a choice so far.
#[derive(Clone, Debug, Default)]
struct Message {
    content: String,
    thoughts: String,
    calls: Vec<Call>,
    tokens: Vec<Value>,
}

/// A call of a function.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) id: String,
    pub(crate) name: String,
    /// The arguments as JSON.
    pub(crate) arguments: String,
}

impl Call {
    /// Adds a delta to the calls.
    pub(crate) fn add(all: &mut Vec<Self>, delta: &CallDelta) {
        if let Some((id, name)) = &delta.begins {
            all.push(Self { id: id.clone(), name: name.clone(), arguments: String::new() });
        }
        if let Some(call) = all.get_mut(delta.index) {
            call.arguments += &delta.arguments;
        }
    }
}

/// The deltas of calls, as a chunk of a stream has them.
fn call_deltas(deltas: &[CallDelta]) -> Value {
    let delta = |delta: &CallDelta| match &delta.begins {
        Some((id, name)) => {
            let function = json!({"name": name, "arguments": delta.arguments});
            json!({"index": delta.index, "id": id, "type": "function", "function": function})
        }
        None => json!({"index": delta.index, "function": {"arguments": delta.arguments}}),
    };
    deltas.iter().map(delta).collect()
}

pub(crate) struct ChatShape {
    messages: Vec<Message>,
    logprobs: bool,
    /// The field names of thoughts.
    thought_fields: Vec<&'static str>,
}

impl Shape for ChatShape {
    fn objects(&self) -> [&'static str; 2] {
        ["chat.completion", "chat.completion.chunk"]
    }

    fn opening(&self, _choice: usize) -> Option<Value> {
        let delta = json!({"role": "assistant", "content": ""});
        Some(json!({"delta": delta, "logprobs": null, "finish_reason": null}))
    }

    fn waits(&self, _choice: usize) -> bool {
        false
    }

    fn prompt(&mut self, _choice: usize, _report: &PromptReport, _names: TokenNames<'_>) -> Option<Value> {
        None
    }

    fn chunk(&mut self, _choice: usize, piece: &Piece, names: TokenNames<'_>) -> Value {
        let mut delta = json!({});
        if !piece.thought.is_empty() {
            self.thought_fields.iter().for_each(|&field| delta[field] = json!(piece.thought));
        }
        if !piece.calls.is_empty() {
            delta["tool_calls"] = call_deltas(&piece.calls);
        }
        if !piece.answer.is_empty() || (piece.thought.is_empty() && piece.calls.is_empty()) {
            delta["content"] = json!(piece.answer);
        }
        let tokens = || piece.tokens.iter().map(|token| names.chat(token)).collect::<Vec<_>>();
        let logprobs = if self.logprobs { json!({"content": tokens()}) } else { Value::Null };
        json!({"delta": delta, "logprobs": logprobs, "finish_reason": null})
    }

    fn closing(&self) -> Value {
        json!({"delta": {}, "logprobs": null})
    }

    fn add(&mut self, choice: usize, piece: &Piece, names: TokenNames<'_>) {
        let message = &mut self.messages[choice];
        message.content += &piece.answer;
        message.thoughts += &piece.thought;
        piece.calls.iter().for_each(|delta| Call::add(&mut message.calls, delta));
        if self.logprobs {
            message.tokens.extend(piece.tokens.iter().map(|token| names.chat(token)));
        }
    }

    fn whole(&mut self, choice: usize) -> Value {
        let Message { content, thoughts, calls, tokens } = std::mem::take(&mut self.messages[choice]);
        let mut message = json!({"role": "assistant", "content": content});
        if !calls.is_empty() {
            if content.is_empty() {
                message["content"] = Value::Null;
            }
            let call = |call: Call| {
                let function = json!({"name": call.name, "arguments": call.arguments});
                json!({"id": call.id, "type": "function", "function": function})
            };
            message["tool_calls"] = calls.into_iter().map(call).collect();
        }
        if !thoughts.is_empty() {
            self.thought_fields.iter().for_each(|&field| message[field] = json!(thoughts));
        }
        let logprobs = if self.logprobs { json!({"content": tokens}) } else { Value::Null };
        json!({"message": message, "logprobs": logprobs})
    }
}
