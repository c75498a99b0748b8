//! Fields that chat and text completions share.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, de::IgnoredAny};
use serde_json::{Map, Value};

use super::unions::Texts;

/// How a continuation is made. Samplers have fields of their own beside these, see [`crate::knobs`].
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct Generation {
    /// The model's id or an alias of it, with a rule behind it if wanted: `name:moi:beta=0.5`. The served one where absent
    pub(crate) model: Option<String>,
    /// Tokens of the answer at most
    pub(crate) max_completion_tokens: Option<u64>,
    /// The same by its older name
    pub(crate) max_tokens: Option<u64>,
    /// Tokens of the answer at least
    pub(crate) min_tokens: Option<u64>,
    /// Samples of each prompt
    pub(crate) n: Option<u32>,
    /// Not supported unless it is `n`
    pub(crate) best_of: Option<u32>,
    /// The same seed gives the same tokens, whatever else runs; drawn and told where absent
    pub(crate) seed: Option<i64>,
    /// Texts that end the answer, which are left out of it
    pub(crate) stop: Option<Texts>,
    /// Tokens that end the answer
    pub(crate) stop_token_ids: Option<Vec<u32>>,
    /// The stop string is part of the answer
    pub(crate) include_stop_str_in_output: Option<bool>,
    /// Stop strings end thoughts, too
    pub(crate) stop_in_thoughts: Option<bool>,
    /// Go on past the model's end tokens
    pub(crate) ignore_eos: Option<bool>,
    /// Send the answer as it comes
    pub(crate) stream: Option<bool>,
    pub(crate) stream_options: Option<StreamOptions>,
    /// Added to the logits of tokens, by their ids
    pub(crate) logit_bias: Option<BTreeMap<String, Option<f64>>>,
    /// Texts that do not come, as the tokens that they are encoded to
    pub(crate) bad_words: Option<Vec<String>>,
    /// The only tokens that come
    pub(crate) allowed_token_ids: Option<Vec<u32>>,
    /// The samplers in their order; what is left out is not done
    pub(crate) samplers: Option<Vec<String>>,
    pub(crate) response_format: Option<ResponseFormat>,
    pub(crate) structured_outputs: Option<StructuredOutputs>,
    /// llama-server's `response_format`
    pub(crate) json_schema: Option<Value>,
    /// vLLM's older names of `structured_outputs`
    pub(crate) guided_json: Option<Value>,
    pub(crate) guided_regex: Option<String>,
    pub(crate) guided_choice: Option<Vec<String>>,
    pub(crate) guided_grammar: Option<String>,
    /// What is cached of a prompt serves requests with the same salt alone
    pub(crate) cache_salt: Option<String>,
    /// Which place the request has among those that wait: smaller numbers come first, and 0 is everybody's. Other numbers need
    /// a server with `--priority`
    pub(crate) priority: Option<i64>,
    /// List the tokens' ids beside their texts
    pub(crate) return_token_ids: Option<bool>,
    /// Write tokens as `token_id:N` where log-probabilities are listed
    pub(crate) return_tokens_as_token_ids: Option<bool>,
    /// What this server has and others have not
    pub(crate) moi: Option<Moi>,
    /// Accepted, and without effect
    #[serde(rename = "user")]
    pub(crate) _user: Option<String>,
    #[serde(rename = "metadata")]
    #[schemars(with = "Option<Value>")]
    pub(crate) _metadata: Option<IgnoredAny>,
    #[serde(rename = "store")]
    pub(crate) _store: Option<bool>,
    #[serde(rename = "service_tier")]
    pub(crate) _service_tier: Option<String>,
    #[serde(rename = "safety_identifier")]
    pub(crate) _safety_identifier: Option<String>,
    #[serde(rename = "prompt_cache_key")]
    pub(crate) _prompt_cache_key: Option<String>,
    #[serde(rename = "prompt_cache_retention")]
    pub(crate) _prompt_cache_retention: Option<String>,
    #[serde(rename = "verbosity")]
    pub(crate) _verbosity: Option<String>,
    #[serde(rename = "request_id")]
    pub(crate) _request_id: Option<String>,
}

/// What a stream holds besides the answer.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct StreamOptions {
    /// A last chunk without choices that has the usage
    pub(crate) include_usage: Option<bool>,
    /// The usage so far in every chunk
    pub(crate) continuous_usage_stats: Option<bool>,
}

/// What an answer follows, in OpenAI's words.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub(crate) struct ResponseFormat {
    /// `text`, `json_object` or `json_schema`
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) json_schema: Option<JsonSchemaFormat>,
}

/// A schema and its name.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub(crate) struct JsonSchemaFormat {
    pub(crate) schema: Option<Value>,
    #[serde(rename = "name")]
    pub(crate) _name: Option<String>,
    #[serde(rename = "description")]
    pub(crate) _description: Option<String>,
    #[serde(rename = "strict")]
    pub(crate) _strict: Option<bool>,
}

/// What an answer follows, in vLLM's words: one of these.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct StructuredOutputs {
    pub(crate) json: Option<Value>,
    pub(crate) json_object: Option<bool>,
    pub(crate) regex: Option<String>,
    pub(crate) choice: Option<Vec<String>>,
    /// A grammar in llguidance's variant of Lark
    pub(crate) grammar: Option<String>,
}

/// The input rule, and what is told of it.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct Moi {
    /// Several rules, one choice for each: names with knobs as in `moi:beta=0.5`, or objects
    pub(crate) rules: Option<Vec<Value>>,
    /// Which generated tokens the rule applies to: `all`, `thinking` or `N..M`
    pub(crate) mix_scope: Option<String>,
    /// Mix what a constraint leaves of the distribution, not the raw one
    pub(crate) mix_constrained: Option<bool>,
    /// A chunk for each token, with its entropy, its gate and so many of the largest weights of the next input
    pub(crate) trace: Option<u32>,
    /// The first tokens, taken as if they had been sampled
    pub(crate) force: Option<Vec<u32>>,
    /// What drafts tokens, so that a pass through the model can give several: `none`, `auto`, `lookup`, `recycling`,
    /// or `model` where the server has a draft model. The tokens are the same
    pub(crate) speculate: Option<String>,
    /// Tokens that are drafted behind each other at most
    pub(crate) draft_tokens: Option<u32>,
    /// Tokens that are drafted for a pass at most, alternatives included
    pub(crate) draft_budget: Option<u32>,
    /// A draft model drafts nothing behind tokens that it finds less likely than this, 0 to 1
    pub(crate) draft_min_p: Option<f64>,
    /// How tokens are decided where a model drafts: `match`, as without drafts, or `rejection`, `k-seq` or `greedy`,
    /// which give other tokens of the same distribution
    pub(crate) verify: Option<String>,
    /// How far from a mixture the input may be that a pass was given in its place, as a share of its norm, 0 to 1
    pub(crate) speculate_tolerance: Option<f64>,
    /// The most positions of a pass where inputs are mixtures
    pub(crate) speculate_window: Option<u32>,
    /// `rule`, a name with knobs if wanted, and the rule's knobs beside it
    #[serde(flatten)]
    pub(crate) rule: Map<String, Value>,
}
