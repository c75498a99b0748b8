//! Llama 2 and 3, SmolLM and SmolLM2, and every checkpoint with `model_type` "llama".
//!
//! Pre-norm RMSNorm, rotary positions, grouped-query attention, SwiGLU. Fields and defaults as in
//! transformers' `LlamaConfig`; both spellings of the rotary parameters are read.

use serde::Deserialize;
use serde_json::Value;

use crate::{
    Activation, Architecture, AttentionConfig, DecoderConfig, MlpConfig, ModelError, RopeConfig, RopeScaling,
};

/// As `config.json` spells it.
pub const MODEL_TYPE: &str = "llama";

/// The fields of `config.json` that matter.
#[derive(Debug, Deserialize)]
struct Config {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    hidden_act: Option<String>,
    max_position_embeddings: Option<usize>,
    rms_norm_eps: Option<f64>,
    tie_word_embeddings: Option<bool>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    /// Since transformers 5; before: `rope_theta` and `rope_scaling`.
    rope_parameters: Option<Rope>,
    rope_theta: Option<f64>,
    rope_scaling: Option<Rope>,
}

#[derive(Debug, Default, Deserialize)]
struct Rope {
    rope_theta: Option<f64>,
    rope_type: Option<String>,
    /// As some older checkpoints spell it, alone or beside the other.
    #[serde(rename = "type")]
    old_type: Option<String>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
    /// Not of transformers: the divisors that a GGUF file stores as a tensor.
    factors: Option<Vec<f64>>,
}

/// Reads the config.
pub(crate) fn architecture(config: &Value) -> Result<Architecture, ModelError> {
    // The path in the error names the field.
    let config: Config = serde_path_to_error::deserialize(config)
        .map_err(|error| ModelError::Config { model_type: MODEL_TYPE, what: error.to_string() })?;
    let activation = match config.hidden_act.as_deref().unwrap_or("silu") {
        "silu" | "swish" => Activation::Silu,
        other => return Err(unsupported("hidden_act", other, "silu")),
    };
    let rope = rope(&config)?;
    let head_dim = match config.head_dim {
        Some(head_dim) => head_dim,
        None => config.hidden_size / config.num_attention_heads.max(1),
    };
    let config = DecoderConfig {
        model_type: MODEL_TYPE,
        vocab_size: config.vocab_size,
        hidden_size: config.hidden_size,
        num_layers: config.num_hidden_layers,
        context_length: config.max_position_embeddings.unwrap_or(2048),
        norm_eps: config.rms_norm_eps.unwrap_or(1e-6),
        tie_word_embeddings: config.tie_word_embeddings.unwrap_or(false),
        attention: AttentionConfig {
            num_heads: config.num_attention_heads,
            num_kv_heads: config.num_key_value_heads.unwrap_or(config.num_attention_heads),
            head_dim,
            bias: config.attention_bias.unwrap_or(false),
            rope,
        },
        mlp: MlpConfig {
            intermediate_size: config.intermediate_size,
            bias: config.mlp_bias.unwrap_or(false),
            activation,
        },
    };
    Ok(Architecture { config: config.validated()?, ignores })
}

/// Old checkpoints store the rotary frequencies; some tied ones store the table twice.
fn ignores(config: &DecoderConfig, name: &str) -> bool {
    name.ends_with(".rotary_emb.inv_freq") || (config.tie_word_embeddings && name == "lm_head.weight")
}

fn rope(config: &Config) -> Result<RopeConfig, ModelError> {
    let none = Rope::default();
    let rope = config.rope_parameters.as_ref().or(config.rope_scaling.as_ref()).unwrap_or(&none);
    let kind = rope.rope_type.as_deref().or(rope.old_type.as_deref()).unwrap_or("default");
    let need = |field: &str, value: Option<f64>| {
        value.ok_or_else(|| ModelError::Inconsistent {
            model_type: MODEL_TYPE,
            what: format!("`{field}` is missing from the rotary parameters of type {kind:?}"),
        })
    };
    let scaling = match kind {
        "default" => RopeScaling::Default,
        "linear" => RopeScaling::Linear { factor: need("factor", rope.factor)? },
        "llama3" => RopeScaling::Llama3 {
            factor: need("factor", rope.factor)?,
            low_freq_factor: need("low_freq_factor", rope.low_freq_factor)?,
            high_freq_factor: need("high_freq_factor", rope.high_freq_factor)?,
            original_max_position_embeddings: need(
                "original_max_position_embeddings",
                rope.original_max_position_embeddings,
            )?,
        },
        "factors" => RopeScaling::Factors(rope.factors.clone().unwrap_or_default()),
        other => return Err(unsupported("rope_type", other, "default, linear, llama3")),
    };
    Ok(RopeConfig { theta: rope.rope_theta.or(config.rope_theta).unwrap_or(10_000.0), scaling })
}

fn unsupported(field: &'static str, value: &str, supported: &'static str) -> ModelError {
    ModelError::UnsupportedOption { model_type: MODEL_TYPE, field, value: format!("`{value}`"), supported }
}
