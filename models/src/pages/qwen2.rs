//! Qwen 1.5 to 2.5 (dense), QwQ-32B, DAPO-Qwen-32B and the Qwen distillations of DeepSeek-R1.
//!
//! Llama with biases on q, k and v. The later layers can have a sliding window.

use crate::{
    Architecture, DecoderConfig, ModelError,
    architecture::Names,
    family::{self, Defaults, LLAMA},
    fields::Fields,
};

/// Defaults of transformers' `Qwen2Config`.
pub(crate) const DEFAULTS: Defaults = Defaults {
    vocab_size: 151_936,
    intermediate_size: 22_016,
    num_kv_heads: Some(32),
    context_length: 32_768,
    ..LLAMA
};

/// Reads the config.
pub(crate) fn architecture(fields: &Fields<'_>) -> Result<Architecture, ModelError> {
    let mut decoder = family::decoder(fields, &DEFAULTS)?;
    for (_, attention) in decoder.attentions_mut() {
        // `attention_bias` is ignored, because the class has no such field.
        (attention.qkv_bias, attention.output_bias) = (true, false);
    }
    slide(&mut decoder, fields, 28)?;
    Architecture::new(decoder, Names::LLAMA)
}

/// Sets the sliding windows of Qwen2 and Qwen3: if there are any, in the layers from `max_window_layers` on.
pub(crate) fn slide(
    decoder: &mut DecoderConfig,
    fields: &Fields<'_>,
    first: usize,
) -> Result<(), ModelError> {
    let window = match fields.or("use_sliding_window", false)? {
        true => fields.nullable("sliding_window", Some(4096))?,
        false => None,
    };
    let first = fields.or("max_window_layers", first)?;
    let sliding = fields.sliding_layers(decoder.layers.len(), |i| window.is_some() && i >= first)?;
    decoder.slide(fields, &sliding, window)
}
