//! Text completions, and the tokens of texts.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{
    chat::{ChatMessage, Tool},
    unions::{Prompts, Texts},
};

/// Fields of a text completion that are its own.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct Completion {
    pub(crate) prompt: Option<Prompts>,
    /// Inputs in the place of a prompt: base64 of a safetensors file with one tensor `[positions, width]`
    pub(crate) prompt_embeds: Option<Texts>,
    /// The prompt is part of the text, and of the lists of log-probabilities
    pub(crate) echo: Option<bool>,
    /// How many of the likeliest tokens are listed beside each, 0 to 20; 0 lists the token alone
    pub(crate) logprobs: Option<i64>,
    /// Whether what the tokenizer puts around a prompt is added to texts; true where absent
    pub(crate) add_special_tokens: Option<bool>,
    /// Whether control tokens that are written in a prompt are control tokens; true where absent
    pub(crate) parse_special: Option<bool>,
    /// Not supported
    pub(crate) suffix: Option<String>,
}

/// A text or a conversation whose tokens are asked for.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct Tokenize {
    #[serde(rename = "model")]
    pub(crate) model: Option<String>,
    pub(crate) prompt: Option<String>,
    /// llama-server's name of `prompt`
    pub(crate) content: Option<String>,
    pub(crate) messages: Option<Vec<ChatMessage>>,
    pub(crate) tools: Option<Vec<Tool>>,
    pub(crate) chat_template_kwargs: Option<Map<String, Value>>,
    pub(crate) add_special_tokens: Option<bool>,
    pub(crate) parse_special: Option<bool>,
    pub(crate) add_generation_prompt: Option<bool>,
    pub(crate) return_token_strs: Option<bool>,
}

/// Tokens whose text is asked for.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct Detokenize {
    #[serde(rename = "model")]
    pub(crate) model: Option<String>,
    pub(crate) tokens: Option<Vec<u32>>,
}
