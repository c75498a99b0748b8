//! Phi-1.5 and Phi-2: LayerNorm, biases everywhere, and an ungated feed-forward block in parallel to attention, with
//! a shared norm before both.

use crate::{
    Architecture, AttentionConfig, DecoderConfig, FeedForwardKind, LayerConfig, MlpConfig, ModelError,
    NormConfig, NormKind, NormPlace, QkSpan, TensorSource,
    architecture::Names,
    family::{self, Defaults, LLAMA},
    fields::Fields,
    names::renamed,
    rope_fields::{RopeContext, context_length, rope},
};

/// Defaults of transformers' `PhiConfig`.
const DEFAULTS: Defaults = Defaults { vocab_size: 51_200, hidden_size: 2048, num_layers: 24, ..LLAMA };

/// Reads the config.
pub(crate) fn architecture(fields: &Fields<'_>) -> Result<Architecture, ModelError> {
    let heads = family::heads(fields, &DEFAULTS)?;
    let context = family::rope_context(fields, &DEFAULTS, heads)?;
    let partial = fields.or("partial_rotary_factor", 0.5)?;
    let rope = rope(fields, RopeContext { partial, partly: true, ..context })?;
    let max_position_embeddings = fields.or("max_position_embeddings", DEFAULTS.context_length)?;
    let context_length = context_length(max_position_embeddings, &rope);
    let attention = AttentionConfig {
        qkv_bias: true,
        output_bias: true,
        rope: Some(rope),
        ..AttentionConfig::new(heads.num_heads, heads.num_kv_heads, heads.head_dim)
    };
    let mlp = MlpConfig {
        intermediate_size: fields.or("intermediate_size", 8192)?,
        gated: false,
        bias: true,
        activation: fields.activation("hidden_act", "gelu_new")?,
    };
    let layer = LayerConfig {
        norms: NormPlace::Shared,
        parallel: true,
        ..LayerConfig::new(attention, FeedForwardKind::Mlp(mlp))
    };
    let norm = NormConfig { kind: NormKind::Layer, eps: fields.or("layer_norm_eps", 1e-5)? };
    let sizes = [
        fields.or("vocab_size", DEFAULTS.vocab_size)?,
        fields.or("hidden_size", DEFAULTS.hidden_size)?,
        context_length,
    ];
    let layers = vec![layer; fields.num_layers("num_hidden_layers", DEFAULTS.num_layers)?];
    let mut decoder = DecoderConfig {
        tie_word_embeddings: fields.or("tie_word_embeddings", false)?,
        head_bias: true,
        ..DecoderConfig::new(fields.model_type, sizes, norm, layers)
    };
    if fields.or("qk_layernorm", false)? {
        decoder.norm_queries_and_keys(QkSpan::Head);
    }
    const OWN: &[(&str, &str)] = &[
        ("self_attn.o_proj.", "self_attn.dense."),
        ("self_attn.q_norm.", "self_attn.q_layernorm."),
        ("self_attn.k_norm.", "self_attn.k_layernorm."),
        ("mlp.up_proj.", "mlp.fc1."),
        ("mlp.down_proj.", "mlp.fc2."),
        ("model.norm.", "model.final_layernorm."),
    ];
    let names = Names { source: |_, name| TensorSource::whole(renamed(name, OWN)), ..Names::LLAMA };
    Architecture::new(decoder, names)
}
