//! gpt-oss: attention with sinks, a sliding window in every other layer, and experts with biases and a clamped
//! SwiGLU.

use serde_json::json;

use crate::{
    Activation, Architecture, ExpertStacks, ExpertsConfig, MlpConfig, ModelError, RouterConfig, TensorSource,
    architecture::Names,
    family::{self, Defaults, LLAMA},
    fields::Fields,
    names::renamed,
};

/// Defaults of transformers' `GptOssConfig`.
const DEFAULTS: Defaults = Defaults {
    vocab_size: 201_088,
    hidden_size: 2880,
    intermediate_size: 2880,
    num_layers: 36,
    num_heads: 64,
    num_kv_heads: Some(8),
    head_dim: Some(64),
    context_length: 131_072,
    norm_eps: 1e-5,
    theta: 150_000.0,
    ..LLAMA
};

/// Reads the config.
pub(crate) fn architecture(fields: &Fields<'_>) -> Result<Architecture, ModelError> {
    fields.supports("hidden_act", &["silu".into()], "silu")?;
    fields.supports("swiglu_alpha", &[1.702.into()], "1.702")?;
    let with_rope = fields.with_rope(json!({
        "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": false,
        "original_max_position_embeddings": 4096,
    }));
    let fields = &Fields::new(&with_rope, fields.model_type)?;
    let mut decoder = family::decoder(fields, &DEFAULTS)?;
    let bias = fields.or("attention_bias", true)?;
    for (_, attention) in decoder.attentions_mut() {
        (attention.qkv_bias, attention.output_bias) = (bias, bias);
        attention.sinks = true;
    }
    let layers = decoder.layers.len();
    let sliding = fields.sliding_layers(layers, |i| i.is_multiple_of(2))?;
    decoder.slide(fields, &sliding, fields.nullable("sliding_window", Some(128))?)?;
    let num_experts = fields.either("num_experts", "num_local_experts", 128usize)?;
    let experts = ExpertsConfig {
        num_experts,
        num_per_token: fields.or("num_experts_per_tok", 4)?,
        // The softmax over the picked experts is the softmax over all, divided by the sum of the picked ones.
        router: RouterConfig { bias: true, ..RouterConfig::softmax(true) },
        expert: MlpConfig {
            intermediate_size: fields.or("intermediate_size", DEFAULTS.intermediate_size)?,
            gated: true,
            bias: true,
            activation: Activation::ClampedSwiGlu { limit: fields.or("swiglu_limit", 7.0)? },
        },
        latent: None,
        shared: None,
    };
    decoder.give_experts(&experts, |_| true);
    const IN_LAYERS: &[(&str, &str)] = &[("mlp.gate.", "mlp.router.")];
    let names = Names {
        source: |_, name| TensorSource::whole(renamed(name, IN_LAYERS)),
        stacks: ExpertStacks::ByInputAlternating,
        ..Names::LLAMA
    };
    Architecture::new(decoder, names)
}
