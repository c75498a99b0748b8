//! Anthropic's messages.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::unions::{Blocks, bounded};

/// Fields of a request for a message. Those of the same names as at OpenAI are read beside these.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub(crate) struct Messages {
    #[serde(deserialize_with = "bounded")]
    pub(crate) messages: Vec<Turn>,
    /// What the assistant is told before
    pub(crate) system: Option<Blocks>,
    /// Texts that end the answer, which are left out of it
    pub(crate) stop_sequences: Option<Vec<String>>,
    pub(crate) tools: Option<Vec<MessagesTool>>,
    pub(crate) tool_choice: Option<MessagesToolChoice>,
    pub(crate) thinking: Option<Thinking>,
    pub(crate) output_config: Option<OutputConfig>,
    /// The same by its older name
    pub(crate) output_format: Option<OutputFormat>,
    /// Not supported
    pub(crate) mcp_servers: Option<Vec<Value>>,
    /// Not supported
    pub(crate) container: Option<Value>,
    /// Variables of the chat template, such as `enable_thinking`
    pub(crate) chat_template_kwargs: Option<Map<String, Value>>,
}

/// What the answer is like.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub(crate) struct OutputConfig {
    pub(crate) format: Option<OutputFormat>,
    #[serde(rename = "effort")]
    pub(crate) _effort: Option<String>,
}

/// What the answer follows.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub(crate) struct OutputFormat {
    /// `json_schema`
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) schema: Option<Value>,
}

/// A turn.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub(crate) struct Turn {
    /// `user` or `assistant`
    pub(crate) role: String,
    pub(crate) content: Blocks,
}

/// A part of a turn.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
pub(crate) struct Block {
    /// `text`, `thinking`, `tool_use` or `tool_result`
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) text: Option<String>,
    pub(crate) thinking: Option<String>,
    pub(crate) id: Option<String>,
    pub(crate) name: Option<String>,
    pub(crate) input: Option<Value>,
    pub(crate) tool_use_id: Option<String>,
    pub(crate) content: Option<Blocks>,
    #[serde(rename = "is_error")]
    pub(crate) _is_error: Option<bool>,
    #[serde(rename = "signature")]
    pub(crate) _signature: Option<String>,
    #[serde(rename = "cache_control")]
    pub(crate) _cache_control: Option<Value>,
    #[serde(rename = "citations")]
    pub(crate) _citations: Option<Value>,
    #[serde(rename = "caller")]
    pub(crate) _caller: Option<Value>,
}

/// A function that the model may call.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub(crate) struct MessagesTool {
    /// `custom`, or absent
    #[serde(rename = "type")]
    pub(crate) kind: Option<String>,
    pub(crate) name: String,
    pub(crate) description: Option<String>,
    pub(crate) input_schema: Option<Map<String, Value>>,
    pub(crate) strict: Option<bool>,
    #[serde(rename = "cache_control")]
    pub(crate) _cache_control: Option<Value>,
}

/// Whether a function is to be called.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub(crate) struct MessagesToolChoice {
    /// `auto`, `any`, `tool` or `none`
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) name: Option<String>,
    pub(crate) disable_parallel_tool_use: Option<bool>,
}

/// Whether the model thinks first.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub(crate) struct Thinking {
    /// `enabled`, `adaptive` or `disabled`
    #[serde(rename = "type")]
    pub(crate) kind: String,
    #[serde(rename = "budget_tokens")]
    pub(crate) _budget_tokens: Option<u64>,
}
