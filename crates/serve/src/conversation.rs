//! Turns the messages of a request into a prompt, by the model's chat template.

use std::sync::Arc;

use moi_text::{ChatTemplate, Conversation, TextError};
use serde_json::{Map, Value, json};

use crate::{
    error::ApiError,
    model::Loaded,
    tools::{Function, Tools},
    wire::{
        chat::{Chat, ChatMessage, Tool},
        unions::Content,
    },
};

/// The most messages of a conversation.
const MAX_MESSAGES: usize = 4096;

/// The tokens of a conversation, and the functions that may be called.
///
/// # Errors
/// If a message is not allowed, or the template refuses the conversation.
pub(crate) fn prompt(
    chat: &Chat,
    loaded: &Loaded,
    trusts_templates: bool,
) -> Result<(Vec<u32>, Option<Arc<Tools>>), ApiError> {
    let own;
    let template = match &chat.chat_template {
        None => template(loaded)?,
        Some(_) if !trusts_templates => {
            let message = "`chat_template` is not taken from requests; --trust-request-templates allows it";
            return Err(ApiError::unsupported("chat_template", message));
        }
        Some(source) => {
            let tokens = loaded.model.template.as_ref().map(|template| template.tokens().clone());
            own = ChatTemplate::new(source, tokens.unwrap_or_default())
                .map_err(|error| ApiError::from(error).of("chat_template"))?;
            &own
        }
    };
    let functions = functions(chat.tools.as_deref().unwrap_or_default())?;
    let is_parallel = chat.parallel_tool_calls.unwrap_or(true);
    let tokenizer = &loaded.model.tokenizer;
    let tools = Tools::new(functions, chat.tool_choice.clone(), is_parallel, template.source(), tokenizer)?;
    let told = tools.iter().flat_map(|tools| &tools.functions).map(Function::json).collect();
    let mut variables = chat.chat_template_kwargs.clone().unwrap_or_default();
    if let Some(effort) = &chat.reasoning_effort {
        let set = |variables: &mut Map<String, Value>, name: &str, value: Value| {
            variables.entry(name.to_owned()).or_insert(value);
        };
        set(&mut variables, "reasoning_effort", json!(effort));
        if effort == "none" {
            // Templates use several names for this.
            set(&mut variables, "enable_thinking", json!(false));
            set(&mut variables, "thinking", json!(false));
        }
    }
    let add_generation_prompt = chat.add_generation_prompt.unwrap_or(true);
    let ids = encode(template, &chat.messages, told, variables, add_generation_prompt, loaded)?;
    Ok((ids, tools.map(Arc::new)))
}

/// The functions that a request lists.
///
/// # Errors
/// If the list contains anything else.
pub(crate) fn functions(tools: &[Tool]) -> Result<Vec<Function>, ApiError> {
    let function = |(at, tool): (usize, &Tool)| {
        if tool.kind != "function" {
            let param = format!("tools[{at}].type");
            let message = format!("{param} is `{}`, and functions alone are supported", tool.kind);
            return Err(ApiError::unsupported(&param, message));
        }
        let Some(function) = &tool.function else {
            let param = format!("tools[{at}].function");
            return Err(ApiError::value(&param, format!("`{param}` is missing")));
        };
        let kind = function.parameters.as_ref().and_then(|schema| schema.get("type"));
        let is_object = |kind: &Value| match kind {
            Value::Array(kinds) => kinds.iter().any(|kind| kind == "object"),
            kind => kind == "object",
        };
        if kind.is_some_and(|kind| !is_object(kind)) {
            let param = format!("tools[{at}].function.parameters.type");
            return Err(ApiError::value(&param, format!("{param} must be object: arguments have names")));
        }
        let parameters = function.parameters.clone().filter(|schema| !schema.is_empty());
        let parameters =
            parameters.map_or_else(|| json!({"type": "object", "properties": {}}), Value::Object);
        Ok(Function {
            name: function.name.clone(),
            description: function.description.clone(),
            parameters,
            is_strict: function.strict.unwrap_or(false),
        })
    };
    tools.iter().enumerate().map(function).collect()
}

/// The model's chat template.
pub(crate) fn template(loaded: &Loaded) -> Result<&ChatTemplate, ApiError> {
    loaded
        .model
        .template
        .as_ref()
        .map_err(|why| ApiError::invalid("template_error", why.clone()).of("messages"))
}

