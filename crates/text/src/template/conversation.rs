//! A conversation with everything that a chat template may read of it.

use serde_json::{Map, Value};

use super::Message;

/// The input of a chat template. Messages and tools are JSON as in OpenAI's API, because templates read more of a
/// message than its role and content: `tool_calls`, `tool_call_id`, `name`, `reasoning_content`, `content` in parts.
///
/// # Examples
/// ```
/// use moi_text::{ChatTemplate, Conversation, Message, TemplateTokens};
///
/// let source = "{{ messages[0].content }}{% if enable_thinking %}<think>{% endif %}";
/// let template = ChatTemplate::new(source, TemplateTokens::default())?;
/// let mut conversation = Conversation::new(&[Message::new("user", "Why?")]);
/// conversation.variables.insert("enable_thinking".to_owned(), true.into());
/// assert_eq!(template.render_conversation(&conversation)?, "Why?<think>");
/// # Ok::<(), moi_text::TextError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Conversation {
    /// The messages, each an object with a `role`. Arguments of tool calls are objects, not their JSON text.
    pub messages: Vec<Value>,
    /// The functions that the model may call; if empty, the template's `tools` is None.
    pub tools: Vec<Value>,
    /// Whether the assistant's answer comes next.
    pub add_generation_prompt: bool,
    /// Other variables of the template, such as `enable_thinking`. Names in [`Conversation::RESERVED`] cannot be set
    /// here.
    pub variables: Map<String, Value>,
}

impl Conversation {
    /// Names of variables that have fields or fixed values of their own.
    pub const RESERVED: &[&str] = &["messages", "tools", "documents", "add_generation_prompt"];

    /// A conversation of plain messages that the assistant is to answer.
    pub fn new(messages: &[Message]) -> Self {
        let turn = |message: &Message| serde_json::json!({"role": message.role, "content": message.content});
        Self {
            messages: messages.iter().map(turn).collect(),
            tools: Vec::new(),
            add_generation_prompt: true,
            variables: Map::new(),
        }
    }

    /// Bytes of all texts in the conversation except roles: keys and values.
    pub fn bytes(&self) -> usize {
        let mut bytes = 0;
        self.each_text(&mut |text| bytes += text.len());
        bytes
    }

    /// Calls a function with every text in the conversation except roles: keys and values.
    pub(super) fn each_text<'a>(&'a self, visit: &mut impl FnMut(&'a str)) {
        self.messages.iter().for_each(|message| each_text(message, true, visit));
        self.tools.iter().for_each(|tool| each_text(tool, false, visit));
        self.variables.values().for_each(|value| each_text(value, false, visit));
    }

    /// The same conversation with every text except roles replaced.
    pub(super) fn map_texts(&self, map: &impl Fn(&str) -> String) -> Self {
        let all = |values: &[Value], is_message| {
            values.iter().map(|value| map_texts(value, is_message, map)).collect::<Vec<_>>()
        };
        let variables = self.variables.iter();
        Self {
            messages: all(&self.messages, true),
            tools: all(&self.tools, false),
            add_generation_prompt: self.add_generation_prompt,
            variables: variables.map(|(name, value)| (name.clone(), map_texts(value, false, map))).collect(),
        }
    }
}

/// Roles are left unchanged because templates compare them; callers that take conversations from others check roles.
const ROLE: &str = "role";

fn each_text<'a>(value: &'a Value, is_message: bool, visit: &mut impl FnMut(&'a str)) {
    match value {
        Value::String(text) => visit(text),
        Value::Array(values) => values.iter().for_each(|value| each_text(value, false, visit)),
        Value::Object(fields) => {
            for (key, value) in fields.iter().filter(|(key, _)| !is_message || *key != ROLE) {
                visit(key);
                each_text(value, false, visit);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn map_texts(value: &Value, is_message: bool, map: &impl Fn(&str) -> String) -> Value {
    match value {
        Value::String(text) => Value::String(map(text)),
        Value::Array(values) => values.iter().map(|value| map_texts(value, false, map)).collect(),
        Value::Object(fields) => {
            let field = |(key, value): (&String, &Value)| match is_message && key == ROLE {
                true => (key.clone(), value.clone()),
                false => (map(key), map_texts(value, false, map)),
            };
            Value::Object(fields.iter().map(field).collect())
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
    }
}
