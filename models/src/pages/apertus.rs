//! Apertus: Llama with norms on each head of q and k, and an ungated feed-forward block with xIELU.

use serde_json::json;

use crate::{
    Architecture, ModelError, QkSpan, TensorSource,
    architecture::Names,
    family::{self, Defaults, LLAMA},
    fields::Fields,
    names::renamed,
};

/// Defaults of transformers' `ApertusConfig`.
const DEFAULTS: Defaults = Defaults {
    vocab_size: 131_072,
    intermediate_size: 14_336,
    context_length: 65_536,
    norm_eps: 1e-5,
    theta: 12e6,
    activation: ("hidden_act", "xielu"),
    ..LLAMA
};

/// Reads the config.
pub(crate) fn architecture(fields: &Fields<'_>) -> Result<Architecture, ModelError> {
    let with_rope = fields.with_rope(json!({
        "rope_type": "llama3", "rope_theta": 12e6, "factor": 8.0, "original_max_position_embeddings": 8192,
        "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    }));
    let fields = &Fields::new(&with_rope, fields.model_type)?;
    let mut decoder = family::decoder(fields, &DEFAULTS)?;
    decoder.mlps_mut().for_each(|mlp| mlp.gated = false);
    decoder.norm_queries_and_keys(QkSpan::Head);
    const IN_LAYERS: &[(&str, &str)] = &[
        ("input_layernorm.", "attention_layernorm."),
        ("post_attention_layernorm.", "feedforward_layernorm."),
    ];
    let names = Names { source: |_, name| TensorSource::whole(renamed(name, IN_LAYERS)), ..Names::LLAMA };
    Architecture::new(decoder, names)
}
