//! `POST /v1/responses`, OpenAI's newer API. Nothing is stored: each request has the whole conversation.

use std::sync::Arc;

use axum::{body::Body, http::Response};
use bytes::Bytes;
use serde_json::Value;

use super::{Asked, answered};
use crate::{
    error::ApiError,
    json::{self, Ignored},
    knobs::Knobs,
    plan::Plan,
    responses_format::{Echo, ResponsesFormat},
    server::{Caller, Server},
    wire::{
        chat::{Chat, ChatMessage, FunctionCall, FunctionDefinition, Tool, ToolCall},
        generation::{Generation, ResponseFormat},
        responses::{Item, Responses, ResponsesTool},
        unions::{Content, TextOr},
    },
};

/// Fields of chat completions, and their names in this API.
const WORDS: &[(&str, &str)] = &[
    ("messages", "input"),
    ("max_tokens", "max_output_tokens"),
    ("max_completion_tokens", "max_output_tokens"),
    ("response_format.json_schema", "text.format"),
    ("response_format", "text.format"),
];

/// Answers a conversation.
pub(crate) async fn responses(
    server: Arc<Server>,
    caller: Caller,
    body: Bytes,
) -> Result<Response<Body>, ApiError> {
    answered(&server, caller, (body.len(), WORDS), move |server| read(&body, server)).await
}

fn read(body: &[u8], server: &Server) -> Result<Asked<ResponsesFormat>, ApiError> {
    let loaded = server.loaded()?;
    let mut ignored = Ignored::default();
    let mut generation: Generation = json::parse(body, &mut ignored)?;
    let asked: Responses = json::parse(body, &mut ignored)?;
    let echo: Echo = json::parse(body, &mut Ignored::default())?;
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
    let format = ResponsesFormat::new(echo);
    Ok(Asked { id: "resp_", plan, jobs, parsers: vec![parser], format, prompt_only: false, ignored })
}

/// Refuses fields that would need stored responses, and others that are not supported.
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

/// Converts the conversation to chat completions.
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
    // Removes thoughts that no text and no call followed.
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

/// Adds an item. Consecutive thoughts, texts and calls of an assistant become one message.
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
    if let Some(last) = all.last_mut() {
        last.path.get_or_insert_with(|| param.to_owned());
    }
    Ok(())
}
