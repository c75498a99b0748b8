//! Mistral 7B and its descendants: Llama with a sliding window in every layer, or in none.

use crate::{
    Architecture, DecoderConfig, ModelError,
    architecture::Names,
    family::{self, Defaults, LLAMA},
    fields::Fields,
};

/// Defaults of transformers' `MistralConfig`.
pub(crate) const DEFAULTS: Defaults =
    Defaults { intermediate_size: 14_336, num_kv_heads: Some(8), context_length: 131_072, ..LLAMA };

/// Reads the config.
pub(crate) fn architecture(fields: &Fields<'_>) -> Result<Architecture, ModelError> {
    Architecture::new(decoder(fields)?, Names::LLAMA)
}

pub(super) fn decoder(fields: &Fields<'_>) -> Result<DecoderConfig, ModelError> {
    let mut decoder = family::decoder(fields, &DEFAULTS)?;
    for (_, attention) in decoder.attentions_mut() {
        (attention.qkv_bias, attention.output_bias) = (false, false);
    }
    // If the config has `layer_types`, transformers treats it as a Ministral, with windows by layer.
    let window = fields.nullable("sliding_window", Some(4096))?;
    let sliding = fields.sliding_layers(decoder.layers.len(), |_| window.is_some())?;
    decoder.slide(fields, &sliding, window)?;
    Ok(decoder)
}
