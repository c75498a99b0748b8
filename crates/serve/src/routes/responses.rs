//! `POST /v1/responses`, OpenAI's newer API. Nothing is stored: each request has the whole conversation.

use std::sync::Arc;

use axum::{body::Body, http::Response};
use bytes::Bytes;
use moi_engine::PromptReport;
use serde_json::{Value, json};

use super::{Asked, answered, chat::Call, new_id};
use crate::{
    answer::{About, Event, Format, Whole},
    blocks::{Block, Blocks, Change},
    choice::{End, Piece},
    error::ApiError,
    json::{self, Ignored},
    knobs::Knobs,
    plan::Plan,
    server::{Caller, Server},
    wire::{
        chat::{Chat, ChatMessage, FunctionCall, FunctionDefinition, Tool, ToolCall},
        generation::{Generation, ResponseFormat},
        responses::{Item, Responses, ResponsesTool},
        unions::{Content, TextOr},
    },
};

/// Answers a conversation.
pub(crate) async fn responses(
    server: Arc<Server>,
    caller: Caller,
    body: Bytes,
) -> Result<Response<Body>, ApiError> {
    answered(&server, caller, body.len(), move |server| read(&body, server)).await
}

fn read(body: &[u8], server: &Server) -> Result<Asked<ResponseShape>, ApiError> {
    let loaded = server.loaded()?;
    let mut ignored = Ignored::default();
    let mut generation: Generation = json::parse(body, &mut ignored)?;
    let asked: Responses = json::parse(body, &mut ignored)?;
    let mut echo: Echo = json::parse(body, &mut Ignored::default())?;
    // Of what is very long nothing is repeated.
    echo.0.retain(|name, value| REPEATED.contains(&name.as_str()) && value.to_string().len() <= MAX_REPEATED);
    let knobs: Knobs = json::parse(body, &mut Ignored::default())?;
    ignored.known(knobs.fields());
    refuse_unsupported(&asked)?;
    generation.max_tokens = asked.max_output_tokens.or(generation.max_tokens);
    if generation.max_tokens == Some(0) {
        return Err(ApiError::value("max_output_tokens", "max_output_tokens must be 1 or more, got 0"));
    }
    if let Some(format) = asked.text.as_ref().and_then(|text| text.format.clone()) {
        let json_schema = (format.kind == "json_schema").then_some(format.schema);
        generation.response_format = Some(ResponseFormat { kind: format.kind, json_schema });
    }
    let plan = Plan::new(&generation, &knobs, &loaded, None)?.single()?;
    let chat = chat(asked)?;
    let (plan, jobs, parser) = super::chat::generations(&chat, plan, &loaded, server)?;
    let format = ResponseShape { echo, blocks: Blocks::default(), ids: Vec::new(), end: None, sequence: 0 };
    Ok(Asked { id: "resp_", plan, jobs, parsers: vec![parser], format, prompt_only: false, ignored })
}

/// Fields of a request that a response repeats.
const REPEATED: &[&str] = &[
    "instructions",
    "max_output_tokens",
    "metadata",
    "parallel_tool_calls",
    "reasoning",
    "temperature",
    "text",
    "tool_choice",
    "tools",
    "top_p",
];
/// Bytes of a field that is repeated.
const MAX_REPEATED: usize = 64 << 10;

/// What would need a store, or a host's own tools.
fn refuse_unsupported(asked: &Responses) -> Result<(), ApiError> {
    let given = [
        ("previous_response_id", asked.previous_response_id.is_some()),
        ("conversation", asked.conversation.is_some()),
        ("prompt", asked.prompt.is_some()),
        ("background", asked.background == Some(true)),
    ];
    if let Some((name, _)) = given.into_iter().find(|(_, given)| *given) {
        return Err(ApiError::unsupported(
            name,
            format!("`{name}` is not supported: nothing is stored here"),
        ));
    }
    if asked.top_logprobs.is_some_and(|top| top > 0) {
        let message = "`top_logprobs` is not supported here; /v1/chat/completions lists log-probabilities";
        return Err(ApiError::unsupported("top_logprobs", message));
    }
    if let Some(listed) = asked.include.iter().flatten().find(|name| name.contains("logprobs")) {
        return Err(ApiError::unsupported("include", format!("`include`: `{listed}` is not supported")));
    }
    match asked.truncation.as_deref() {
        None | Some("disabled") => Ok(()),
        Some(other) => {
            let message = format!(
                "`truncation` is `{other}`, and must be disabled: nothing of a conversation is left out"
            );
            Err(ApiError::unsupported("truncation", message))
        }
    }
}

