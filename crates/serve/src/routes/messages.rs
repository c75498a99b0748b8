//! `POST /v1/messages` and `POST /v1/messages/count_tokens`, Anthropic's API.

use std::sync::Arc;

use axum::{
    body::Body,
    http::{HeaderValue, Response, StatusCode, header},
};
use bytes::Bytes;
use moi_engine::PromptReport;
use serde_json::{Value, json};

use super::{Asked, answered, chat::Call};
use crate::{
    answer::{About, Event, Format, Whole},
    blocks::{Block, Blocks, Change},
    choice::{End, Piece},
    conversation,
    error::ApiError,
    json::{self, Ignored},
    knobs::Knobs,
    model::Loaded,
    plan::Plan,
    server::{Caller, Server},
    wire::{
        chat::{Chat, ChatMessage, FunctionCall, FunctionDefinition, Tool, ToolCall},
        generation::Generation,
        messages::{self, Messages, Turn},
        unions::{Content, TextOr, ToolChoice},
    },
};

/// Fields of chat completions, and their names in this API.
const WORDS: &[(&str, &str)] = &[
    ("stop", "stop_sequences"),
    ("parameters", "input_schema"),
    ("json_schema", "output_config.format.schema"),
];

/// Answers a conversation.
pub(crate) async fn messages(
    server: Arc<Server>,
    caller: Caller,
    body: Bytes,
) -> Result<Response<Body>, ApiError> {
    answered(&server, caller, (body.len(), WORDS), move |server| read(&body, server)).await
}

/// Counts the tokens of a conversation.
pub(crate) fn count_tokens(body: &Bytes, loaded: &Loaded) -> Result<Value, ApiError> {
    let mut ignored = Ignored::default();
    let generation: Generation = json::parse(body, &mut ignored)?;
    let asked: Messages = json::parse(body, &mut ignored)?;
    loaded.named(generation.model.as_deref())?;
    let counted = chat(asked).and_then(|chat| conversation::prompt(&chat, loaded, false));
    let (ids, _) = counted.map_err(|error| error.in_words(WORDS))?;
    Ok(json!({"input_tokens": ids.len()}))
}

fn read(body: &[u8], server: &Server) -> Result<Asked<MessageFormat>, ApiError> {
    let loaded = server.loaded()?;
    let mut ignored = Ignored::default();
    let mut generation: Generation = json::parse(body, &mut ignored)?;
    let asked: Messages = json::parse(body, &mut ignored)?;
    let knobs: Knobs = json::parse(body, &mut Ignored::default())?;
    ignored.known(knobs.fields());
    if generation.max_tokens.is_none() {
        return Err(ApiError::value("max_tokens", "`max_tokens` is missing"));
    }
    let of_config = asked.output_config.as_ref().and_then(|config| config.format.clone());
    if let Some(format) = asked.output_format.clone().or(of_config) {
        if format.kind != "json_schema" || format.schema.is_none() {
            let message = "the output's format must be {\"type\": \"json_schema\", \"schema\": ...}";
            return Err(ApiError::value("output_config.format", message));
        }
        generation.json_schema = format.schema;
    }
    if let Some(texts) = &asked.stop_sequences {
        generation.stop.get_or_insert_default().0.extend(texts.iter().cloned());
    }
    let plan = Plan::new(&generation, &knobs, &loaded, None)?.single()?;
    let (plan, jobs, parser) = super::chat::generations(&chat(asked)?, plan, &loaded, server)?;
    let format = MessageFormat::default();
    Ok(Asked { id: "msg_", plan, jobs, parsers: vec![parser], format, prompt_only: false, ignored })
}

