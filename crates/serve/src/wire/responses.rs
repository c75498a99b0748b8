//! OpenAI's responses.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{
    generation::JsonSchemaFormat,
    unions::{Content, Input, ToolChoice},
};

/// Fields of a request for a response. Those of the same names as at chat completions are read beside these.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct Responses {
    pub(crate) input: Option<Input>,
    /// What the assistant is told before
    pub(crate) instructions: Option<String>,
    /// Tokens of the answer at most
    pub(crate) max_output_tokens: Option<u64>,
    pub(crate) tools: Option<Vec<ResponsesTool>>,
    pub(crate) tool_choice: Option<ToolChoice>,
    pub(crate) parallel_tool_calls: Option<bool>,
    pub(crate) text: Option<TextOptions>,
    pub(crate) reasoning: Option<Reasoning>,
    /// Not supported: nothing is stored
    pub(crate) previous_response_id: Option<String>,
    /// Not supported
    pub(crate) conversation: Option<Value>,
    /// Not supported
    pub(crate) prompt: Option<Value>,
    /// Not supported unless false
    pub(crate) background: Option<bool>,
    /// Variables of the chat template, such as `enable_thinking`
    pub(crate) chat_template_kwargs: Option<Map<String, Value>>,
    /// What else the response has; log-probabilities are not supported
    pub(crate) include: Option<Vec<String>>,
    /// Not supported unless `disabled`
    pub(crate) truncation: Option<String>,
    /// Not supported
    pub(crate) top_logprobs: Option<u32>,
    #[serde(rename = "max_tool_calls")]
    pub(crate) _max_tool_calls: Option<u64>,
    #[serde(rename = "client_metadata")]
    pub(crate) _client_metadata: Option<Value>,
}

/// A turn, a call of a function, or what came of one.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
pub(crate) struct Item {
    /// `message` where absent, `function_call`, `function_call_output` or `reasoning`
    #[serde(rename = "type")]
    pub(crate) kind: Option<String>,
    pub(crate) role: Option<String>,
    pub(crate) content: Option<Content>,
    pub(crate) call_id: Option<String>,
    pub(crate) name: Option<String>,
    /// As JSON text
    pub(crate) arguments: Option<String>,
    pub(crate) output: Option<Content>,
    #[serde(rename = "id")]
    pub(crate) _id: Option<String>,
    #[serde(rename = "status")]
    pub(crate) _status: Option<String>,
    #[serde(rename = "phase")]
    pub(crate) _phase: Option<String>,
    #[serde(rename = "summary")]
    pub(crate) _summary: Option<Value>,
    #[serde(rename = "encrypted_content")]
    pub(crate) _encrypted_content: Option<String>,
}

/// A function that the model may call.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub(crate) struct ResponsesTool {
    /// `function`
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) name: Option<String>,
    pub(crate) description: Option<String>,
    pub(crate) parameters: Option<Map<String, Value>>,
    pub(crate) strict: Option<bool>,
}

/// What the text of the answer is.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct TextOptions {
    pub(crate) format: Option<TextFormat>,
    #[serde(rename = "verbosity")]
    pub(crate) _verbosity: Option<String>,
}

/// What the text follows.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub(crate) struct TextFormat {
    /// `text`, `json_object` or `json_schema`
    #[serde(rename = "type")]
    pub(crate) kind: String,
    #[serde(flatten)]
    pub(crate) schema: JsonSchemaFormat,
}

/// How the model thinks.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct Reasoning {
    /// `none`, or what the chat template calls its effort
    pub(crate) effort: Option<String>,
    #[serde(rename = "summary")]
    pub(crate) _summary: Option<String>,
    #[serde(rename = "generate_summary")]
    pub(crate) _generate_summary: Option<String>,
}