/// The same conversation in the words of chat completions.
fn chat(asked: Responses) -> Result<Chat, ApiError> {
    let mut all = Vec::new();
    let plain = |role: &str, text: String| ChatMessage {
        role: role.to_owned(),
        content: Some(Content::Text(text)),
        ..ChatMessage::default()
    };
    if let Some(instructions) = asked.instructions {
        all.push(plain("system", instructions));
    }
    match asked.input {
        None => return Err(ApiError::value("input", "`input` is missing")),
        Some(TextOr::Text(text)) => all.push(plain("user", text)),
        Some(TextOr::Parts(items)) => {
            for (at, item) in items.into_iter().enumerate() {
                add_item(item, &format!("input[{at}]"), &mut all)?;
            }
        }
    }
    // Thoughts behind which nothing was said.
    all.retain(|message| message.content.is_some() || message.tool_calls.is_some());
    let tool = |(at, tool): (usize, ResponsesTool)| {
        let ResponsesTool { kind, name, description, parameters, strict } = tool;
        let function = match kind.as_str() {
            "function" => {
                let param = format!("tools[{at}].name");
                let missing = || ApiError::value(&param, format!("{param} is missing"));
                // The chat API names a function's fields within `function`.
                Some(FunctionDefinition { name: name.ok_or_else(missing)?, description, parameters, strict })
            }
            _ => None,
        };
        Ok(Tool { kind, function })
    };
    let tools = asked.tools.unwrap_or_default().into_iter().enumerate().map(tool);
    Ok(Chat {
        messages: all,
        tools: Some(tools.collect::<Result<_, ApiError>>()?),
        tool_choice: asked.tool_choice,
        parallel_tool_calls: asked.parallel_tool_calls,
        chat_template_kwargs: asked.chat_template_kwargs,
        reasoning_effort: asked.reasoning.and_then(|reasoning| reasoning.effort),
        ..Chat::default()
    })
}

/// Adds an item: what an assistant thought, said and called in a row is one message.
fn add_item(item: Item, param: &str, all: &mut Vec<ChatMessage>) -> Result<(), ApiError> {
    let kind = item.kind.clone().unwrap_or_else(|| "message".to_owned());
    let is_open = |message: &&mut ChatMessage| message.role == "assistant";
    let assistant = || ChatMessage { role: "assistant".to_owned(), ..ChatMessage::default() };
    let missing =
        |field: &str| ApiError::value(format!("{param}.{field}"), format!("{param}.{field} is missing"));
    match kind.as_str() {
        "message" => {
            let role = item.role.ok_or_else(|| missing("role"))?;
            let content = item.content.ok_or_else(|| missing("content"))?;
            match all.last_mut().filter(|last| role == "assistant" && is_open(last) && last.content.is_none())
            {
                Some(last) => last.content = Some(content),
                None => all.push(ChatMessage { role, content: Some(content), ..ChatMessage::default() }),
            }
        }
        "reasoning" => {
            let thoughts = match item.content {
                Some(TextOr::Text(text)) => text,
                Some(TextOr::Parts(parts)) => parts.into_iter().filter_map(|part| part.text).collect(),
                None => String::new(),
            };
            if !thoughts.is_empty() {
                all.push(ChatMessage { reasoning_content: Some(thoughts), ..assistant() });
            }
        }
        "function_call" => {
            let name = item.name.ok_or_else(|| missing("name"))?;
            let function = FunctionCall { name, arguments: item.arguments.map(Value::String) };
            let call = ToolCall { id: item.call_id, function, _kind: None, _index: None };
            if !all.last_mut().is_some_and(|last| is_open(&last)) {
                all.push(assistant());
            }
            if let Some(last) = all.last_mut() {
                last.tool_calls.get_or_insert_default().push(call);
            }
        }
        "function_call_output" => {
            let content = Some(item.output.ok_or_else(|| missing("output"))?);
            let role = "tool".to_owned();
            all.push(ChatMessage { role, content, tool_call_id: item.call_id, ..ChatMessage::default() });
        }
        kind => {
            let param = format!("{param}.type");
            return Err(ApiError::unsupported(
                &param,
                format!("{param} is `{kind}`, which is not supported"),
            ));
        }
    }
    Ok(())
}

