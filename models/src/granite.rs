//! Granite 3: Llama with a factor on the embedding, the scores, what blocks add, and the logits.

use serde_json::Value;

use crate::{
    Architecture, ModelError,
    architecture::Names,
    family::{self, LLAMA},
    fields::Fields,
};

/// As `config.json` spells it.
pub const MODEL_TYPE: &str = "granite";

/// Reads the config.
pub(crate) fn architecture(config: &Value) -> Result<Architecture, ModelError> {
    let fields = Fields::new(config, MODEL_TYPE)?;
    let mut decoder = family::decoder(&fields, &LLAMA)?;
    let mlp_bias = fields.or("mlp_bias", false)?;
    decoder.mlps_mut().for_each(|mlp| mlp.bias = mlp_bias);
    decoder.embedding_scale = fields.or("embedding_multiplier", 1.0)?;
    decoder.logit_scale = fields.or("logits_scaling", 1.0f64)?.recip();
    let residual = fields.or("residual_multiplier", 1.0)?;
    decoder.layers.iter_mut().for_each(|layer| layer.residual_scale = residual);
    let scale = fields.or("attention_multiplier", 1.0)?;
    decoder.attentions_mut().for_each(|(_, attention)| attention.scale = scale);
    Architecture::new(decoder, Names::LLAMA)
}
