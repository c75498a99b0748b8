//! Chat completions.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::unions::{Content, ToolChoice, bounded};

/// Fields of a chat completion that are its own.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
pub(crate) struct Chat {
    #[serde(deserialize_with = "bounded")]
    pub(crate) messages: Vec<ChatMessage>,
    /// Whether log-probabilities are listed
    pub(crate) logprobs: Option<bool>,
    /// How many of the likeliest tokens are listed beside each, 0 to 20
    pub(crate) top_logprobs: Option<u32>,
    /// Functions that the model may call
    pub(crate) tools: Option<Vec<Tool>>,
    pub(crate) tool_choice: Option<ToolChoice>,
    /// Whether an answer may have several calls
    pub(crate) parallel_tool_calls: Option<bool>,
    /// Variables of the chat template, such as `enable_thinking`
    pub(crate) chat_template_kwargs: Option<Map<String, Value>>,
    /// `none`, or what the chat template calls its effort
    pub(crate) reasoning_effort: Option<String>,
    /// Refused unless the server trusts its clients' templates
    pub(crate) chat_template: Option<String>,
    /// Whether the assistant's answer begins behind the messages
    pub(crate) add_generation_prompt: Option<bool>,
    /// Text alone
    pub(crate) modalities: Option<Vec<String>>,
    /// Not supported
    pub(crate) audio: Option<Value>,
    /// Not supported
    pub(crate) web_search_options: Option<Value>,
    /// Not supported
    pub(crate) prediction: Option<Value>,
    /// Not supported: `tools` are
    pub(crate) functions: Option<Value>,
    /// Not supported: `tool_choice` is
    pub(crate) function_call: Option<Value>,
}

/// A function that the model may call.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub(crate) struct Tool {
    /// `function`
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) function: Option<FunctionDefinition>,
}

/// What a model is told of a function.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub(crate) struct FunctionDefinition {
    pub(crate) name: String,
    pub(crate) description: Option<String>,
    /// The JSON schema of its arguments, an object
    pub(crate) parameters: Option<Map<String, Value>>,
    /// Refuse a schema that cannot be enforced whole
    pub(crate) strict: Option<bool>,
}

/// A turn.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
pub(crate) struct ChatMessage {
    /// Its path in a request of another API, for errors.
    #[serde(skip)]
    #[schemars(skip)]
    pub(crate) path: Option<String>,
    /// `system`, `developer`, `user`, `assistant` or `tool`
    pub(crate) role: String,
    pub(crate) content: Option<Content>,
    pub(crate) name: Option<String>,
    pub(crate) reasoning_content: Option<String>,
    /// The same by another name
    pub(crate) reasoning: Option<String>,
    pub(crate) tool_calls: Option<Vec<ToolCall>>,
    pub(crate) tool_call_id: Option<String>,
    #[serde(rename = "refusal")]
    pub(crate) _refusal: Option<Value>,
    #[serde(rename = "annotations")]
    pub(crate) _annotations: Option<Value>,
    #[serde(rename = "audio")]
    pub(crate) _audio: Option<Value>,
    #[serde(rename = "function_call")]
    pub(crate) _function_call: Option<Value>,
}

/// A call of a function by the assistant.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub(crate) struct ToolCall {
    pub(crate) id: Option<String>,
    pub(crate) function: FunctionCall,
    #[serde(rename = "type")]
    pub(crate) _kind: Option<String>,
    #[serde(rename = "index")]
    pub(crate) _index: Option<u32>,
}

/// A function and its arguments.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub(crate) struct FunctionCall {
    pub(crate) name: String,
    /// As JSON text
    pub(crate) arguments: Option<Value>,
}
