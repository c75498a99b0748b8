//! Gemma 1: Llama with (1 + w) norms, GeGLU, and embeddings that are multiplied by sqrt(d) as inputs.

use crate::{
    Activation, Architecture, DecoderConfig, ModelError, NormKind,
    architecture::Names,
    family::{self, Defaults, LLAMA},
    fields::Fields,
};

/// Defaults of transformers' `GemmaConfig`.
const DEFAULTS: Defaults = Defaults {
    vocab_size: 256_000,
    hidden_size: 3072,
    intermediate_size: 24_576,
    num_layers: 28,
    num_heads: 16,
    num_kv_heads: Some(16),
    head_dim: Some(256),
    context_length: 8192,
    tied: true,
    activation: ("hidden_act", "gelu_pytorch_tanh"),
    ..LLAMA
};

/// Reads the config.
pub(crate) fn architecture(fields: &Fields<'_>) -> Result<Architecture, ModelError> {
    let mut decoder = family::decoder(fields, &DEFAULTS)?;
    embed_like_gemma(&mut decoder);
    // The configs of the first releases have "gelu", but the models use its tanh approximation.
    decoder.mlps_mut().filter(|mlp| mlp.activation == Activation::Gelu).for_each(|mlp| {
        mlp.activation = Activation::GeluTanh;
    });
    Architecture::new(decoder, Names::LLAMA)
}

/// The common options of all Gemmas: (1 + w) norms and the factor sqrt(d).
pub(crate) fn embed_like_gemma(decoder: &mut DecoderConfig) {
    decoder.set_norm_kind(NormKind::RmsPlusOne);
    decoder.embedding_scale = (decoder.hidden_size as f64).sqrt();
}