/// Converts the conversation to chat completions.
fn chat(asked: Messages) -> Result<Chat, ApiError> {
    if asked.mcp_servers.is_some_and(|servers| !servers.is_empty()) {
        return Err(ApiError::unsupported("mcp_servers", "`mcp_servers` is not supported"));
    }
    if asked.container.is_some() {
        return Err(ApiError::unsupported("container", "`container` is not supported"));
    }
    let mut all = Vec::new();
    if let Some(system) = asked.system {
        let text = text(system, "system")?;
        all.push(ChatMessage {
            role: "system".to_owned(),
            content: Some(Content::Text(text)),
            ..ChatMessage::default()
        });
    }
    if let Some(last) = asked.messages.last()
        && last.role == "assistant"
    {
        let param = format!("messages[{}].role", asked.messages.len() - 1);
        let message =
            format!("{param} is assistant: to go on with an answer that was begun is not supported");
        return Err(ApiError::unsupported(&param, message));
    }
    for (at, turn) in asked.messages.into_iter().enumerate() {
        let (path, first) = (format!("messages[{at}]"), all.len());
        add_turn(turn, &path, &mut all)?;
        all[first..].iter_mut().for_each(|message| message.path = Some(path.clone()));
    }
    let tool = |(at, tool): (usize, messages::MessagesTool)| {
        if let Some(kind) = tool.kind.filter(|kind| kind != "custom") {
            let param = format!("tools[{at}].type");
            let message = format!("{param} is `{kind}`, and tools of the client's own alone are supported");
            return Err(ApiError::unsupported(&param, message));
        }
        let messages::MessagesTool { name, description, input_schema: parameters, strict, .. } = tool;
        let function = Some(FunctionDefinition { name, description, parameters, strict });
        Ok(Tool { kind: "function".to_owned(), function })
    };
    let tools =
        asked.tools.unwrap_or_default().into_iter().enumerate().map(tool).collect::<Result<_, _>>()?;
    let (mut tool_choice, mut parallel) = (None, None);
    if let Some(choice) = asked.tool_choice {
        tool_choice = Some(match (choice.kind.as_str(), choice.name) {
            ("auto", _) => ToolChoice::Auto,
            ("any", _) => ToolChoice::Required,
            ("none", _) => ToolChoice::None,
            ("tool", Some(name)) => ToolChoice::Function(name),
            ("tool", None) => {
                return Err(ApiError::value("tool_choice.name", "`tool_choice.name` is missing"));
            }
            (kind, _) => {
                let message = format!("tool_choice.type is `{kind}`, and must be auto, any, tool or none");
                return Err(ApiError::value("tool_choice.type", message));
            }
        });
        parallel = choice.disable_parallel_tool_use.map(|disabled| !disabled);
    }
    let mut variables = asked.chat_template_kwargs.unwrap_or_default();
    if let Some(thinking) = asked.thinking {
        let thinks = match thinking.kind.as_str() {
            "enabled" | "adaptive" => true,
            "disabled" => false,
            kind => {
                let message = format!("thinking.type is `{kind}`, and must be enabled, adaptive or disabled");
                return Err(ApiError::value("thinking.type", message));
            }
        };
        // Templates use several names for this.
        for name in ["enable_thinking", "thinking"] {
            variables.entry(name).or_insert(json!(thinks));
        }
    }
    Ok(Chat {
        messages: all,
        tools: Some(tools),
        tool_choice,
        parallel_tool_calls: parallel,
        chat_template_kwargs: Some(variables),
        ..Chat::default()
    })
}

/// Joins the texts of blocks.
fn text(blocks: TextOr<messages::Block>, param: &str) -> Result<String, ApiError> {
    match blocks {
        TextOr::Text(text) => Ok(text),
        TextOr::Parts(blocks) => {
            let mut all = String::new();
            for (at, block) in blocks.into_iter().enumerate() {
                match (block.kind.as_str(), block.text) {
                    ("text", Some(text)) => all += &text,
                    (kind, _) => return Err(no_block(kind, &format!("{param}[{at}]"))),
                }
            }
            Ok(all)
        }
    }
}

fn no_block(kind: &str, param: &str) -> ApiError {
    let param = format!("{param}.type");
    let message = format!("{param} is `{kind}`, which is not supported here, or has nothing in it");
    ApiError::unsupported(&param, message)
}

