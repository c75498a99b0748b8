//! SmolLM3: Llama with some layers that have no rotary embedding.

use crate::{
    Architecture, ModelError,
    architecture::Names,
    family::{self, Defaults, LLAMA},
    fields::Fields,
};

/// Defaults of transformers' `SmolLM3Config`.
const DEFAULTS: Defaults = Defaults {
    vocab_size: 128_256,
    hidden_size: 2048,
    num_layers: 36,
    num_heads: 16,
    num_kv_heads: Some(4),
    context_length: 32_768,
    tied: true,
    theta: 2e6,
    ..LLAMA
};

/// Reads the config.
pub(crate) fn architecture(fields: &Fields<'_>) -> Result<Architecture, ModelError> {
    let mut decoder = family::decoder(fields, &DEFAULTS)?;
    let mlp_bias = fields.or("mlp_bias", false)?;
    decoder.mlps_mut().for_each(|mlp| mlp.bias = mlp_bias);
    let layers = decoder.layers.len();
    let interval: usize = fields.or("no_rope_layer_interval", 4)?;
    // In spite of the field's name, 1 means that a layer has a rotary embedding.
    let turned = match fields.get::<Vec<u8>>("no_rope_layers")? {
        None => (0..layers).map(|i| !(i + 1).is_multiple_of(interval)).collect(),
        Some(listed) => {
            fields.one_for_each_layer("no_rope_layers", listed.len(), layers)?;
            listed.iter().map(|&flag| flag != 0).collect::<Vec<bool>>()
        }
    };
    let window: Option<usize> = fields.get("sliding_window")?;
    let slides = fields.or("use_sliding_window", false)? && window.is_some();
    let sliding = fields.sliding_layers(layers, |i| slides && !turned[i])?;
    decoder.slide(fields, &sliding, window)?;
    for (index, attention) in decoder.attentions_mut() {
        if !turned[index] {
            attention.rope = None;
        }
    }
    Architecture::new(decoder, Names::LLAMA)
}
