//! Gemma 2: Gemma with norms before and after each block, soft caps on scores and logits, and a sliding window in
//! every other layer.

use crate::{
    Architecture, ModelError, NormPlace,
    architecture::Names,
    family::{self, Defaults, LLAMA},
    fields::Fields,
    pages::gemma::embed_like_gemma,
};

/// Defaults of transformers' `Gemma2Config`.
pub(crate) const DEFAULTS: Defaults = Defaults {
    vocab_size: 256_000,
    hidden_size: 2304,
    intermediate_size: 9216,
    num_layers: 26,
    num_heads: 8,
    num_kv_heads: Some(4),
    head_dim: Some(256),
    context_length: 8192,
    tied: true,
    activation: ("hidden_activation", "gelu_pytorch_tanh"),
    ..LLAMA
};

/// Reads the config.
pub(crate) fn architecture(fields: &Fields<'_>) -> Result<Architecture, ModelError> {
    let mut decoder = family::decoder(fields, &DEFAULTS)?;
    embed_like_gemma(&mut decoder);
    decoder.logit_softcap = fields.nullable("final_logit_softcapping", Some(30.0))?;
    let softcap = fields.nullable("attn_logit_softcapping", Some(50.0))?;
    let scale = fields.or("query_pre_attn_scalar", 256.0f64)?.powf(-0.5);
    for (_, attention) in decoder.attentions_mut() {
        (attention.scale, attention.softcap) = (scale, softcap);
    }
    decoder.layers.iter_mut().for_each(|layer| layer.norms = NormPlace::Around);
    let sliding = fields.sliding_layers(decoder.layers.len(), |i| i.is_multiple_of(2))?;
    decoder.slide(fields, &sliding, fields.nullable("sliding_window", Some(4096))?)?;
    Architecture::new(decoder, Names::LLAMA)
}