/// A request as it was sent.
#[derive(Debug, serde::Deserialize)]
struct Echo(serde_json::Map<String, Value>);

/// An answer as a response with items.
#[derive(Debug)]
struct ResponseShape {
    /// Fields of the request that a response repeats.
    echo: Echo,
    blocks: Blocks,
    /// Of the items.
    ids: Vec<String>,
    end: Option<End>,
    /// Events so far.
    sequence: usize,
}

impl ResponseShape {
    /// The item that a block is, with its text or without.
    fn item(&self, at: usize, is_whole: bool) -> Value {
        let is_cut = self.status() == "incomplete" && at + 1 == self.blocks.all.len();
        let status = match is_whole {
            true if is_cut => "incomplete",
            true => "completed",
            false => "in_progress",
        };
        let id = &self.ids[at];
        match &self.blocks.all[at] {
            Block::Thought(text) => {
                let content =
                    if is_whole { json!([{"type": "reasoning_text", "text": text}]) } else { json!([]) };
                json!({"type": "reasoning", "id": id, "summary": [], "content": content, "status": status})
            }
            Block::Text(text) => {
                let content = if is_whole { json!([part(text)]) } else { json!([]) };
                json!({"type": "message", "id": id, "role": "assistant", "status": status, "content": content})
            }
            Block::Call(Call { id: call_id, name, arguments }) => {
                let arguments = if is_whole { arguments.as_str() } else { "" };
                json!({
                    "type": "function_call", "id": id, "call_id": call_id, "name": name, "arguments": arguments,
                    "status": status,
                })
            }
        }
    }

    /// Gives new blocks their ids.
    fn name_items(&mut self) {
        for block in &self.blocks.all[self.ids.len()..] {
            let prefix = match block {
                Block::Thought(_) => "rs_",
                Block::Text(_) => "msg_",
                Block::Call(_) => "fc_",
            };
            self.ids.push(new_id(prefix));
        }
    }

    fn response(&self, about: &About<'_>, status: &str, error: Value) -> Value {
        let is_over = status != "in_progress";
        let output: Value = match is_over {
            true => (0..self.blocks.all.len()).map(|at| self.item(at, true)).collect(),
            false => json!([]),
        };
        let of = |name: &str, default: Value| match self.echo.0.get(name) {
            Some(value) if !value.is_null() => value.clone(),
            _ => default,
        };
        let usage = about.usage;
        let counts = json!({
            "input_tokens": usage.prompt,
            "input_tokens_details": {"cached_tokens": usage.cached},
            "output_tokens": usage.completion,
            "output_tokens_details": {"reasoning_tokens": usage.reasoning},
            "total_tokens": usage.prompt + usage.completion,
        });
        json!({
            "id": about.options.id,
            "object": "response",
            "created_at": about.created,
            "status": status,
            "error": error,
            "incomplete_details": if status == "incomplete" { json!({"reason": "max_output_tokens"}) } else { Value::Null },
            "instructions": of("instructions", Value::Null),
            "max_output_tokens": of("max_output_tokens", Value::Null),
            "metadata": of("metadata", json!({})),
            "model": about.options.plan.model,
            "output": output,
            "parallel_tool_calls": of("parallel_tool_calls", json!(true)),
            "previous_response_id": null,
            "reasoning": of("reasoning", json!({"effort": null, "summary": null})),
            "store": false,
            "temperature": of("temperature", Value::Null),
            "text": of("text", json!({"format": {"type": "text"}})),
            "tool_choice": of("tool_choice", json!("auto")),
            "tools": of("tools", json!([])),
            "top_p": of("top_p", Value::Null),
            "truncation": "disabled",
            "usage": if is_over { counts } else { Value::Null },
            "moi": self.end.as_ref().map_or(Value::Null, |end| end.moi.clone()),
        })
    }

