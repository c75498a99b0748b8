//! Seed-OSS: Llama with biases on q, k and v, and optionally on o.

use crate::{
    Architecture, ModelError,
    architecture::Names,
    family::{self, Defaults, LLAMA},
    fields::Fields,
};

/// Defaults of transformers' `SeedOssConfig`.
const DEFAULTS: Defaults = Defaults {
    vocab_size: 155_136,
    intermediate_size: 27_648,
    num_layers: 64,
    num_heads: 80,
    num_kv_heads: Some(8),
    head_dim: Some(128),
    context_length: 524_288,
    ..LLAMA
};

/// Reads the config.
pub(crate) fn architecture(fields: &Fields<'_>) -> Result<Architecture, ModelError> {
    let mut decoder = family::decoder(fields, &DEFAULTS)?;
    let (qkv, output) = (fields.or("attention_bias", true)?, fields.or("attention_out_bias", false)?);
    for (_, attention) in decoder.attentions_mut() {
        (attention.qkv_bias, attention.output_bias) = (qkv, output);
    }
    let mlp_bias = fields.or("mlp_bias", false)?;
    decoder.mlps_mut().for_each(|mlp| mlp.bias = mlp_bias);
    Architecture::new(decoder, Names::LLAMA)
}