/// Adds the messages of a turn. Results of tools become messages of their own.
fn add_turn(turn: Turn, param: &str, all: &mut Vec<ChatMessage>) -> Result<(), ApiError> {
    let Turn { role, content } = turn;
    if !matches!(role.as_str(), "user" | "assistant" | "system") {
        let param = format!("{param}.role");
        let message = format!("{param} is `{role}`, and must be user or assistant");
        return Err(ApiError::value(&param, message));
    }
    let blocks = match content {
        TextOr::Text(text) => {
            all.push(ChatMessage { role, content: Some(Content::Text(text)), ..ChatMessage::default() });
            return Ok(());
        }
        TextOr::Parts(blocks) => blocks,
    };
    let (mut said, mut thoughts, mut calls, mut results) = (None::<String>, None::<String>, Vec::new(), 0);
    for (at, block) in blocks.into_iter().enumerate() {
        let param = format!("{param}.content[{at}]");
        match (block.kind.as_str(), role.as_str()) {
            ("text", _) => *said.get_or_insert_default() += &block.text.unwrap_or_default(),
            ("thinking", "assistant") => {
                *thoughts.get_or_insert_default() += &block.thinking.unwrap_or_default()
            }
            // Redacted thoughts are from another model and cannot be read.
            ("redacted_thinking", "assistant") => {}
            ("tool_use", "assistant") => {
                let missing = || ApiError::value(format!("{param}.name"), format!("{param}.name is missing"));
                let function = FunctionCall { name: block.name.ok_or_else(missing)?, arguments: block.input };
                calls.push(ToolCall { id: block.id, function, _kind: None, _index: None });
            }
            ("tool_result", "user") => {
                let result = match block.content {
                    Some(content) => text(content, &format!("{param}.content"))?,
                    None => String::new(),
                };
                let message = ChatMessage {
                    role: "tool".to_owned(),
                    content: Some(Content::Text(result)),
                    tool_call_id: block.tool_use_id,
                    ..ChatMessage::default()
                };
                all.push(message);
                results += 1;
            }
            (kind, _) => return Err(no_block(kind, &param)),
        }
    }
    if said.is_none() && calls.is_empty() && results > 0 {
        return Ok(());
    }
    let content = match (said, calls.is_empty()) {
        (Some(text), _) => Some(Content::Text(text)),
        (None, true) => {
            return Err(ApiError::value(format!("{param}.content"), format!("{param}.content is empty")));
        }
        (None, false) => None,
    };
    let tool_calls = (!calls.is_empty()).then_some(calls);
    all.push(ChatMessage {
        role,
        content,
        reasoning_content: thoughts,
        tool_calls,
        ..ChatMessage::default()
    });
    Ok(())
}

/// Writes an error as Anthropic's clients read it.
pub(crate) fn write_error(error: &ApiError, response: &mut Response<Body>) {
    // Anthropic's clients know this status for a server that is busy.
    const OVERLOADED: u16 = 529;
    if error.status == StatusCode::SERVICE_UNAVAILABLE {
        *response.status_mut() = StatusCode::from_u16(OVERLOADED).unwrap_or(error.status);
    }
    *response.body_mut() = Body::from(body(error).to_string());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
}

fn body(error: &ApiError) -> Value {
    let kind = match error.status.as_u16() {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        503 => "overloaded_error",
        500.. => "api_error",
        _ => "invalid_request_error",
    };
    json!({"type": "error", "error": {"type": kind, "message": error.message, "param": error.param, "code": error.code}})
}

/// An answer as a message with blocks.
#[derive(Debug, Default)]
struct MessageFormat {
    blocks: Blocks,
    end: Option<End>,
}

/// Why an answer ended, in Anthropic's terms, and the stop string that ended it.
fn stop(end: Option<&End>) -> (Value, Value) {
    let Some(end) = end else { return (Value::Null, Value::Null) };
    let reason = match end.finish {
        "length" => "max_tokens",
        "tool_calls" => "tool_use",
        _ if end.stop_reason.is_string() => return (json!("stop_sequence"), end.stop_reason.clone()),
        _ => "end_turn",
    };
    (json!(reason), Value::Null)
}

fn input_usage(about: &About<'_>, output: usize) -> Value {
    json!({
        "input_tokens": about.usage.prompt - about.usage.cached.min(about.usage.prompt),
        "cache_read_input_tokens": about.usage.cached,
        "cache_creation_input_tokens": 0,
        "output_tokens": output,
    })
}