    /// The status of an answer that came to its end.
    fn status(&self) -> &'static str {
        let is_cut = self.end.as_ref().is_some_and(|end| end.finish == "length");
        if is_cut { "incomplete" } else { "completed" }
    }

    fn event(&mut self, name: &'static str, mut data: Value) -> Event {
        data["sequence_number"] = json!(self.sequence);
        self.sequence += 1;
        Event::named(name, data)
    }

    fn change(&mut self, at: usize, change: Change) -> Vec<Event> {
        let id = self.ids[at].clone();
        let place = || json!({"item_id": id, "output_index": at, "content_index": 0});
        let with = |mut place: Value, key: &str, value: Value| {
            place[key] = value;
            place
        };
        let kind = std::mem::discriminant(&self.blocks.all[at]);
        let is_text = kind == std::mem::discriminant(&Block::Text(String::new()));
        let is_thought = kind == std::mem::discriminant(&Block::Thought(String::new()));
        match change {
            Change::Begins => {
                let item = self.item(at, false);
                let added =
                    self.event("response.output_item.added", json!({"output_index": at, "item": item}));
                let mut events = vec![added];
                if is_text {
                    events.push(self.event("response.content_part.added", with(place(), "part", part(""))));
                }
                events
            }
            Change::Grows(text) if is_thought => {
                vec![self.event("response.reasoning_text.delta", with(place(), "delta", json!(text)))]
            }
            Change::Grows(text) if is_text => {
                let delta = with(with(place(), "delta", json!(text)), "logprobs", json!([]));
                vec![self.event("response.output_text.delta", delta)]
            }
            Change::Grows(text) => {
                let delta = json!({"item_id": id, "output_index": at, "delta": text});
                vec![self.event("response.function_call_arguments.delta", delta)]
            }
            Change::Ends => {
                let mut events = match self.blocks.all[at].clone() {
                    Block::Thought(text) => {
                        vec![self.event("response.reasoning_text.done", with(place(), "text", json!(text)))]
                    }
                    Block::Text(text) => {
                        let done = with(with(place(), "text", json!(text)), "logprobs", json!([]));
                        let done = self.event("response.output_text.done", done);
                        vec![
                            done,
                            self.event("response.content_part.done", with(place(), "part", part(&text))),
                        ]
                    }
                    Block::Call(Call { name, arguments, .. }) => {
                        let done =
                            json!({"item_id": id, "output_index": at, "name": name, "arguments": arguments});
                        vec![self.event("response.function_call_arguments.done", done)]
                    }
                };
                let item = self.item(at, true);
                events
                    .push(self.event("response.output_item.done", json!({"output_index": at, "item": item})));
                events
            }
        }
    }

    fn changes(&mut self, changes: Vec<(usize, Change)>) -> Vec<Event> {
        self.name_items();
        changes.into_iter().flat_map(|(at, change)| self.change(at, change)).collect()
    }
}

fn part(text: &str) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
}

impl Format for ResponseShape {
    fn waits(&self, _choice: usize) -> bool {
        false
    }

    fn begin(&mut self, about: &About<'_>) -> Vec<Event> {
        let response = self.response(about, "in_progress", Value::Null);
        ["response.created", "response.in_progress"]
            .into_iter()
            .map(|name| self.event(name, json!({"response": response})))
            .collect()
    }

    fn prompt(&mut self, _about: &About<'_>, _choice: usize, _report: &PromptReport) -> Vec<Event> {
        Vec::new()
    }

    fn piece(&mut self, _about: &About<'_>, _choice: usize, piece: &Piece) -> Vec<Event> {
        let mut changes = self.blocks.push(piece);
        if piece.end.is_some() {
            self.end.clone_from(&piece.end);
            changes.extend(self.blocks.finish());
        }
        self.changes(changes)
    }

    fn end(&mut self, about: &About<'_>) -> Vec<Event> {
        let status = self.status();
        let response = self.response(about, status, Value::Null);
        let name = if status == "incomplete" { "response.incomplete" } else { "response.completed" };
        vec![self.event(name, json!({"response": response}))]
    }

    fn error(&mut self, about: &About<'_>, error: &ApiError) -> Vec<Event> {
        let changes = self.blocks.finish();
        let mut events = self.changes(changes);
        let error = json!({"code": error.code.unwrap_or("server_error"), "message": error.message});
        let response = self.response(about, "failed", error);
        events.push(self.event("response.failed", json!({"response": response})));
        events
    }

    fn closing(&self) -> &'static str {
        ""
    }

    fn add(&mut self, _about: &About<'_>, _choice: usize, piece: &Piece) {
        self.blocks.push(piece);
    }

    fn whole(&mut self, about: &About<'_>, wholes: Vec<Whole>) -> Value {
        self.end = wholes.into_iter().next().and_then(|whole| whole.end);
        self.name_items();
        self.response(about, self.status(), Value::Null)
    }
}