/// The tokens of messages, by a chat template.
///
/// # Errors
/// As [`prompt`].
pub(crate) fn encode(
    template: &ChatTemplate,
    messages: &[ChatMessage],
    tools: Vec<Value>,
    variables: Map<String, Value>,
    add_generation_prompt: bool,
    loaded: &Loaded,
) -> Result<Vec<u32>, ApiError> {
    if messages.is_empty() || messages.len() > MAX_MESSAGES {
        let message =
            format!("`messages` has {} messages, and must have 1 to {MAX_MESSAGES}", messages.len());
        return Err(ApiError::value("messages", message));
    }
    if let Some(name) = variables.keys().find(|name| Conversation::RESERVED.contains(&name.as_str())) {
        let param = format!("chat_template_kwargs.{name}");
        return Err(ApiError::value(&param, format!("`{param}` has a field of its own in the request")));
    }
    let text = |message: &ChatMessage| match &message.content {
        Some(Content::Text(text)) => text.len(),
        Some(Content::Parts(parts)) => {
            parts.iter().filter_map(|part| part.text.as_ref()).map(String::len).sum()
        }
        None => 0,
    };
    loaded.check_bytes(messages.iter().map(text).sum(), "messages")?;
    let knows_developer = template.source().contains("developer");
    let message = |(at, message): (usize, &ChatMessage)| {
        let path = message.path.clone().unwrap_or_else(|| format!("messages[{at}]"));
        turn(message, &path, knows_developer)
    };
    let messages = messages.iter().enumerate().map(message).collect::<Result<Vec<_>, _>>()?;
    let conversation = Conversation { messages, tools, add_generation_prompt, variables };
    // The bytes of tools and earlier calls count, too.
    loaded.check_bytes(conversation.bytes(), "messages")?;
    let tokenizer = &loaded.model.tokenizer;
    match template.encode_conversation(&conversation, tokenizer) {
        Ok(ids) => Ok(ids),
        // Some templates take only one system message, at the beginning, so the others are merged into it.
        Err(error @ TextError::Template { .. }) => match merged(&conversation) {
            Some(merged) => template.encode_conversation(&merged, tokenizer).map_err(|_| error.into()),
            None => Err(error.into()),
        },
        Err(error) => Err(error.into()),
    }
}

/// A message in the form that templates read.
fn turn(message: &ChatMessage, path: &str, knows_developer: bool) -> Result<Value, ApiError> {
    let role = match message.role.as_str() {
        "developer" if !knows_developer => "system",
        role @ ("system" | "developer" | "user" | "assistant" | "tool") => role,
        other => {
            let param = format!("{path}.role");
            let what = "must be system, developer, user, assistant or tool";
            return Err(ApiError::value(&param, format!("{param} is `{other}`, and {what}")));
        }
    };
    let calls = message.tool_calls.as_deref().unwrap_or_default();
    let param = format!("{path}.content");
    let content = match &message.content {
        Some(Content::Text(text)) => Some(text.clone()),
        Some(Content::Parts(parts)) if parts.is_empty() => {
            return Err(ApiError::value(&param, format!("{param} has no parts")));
        }
        Some(Content::Parts(parts)) => {
            let mut all = String::new();
            for (at, part) in parts.iter().enumerate() {
                match (part.kind.as_str(), &part.text) {
                    ("text" | "input_text" | "output_text", Some(text)) => all += text,
                    ("text" | "input_text" | "output_text", None) => {
                        let param = format!("{param}[{at}].text");
                        return Err(ApiError::value(&param, format!("{param} is missing")));
                    }
                    (kind, _) => {
                        let param = format!("{param}[{at}].type");
                        let message = format!("{param} is `{kind}`, and this model reads text alone");
                        return Err(ApiError::unsupported(&param, message));
                    }
                }
            }
            Some(all)
        }
        None if role == "assistant" && !calls.is_empty() => None,
        None => return Err(ApiError::value(&param, format!("{param} is missing"))),
    };
    let mut turn = json!({"role": role, "content": content});
    let thoughts = message.reasoning_content.as_ref().or(message.reasoning.as_ref());
    for (key, value) in [("name", &message.name), ("tool_call_id", &message.tool_call_id)] {
        if let Some(value) = value {
            turn[key] = json!(value);
        }
    }
    if let Some(thoughts) = thoughts {
        turn["reasoning_content"] = json!(thoughts);
    }
    if !calls.is_empty() {
        let call = |call: &crate::wire::chat::ToolCall| {
            // Templates write arguments as JSON themselves, so the text is parsed for them.
            let arguments = match &call.function.arguments {
                Some(Value::String(text)) => serde_json::from_str(text).unwrap_or_else(|_| json!(text)),
                Some(value) => value.clone(),
                None => json!({}),
            };
            let function = json!({"name": call.function.name, "arguments": arguments});
            json!({"id": call.id, "type": "function", "function": function})
        };
        turn["tool_calls"] = calls.iter().map(call).collect();
    }
    Ok(turn)
}

/// The same conversation with all system messages merged into one at its beginning; `None` if that changes nothing.
fn merged(conversation: &Conversation) -> Option<Conversation> {
    let is_system = |message: &&Value| message["role"] == "system";
    let (system, others): (Vec<&Value>, Vec<&Value>) = conversation.messages.iter().partition(is_system);
    let is_first = conversation.messages.first().is_some_and(|first| first["role"] == "system");
    if system.is_empty() || (system.len() == 1 && is_first) {
        return None;
    }
    let texts: Vec<&str> = system.iter().filter_map(|message| message["content"].as_str()).collect();
    let first = json!({"role": "system", "content": texts.join("\n\n")});
    let messages = [first].into_iter().chain(others.into_iter().cloned()).collect();
    Some(Conversation { messages, ..conversation.clone() })
}
