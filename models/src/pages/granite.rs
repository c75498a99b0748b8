//! Granite 3: Llama with factors on the embedding, the scores, the outputs of blocks, and the logits.

use crate::{
    Architecture, DecoderConfig, ModelError,
    architecture::Names,
    family::{self, LLAMA},
    fields::Fields,
};

/// Reads the config.
pub(crate) fn architecture(fields: &Fields<'_>) -> Result<Architecture, ModelError> {
    let mut decoder = family::decoder(fields, &LLAMA)?;
    let mlp_bias = fields.or("mlp_bias", false)?;
    decoder.mlps_mut().for_each(|mlp| mlp.bias = mlp_bias);
    multiply(&mut decoder, fields)?;
    Architecture::new(decoder, Names::LLAMA)
}

/// Sets Granite's factors.
pub(super) fn multiply(decoder: &mut DecoderConfig, fields: &Fields<'_>) -> Result<(), ModelError> {
    decoder.embedding_scale = fields.or("embedding_multiplier", 1.0)?;
    decoder.logit_scale = fields.or("logits_scaling", 1.0f64)?.recip();
    let residual = fields.or("residual_multiplier", 1.0)?;
    decoder.layers.iter_mut().for_each(|layer| layer.residual_scale = residual);
    let scale = fields.or("attention_multiplier", 1.0)?;
    decoder.attentions_mut().for_each(|(_, attention)| attention.scale = scale);
    Ok(())
}