impl MessageFormat {
    fn events(&self, changes: Vec<(usize, Change)>) -> Vec<Event> {
        let event = |(at, change): (usize, Change)| match (&self.blocks.all[at], change) {
            (block, Change::Begins) => {
                let block = match block {
                    Block::Thought(_) => json!({"type": "thinking", "thinking": "", "signature": ""}),
                    Block::Text(_) => json!({"type": "text", "text": ""}),
                    Block::Call(call) => {
                        json!({"type": "tool_use", "id": call.id, "name": call.name, "input": {}})
                    }
                };
                Event::named("content_block_start", json!({"index": at, "content_block": block}))
            }
            (block, Change::Grows(text)) => {
                let delta = match block {
                    Block::Thought(_) => json!({"type": "thinking_delta", "thinking": text}),
                    Block::Text(_) => json!({"type": "text_delta", "text": text}),
                    Block::Call(_) => json!({"type": "input_json_delta", "partial_json": text}),
                };
                Event::named("content_block_delta", json!({"index": at, "delta": delta}))
            }
            (_, Change::Ends) => Event::named("content_block_stop", json!({"index": at})),
        };
        changes.into_iter().map(event).collect()
    }

    fn message(&self, about: &About<'_>, content: Value, output: usize) -> Value {
        let (reason, sequence) = stop(self.end.as_ref());
        json!({
            "id": about.options.id,
            "type": "message",
            "role": "assistant",
            "model": about.options.plan.model,
            "content": content,
            "stop_reason": reason,
            "stop_sequence": sequence,
            "usage": input_usage(about, output),
        })
    }
}

impl Format for MessageFormat {
    fn waits(&self, _choice: usize) -> bool {
        false
    }

    fn begin(&mut self, _about: &About<'_>) -> Vec<Event> {
        // The message begins with the token counts of its prompt, which are known only when the prompt has run.
        Vec::new()
    }

    fn prompt(&mut self, about: &About<'_>, _choice: usize, _report: &PromptReport) -> Vec<Event> {
        let message = self.message(about, json!([]), 0);
        vec![Event::named("message_start", json!({"message": message})), Event::named("ping", json!({}))]
    }

    fn piece(&mut self, _about: &About<'_>, _choice: usize, piece: &Piece) -> Vec<Event> {
        let mut changes = self.blocks.push(piece);
        if piece.end.is_some() {
            self.end.clone_from(&piece.end);
            changes.extend(self.blocks.finish());
        }
        self.events(changes)
    }

    fn end(&mut self, about: &About<'_>) -> Vec<Event> {
        let (reason, sequence) = stop(self.end.as_ref());
        let moi = self.end.as_ref().map_or(Value::Null, |end| end.moi.clone());
        let delta = json!({"stop_reason": reason, "stop_sequence": sequence});
        let usage = input_usage(about, about.usage.completion);
        let last = json!({"delta": delta, "usage": usage, "moi": moi});
        vec![Event::named("message_delta", last), Event::named("message_stop", json!({}))]
    }

    fn error(&mut self, _about: &About<'_>, error: &ApiError) -> Vec<Event> {
        vec![Event { name: Some("error"), data: body(error) }]
    }

    fn closing(&self) -> &'static str {
        ""
    }

    fn add(&mut self, _about: &About<'_>, _choice: usize, piece: &Piece) {
        self.blocks.push(piece);
    }

    fn whole(&mut self, about: &About<'_>, wholes: Vec<Whole>) -> Value {
        self.end = wholes.into_iter().next().and_then(|whole| whole.end);
        let block = |block: &Block| match block {
            Block::Thought(text) => Some(json!({"type": "thinking", "thinking": text, "signature": ""})),
            Block::Text(text) => Some(json!({"type": "text", "text": text})),
            Block::Call(Call { id, name, arguments }) => {
                // Arguments that were cut off are not JSON. The call is left out, so that nobody makes it without
                // them.
                let input: Value = serde_json::from_str(arguments).ok()?;
                Some(json!({"type": "tool_use", "id": id, "name": name, "input": input}))
            }
        };
        let content = self.blocks.all.iter().filter_map(block).collect();
        let mut message = self.message(about, content, about.usage.completion);
        message["moi"] = self.end.as_ref().map_or(Value::Null, |end| end.moi.clone());
        message
    }
}
